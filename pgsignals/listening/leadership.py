"""Which of several relays does what only one may do: feed a channel layer, call a receiver with once=True.

Each such duty is an advisory lock of the listening connection's session. The server gives it to one session at a time,
and takes it back at the moment when that session ends, so a relay that is killed is replaced within a second or two.
A relay whose connection is gone has no duty, from the moment when it notices; it hears nothing either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from psycopg import sql

from .connection import ListeningConnection

CLASS = 0x7067736C  # "pgsl"
"""The first number of the advisory locks."""

TRY_EVERY = 1.0
"""Seconds between attempts to take what another relay has."""

_TRY = sql.SQL("SELECT n FROM unnest({}::int4[]) AS n WHERE pg_try_advisory_lock({}, n)")


class Leadership:
    """The duties that a relay has."""

    def __init__(self) -> None:
        self.held: frozenset[str] = frozenset()

    async def campaign(
        self, duties: Collection[str], connection: ListeningConnection, seconds: float
    ) -> frozenset[str]:
        """Try to take those that are not held, within so many seconds. The duties that were gained.

        Raises what ListeningConnection.ask() raises.
        """
        open_ones = {number_of(duty): duty for duty in frozenset(duties) - self.held}
        if not open_ones:
            return frozenset()
        rows = await connection.ask(_TRY.format(sql.Literal(sorted(open_ones)), sql.Literal(CLASS)), seconds)
        gained = frozenset(open_ones[number] for (number,) in rows)
        self.held |= gained
        return gained

    def resign(self) -> None:
        """The connection is gone, and with it the locks."""
        self.held = frozenset()


def number_of(duty: str) -> int:
    """The second number of a duty's advisory lock: 31 bits of its hash."""
    return int.from_bytes(hashlib.sha256(duty.encode()).digest()[:4]) & 0x7FFFFFFF
