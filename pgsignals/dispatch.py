"""Calls receivers, and keeps the failure of one from everything else.

Synchronous receivers run in one worker thread, in the order of events; a batch crosses the border between threads
once. Asynchronous receivers run in the relay's event loop, one after the other, in one task. Events wait in a buffer
bounded by bytes: where receivers are too slow the oldest give way, and that is announced as a gap.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections, connections

from . import conf
from .event import PgEvent
from .receivers import Receiver, Registry
from .receivers import registry as the_registry
from .signals import EventSignal, pg_event, receiver_failed, relay_connected, relay_gap
from .sink import START, Gap, Sink

logger = logging.getLogger("pgsignals.dispatch")

_OVERHEAD = 200
"""Bytes that an event occupies besides its payload, or a gap, roughly."""

Item = Sequence[PgEvent] | Gap


class Buffer:
    """Items that wait, oldest first, bounded by bytes. Thread-safe."""

    def __init__(self, database: str, megabytes: int) -> None:
        self._database = database
        self._limit = megabytes * 1_000_000
        self._items: deque[tuple[Item, int, datetime]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._overflow: Gap | None = None
        """What was dropped since `take`."""
        self._lock = threading.Lock()

    def put(self, item: Item, size: int = 0) -> None:
        """Append; the oldest items give way where there are too many bytes."""
        size += _OVERHEAD * (1 if isinstance(item, Gap) else len(item))
        with self._lock:
            self._items.append((item, size, datetime.now(UTC)))
            self._bytes += size
            while self._bytes > self._limit and len(self._items) > 1:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        item, size, arrived = self._items.popleft()
        self._bytes -= size
        if self._overflow is None:
            # Here, and not only when they are taken: a receiver may hang for ever.
            logger.warning("Receivers are too slow: the buffer is full, and its oldest events are dropped.")
        # A gap that nobody heard of becomes a part of this one.
        gaps = [one for one in (self._overflow, item) if isinstance(one, Gap)]
        self._overflow = Gap(
            self._database,
            since=min([arrived, *(gap.since for gap in gaps)]),
            until=datetime.now(UTC),
            cause="overflow",
            connected=any(gap.connected for gap in gaps),
        )
        self._dropped += 0 if isinstance(item, Gap) else len(item)

    def take(self) -> list[Item]:
        """Everything that waits, after the gap that an overflow left."""
        with self._lock:
            items: list[Item] = [item for item, _, _ in self._items]
            self._items.clear()
            self._bytes = 0
            if self._overflow is not None:
                cause = f"overflow: {self._dropped} events waited longer than the buffer of receivers is big"
                items.insert(0, replace(self._overflow, cause=cause))
                logger.warning("Events were dropped (%s); receivers of relay_gap are told.", cause)
                self._dropped, self._overflow = 0, None
            return items

    def __len__(self) -> int:
        """The number of events that wait."""
        with self._lock:
            return sum(len(item) for item, _, _ in self._items if not isinstance(item, Gap))


class ReceiversSink(Sink):
    """Gives events to the receivers of a registry, and to the signal `pg_event`.

    which: `all` receivers, or those that run `everywhere`.
    stop_within: seconds that a running receiver may take to finish when the relay stops; None waits as long as it
        takes.
    """

    def __init__(
        self,
        database: str,
        registry: Registry = the_registry,
        which: str = "all",
        stop_within: float | None = None,
    ) -> None:
        self.registry = registry
        self.which = which
        self.stop_within = stop_within
        megabytes = conf.get().BUFFER
        self._for_thread = Buffer(database, megabytes)
        self._for_loop = Buffer(database, megabytes)
        self._stopping = False
        self._wake_thread = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, name="pgsignals-receivers", daemon=True)
        self._wake_loop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._async_left = 0
        """Events that the task has taken, and no receiver has seen yet."""

    async def start(self) -> None:
        """Start the thread and the task."""
        self._thread.start()
        self._task = asyncio.create_task(self._work_async(), name="pgsignals-receivers")

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        """Hand the events on where somebody waits for them."""
        wanted = [receiver.is_async for receiver in self.registry if self._wants(receiver)]
        if pg_event.receivers or not all(wanted):
            self._for_thread.put(events, size)
            self._wake_thread.release()
        if any(wanted):
            self._for_loop.put(events, size)
            self._wake_loop.set()

    def gap(self, gap: Gap) -> None:
        """Signals go through the worker thread: in order with events, and where blocking harms nobody else."""
        self._for_thread.put(gap)
        self._wake_thread.release()

    async def stop(self) -> None:
        """Let the running receivers finish, and drop what waits."""
        self._stopping = True
        self._wake_thread.release()
        self._wake_loop.set()
        await asyncio.to_thread(self._thread.join, self.stop_within)
        if self._thread.is_alive():
            logger.warning("A receiver still runs after %s s; it is left behind.", self.stop_within)
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self.stop_within)
            self._task.cancel()
        left = len(self._for_thread) + len(self._for_loop) + self._async_left
        if left:
            logger.warning("Stopped with %d events that no receiver had seen yet; fast events are not kept.", left)

    def _wants(self, receiver: Receiver) -> bool:
        return self.which == "all" or receiver.everywhere

    def _matching(self, event: PgEvent, is_async: bool) -> list[Receiver]:
        return [one for one in self.registry.matching(event) if one.is_async is is_async and self._wants(one)]

    # The worker thread.

    def _work(self) -> None:
        while not self._stopping:
            self._wake_thread.acquire()
            if items := self._for_thread.take():
                self._with_fresh_connections(items)
        connections.close_all()

    def _with_fresh_connections(self, items: list[Item]) -> None:
        # As around a request: a connection that died, or is too old, is not handed to the next receiver.
        close_old_connections()
        for place, item in enumerate(items):
            if isinstance(item, Gap):
                _announce(item)
            elif self._stopping or not self._each(item):
                self._give_back(items[place:])
                break
        close_old_connections()

    def _each(self, events: Sequence[PgEvent]) -> bool:
        for event in events:
            if self._stopping:
                return False
            if pg_event.receivers:
                _send(pg_event, event)
            for receiver in self._matching(event, is_async=False):
                self._call(receiver, event)
        return True

    def _give_back(self, items: list[Item]) -> None:
        for item in items:
            self._for_thread.put(item)

    @staticmethod
    def _call(receiver: Receiver, event: PgEvent) -> None:
        try:
            receiver.function(event)
        except BaseException as error:  # SystemExit too: a receiver may end neither the thread nor the relay
            report(receiver.function, receiver.name, event, error)
            # The next receiver of the same event gets no connection that died under this one.
            close_old_connections()

    # The task in the event loop.

    async def _work_async(self) -> None:
        while not self._stopping:
            await self._wake_loop.wait()
            self._wake_loop.clear()
            items = self._for_loop.take()
            self._async_left = sum(len(item) for item in items if not isinstance(item, Gap))
            for item in items:
                if isinstance(item, Gap):
                    self.gap(item)
                    continue
                for event in item:
                    if self._stopping:
                        return
                    await self._each_async(event)
                    self._async_left -= 1
            # Once for all that waited: it costs a way to another thread and back.
            await _refresh_async_connections()

    async def _each_async(self, event: PgEvent) -> None:
        for receiver in self._matching(event, is_async=True):
            if self._stopping:
                return
            await self._call_async(receiver, event)

    @staticmethod
    async def _call_async(receiver: Receiver, event: PgEvent) -> None:
        try:
            await receiver.function(event)
        except BaseException as error:
            # A receiver that raises CancelledError itself has failed; a task that is cancelled from outside ends.
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            report(receiver.function, receiver.name, event, error)
            await _refresh_async_connections()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _refresh_async_connections() -> None:
    """In the thread in which Django runs the queries of asynchronous code."""
    await sync_to_async(close_old_connections)()


def _send(signal: EventSignal, event: PgEvent) -> None:
    sender = signal.sender(event.model or event.channel)
    if not signal.has_listeners(sender):
        return
    try:
        for receiver, answer in signal.send_robust(sender=sender, event=event):
            if isinstance(answer, Exception):
                report(receiver, repr(receiver), event, answer)
    except BaseException as error:  # what send_robust lets through, such as SystemExit
        report(signal.send_robust, "a receiver of the signal pg_event", event, error)


def _announce(gap: Gap) -> None:
    if gap.connected:
        _tell(relay_connected, database=gap.database)
    if gap.cause != START:
        _tell(relay_gap, database=gap.database, since=gap.since, until=gap.until, cause=gap.cause)


def _tell(signal: EventSignal, database: str, **arguments: Any) -> None:
    try:
        signal.send_robust(sender=signal.sender(database), database=database, **arguments)  # logs what raises
    except BaseException:
        logger.exception("A receiver of a signal of the relay ended with more than an exception.")


def report(function: Callable[..., Any], name: str, event: PgEvent, error: BaseException) -> None:
    """Say that a receiver raised: a log line with the traceback, and the signal `receiver_failed`. Never raises."""
    try:
        logger.error(
            "The receiver %s raised %s for %r. Other receivers and later events are not affected.",
            name,
            type(error).__name__,
            event,
            exc_info=error,
        )
        receiver_failed.send_robust(sender=function, receiver=function, event=event, exception=error)
    except BaseException:
        logger.exception("That a receiver failed could not be reported to all who wait for it.")
