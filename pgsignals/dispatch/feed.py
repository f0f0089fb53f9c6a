"""Which receiver is called with what, in which order: for the synchronous receivers, or for the asynchronous ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from .. import conf
from ..event import PgEvent, together
from ..receivers import Receiver, Registry
from ..signals import pg_event
from ..sink import START, Gap
from .buffer import Buffer
from .calling import SIGNAL_GAP, SIGNAL_PG_EVENT, Argument

Call = tuple[Receiver, Argument]


class Feed:
    """Takes what waits in a buffer, and makes calls of it.

    is_async: for which kind of receivers. The Django signals are synchronous.
    wants: whether a receiver is to be called in this process.
    """

    def __init__(
        self,
        buffer: Buffer,
        registry: Registry,
        is_async: bool,
        wants: Callable[[Receiver], bool],
    ) -> None:
        self.buffer = buffer
        self._registry = registry
        self._is_async = is_async
        self._wants = wants
        self._in_hand = 0
        self._in_hand_since: datetime | None = None
        self._batches: dict[Receiver, list[PgEvent]] = defaultdict(list)
        self._limit = conf.get().BATCH

    def calls(self) -> Iterator[Call]:
        """The calls for all that waits now, lazily: each is made when the one before has been done."""
        self._in_hand_since = self.buffer.oldest
        items = self.buffer.take()
        self._in_hand = sum(len(item) for item in items if not isinstance(item, Gap))
        for item in items:
            if isinstance(item, Gap):
                yield from self._of_gap(item)
            else:
                yield from self._of_events(item)
        for receiver in list(self._batches):
            yield receiver, together(self._batches.pop(receiver))
        self._in_hand_since = None

    def waiting(self) -> tuple[int, float]:
        """How many events wait, and for how many seconds the oldest has."""
        oldest = self._in_hand_since or self.buffer.oldest
        seconds = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0
        return self._in_hand + len(self.buffer), max(seconds, 0.0)

    def _of_events(self, events: Sequence[PgEvent]) -> Iterator[Call]:
        origin = None
        each: list[Receiver] = []
        batched: list[Receiver] = []
        for event in events:
            # All rows of a notification meet the same conditions.
            if event._origin is not origin:
                origin = event._origin
                each, batched = self._matching(event)
            self._in_hand -= 1
            for receiver in each:
                yield receiver, event
            for receiver in batched:
                self._batches[receiver].append(event)
                if len(self._batches[receiver]) >= self._limit:
                    yield receiver, together(self._batches.pop(receiver))

    def _matching(self, event: PgEvent) -> tuple[list[Receiver], list[Receiver]]:
        each: list[Receiver] = []
        batched: list[Receiver] = []
        if not self._is_async and pg_event.receivers:
            each.append(SIGNAL_PG_EVENT)
        for receiver in self._registry.matching(event):
            if receiver.is_async is self._is_async and self._wants(receiver):
                (batched if receiver.options.batch else each).append(receiver)
        return each, batched

    def _of_gap(self, gap: Gap) -> Iterator[Call]:
        if not self._is_async:
            yield SIGNAL_GAP, gap
        for receiver in self._registry.of_gaps(start=gap.cause == START):
            if receiver.is_async is self._is_async and self._wants(receiver):
                yield receiver, gap
