"""Which receiver is called with what, in which order: for the synchronous receivers, or for the asynchronous ones."""

from __future__ import annotations

import logging
import operator
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from .. import conf
from ..event import PgEvent, Source, together
from ..receivers import Receiver, Registry
from ..signals import pg_event
from ..sink import START, Gap
from .buffer import Buffer
from .calling import SIGNAL_GAP, SIGNAL_PG_EVENT, Argument

logger = logging.getLogger("pgsignals.dispatch")

Run = tuple[Receiver, Iterator[Argument]]
"""A receiver, and what it is to be called with, one after the other."""


class _Matched:
    """The receivers of one kind that get an event, those with batch=True apart."""

    __slots__ = ("batched", "each")

    def __init__(self, each: list[Receiver], batched: list[Receiver]) -> None:
        self.each = each
        self.batched = batched


class Feed:
    """Takes what waits in a buffer, and makes runs of calls of it.

    is_async: for which kind of receivers. The Django signals are synchronous.
    wants: whether a receiver is to be called in this process.
    lost: called with the gap that `abandon` leaves.
    """

    def __init__(
        self,
        buffer: Buffer,
        registry: Registry,
        is_async: bool,
        wants: Callable[[Receiver], bool],
        lost: Callable[[Gap], None],
    ) -> None:
        self.buffer = buffer
        self._lost = lost
        self._registry = registry
        self._is_async = is_async
        self._wants = wants
        self.is_alone = False
        """Whether nothing that was taken comes after the run."""
        self._later = 0
        """Events that were taken, and are in no run yet."""
        self._run: Iterator[Argument] = iter(())
        self.handed: Run | None = None
        """What has been handed, and nobody has begun."""
        self._taken_since: float | None = None
        self._batches: dict[Receiver, list[PgEvent]] = defaultdict(list)
        self._limit = conf.get().BATCH
        self._known: dict[Source, _Matched] = {}
        """Of those sources of which every event has the same receivers."""
        self._known_for: object = None

    def single(self, event: PgEvent) -> Run | None:
        """The run of an event that came alone, where nothing waits and a single receiver is known to get it."""
        if self.buffer or self._known_for != self._decisive():
            return None
        matched = self._known.get(event._source)
        if matched is None or len(matched.each) != 1 or matched.batched:
            return None
        return matched.each[0], iter((event,))

    def hand(self, run: Run) -> None:
        """Take it past the buffer: it comes when little happens, and each step on its way is felt.

        May be called from the thread that fills the buffer, while nobody works this feed off; whoever does so next
        finds it before all that comes later.
        """
        self._taken_since, self._run, self.handed = time.time(), run[1], run

    @property
    def has_more(self) -> bool:
        """Whether there is anything that is in no run yet."""
        return self.handed is not None or bool(self.buffer)

    def runs(self) -> Iterator[Run]:
        """The runs for all that waits now, lazily: each is made when the one before has been done."""
        if self.handed is not None:
            handed, self.handed, self.is_alone = self.handed, None, True
            yield handed
        # Between the question and the taking something may arrive.
        self._taken_since, self.is_alone = self.buffer.oldest or time.time(), False
        items = self.buffer.take()
        self._later = sum(len(item) for item in items if not isinstance(item, Gap))
        for item in items:
            if isinstance(item, Gap):
                yield from self._of_batches()
                yield from self._of_gap(item)
            else:
                yield from self._of_events(item)
        yield from self._of_batches()
        self._taken_since = None

    def waiting(self) -> tuple[int, float]:
        """How many events wait, and for how many seconds the oldest has."""
        oldest = self._taken_since or self.buffer.oldest
        seconds = time.time() - oldest if oldest else 0.0
        return self._later + operator.length_hint(self._run) + self.buffer.events, max(seconds, 0.0)

    def abandon(self, error: BaseException) -> None:
        """Give up what was taken and has not been worked off, because of an error that is no receiver's."""
        since = None
        if self.handed is None:
            since, self._taken_since, self._run = self._taken_since, None, iter(())
        # Otherwise nothing else was taken, and who is to begin with what was handed has been woken.
        self._later = 0
        self._batches.clear()
        if since is not None:
            cause = f"receivers could not be called: {type(error).__name__}"
            self._lost(
                Gap(self.buffer.database, datetime.fromtimestamp(since, UTC), datetime.now(UTC), cause, connected=False)
            )
        logger.error(
            "Calling receivers failed, and goes on with the events to come. %s.",
            "Nothing is lost" if since is None else "Those that had been taken may be lost; receivers of gaps are told",
            exc_info=error,
        )

    def _of_events(self, events: Sequence[PgEvent]) -> Iterator[Run]:
        """Neighbours that go to the same receivers make one run."""
        self._forget_what_changed()
        source = statement = matched = None
        start, settled = 0, False
        for place, event in enumerate(events):
            # Of one notification; or of one source, where nothing else decides.
            if event._statement is statement or (settled and event._source is source):
                continue
            source, statement = event._source, event._statement
            found = self._known.get(source)
            settled = found is not None
            if found is None:
                found = self._match(event)
            if found is not matched:
                if matched is not None:
                    yield from self._of_matched(matched, events[start:place])
                matched, start = found, place
        if matched is not None:
            yield from self._of_matched(matched, events[start:])

    def _of_matched(self, matched: _Matched, events: Sequence[PgEvent]) -> Iterator[Run]:
        self._later -= len(events)
        if len(matched.each) == 1:
            self._run = iter(events)
            yield matched.each[0], self._run
        elif matched.each:
            # Each event reaches all its receivers before the next one does.
            self._later += len(events)
            for event in events:
                self._later -= 1
                for receiver in matched.each:
                    yield receiver, iter((event,))
        for receiver in matched.batched:
            yield from self._of_batch(receiver, events)

    def _of_batch(self, receiver: Receiver, events: Sequence[PgEvent]) -> Iterator[Run]:
        batch = self._batches[receiver]
        batch += events
        while len(batch) >= self._limit:
            yield receiver, iter((together(batch[: self._limit]),))
            del batch[: self._limit]
        if not batch:
            del self._batches[receiver]

    def _of_batches(self) -> Iterator[Run]:
        for receiver in list(self._batches):
            yield receiver, iter((together(self._batches.pop(receiver)),))

    def _decisive(self) -> tuple[int, bool]:
        """What is known holds as long as this is the same."""
        return self._registry.version, bool(pg_event.receivers)

    def _forget_what_changed(self) -> None:
        now = self._decisive()
        if now != self._known_for:
            self._known, self._known_for = {}, now

    def forget(self) -> None:
        """What is wanted in this process has changed."""
        self._known_for = None

    def _match(self, event: PgEvent) -> _Matched:
        wanted = [
            receiver
            for receiver in self._registry.matching(event)
            if receiver.is_async is self._is_async and self._wants(receiver)
        ]
        each = [receiver for receiver in wanted if not receiver.options.batch]
        if not self._is_async and pg_event.receivers:
            each.insert(0, SIGNAL_PG_EVENT)
        found = _Matched(each, [receiver for receiver in wanted if receiver.options.batch])
        # Somebody may have connected to the signal, or disconnected, in the middle of the run.
        if self._known_for == self._decisive() and not self._registry.depends_on_more(event):
            self._known[event._source] = found
        return found

    def _of_gap(self, gap: Gap) -> Iterator[Run]:
        if not self._is_async:
            yield SIGNAL_GAP, iter((gap,))
        for receiver in self._registry.of_gaps(start=gap.cause == START):
            if receiver.is_async is self._is_async and self._wants(receiver):
                yield receiver, iter((gap,))
