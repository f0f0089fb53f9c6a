"""Parked events are tried again when their time has come, those of a key in order."""

from __future__ import annotations

from .. import wire
from ..decode import UnknownLabel
from ..event import PgEvent
from . import failures
from .atomic import AtomicGroup
from .decoding import Decoding
from .default import DefaultGroup
from .failures import Died, Failure, Parked, Retry
from .groups import Lease
from .handling import Handler
from .holding import Holding, Interrupted
from .parking import Parking
from .reading import Key, key

_LOOK_AT_UNREADABLE = 60.0
"""Seconds after which an event that waits, and that this code cannot read, is looked at again."""


class Retrying:
    """For one worker, in its thread."""

    def __init__(
        self,
        holding: Holding,
        decoding: Decoding,
        parking: Parking,
        handler: Handler,
        kind: DefaultGroup | AtomicGroup,
    ) -> None:
        self._holding = holding
        self._decoding = decoding
        self._parking = parking
        self._handler = handler
        self._kind = kind

    def go(self) -> bool:
        """Try those that are due. Whether there were any. Raises Fenced."""
        if not self._parking.blocked:
            return False
        due = self._parking.due()
        failed: set[Key] = set()
        for one, lease in due:
            try:
                self._holding.may_go_on()
            except Interrupted:
                break
            if key(one.row) not in failed and not self._retry(one, lease):
                failed.add(key(one.row))
        if due:
            self._parking.look_at_once()
            self._parking.look()
        return bool(due)

    def _retry(self, one: Parked, lease: Lease) -> bool:
        """Whether it is parked no more, so that the next of its key may be tried."""
        try:
            event = self._decoding.event(one.row)
        except UnknownLabel:
            # The project has that model no more; what was not parked is passed over, too.
            failures.forget(self._holding.connection.cursor(), one, lease)
            return True
        except wire.WireError as error:
            self._leave(one, lease, error)
            return False
        limit = self._handler.max_attempts(event)
        if one.attempts >= limit:
            text = f"the process ended while it handled this event, at attempt {one.attempts}"
            self._parking.put_off(one, lease, Failure(one.row, Died(text), one.attempts, limit))
            return True
        failure = self._attempt(one, lease, event, limit)
        if failure is None:
            return True
        self._parking.put_off(one, lease, failure)
        return failure.is_final

    def _attempt(self, one: Parked, lease: Lease, event: PgEvent, limit: int) -> Failure | None:
        failures.begin(self._holding.connection, one, lease)
        self._holding.handled += 1
        error = self._kind.retry(one, lease, event)
        return None if error is None else Failure(one.row, error, one.attempts + 1, limit)

    def _leave(self, one: Parked, lease: Lease, error: wire.WireError) -> None:
        """Newer code may read it: that is no attempt."""
        group = self._holding.group
        self._decoding.say_once("Event %d, which waits in the group %r, cannot be read: %s.", one.row[0], group, error)
        later = Failure(one.row, Retry(str(error), after=_LOOK_AT_UNREADABLE), 1, 2)
        failures.postpone(self._holding.connection, one, lease, group, later)
