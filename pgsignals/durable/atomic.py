"""An atomic group: what its receivers write commits together with its position, exactly once.

A piece is tried as one. Where an event fails everything is rolled back, and the events are tried one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from django.db import connections, transaction

from ..event import PgEvent, together
from . import failures
from .decoding import Wanted
from .failures import Failure, Parked
from .groups import Fenced, Lease
from .handling import Handler
from .holding import Holding, Interrupted
from .parking import Parking, everything_fails
from .pieces import Piece, begin
from .reading import Position, key


class AtomicGroup:
    """How one worker handles its events."""

    def __init__(self, holding: Holding, parking: Parking, handler: Handler) -> None:
        self._holding = holding
        self._parking = parking
        self._handler = handler

    def handle(self, piece: Piece) -> None:
        """All in one transaction; where one fails, each in its own, so that it alone is parked. Raises Fenced."""
        pauses = piece.leases[0].failures
        piece = begin(self._holding, piece, careful=piece.careful)
        if len(piece.wanted) == 1 or not self._handle_together(piece):
            self._handle_each(piece, 1, pauses)

    def handle_carefully(self, piece: Piece, attempts: int) -> None:
        """Handle a piece of one event that has been begun so many times. Raises Fenced."""
        self._handle_each(piece, attempts, piece.leases[0].failures)

    def _handle_together(self, piece: Piece) -> bool:
        """Whether nothing failed."""
        try:
            error = self._try_together(piece, piece.after, piece.wanted)
        except Interrupted:
            self._holding.move(piece.leases, piece.position, careful=piece.careful)
            return True
        if error is None:
            self._holding.handled += len(piece.wanted)
        return error is None

    def _handle_each(self, piece: Piece, attempts: int, pauses: int) -> None:
        """What fails is parked together with the next that does not, or at the end: before that it was not tried."""
        stands, failed, any_good = piece.position, list[Failure](), False
        for place, one in enumerate(piece.wanted, 1):
            then = piece.after if place == len(piece.wanted) else piece.at(place)
            try:
                failure = self._failure(piece, then, one, attempts, failed)
            except Interrupted:
                self._parking.look_at_once()
                self._holding.move(piece.leases, stands, careful=piece.careful)
                return
            if failure is None:
                self._parking.tell_of_the_dead(failed)
                stands, failed, any_good = then, [], True
                continue
            failed.append(failure)
            if not any_good and everything_fails(failed, len(piece.wanted), pauses):
                self._parking.pause(piece, pauses + 1, failed)
                return
        self._holding.handled += len(piece.wanted)
        if failed:
            self._parking.park(failed, piece.leases, piece.after, careful=piece.careful, handled=len(failed))

    def _failure(
        self, piece: Piece, after: Position, one: Wanted, attempts: int, failed: Sequence[Failure]
    ) -> Failure | None:
        """Try an event, unless one of its key is parked. None where that went well. Raises Fenced, Interrupted."""
        row, event = one
        if key(row) in self._parking.blocked:
            return Failure(row, None)
        self._holding.may_go_on()
        error = self._try_together(piece, after, [one], failed)
        if error is None:
            return None
        self._parking.blocked.add(key(row))
        return Failure(row, error, attempts, self._handler.max_attempts(event))

    def _try_together(
        self, piece: Piece, after: Position, wanted: list[Wanted], failed: Sequence[Failure] = ()
    ) -> BaseException | None:
        """What receivers wrote and the position, or nothing. The error that was in the way, or None.

        failed: events before these, which are parked in the same transaction.

        Raises Fenced, Interrupted; psycopg.OperationalError where the connection is lost.
        """
        database = self._holding.database
        connection = connections[database]
        try:
            with self._holding.positions.unless_rolled_back(), transaction.atomic(using=database):
                self._write(piece, after, wanted, failed, connection)
        except (Fenced, Interrupted):
            raise
        except Exception as error:
            if not connection.is_usable():
                connections[database].close()
                raise psycopg.OperationalError(f"the transaction of an atomic group was lost: {error}") from error
            return error
        return None

    def _write(
        self, piece: Piece, after: Position, wanted: list[Wanted], failed: Sequence[Failure], connection: Any
    ) -> None:
        blocked = self._parking.blocked
        waiting = [Failure(row, None) for row, _ in wanted if key(row) in blocked]
        self._call([event for row, event in wanted if key(row) not in blocked], connection)
        with connection.cursor() as cursor:
            failures.park(cursor, self._holding.group, [*failed, *waiting])
            said = {"careful": piece.careful, "handled": len(failed) + len(wanted)}
            self._holding.positions.move(cursor, piece.leases, after, safely=True, **said)

    def _call(self, events: list[PgEvent], connection: Any) -> None:
        """Call the receivers, in the transaction. Raises what they raise, and Interrupted."""
        for event in events:
            self._holding.may_go_on()
            for receiver in self._handler.receivers(event):
                if not receiver.options.batch:
                    self._call_one(receiver, event, connection)
        if self._handler.has_batches:
            for receiver, its in self._handler.lists(events).items():
                self._call_one(receiver, together(its), connection)

    def _call_one(self, receiver: Any, argument: Any, connection: Any) -> None:
        error = self._handler.call(receiver, argument, keep_transaction=True)
        if error is not None:
            raise error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        if connection.needs_rollback or not connection.in_atomic_block:
            raise RuntimeError(f"{receiver.name} left the group's transaction broken, or ended it")

    def retry(self, one: Parked, lease: Lease, event: PgEvent) -> BaseException | None:
        """Try a parked event again. The error, or None where it is parked no more. Raises Fenced."""
        database = self._holding.database
        connection = connections[database]
        try:
            with transaction.atomic(using=database):
                for receiver in self._handler.receivers(event):
                    self._call_one(receiver, together([event]) if receiver.options.batch else event, connection)
                with connection.cursor() as cursor:
                    failures.forget(cursor, one, lease)
        except Fenced:
            raise
        except Exception as error:
            if not connection.is_usable():
                connection.close()
            return error
        return None
