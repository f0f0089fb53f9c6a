"""The writers' gate, kept shut between the looks of a reader that looks again soon anyway.

Of writers that commit together one gets the gate, an advisory lock, and rings (see schema). Where many write, that is
still thousands of bells a second: each a NOTIFY, which lets commits through one at a time, and wakes all who listen. So
whoever finds many events at a look keeps the gate itself until the next look, and then rings for the other readers.
"""

from __future__ import annotations

from .. import conf
from ..tables import LOG
from .line import Line
from .reading import one
from .schema import GATE

MANY = 20
"""Events that a look found, from which on the gate is shut until the next."""

_LIMIT = "3s"
"""A reader that stands still meanwhile, or has vanished, loses the gate: the server ends its session."""

_NOW = """
SELECT current_setting('idle_session_timeout'),
    has_function_privilege('pg_catalog.pg_notify(text, text)', 'EXECUTE')
"""
_SHUT = """
SELECT CASE WHEN pg_catalog.pg_try_advisory_lock(%s, %s)
    THEN pg_catalog.set_config('idle_session_timeout', %s, false) IS NOT NULL ELSE false END
"""
_OPEN = """
SELECT pg_catalog.pg_advisory_unlock(%s, %s), pg_catalog.set_config('idle_session_timeout', %s, false),
    pg_catalog.pg_notify(%s, '')
"""
# A bell is no loss that a commit would have to wait for the disk for.
_LAZY = "SET synchronous_commit = off"


class Gate:
    """For one connection, in autocommit.

    It does nothing through a pooler, which would hand the lock to others, nor where writers ring by another policy.
    """

    def __init__(self, connection: Line) -> None:
        self._connection = connection
        self._is_shut = False
        self._is_ours = connection.is_direct and conf.get().WAKE_UP == "gated"
        self._timeout: str | None = None
        """What idle_session_timeout is otherwise."""

    def shut(self) -> None:
        """Keep writers from ringing, unless another reader does. Raises psycopg.Error."""
        if self._timeout is None and self._is_ours:
            self._timeout, self._is_ours = one(self._connection.execute(_NOW))
            self._connection.execute(_LAZY)
        if self._is_ours:
            self._is_shut = one(self._connection.execute(_SHUT, [*GATE, _LIMIT]))[0]

    def open(self) -> None:
        """Let writers ring, and ring for what was committed meanwhile. Raises psycopg.Error."""
        if self._is_shut:
            self._is_shut = False
            self._connection.execute(_OPEN, [*GATE, self._timeout, LOG])
