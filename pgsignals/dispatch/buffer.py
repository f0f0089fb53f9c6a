"""What waits between the relay, which reads always, and receivers, which take their time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ..event import PgEvent
from ..sink import Gap

logger = logging.getLogger("pgsignals.dispatch")

_OVERHEAD = 200
"""Bytes that an event occupies besides its payload, or a gap, roughly."""

Item = Sequence[PgEvent] | Gap


class Buffer:
    """Items that wait, oldest first, bounded by bytes. Thread-safe.

    overflowed: called, in the thread that takes, with the gap that an overflow left; without it the gap is the first
        item that is taken.
    """

    def __init__(self, database: str, megabytes: int, overflowed: Callable[[Gap], None] | None = None) -> None:
        self.dropped = 0
        """Events that had to give way, since the start."""
        self.database = database
        self._limit = megabytes * 1_000_000
        self._items: deque[tuple[Item, int, float]] = deque()
        """With their sizes, and when they arrived (Unix time)."""
        self._bytes = 0
        self._dropped_before = 0
        self._overflowed = overflowed
        self._overflow: Gap | None = None
        """What was dropped since `take`."""
        self._lock = threading.Lock()

    def put(self, item: Item, size: int = 0) -> None:
        """Append; the oldest items give way where there are too many bytes."""
        size += _OVERHEAD * (1 if isinstance(item, Gap) else len(item))
        with self._lock:
            self._items.append((item, size, time.time()))
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
        now = datetime.now(UTC)
        self._overflow = Gap(
            self.database,
            # The clock may have been set back.
            since=min([now, datetime.fromtimestamp(arrived, UTC), *(gap.since for gap in gaps)]),
            until=now,
            cause="overflow",
            connected=any(gap.connected for gap in gaps),
        )
        self.dropped += 0 if isinstance(item, Gap) else len(item)

    def take(self) -> list[Item]:
        """Everything that waits."""
        with self._lock:
            waiting, self._items = self._items, deque()
            self._bytes = 0
            overflow, self._overflow = self._overflow, None
        items: list[Item] = [item for item, _, _ in waiting]
        if overflow is not None:
            count, self._dropped_before = self.dropped - self._dropped_before, self.dropped
            cause = f"overflow: {count} events waited longer than the buffer of receivers is big"
            overflow = replace(overflow, cause=cause)
            logger.warning("Events were dropped (%s); receivers of relay_gap are told.", cause)
            if self._overflowed is None:
                items.insert(0, overflow)
            else:
                self._overflowed(overflow)
        return items

    def __bool__(self) -> bool:
        """Whether anything waits, be it a gap alone."""
        return bool(self._items)

    @property
    def events(self) -> int:
        """The number of events that wait."""
        with self._lock:
            return sum(len(item) for item, _, _ in self._items if not isinstance(item, Gap))

    @property
    def oldest(self) -> float | None:
        """When the oldest item that waits arrived, Unix time."""
        # Without the lock: these are never emptied, only put aside as they are, and the last item does not drop.
        items = self._items
        return items[0][2] if items else None
