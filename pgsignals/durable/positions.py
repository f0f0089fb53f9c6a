"""How far a worker has read in each of its partitions, in memory and in the database.

What it handled and did not acknowledge yet stands in memory alone: the claim of the next piece acknowledges it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import groups
from .groups import Fenced, Lease
from .reading import Position


def numbers(leases: Iterable[Lease]) -> list[int]:
    """Of their partitions."""
    return [lease.number for lease in leases]


class Positions:
    """Those of one worker, in its thread."""

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}
        """By the partition's id."""
        self._dirty: set[int] = set()
        """Partitions of which events have been begun, or handled, that are not acknowledged yet."""
        self._unsaid = 0
        """How many these are."""
        self._stored = 0.0
        """When one was written last, by the monotonic clock."""

    def alike(self) -> list[list[Lease]]:
        """The leases that move on together: those of partitions at one position, in one state."""
        together: dict[tuple[Position, int | None, int | None, int, int], list[Lease]] = {}
        for lease in self.leases.values():
            state = (lease.position, lease.careful_id, lease.claimed_id, lease.claims, lease.failures)
            together.setdefault(state, []).append(lease)
        return list(together.values())

    def set(self, leases: Sequence[Lease], position: Position, careful: int | None = None, handled: int = 0) -> None:
        """In memory alone."""
        for lease in leases:
            self.leases[lease.id] = Lease(lease.id, lease.number, lease.epoch, position, careful, None, 0, 0)
        self._unsaid += handled

    def move(
        self, cursor: Any, leases: Sequence[Lease], position: Position, *, safely: bool = False, **said: Any
    ) -> list[Lease]:
        """Write a position. Returns the leases as they are then. Raises Fenced.

        cursor: one of psycopg's, or Django's where the position is to commit with what receivers wrote.
        said: as `groups.movement` has it.
        """
        said["handled"] = said.get("handled", 0) + self._unsaid
        given = groups.movement(leases, position, **said)
        cursor.execute(groups.SAFELY if safely else groups.LAZILY, given)
        if cursor.rowcount != len(leases):
            raise Fenced
        after = groups.moved(leases, given, position)
        moved = {lease.id: lease for lease in after}
        self.leases.update(moved)
        self._unsaid = 0
        self._stored = time.monotonic()
        self._dirty = self._dirty | moved.keys() if said.get("claimed") else self._dirty - moved.keys()
        return after

    def is_dirty(self, leases: Sequence[Lease]) -> bool:
        """Whether there is something to acknowledge."""
        return any(lease.id in self._dirty for lease in leases)

    def is_older(self, seconds: float) -> bool:
        """Whether the last that was written is older than that."""
        return time.monotonic() - self._stored > seconds

    @contextmanager
    def unless_rolled_back(self) -> Iterator[None]:
        """Around a transaction: what moved in it has not, if it fails."""
        before = (dict(self.leases), self._dirty, self._unsaid)
        try:
            yield
        except Exception:
            self.leases, self._dirty, self._unsaid = before
            raise

    def forget(self) -> None:
        """The partitions are this worker's no more."""
        self.leases = {}
        self._dirty = set()
        self._unsaid = 0
