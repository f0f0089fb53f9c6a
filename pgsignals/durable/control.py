"""What people do with groups: look, pause, send back, give up."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from .. import conf
from ..tables import DEAD, GROUP, LOG, PARKED, PARTITION, WORKER
from .reading import BEGINNING, SNAPSHOT, was_read

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTED = 100_000
"""Events of a group's lag that are counted; more is said as this number."""


class NoSuchGroup(LookupError):
    """A group that the log does not know. It is made when its first worker starts."""


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A group, how far it is, and what is in its way."""

    name: str
    atomic: bool
    partitions: int
    leased: int
    """Partitions that a worker has."""
    workers: int
    lag: int
    """Events in the log that it has not handled, at most COUNTED; those that no receiver of it wants are among them."""
    seconds: float
    """Since the oldest of these was written; 0 where there is none."""
    handled: int
    parked: int
    """Events that failed, or wait behind one that did."""
    dead: int
    paused: bool
    waits: bool
    """Whether partitions pause because everything failed."""
    holds_up: bool
    """Whether the log keeps events beyond PGSIGNALS["LOG_KEEP"] because of it."""


_STATUS = f"""
SELECT g.name, g.atomic, g.partitions, p.leased, w.workers, lag.count, coalesce(lag.seconds, 0), p.handled,
    parked.count, dead.count, g.paused_at IS NOT NULL, p.waits, coalesce(lag.seconds, 0) > %(keep)s
FROM {GROUP} AS g, LATERAL (
    SELECT count(*) FILTER (WHERE owner IS NOT NULL AND leased_until > clock_timestamp()) AS leased,
        coalesce(sum(handled), 0)::bigint AS handled,
        coalesce(bool_or(waits_until > clock_timestamp()), false) AS waits
    FROM {PARTITION} WHERE group_name = g.name
) AS p, LATERAL (
    SELECT count(*) AS workers FROM {WORKER} WHERE group_name = g.name
        AND seen_at > clock_timestamp() - %(lease)s * interval '1 second'
) AS w, LATERAL (
    -- As groups read: what came after the snapshot, and the few transactions that ran at it.
    SELECT count(*) AS count, extract(epoch FROM clock_timestamp() - min(at))::float8 AS seconds FROM (
        SELECT unread.at FROM (
            SELECT since::text::pg_snapshot AS since, until::text::pg_snapshot AS until, last_id,
                array_agg(number::integer) AS numbers
            FROM {PARTITION} WHERE group_name = g.name GROUP BY since::text, until::text, last_id
        ) AS q, LATERAL (
            (
                SELECT at FROM {LOG} AS one WHERE xid >= pg_snapshot_xmax(q.since)
                    AND slot %% g.partitions = ANY (q.numbers) AND NOT {was_read("one", "q")}
                ORDER BY xid LIMIT %(most)s
            ) UNION ALL (
                SELECT late.at FROM pg_snapshot_xip(q.since) AS running (xid), LATERAL (
                    SELECT at FROM {LOG} AS one WHERE one.xid = running.xid
                        AND slot %% g.partitions = ANY (q.numbers) AND NOT {was_read("one", "q")} LIMIT %(most)s
                ) AS late
            )
        ) AS unread LIMIT %(most)s
    ) AS lagging
) AS lag, LATERAL (
    SELECT count(*) AS count FROM {PARKED} WHERE group_name = g.name
) AS parked, LATERAL (
    SELECT count(*) AS count FROM {DEAD} WHERE group_name = g.name
) AS dead
ORDER BY g.name
"""


def status(database: str) -> list[GroupStatus]:
    """All groups of a database's log; none where there is no log."""
    with connections[database].cursor() as cursor:
        cursor.execute("SELECT pg_catalog.to_regclass(%s)", [GROUP])
        if cursor.fetchone()[0] is None:
            return []
        settings = conf.get()
        cursor.execute(_STATUS, {"keep": settings.LOG_KEEP, "lease": settings.LEASE, "most": COUNTED})
        return [GroupStatus(*row) for row in cursor.fetchall()]


_SOURCES = f"""
WITH RECURSIVE found (source) AS (
    (SELECT source FROM {LOG} ORDER BY source LIMIT 1)
    UNION ALL
    SELECT (SELECT source FROM {LOG} WHERE source > found.source ORDER BY source LIMIT 1) FROM found
    WHERE found.source IS NOT NULL
)
SELECT source FROM found WHERE source IS NOT NULL
"""


def sources(database: str) -> list[str]:
    """The models, by their labels, and the channels of which the log has events: from one to the next in the index."""
    with connections[database].cursor() as cursor:
        cursor.execute(_SOURCES)
        return [source for (source,) in cursor.fetchall()]


def pause(database: str, group: str) -> None:
    """Have nobody handle a group's events until `resume`; workers see it within a second. Raises NoSuchGroup."""
    _update(database, group, "paused_at = coalesce(paused_at, now())")


def resume(database: str, group: str) -> None:
    """End a pause, also one because everything failed. Raises NoSuchGroup."""
    _update(database, group, "paused_at = NULL")
    with connections[database].cursor() as cursor:
        cursor.execute(f"UPDATE {PARTITION} SET waits_until = NULL WHERE group_name = %s", [group])


def forget(database: str, group: str) -> None:
    """Delete a group with its position and its parked events; dead letters stay. Raises NoSuchGroup.

    Where a worker of it runs, or starts, the group begins anew.
    """
    with transaction.atomic(using=database), connections[database].cursor() as cursor:
        cursor.execute(f"DELETE FROM {PARKED} WHERE group_name = %s", [group])
        cursor.execute(f"DELETE FROM {GROUP} WHERE name = %s", [group])
        _check(cursor, group)


