"""What a group has parked, as one of its workers sees it; and the pause where to park would help nobody."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from .. import wire
from ..signals import event_dead
from . import failures, groups
from .decoding import Decoding
from .failures import Failure, Parked, Retry, backoff
from .groups import Lease
from .holding import Holding
from .pieces import Piece
from .positions import numbers
from .reading import Key, Position

logger = logging.getLogger("pgsignals.durable")

_ALL_FAIL = 10
"""Events that fail one after the other, before any other was handled, and mean that not the events are at fault. After
each pause that they led to twice as many are tried, up to all that were read: a few bad ones do not stop the rest."""

_MOST_PAUSES = 20
"""Pauses in a row, of some hours together, after which the events are at fault nevertheless."""

_MOST_DUE = 100
"""Parked events that are tried again at once."""

_LOOK_AGAIN = 1.0
"""Seconds after which a worker looks again which keys are blocked, and whether its group is paused."""

_LOOK_SOON = 0.1


def everything_fails(failed: Collection[Failure], read: int, pauses: int) -> bool:
    """Whether what failed, before anything was handled, says that not the events are at fault but what they need.

    A receiver that raises Retry speaks of its event, and not of a service that is away.
    """
    if read < _ALL_FAIL or pauses >= _MOST_PAUSES:
        return False
    errors = sum(1 for one in failed if one.error is not None and not isinstance(one.error, Retry))
    # Those behind one of their key count with it where nothing else was read.
    return errors >= (_ALL_FAIL if len(failed) == read else _ALL_FAIL << pauses)


class Parking:
    """For one worker, in its thread."""

    def __init__(self, holding: Holding, decoding: Decoding) -> None:
        self.blocked: set[Key] = set()
        """Keys of which events are parked, so that others wait behind them."""
        self.is_paused = False
        """Whether somebody has paused the group."""
        self._holding = holding
        self._decoding = decoding
        self._group = holding.group
        self._looked = 0.0

    # What others did, too.

    def look(self) -> None:
        """See now and then what is parked, and whether the group is paused."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN:
            return
        self._looked = now
        holding = self._holding
        held = numbers(holding.leases.values())
        self.is_paused = groups.is_paused(holding.connection, self._group)
        self.blocked = failures.blocked(holding.connection, self._group, holding.partitions, held)

    def look_at_once(self) -> None:
        """Have the next `look` do so."""
        self._looked = 0.0

    def look_soon(self) -> None:
        """Have a `look` in a moment do so."""
        self._looked = min(self._looked, time.monotonic() - _LOOK_AGAIN + _LOOK_SOON)

    def next_due(self) -> float | None:
        """Seconds until a parked event is to be tried again; None where there is none."""
        holding = self._holding
        held = numbers(holding.leases.values())
        due = failures.next_due(holding.connection, self._group, holding.partitions, held)
        if due is not None and not self.blocked:
            # Somebody else has parked it.
            self.look_at_once()
        return due

    def due(self) -> list[tuple[Parked, Lease]]:
        """Parked events whose time has come, each with the lease of its partition."""
        holding = self._holding
        leases = {lease.number: lease for lease in holding.leases.values()}
        found = failures.due(holding.connection, self._group, holding.partitions, list(leases), _MOST_DUE)
        return [(one, leases[one.row[7] % holding.partitions]) for one in found]

    # What becomes of events that failed.

    def park(
        self,
        failed: Sequence[Failure],
        leases: Sequence[Lease],
        after: Position,
        careful: int | None = None,
        handled: int = 0,
    ) -> None:
        """Keep them, and move on, in one transaction. Raises Fenced."""
        connection = self._holding.connection
        with connection.transaction():
            failures.park(connection, self._group, failed)
            self._holding.move(leases, after, careful=careful, handled=handled)
        self.tell_of_the_dead(failed)

    def put_off(self, one: Parked, lease: Lease, failure: Failure) -> None:
        """Keep one that is parked for another time, or as a dead letter. Raises Fenced."""
        failures.postpone(self._holding.connection, one, lease, self._group, failure)
        self.tell_of_the_dead([failure])

    def tell_of_the_dead(self, parked: Sequence[Failure]) -> None:
        """Say which of them are not tried again, in the log and by the signal."""
        for one in parked:
            if one.is_final:
                self._tell(one)

    def _tell(self, dead: Failure) -> None:
        logger.error(
            "The group %r gives event %d up after %d attempts (%s). It is kept as a dead letter.",
            self._group,
            dead.row[0],
            dead.attempts,
            dead.summary,
        )
        try:
            event = self._decoding.event(dead.row)
        except wire.WireError:
            event = None
        event_dead.send_robust(sender=self._group, group=self._group, event=event, exception=dead.error)

    def pause(self, piece: Piece, pauses: int, failed: Collection[Failure]) -> None:
        """Everything fails: a database or a service is away, and parking it all would help nobody. Raises Fenced."""
        wait = backoff(pauses)
        self.blocked = set()
        self.look_at_once()
        self._holding.move(piece.leases, piece.position, failures=pauses, wait=wait)
        self._holding.wait(piece.leases, wait)
        logger.error(
            "The first %d events of the group %r failed, all of them; the group pauses for %.1f s, and nothing is "
            "counted against the events (%s).",
            len(failed),
            self._group,
            wait,
            next(one.summary for one in failed if one.error is not None),
        )
