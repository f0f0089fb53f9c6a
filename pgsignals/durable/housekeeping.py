"""What somebody has to do now and then: append delayed messages that are due, and delete what every group has passed.

One process at a time does it, whoever gets an advisory lock for the moment. Nothing that writers do depends on it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg

from .. import conf
from ..tables import DELAYED, LOG, PARTITION, PROCESSED, PUBLISH

logger = logging.getLogger("pgsignals.durable")

LOCK = (0x70677369, 3)

_DELETE_EVERY = 10.0
"""Seconds between two looks for what may be deleted."""
_DELETE_AT_ONCE = 5_000
"""Rows that are deleted in one transaction."""
_LONGEST = 2.0
"""Seconds that one step deletes, at most."""
_VACUUM_AFTER = 100_000
"""Deleted rows after which the space is made usable again."""
_WARN_EVERY = 3600.0
_IDLE = 0.5

# What is due goes the way of a message that is published now.
_DELIVER = f"""
WITH due AS (
    DELETE FROM {DELAYED} WHERE id IN (
        SELECT id FROM {DELAYED} WHERE due_at <= clock_timestamp() ORDER BY due_at, id LIMIT 500 FOR UPDATE SKIP LOCKED
    ) RETURNING id, due_at, channel, payload, key, context
)
SELECT {PUBLISH}(channel, payload, key, context) FROM (SELECT * FROM due ORDER BY due_at, id) AS ordered
"""

# Rows of transactions that some partition has not read yet stay, however old they are.
_DELETE = f"""
WITH old AS (
    SELECT id FROM {LOG} AS one WHERE id > %(after)s AND at < now() - %(keep)s * interval '1 second'
        AND NOT EXISTS (
            SELECT FROM (SELECT DISTINCT since::text AS since FROM {PARTITION}) AS positions
            WHERE NOT pg_visible_in_snapshot(one.xid, positions.since::pg_snapshot)
        )
    ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM {LOG} WHERE id IN (SELECT id FROM old) RETURNING id
)
SELECT count(*), max(id) FROM gone
"""

_HELD_UP = f"""
SELECT DISTINCT group_name FROM {PARTITION} AS behind
WHERE EXISTS (
    SELECT FROM (SELECT xid FROM {LOG} WHERE at < now() - %s * interval '1 second' ORDER BY id LIMIT 1000) AS oldest
    WHERE NOT pg_visible_in_snapshot(oldest.xid, behind.since)
)
"""


class Housekeeping:
    """One step after the other, on a connection in autocommit that somebody else has."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.deleted = 0
        """Rows of the log, since the start."""
        self._deletes_at = time.monotonic()
        self._unvacuumed = 0
        self._warned = -1e9

    def step(self, connection: psycopg.Connection[Any]) -> float:
        """Do what is due. Returns after how many seconds to come again."""
        now = time.monotonic()
        if now >= self._deletes_at:
            more = self._delete(connection)
            self._deletes_at = now if more else time.monotonic() + _DELETE_EVERY
        delivered = connection.execute(_DELIVER).rowcount
        if delivered:
            return 0.0
        row = connection.execute(
            f"SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 FROM {DELAYED}"
        ).fetchone()
        due = None if row is None else row[0]
        return _IDLE if due is None else min(max(due, 0.001), _IDLE)

    def _delete(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether there may be more to delete."""
        keep, began = conf.get().LOG_KEEP, time.monotonic()
        after = 0
        while time.monotonic() - began < _LONGEST:
            with connection.transaction():
                locked = connection.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", LOCK).fetchone()
                if locked is None or not locked[0]:
                    return False
                row = connection.execute(_DELETE, {"after": after, "keep": keep, "limit": _DELETE_AT_ONCE}).fetchone()
            count, last = row or (0, 0)
            self.deleted += count
            self._unvacuumed += count
            if count < _DELETE_AT_ONCE:
                self._delete_processed(connection, keep)
                self._warn(connection, keep)
                self._vacuum(connection)
                return False
            after = int(last)
        self._vacuum(connection)
        return True

    def _delete_processed(self, connection: psycopg.Connection[Any], keep: float) -> None:
        # Twice as long as the log: an event may be tried again for a while after it has left.
        connection.execute(
            f"DELETE FROM {PROCESSED} WHERE at < now() - %s * interval '1 second'", [2 * max(keep, 7 * 86400)]
        )

    def _vacuum(self, connection: psycopg.Connection[Any]) -> None:
        """Autovacuum would come too, later. Where this role may not, PostgreSQL says so in a warning and skips it."""
        if self._unvacuumed >= _VACUUM_AFTER:
            self._unvacuumed = 0
            connection.execute(f"VACUUM (SKIP_LOCKED, TRUNCATE off) {LOG}")

    def _warn(self, connection: psycopg.Connection[Any], keep: float) -> None:
        now = time.monotonic()
        if now - self._warned < _WARN_EVERY:
            return
        held = [name for (name,) in connection.execute(_HELD_UP, [keep]).fetchall()]
        if held:
            self._warned = now
            logger.warning(
                "The log of the database %r keeps events longer than PGSIGNALS['LOG_KEEP'] (%g s) because these groups "
                "have not handled them: %s. Run their workers, or remove them: manage.py pgsignals group forget NAME.",
                self.database,
                keep,
                ", ".join(sorted(held)),
            )
