"""What somebody has to do now and then: append delayed messages that are due, and delete what every group has passed.

Every process that listens has a thread for it, whether it works for groups or not; one at a time deletes, whoever gets
an advisory lock for the moment. Nothing that writers do depends on it. The thread and its connection are not those that
renew leases: to vacuum a big log takes longer than a lease.
"""

from __future__ import annotations

import logging
import random
import threading
import time

import psycopg
from django.core.exceptions import ImproperlyConfigured

from .. import conf
from ..sink import Beginning, Companion, Deliver
from ..tables import DELAYED, LOG, PARTITION, PROCESSED, PUBLISH
from .line import Line
from .reading import connect, one

logger = logging.getLogger("pgsignals.durable")

LOCK = (0x70677369, 3)

_DELETE_EVERY = 10.0
"""Seconds between two looks for what may be deleted."""
_DELETE_AT_ONCE = 5_000
"""Rows that are deleted in one transaction."""
_LONGEST = 2.0
"""Seconds that one step deletes, at most."""
_VACUUM_AFTER = 100_000
"""Deleted rows after which the space is made usable again; in a log of millions, a twentieth of its rows."""
_FROM_THE_BEGINNING = 600.0
"""Seconds after which is looked again for what was left among rows that are gone."""
_LOOK_FOR_LOG = 60.0
"""Seconds after which is looked again whether there is a log."""
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

# The oldest rows, as far as they are old enough; those of transactions that some partition has not read yet stay.
_POSITIONS = f"SELECT DISTINCT since::text FROM {PARTITION}"
_DELETE = f"""
WITH oldest AS (
    SELECT id, xid, at FROM {LOG} WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM {LOG} WHERE id IN (
        SELECT id FROM oldest WHERE at < now() - %(keep)s * interval '1 second' AND NOT EXISTS (
            SELECT FROM unnest(%(positions)s::text[]::pg_snapshot[]) AS position (since)
            WHERE NOT pg_visible_in_snapshot(oldest.xid, position.since)
        )
    ) RETURNING id
)
SELECT (SELECT count(*) FROM gone), (SELECT max(id) FROM gone)
"""

_HELD_UP = f"""
SELECT DISTINCT group_name FROM {PARTITION} AS behind
WHERE EXISTS (
    SELECT FROM (SELECT xid, at FROM {LOG} ORDER BY id LIMIT 1000) AS oldest
    WHERE at < now() - %s * interval '1 second' AND NOT pg_visible_in_snapshot(oldest.xid, behind.since)
)
"""

_SIZE = "SELECT reltuples FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(%s)"


class Housekeeping:
    """One step after the other, on a connection in autocommit that somebody else has."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.deleted = 0
        """Rows of the log, since the start."""
        self._deletes_at = self._began = time.monotonic()
        self._after = 0
        self._unvacuumed = 0
        self._warned = -1e9

    def step(self, connection: Line) -> float:
        """Do what is due. Returns after how many seconds to come again."""
        now = time.monotonic()
        if now >= self._deletes_at:
            self._deletes_at = now if self.delete(connection) else time.monotonic() + _DELETE_EVERY
        if self.append_due(connection):
            return 0.0
        row = connection.execute(
            f"SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 FROM {DELAYED}"
        ).fetchone()
        due = None if row is None else row[0]
        return _IDLE if due is None else min(max(due, 0.001), _IDLE)

    def append_due(self, connection: Line) -> int:
        """Append delayed messages that are due, some hundreds at most. How many."""
        return connection.execute(_DELIVER).rowcount

    def delete(self, connection: Line) -> bool:
        """Delete for two seconds at most what is old and handled. Whether there may be more."""
        keep, began = conf.get().LOG_KEEP, time.monotonic()
        if began - self._began > _FROM_THE_BEGINNING:
            self._began, self._after = began, 0
        more = True
        while more and time.monotonic() - began < _LONGEST:
            more = self._delete_some(connection, keep)
        if not more:
            self._delete_processed(connection, keep)
            self._warn(connection, keep)
        self._vacuum(connection)
        return more

    def _delete_some(self, connection: Line, keep: float) -> bool:
        with connection.transaction():
            if not one(connection.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", LOCK))[0]:
                return False
            positions = [since for (since,) in connection.execute(_POSITIONS).fetchall()]
            given = {"after": self._after, "keep": keep, "positions": positions, "limit": _DELETE_AT_ONCE}
            count, last = one(connection.execute(_DELETE, given))
        self.deleted += count
        self._unvacuumed += count
        # From there on: the index still has what was deleted.
        self._after = max(self._after, last or 0)
        return bool(count)

    def _delete_processed(self, connection: Line, keep: float) -> None:
        # Twice as long as the log: an event may be tried again for a while after it has left.
        connection.execute(
            f"DELETE FROM {PROCESSED} WHERE at < now() - %s * interval '1 second'", [2 * max(keep, 7 * 86400)]
        )

    def _vacuum(self, connection: Line) -> None:
        """Autovacuum would come too, later. Where this role may not, PostgreSQL says so in a warning and skips it."""
        if self._unvacuumed >= _VACUUM_AFTER and self._unvacuumed >= one(connection.execute(_SIZE, [LOG]))[0] / 20:
            self._unvacuumed = 0
            with connection.patient():
                connection.execute(f"VACUUM (SKIP_LOCKED, TRUNCATE off) {LOG}")

    def _warn(self, connection: Line, keep: float) -> None:
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


class Housekeeper(Companion):
    """Keeps house in a thread of its own."""

    def __init__(self, database: str) -> None:
        self.database = database
        self._housekeeping = Housekeeping(database)
        self._connection: Line | None = None
        self._stopping = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="pgsignals-housekeeping", daemon=True)

    def start(self, deliver: Deliver | None = None, beginning: Beginning | None = None) -> None:
        """Start the thread."""
        self._thread.start()

    def ring(self) -> None:
        """What is due does not depend on what is new."""

    def stop(self) -> None:
        """End the thread; not in the middle of a statement."""
        self._stopping.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._stopping.wait(self._step())
            except (psycopg.Error, OSError, ImproperlyConfigured) as error:
                self._say(" ".join(str(error).split()))
                self._close()
                self._stopping.wait(random.uniform(0.5, 5))  # noqa: S311 - jitter
            except Exception:
                logger.exception("The log's housekeeping failed, and begins anew.")
                self._close()
                self._stopping.wait(5)
        self._close()

    def _step(self) -> float:
        """Seconds after which to come again."""
        if self._connection is None:
            self._connection = connect(self.database, "pgsignals housekeeping")
            if one(self._connection.execute("SELECT pg_catalog.to_regclass(%s)", [LOG]))[0] is None:
                self._close()
                return _LOOK_FOR_LOG
        wait = self._housekeeping.step(self._connection)
        self._said = ""
        return wait

    def _say(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            logger.warning(
                "Delayed messages of the database %r are not appended, and old events are not deleted: %s. Trying "
                "again; this is said once.",
                self.database,
                reason,
            )

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
