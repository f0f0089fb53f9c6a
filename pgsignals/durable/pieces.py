"""What comes next in partitions that are at one position: a piece of their window, read and begun as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import conf
from . import reading
from .decoding import Decoding, Wanted
from .groups import Lease
from .holding import Holding
from .positions import numbers
from .reading import Horizon, Position, Row


@dataclass(frozen=True, slots=True)
class Piece:
    """The next rows of some partitions."""

    leases: list[Lease]
    position: Position
    """Before it."""
    after: Position
    wanted: list[Wanted]
    """Those of its rows that receivers want."""
    careful: int | None
    """Set where it is a single row, because a worker began those up to this id and did not end."""
    found: int
    """How many rows were read."""
    passed: int
    """How many of them the position goes past: all before the first that only newer code can read."""
    more: bool
    """Whether there may be further rows."""

    def at(self, count: int) -> Position:
        """The position when so many of those that are wanted have been handled."""
        return self.position.at(self.wanted[count - 1][0][0]) if count else self.position


def begin(holding: Holding, piece: Piece, *, claims: int = 1, careful: int | None) -> Piece:
    """Claim it, which acknowledges what was handled before. Raises Fenced.

    claims: how often it has been begun now.
    """
    last = piece.wanted[-1][0][0]
    leases = holding.move(piece.leases, piece.position, claimed=last, claims=claims, careful=careful)
    return replace(piece, leases=leases)


class Pieces:
    """Reads them, for one worker, in its thread."""

    def __init__(self, holding: Holding, decoding: Decoding) -> None:
        self._holding = holding
        self._decoding = decoding
        self._limit = conf.get().LOG_BATCH

    def next(self, leases: list[Lease], horizon: Horizon) -> Piece | None:
        """The next of partitions that are at one position; None where they have been read up to the horizon."""
        position, careful = leases[0].position, leases[0].careful_id
        if position.is_done:
            position, careful = reading.opened(self._holding.connection, position, horizon), None
            if position.is_done:
                return None
        rows = self._begun(leases, position, careful)
        if rows:
            return self._piece(leases, position, rows, more=True, careful=careful)
        rows = self._read(leases, position, self._limit)
        return self._piece(leases, position, rows, more=len(rows) == self._limit)

    def _begun(self, leases: list[Lease], position: Position, careful: int | None) -> list[Row]:
        """The next row, if it is among those that a worker began and did not end."""
        if careful is None or position.last_id >= careful:
            return []
        rows = self._read(leases, position, 1)
        return rows if rows and rows[0][0] <= careful else []

    def _read(self, leases: Sequence[Lease], position: Position, limit: int) -> list[Row]:
        query, given = reading.query(position, limit, self._holding.partitions, numbers(leases))
        return self._holding.connection.execute(query, given).fetchall()

    def _piece(
        self, leases: list[Lease], position: Position, rows: list[Row], *, more: bool, careful: int | None = None
    ) -> Piece:
        wanted, unknown = self._decoding.wanted(rows)
        passed = rows[:unknown]
        after = position.at(passed[-1][0]) if passed else position
        if unknown is None and not more:
            after = position.done()
        return Piece(leases, position, after, wanted, careful, len(rows), len(passed), more)
