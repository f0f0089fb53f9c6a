"""Groups: which there are, their partitions and positions, and who may work on which.

A worker leases partitions for a while. Each lease has an epoch; whatever a worker writes about a partition names the
epoch under which it was leased, so that one which was away for longer than its lease (a stopped process, a dead line)
can acknowledge nothing that another has taken over. A position is written before its events are handled (the claim)
and after (the acknowledgment); as the claim of the next piece is the acknowledgment of the one before, that is one
statement for each piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from ..tables import GROUP, PARTITION, WORKER
from .reading import Horizon, Position, age, beginning, horizon, one


class Fenced(Exception):
    """Another worker has taken over what this one was working on."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A partition that a worker has, and how far it has read."""

    id: int
    number: int
    epoch: int
    position: Position
    careful_id: int | None = None
    """Up to here a worker once began and did not end: events are claimed one by one."""
    claimed_id: int | None = None
    claims: int = 0
    """How often the event `claimed_id` was begun and not ended."""
    failures: int = 0
    """Whole pieces that failed in a row."""


# Of groups.


def register(connection: psycopg.Connection[Any], name: str, partitions: int, atomic: bool, start: str) -> int:
    """Make a group where there is none of this name. Returns the number of its partitions, which stays."""
    now = horizon(connection)
    position = now.position() if start == "now" else beginning(now)
    with connection.transaction():
        connection.execute(
            f"INSERT INTO {GROUP} (name, partitions, atomic) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            [name, partitions, atomic],
        )
        updated = f"UPDATE {GROUP} SET atomic = %s WHERE name = %s RETURNING partitions"
        row = one(connection.execute(updated, [atomic, name]))
        connection.execute(
            f"INSERT INTO {PARTITION} "
            "(group_name, number, since, since_floor, until, until_floor, until_ceiling, last_id) "
            "SELECT %s, number, %s, %s, %s, %s, %s, %s FROM generate_series(0, %s) AS number ON CONFLICT DO NOTHING",
            [name, *_columns(position), row[0] - 1],
        )
    return int(row[0])


def is_paused(connection: psycopg.Connection[Any], name: str) -> bool:
    """Whether somebody has paused the group."""
    row = connection.execute(f"SELECT paused_at IS NOT NULL FROM {GROUP} WHERE name = %s", [name]).fetchone()
    return row is not None and bool(row[0])


# Of workers.


def report(connection: psycopg.Connection[Any], worker: str, group: str, lease: float) -> int:
    """Say that a worker is there. Returns how many of its group are."""
    connection.execute(
        f"INSERT INTO {WORKER} (name, group_name) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET seen_at = now()",
        [worker, group],
    )
    connection.execute(
        f"DELETE FROM {WORKER} WHERE seen_at < now() - %s * interval '1 second' AND group_name = %s",
        [10 * lease, group],
    )
    seen = f"SELECT count(*) FROM {WORKER} WHERE group_name = %s AND seen_at > now() - %s * interval '1 second'"
    return max(int(one(connection.execute(seen, [group, lease]))[0]), 1)


def leave(connection: psycopg.Connection[Any], worker: str) -> None:
    """Say that a worker has gone."""
    connection.execute(f"DELETE FROM {WORKER} WHERE name = %s", [worker])


def presence(worker: str) -> tuple[str, list[Any]]:
    """The statement that says a worker is still there."""
    return f"UPDATE {WORKER} SET seen_at = now() WHERE name = %s", [worker]


def has_reached(connection: psycopg.Connection[Any], group: str, until: Horizon) -> bool:
    """Whether all partitions of a group have been read up to a horizon."""
    since = connection.execute(f"SELECT since::text FROM {PARTITION} WHERE group_name = %s", [group]).fetchall()
    return all(age(snapshot) >= age(until.snapshot) for (snapshot,) in since)


# Of leases.

_POSITION = "since::text, since_floor, until::text, until_floor, until_ceiling, last_id"

_ACQUIRE = f"""
UPDATE {PARTITION} SET owner = %(worker)s, epoch = epoch + 1,
    leased_until = clock_timestamp() + %(lease)s * interval '1 second',
    -- What was begun and not ended is gone through with care.
    careful_id = greatest(careful_id, claimed_id)
WHERE id IN (
    SELECT id FROM {PARTITION} WHERE group_name = %(group)s AND (owner IS NULL OR leased_until < clock_timestamp())
        AND (waits_until IS NULL OR waits_until < clock_timestamp())
    ORDER BY number LIMIT %(most)s FOR UPDATE SKIP LOCKED
)
RETURNING id, number, epoch, careful_id, claimed_id, claims, failures, {_POSITION}
"""


