"""The writers' gate, kept shut while a reader looks again soon anyway.

Of writers that commit together one gets the gate, an advisory lock, and rings (see schema). Where many write, that is
still thousands of bells a second: each a NOTIFY, which lets commits through one at a time, and wakes all who listen. So
whoever finds many events at each look keeps the gate itself, and rings for the other readers, once a look. When fewer
come, it opens the gate, and rings for what was committed meanwhile. Where it dies, its lock goes with its connection,
and others find what nobody rang for by their poll.
"""

from __future__ import annotations

from typing import Any

import psycopg

from ..tables import LOG
from .reading import one
from .schema import GATE

MANY, FEW = 20, 5
"""Events that a look found: from so many on the gate is shut, and with less it is opened."""

# A bell is no loss that a commit would have to wait for the disk for.
_LAZY = "SET synchronous_commit = off"
_SHUT = "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)"
_OPEN = "SELECT pg_catalog.pg_advisory_unlock(%s, %s), pg_catalog.pg_notify(%s, '')"
_RING = "SELECT pg_catalog.pg_notify(%s, '')"


class Gate:
    """For one connection, in autocommit, which no pooler may hand to others."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._is_shut = False

    def found(self, events: int) -> None:
        """So many at this look. Raises psycopg.Error."""
        if not self._is_shut:
            if events >= MANY:
                self._connection.execute(_LAZY)
                self._is_shut = one(self._connection.execute(_SHUT, GATE))[0]
        elif events < FEW:
            self.open()
        else:
            self._connection.execute(_RING, [LOG])

    def open(self) -> None:
        """Let writers ring again. Raises psycopg.Error."""
        if self._is_shut:
            self._is_shut = False
            self._connection.execute(_OPEN, [*GATE, LOG])
