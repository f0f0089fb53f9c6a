"""A worker's rounds: in each it handles the next piece of all its partitions, and tries again what had failed."""

from __future__ import annotations

import time

from .. import conf
from ..receivers import Registry
from . import failures
from .atomic import AtomicGroup
from .decoding import Decoding
from .default import DefaultGroup
from .failures import Died, Failure
from .groups import Lease
from .handling import Handler
from .holding import Holding
from .parking import Parking
from .pieces import Piece, Pieces, begin
from .reading import Horizon
from .retrying import Retrying

_SHORTEST_NAP = 0.005


class Rounds:
    """Of one worker, in its thread; `handler.watch` is called in another."""

    def __init__(self, holding: Holding, registry: Registry, *, atomic: bool) -> None:
        self.handler = Handler(holding.group, registry)
        self.found = 0
        """How many events the last round has read."""
        self.more = False
        """Whether it has left something that is known to be there."""
        self._holding = holding
        self._poll = conf.get().LOG_POLL
        decoding = Decoding(holding.database, holding.group, self.handler)
        self.parking = Parking(holding, decoding)
        kind = AtomicGroup if atomic else DefaultGroup
        self._kind: AtomicGroup | DefaultGroup = kind(holding, self.parking, self.handler)
        self._pieces = Pieces(holding, decoding)
        self._retrying = Retrying(holding, decoding, self.parking, self.handler, self._kind)

    def go(self) -> bool:
        """Do one. Whether there was anything to do. Raises Fenced, psycopg.Error."""
        self.parking.look()
        if not self._holding.leases or self.parking.is_paused:
            return False
        self._holding.confirm()
        self.handler.refresh()
        self.found, self.more = 0, False
        did = False
        horizon = self._holding.horizon()
        for leases in self._holding.ready():
            did |= self._go_through(leases, horizon)
        did |= self._retrying.go()
        return did

    def _go_through(self, leases: list[Lease], horizon: Horizon) -> bool:
        """Handle the next piece of partitions that are at one position. Whether there was any."""
        piece = self._pieces.next(leases, horizon)
        if piece is None:
            self._holding.acknowledge(leases, leases[0].position)
            return False
        self.found += piece.found
        self.more |= piece.more
        if not piece.wanted:
            self._pass(piece)
            return piece.passed > 0
        if piece.careful is None:
            self._kind.handle(piece)
        else:
            self._handle_carefully(piece, piece.careful)
        return True

    def _pass(self, piece: Piece) -> None:
        """Nothing in it is for this group, or not yet for this code."""
        if piece.passed < piece.found:
            self._holding.wait(piece.leases, self._poll)
        self._holding.acknowledge(piece.leases, piece.after, piece.careful, lazily=not piece.passed)

    def _handle_carefully(self, piece: Piece, careful: int) -> None:
        """An event among those that a worker began and did not end: it may be what ended it."""
        row, event = piece.wanted[0]
        lease = piece.leases[0]
        begun = lease.claims if lease.claimed_id == row[0] else 0
        if begun >= self.handler.max_attempts(event):
            dead = Died(f"the process ended {begun} times while it handled this event")
            self.parking.park([Failure(row, dead, begun, begun)], piece.leases, piece.after, careful=careful)
            return
        piece = begin(self._holding, piece, claims=begun + 1, careful=careful)
        self._kind.handle_carefully(piece, begun + 1)

    # Between them.

    def nap(self) -> float:
        """Seconds until there may be something to do although nobody rings."""
        if self.parking.is_paused or not self._holding.leases:
            return self._poll
        due, now = self.parking.next_due(), time.monotonic()
        naps = [until - now for until in self._holding.waits] + ([] if due is None else [due])
        return min([self._poll, *(max(nap, _SHORTEST_NAP) for nap in naps)])

    def is_drained(self) -> bool:
        """Also where there is more, and nobody may, or can, handle it now; that was said in the log."""
        if self.parking.is_paused or self._holding.waits:
            return True
        return self._holding.has_reached() and not failures.has_due(self._holding.connection, self._holding.group)
