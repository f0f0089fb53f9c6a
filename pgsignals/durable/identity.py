"""Whose transaction ids the log has.

Positions are snapshots, and a snapshot means something only where transaction ids are given by the same counter. A log
that was dumped and restored into another cluster brings ids that are none there: some look as if from the future, and
new ones as if from the past. The log remembers the system identifier of its cluster. Where it is another, every row
gets the id of one new transaction, and each position becomes the place, by the rows' own ids, of the first row that
may not have been handled. Nothing is lost; some events come again. (After pg_upgrade the ids are good, but the
identifier is another one: events come again there too.) A standby that is promoted has the same identifier, and goes
on counting.
"""

from __future__ import annotations

import logging
from datetime import datetime

from ..tables import IDENTITY, LOG, PARTITION
from .line import Line
from .reading import one, was_read
from .schema import LOCK

logger = logging.getLogger("pgsignals.durable")

_COMPARE = f"""
SELECT (SELECT system_identifier FROM {IDENTITY}), system_identifier::text FROM pg_catalog.pg_control_system()
"""

# Ids above a position's ceiling have not been read by anybody. Of those below, what was read is told by the old ids,
# which are still good to be compared with each other.
_REWIND = f"""
UPDATE {PARTITION} AS moved SET since = %(snapshot)s::pg_snapshot, until = %(snapshot)s::pg_snapshot,
    since_floor = first.unread - 1, until_floor = first.unread - 1, until_ceiling = first.unread - 1, last_id = 0,
    claimed_id = NULL, careful_id = NULL, claims = 0, owner = NULL, leased_until = NULL, epoch = epoch + 1
FROM (
    SELECT position.id, coalesce((
        SELECT min(one.id) FROM {LOG} AS one
        WHERE one.id > position.until_ceiling OR NOT {was_read("one", "position")}
    ), (SELECT coalesce(max(id), 0) + 1 FROM {LOG})) AS unread FROM {PARTITION} AS position
) AS first WHERE first.id = moved.id
"""


# Its commit, too, may take a while.
_STAMPED_SINCE = f"SELECT coalesce((SELECT since > %s - interval '1 minute' FROM {IDENTITY}), false)"


def stamped_since(connection: Line, at: datetime) -> bool:
    """Whether a log from another cluster was put right after that moment, or not long before: all of it looks new."""
    return bool(one(connection.execute(_STAMPED_SINCE, [at]))[0])


def recognise(connection: Line) -> bool:
    """Put a log right that came from another cluster. Whether it had.

    The connection is in autocommit. Writers wait meanwhile.
    """
    known, here = one(connection.execute(_COMPARE))
    if known == here:
        return False
    with connection.patient(), connection.transaction():
        connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s, %s)", LOCK)
        known, here = one(connection.execute(_COMPARE))
        if known == here:
            return False
        if known is None:
            # As after a test's flush; the log itself is of here.
            connection.execute(f"INSERT INTO {IDENTITY} (system_identifier, since) VALUES (%s, 'epoch')", [here])
            return False
        connection.execute(f"LOCK TABLE {LOG} IN SHARE ROW EXCLUSIVE MODE")
        # Before this transaction has an id: that must be one which the snapshot does not know.
        snapshot = one(connection.execute("SELECT pg_current_snapshot()::text"))[0]
        connection.execute(_REWIND, {"snapshot": snapshot})
        count = connection.execute(f"UPDATE {LOG} SET xid = pg_current_xact_id()").rowcount
        connection.execute(f"UPDATE {IDENTITY} SET system_identifier = %s, since = clock_timestamp()", [here])
    logger.warning(
        "The log came from another cluster (system identifier %s, and here it is %s): it was restored from a dump, or "
        "upgraded. Its %d events were stamped anew, and every group goes on where it was. Nothing is lost; events that "
        "were handled shortly before may come again.",
        known,
        here,
        count,
    )
    return True
