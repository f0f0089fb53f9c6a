"""A default group: its receivers run outside of any transaction, and get each event at least once.

A piece is claimed, its events are handled one after the other, and then those that want lists get theirs. The
acknowledgment is the claim of the next piece; where something failed it is written at once, with what is parked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..event import PgEvent
from . import failures
from .decoding import Wanted
from .failures import Failure, Parked
from .groups import Lease
from .handling import Handler
from .holding import Holding, Interrupted
from .parking import Parking, everything_fails
from .pieces import Piece, begin
from .reading import Key, Position, key


@dataclass(slots=True)
class _Outcome:
    """What became of a piece so far."""

    done: int = 0
    good: list[Wanted] = field(default_factory=list)
    failed: dict[int, Failure] = field(default_factory=dict)
    """By the event's id."""


class DefaultGroup:
    """How one worker handles its events."""

    def __init__(self, holding: Holding, parking: Parking, handler: Handler) -> None:
        self._holding = holding
        self._parking = parking
        self._handler = handler

    def handle(self, piece: Piece) -> None:
        """Handle a piece. Raises Fenced."""
        pauses = piece.leases[0].failures
        piece = begin(self._holding, piece, careful=piece.leases[0].careful_id)
        outcome, after = _Outcome(), piece.after
        try:
            while outcome.done < len(piece.wanted):
                self._holding.may_go_on()
                self._handle_some(piece.wanted, outcome)
                if not outcome.good and everything_fails(outcome.failed.values(), len(piece.wanted), pauses):
                    self._parking.pause(piece, pauses + 1, outcome.failed.values())
                    return
        except Interrupted:
            after = piece.at(outcome.done)
        if self._handler.has_batches and outcome.good and not self._handle_lists(outcome):
            outcome, after = _Outcome(), piece.position
        self._end(piece, outcome, after)

    def _handle_some(self, wanted: list[Wanted], outcome: _Outcome) -> None:
        """Many at once, where nothing stands in the way; otherwise one."""
        start, count, error = outcome.done, 0, None
        if not self._parking.blocked:
            count, error = self._handler.run(wanted, start, self._may_go_on)
            outcome.good += wanted[start : start + count]
            outcome.done += count
        if error is not None:
            self._fails(outcome, self._failed(wanted[outcome.done], 1, error))
        elif not count:
            one = wanted[start]
            failure = self._failure(one, 1, lists=False)
            if failure is None:
                outcome.good.append(one)
                outcome.done += 1
            else:
                self._fails(outcome, failure)

    def _fails(self, outcome: _Outcome, failure: Failure) -> None:
        outcome.failed[failure.row[0]] = failure
        outcome.done += 1

    def _may_go_on(self) -> bool:
        try:
            self._holding.may_go_on()
        except Interrupted:
            return False
        return True

    def _failure(self, one: Wanted, attempts: int, *, lists: bool) -> Failure | None:
        """Call the receivers for an event, unless one of its key is parked. None where that went well."""
        row, event = one
        if key(row) in self._parking.blocked:
            return Failure(row, None)
        error = self._handler.call_each(event, lists=lists)
        return None if error is None else self._failed(one, attempts, error)

    def _failed(self, one: Wanted, attempts: int, error: BaseException) -> Failure:
        """It failed, and those of its key wait behind it."""
        row, event = one
        self._parking.blocked.add(key(row))
        return Failure(row, error, attempts, self._handler.max_attempts(event))

    def _handle_lists(self, outcome: _Outcome) -> bool:
        """Whether they were gone through; not where another may have taken them over meanwhile.

        A worker that is told to end finishes the lists: receivers that want no lists have had these events already.
        """
        rows = {id(event): row for row, event in outcome.good}

        def key_of(event: PgEvent) -> Key:
            return key(rows[id(event)])

        try:
            found = self._handler.call_lists([event for _, event in outcome.good], self._holding.may_end, key_of)
        except Interrupted:
            return False
        for event, error in found:
            row = rows[id(event)]
            self._parking.blocked.add(key(row))
            outcome.failed[row[0]] = Failure(row, error, int(error is not None), self._handler.max_attempts(event))
        return True

    def _end(self, piece: Piece, outcome: _Outcome, after: Position) -> None:
        self._holding.handled += outcome.done
        if outcome.failed:
            failed = [outcome.failed[number] for number in sorted(outcome.failed)]
            self._parking.park(failed, piece.leases, after, handled=outcome.done)
            self._parking.look_soon()
            return
        self._holding.positions.set(piece.leases, after, handled=outcome.done)
        if self._holding.stopping.is_set() or after is piece.position or after.is_done:
            self._holding.move(piece.leases, after)

    def handle_carefully(self, piece: Piece, attempts: int) -> None:
        """Handle a piece of one event that has been begun so many times. Raises Fenced."""
        failure = self._failure(piece.wanted[0], attempts, lists=True)
        self._holding.handled += 1
        failed = [] if failure is None else [failure]
        self._parking.park(failed, piece.leases, piece.after, careful=piece.careful, handled=1)

    def retry(self, one: Parked, lease: Lease, event: PgEvent) -> BaseException | None:
        """Try a parked event again. The error, or None where it is parked no more. Raises Fenced."""
        error = self._handler.call_each(event)
        if error is None:
            failures.forget(self._holding.connection.cursor(), one, lease)
        return error