def reset(database: str, group: str, to: str = "now") -> None:
    """Have a group go on from `now`, or from the log's `beginning`. Parked events stay. Raises NoSuchGroup."""
    with _moved(database, group) as move:
        move(*((None, 0) if to == "now" else (BEGINNING, 0)))


def replay(
    database: str,
    group: str,
    since: datetime,
    *,
    model: str | None = None,
    key: str | None = None,
    dry_run: bool = False,
) -> int:
    """Have a group handle events again that were written at `since` or later. How many these are.

    model: only of this model, or this channel. key: only of this key, as JSON (17, or "ada" with its quotes).

    Without these the group's position goes back, and what it had parked or not yet handled comes in its order. With one
    of them copies of those that it has handled are parked, and handled as retries are. Raises NoSuchGroup.
    """
    where, arguments = "one.at >= %s", [since]
    for column, wanted in (("source", model and model.lower() if model and "." in model else model), ("key", key)):
        if wanted is not None:
            where += f" AND one.{column} = %s"
            arguments.append(wanted)  # type: ignore[arg-type]
    with transaction.atomic(using=database), connections[database].cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {GROUP} WHERE name = %s FOR UPDATE", [group])
        _check(cursor, group)
        if model is not None or key is not None:
            if dry_run:
                cursor.execute(_HANDLED.format(what="count(*)", where=where), [group, *arguments])
                return int(cursor.fetchone()[0])
            cursor.execute(_PARK_COPIES.format(handled=_HANDLED.format(what=_COPY, where=where)), [group, *arguments])
            return int(cursor.rowcount)
        cursor.execute(f"SELECT count(*), min(id) FROM {LOG} AS one WHERE {where}", arguments)
        count, first = cursor.fetchone()
        if count and not dry_run:
            # A group that is not as far as that has earlier ones to handle yet.
            cursor.execute(_FIRST_UNREAD, [group])
            unread = cursor.fetchone()[0]
            with _moved(database, group) as move:
                move(BEGINNING, (first if unread is None else min(first, unread)) - 1)
        return int(count)


_OF_GROUP = f"""
FROM {LOG} AS one, {PARTITION} AS q, {GROUP} AS g WHERE g.name = %s AND q.group_name = g.name
    AND one.slot %% g.partitions = q.number"""
_FIRST_UNREAD = f"SELECT min(one.id) {_OF_GROUP} AND NOT {was_read('one', 'q')}"
_HANDLED = f"SELECT {{what}} {_OF_GROUP} AND {was_read('one', 'q')} AND {{where}}"
_COPY = "g.name, one.id, one.xid, one.at, one.source, one.op, one.key, one.slot, one.head, one.body"
_PARK_COPIES = (
    f"INSERT INTO {PARKED} (group_name, event_id, xid, at, source, op, key, slot, head, body) {{handled}} "
    "ON CONFLICT (group_name, event_id) DO UPDATE SET next_at = now()"
)


def requeue(database: str, letters: Collection[int]) -> int:
    """Have dead letters tried again, with all attempts. How many they were."""
    with transaction.atomic(using=database), connections[database].cursor() as cursor:
        cursor.execute(
            f"WITH gone AS (DELETE FROM {DEAD} WHERE id = ANY (%s) RETURNING *) "
            f"INSERT INTO {PARKED} (group_name, event_id, xid, at, source, op, key, slot, head, body) "
            "SELECT group_name, event_id, xid, at, source, op, key, slot, head, body FROM gone "
            "ON CONFLICT (group_name, event_id) DO UPDATE SET next_at = now(), attempts = 0, body = excluded.body",
            [list(letters)],
        )
        return int(cursor.rowcount)


def discard(database: str, letters: Collection[int]) -> int:
    """Delete dead letters. How many they were."""
    with connections[database].cursor() as cursor:
        cursor.execute(f"DELETE FROM {DEAD} WHERE id = ANY (%s)", [list(letters)])
        return int(cursor.rowcount)


def _update(database: str, group: str, what: str) -> None:
    with connections[database].cursor() as cursor:
        cursor.execute(f"UPDATE {GROUP} SET {what} WHERE name = %s", [group])
        _check(cursor, group)


def _check(cursor: Any, group: str) -> None:
    if cursor.rowcount == 0:
        cursor.execute(f"SELECT name FROM {GROUP} ORDER BY name")
        known = ", ".join(name for (name,) in cursor.fetchall()) or "none"
        raise NoSuchGroup(
            f"The log knows no group {group!r}; a group is made when its first worker starts. There are: {known}."
        )


@contextmanager
def _moved(database: str, group: str) -> Iterator[Callable[[str | None, int], None]]:
    """Gives a function that sets all positions of a group. Workers find that their leases have another number."""
    with transaction.atomic(using=database), connections[database].cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {GROUP} WHERE name = %s FOR UPDATE", [group])
        _check(cursor, group)

        def move(since: str | None, last_id: int) -> None:
            cursor.execute(SNAPSHOT)
            snapshot, ceiling = cursor.fetchone()
            cursor.execute(
                f"UPDATE {PARTITION} SET since = %s::pg_snapshot, until = %s::pg_snapshot, since_floor = 0, "
                "until_floor = 0, until_ceiling = %s, last_id = %s, claimed_id = NULL, claims = 0, careful_id = NULL, "
                "failures = 0, waits_until = NULL, owner = NULL, leased_until = NULL, epoch = epoch + 1, "
                "moved_at = clock_timestamp() WHERE group_name = %s",
                [snapshot if since is None else since, snapshot, ceiling, last_id, group],
            )

        yield move