def acquire(connection: psycopg.Connection[Any], worker: str, group: str, most: int, lease: float) -> list[Lease]:
    """Lease partitions that nobody has."""
    rows = connection.execute(_ACQUIRE, {"worker": worker, "group": group, "most": most, "lease": lease}).fetchall()
    return [
        Lease(
            id=row[0],
            number=row[1],
            epoch=row[2],
            careful_id=row[3],
            claimed_id=row[4],
            claims=row[5],
            failures=row[6],
            position=Position(*row[7:]),
        )
        for row in sorted(rows, key=lambda row: int(row[1]))
    ]


_MINE = f"({PARTITION}.id, {PARTITION}.epoch) IN (SELECT * FROM unnest(%(ids)s::bigint[], %(epochs)s::bigint[]))"


def _mine(leases: Sequence[Lease]) -> dict[str, Any]:
    return {"ids": [lease.id for lease in leases], "epochs": [lease.epoch for lease in leases]}


def renew(connection: psycopg.Connection[Any], leases: Sequence[Lease], lease: float) -> set[int]:
    """Prolong leases. Returns the ids of those that are this worker's still."""
    rows = connection.execute(
        f"UPDATE {PARTITION} SET leased_until = clock_timestamp() + %(lease)s * interval '1 second' "
        f"WHERE {_MINE} AND owner IS NOT NULL RETURNING id",
        {**_mine(leases), "lease": lease},
    ).fetchall()
    return {row[0] for row in rows}


def abandon(connection: psycopg.Connection[Any], worker: str) -> None:
    """Give back all that a worker has."""
    connection.execute(f"UPDATE {PARTITION} SET owner = NULL, leased_until = NULL WHERE owner = %s", [worker])


def release(connection: psycopg.Connection[Any], leases: Sequence[Lease]) -> None:
    """Give partitions back: others may take them at once. Where one was taken meanwhile, it stays taken."""
    connection.execute(f"UPDATE {PARTITION} SET owner = NULL, leased_until = NULL WHERE {_MINE}", _mine(leases))


# Of positions.

_MOVE = f"""
UPDATE {PARTITION} SET since = %(since)s::pg_snapshot, since_floor = %(since_floor)s,
    until = %(until)s::pg_snapshot, until_floor = %(until_floor)s, until_ceiling = %(until_ceiling)s,
    last_id = %(last)s,
    claimed_id = %(claimed)s, claims = %(claims)s, careful_id = %(careful)s,
    handled = handled + CASE WHEN {PARTITION}.id = %(first)s THEN %(handled)s ELSE 0 END,
    failures = %(failures)s, waits_until = clock_timestamp() + %(wait)s * interval '1 second',
    moved_at = clock_timestamp()
FROM {{commit}}
WHERE {_MINE} AND owner IS NOT NULL
"""
# A claim, and the position of a group that may get events twice, need not wait for the disk: after a crash of the
# server they are older, and the events come again.
LAZILY = _MOVE.format(commit="(SELECT set_config('synchronous_commit', 'off', true)) AS lazily")
SAFELY = _MOVE.format(commit="(SELECT 1) AS safely")


def movement(
    leases: Sequence[Lease],
    position: Position,
    *,
    claimed: int | None = None,
    claims: int = 0,
    careful: int | None = None,
    handled: int = 0,
    failures: int = 0,
    wait: float | None = None,
) -> dict[str, Any]:
    """The arguments of LAZILY and SAFELY: partitions that are at one position move on together.

    claimed: the last of the events that are about to be handled; None where none are.
    wait: seconds for which nobody works on them.
    """
    since, since_floor, until, until_floor, until_ceiling, last = _columns(position)
    return {
        **_mine(leases),
        "since": since,
        "since_floor": since_floor,
        "until": until,
        "until_floor": until_floor,
        "until_ceiling": until_ceiling,
        "last": last,
        "claimed": claimed,
        "claims": claims,
        "careful": careful,
        "handled": handled,
        "first": leases[0].id,
        "failures": failures,
        "wait": wait,
    }


def moved(leases: Sequence[Lease], said: dict[str, Any], position: Position) -> list[Lease]:
    """The leases after a movement."""
    return [
        replace(
            lease,
            position=position,
            claimed_id=said["claimed"],
            claims=said["claims"],
            careful_id=said["careful"],
            failures=said["failures"],
        )
        for lease in leases
    ]


def _columns(position: Position) -> list[Any]:
    return [
        position.since,
        position.since_floor,
        position.until,
        position.until_floor,
        position.until_ceiling,
        position.last_id,
    ]
