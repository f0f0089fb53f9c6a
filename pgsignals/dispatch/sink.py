"""The sink that calls receivers: events wait in buffers, one for each kind of receivers, and are worked off."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta

from .. import conf
from ..event import PgEvent
from ..receivers import Receiver, Registry
from ..receivers import registry as the_registry
from ..signals import pg_event
from ..sink import START, Gap, Sink
from .buffer import Buffer
from .calling import Slowness
from .feed import Feed
from .looped import Looped
from .threaded import Threaded

logger = logging.getLogger("pgsignals.dispatch")

_WAKE_EVERY = 0.001
"""Seconds, at least, between two times that the receivers' thread is woken."""

_UNSURE = 32.0
"""Seconds before it takes over in which the relay before may have been deaf: in half a minute the server notices a line
that is dead, and within another second or two somebody else tries."""

_WATCH_EVERY = 0.25
"""Seconds between two looks at running receivers."""


class ReceiversSink(Sink):
    """Gives events to the receivers of a registry, and to the signal `pg_event`.

    which: `all` receivers, or those that run `everywhere`; or a function that chooses.
    stop_within: seconds that a running receiver may take to finish when the relay stops; None waits as long as it
        takes.
    """

    def __init__(
        self,
        database: str,
        registry: Registry = the_registry,
        which: str | Callable[[Receiver], bool] = "all",
        stop_within: float | None = None,
    ) -> None:
        self.registry = registry
        self.which = which
        self.stop_within = stop_within
        self._database = database
        self._held: frozenset[str] = frozenset()
        self._listens = False
        self._known_for: int | None = None
        """The registry's version when was looked who waits for anything."""
        self._for_threads = self._for_loops = False
        megabytes, slowness = conf.get().BUFFER, Slowness()
        self._for_thread = Buffer(database, megabytes, self.gap)
        self._for_loop = Buffer(database, megabytes, self.gap)
        self.threaded = Threaded(Feed(self._for_thread, registry, False, self._wants, self.gap), slowness)
        self.looped = Looped(Feed(self._for_loop, registry, True, self._wants, self.gap), slowness)
        self._watching: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = 0.0
        self._waking: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self.threaded.start()
        self._watching = asyncio.create_task(self._watch(), name="pgsignals-watch")

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        """Hand the events on where somebody waits for them."""
        if self._known_for != self.registry.version:
            self._see_who_waits()
        alone = len(events) == 1
        if self._for_loops and not (alone and self.looped.hand(events[0])):
            self._for_loop.put(events, size)
            self.looped.wake()
        if self._for_threads or pg_event.receivers:
            self._to_thread(events, size, alone)

    def takes(self) -> bool:
        """Whether a receiver, or the signal's, waits for any."""
        return bool(pg_event.receivers) or any(map(self._wants, self.registry))

    def _to_thread(self, events: Sequence[PgEvent], size: int, alone: bool) -> None:
        """The first of a burst at once, and then now and then: two threads that take turns are slower than one."""
        now = time.monotonic()
        if self._waking is None and (self._loop is None or now - self._woken >= _WAKE_EVERY):
            self._woken = now
            if not (alone and self.threaded.hand(events[0])):
                self._for_thread.put(events, size)
                self.threaded.wake()
            # Steps aside for an instant (tens of microseconds, once a millisecond at most): otherwise the thread waits
            # for the interpreter until the event loop has come to rest, which takes longer.
            time.sleep(0)
            return
        self._for_thread.put(events, size)
        if self._waking is None and self._loop is not None:
            self._waking = self._loop.call_later(_WAKE_EVERY, self._wake_later)

    def _wake_later(self) -> None:
        self._waking, self._woken = None, time.monotonic()
        self.threaded.wake()

    def _see_who_waits(self) -> None:
        self._known_for = self.registry.version
        wanted = [receiver.is_async for receiver in self.registry if self._wants(receiver)]
        self._for_threads, self._for_loops = not all(wanted), any(wanted)

    def gap(self, gap: Gap) -> None:
        """Signals go through the worker thread: in order with events, and where blocking harms nobody else.

        May be called from any thread.
        """
        self._listens = self._listens or gap.connected
        self._for_thread.put(gap)
        self.threaded.wake()
        wanted = self.registry.of_gaps(start=gap.cause == START)
        if self._loop is not None and any(receiver.is_async for receiver in wanted):
            self._for_loop.put(gap)
            self._loop.call_soon_threadsafe(self.looped.wake)

    def duties(self) -> Collection[str]:
        """To call the receivers with once=True, each."""
        return [one.duty for one in self.registry if one.duty is not None and self._chosen(one)]

    def lost(self, cause: str) -> None:
        """What is gained before the next gap lies in it."""
        self._listens = False

    def lead(self, held: frozenset[str]) -> None:
        """From now on those are called whose duty this relay has.

        What happened between the end of another relay and this moment they missed.
        """
        before, self._held = self._held, held
        gained = [one.name for one in self.registry if one.duty is not None and one.duty in held - before]
        if gained and self._listens:
            now, names = datetime.now(UTC), ", ".join(gained)
            cause = f"another relay called these receivers until now: {names}"
            self.gap(Gap(self._database, now - timedelta(seconds=_UNSURE), now, cause, connected=False))
        self._known_for = None
        self.threaded.feed.forget()
        self.looped.feed.forget()

    def waiting(self) -> tuple[int, float]:
        """Of both kinds of receivers together."""
        (threads, longest), (loops, longest_too) = self.threaded.feed.waiting(), self.looped.feed.waiting()
        return threads + loops, max(longest, longest_too)

    @property
    def dropped(self) -> int:
        """Events that had to give way in the buffers."""
        return self._for_thread.dropped + self._for_loop.dropped

    async def stop(self) -> None:
        """Let the running receivers finish, and drop what waits."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(self.threaded.stop(self.stop_within), self.looped.stop(self.stop_within))
        if left := self.waiting()[0]:
            logger.warning("Stopped with %d events that no receiver had seen yet; fast events are not kept.", left)

    def _wants(self, receiver: Receiver) -> bool:
        return self._chosen(receiver) and (receiver.duty is None or receiver.duty in self._held)

    def _chosen(self, receiver: Receiver) -> bool:
        if receiver.options.group is not None:
            return False  # the group's workers call it
        if callable(self.which):
            return self.which(receiver)
        return self.which == "all" or receiver.options.everywhere

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_EVERY)
            for kind in (self.threaded, self.looped):
                try:
                    kind.watch()
                except Exception:
                    logger.exception("Running receivers could not be watched. Trying again.")
