"""Reading the log by snapshots.

A position says which transactions have been read: all that were over at a snapshot. What comes next is what is over at
a newer snapshot and was not at the older one. That misses nothing, whenever transactions commit that began earlier,
and waits for none. (To go by `id > the last one seen` would miss all that commits out of order.)

A window, from one snapshot to the next, is read in pieces by id, so that events of a key come in the order of their
writes: whoever writes a row holds its lock, so ids of a row's events rise with its transactions.

Two scans of indexes find a window's rows, whatever its size and the log's:
- those of transactions from the older snapshot's `xmax` on. (They need not have begun after it: a snapshot does not
  list running transactions that are younger than all that are over.) Their ids lie between the *floor*, which is looked
  up when the window is opened, and the *ceiling*, where the ids stood after the newer snapshot was taken;
- those of transactions that the older snapshot lists as running, of which there are few.
"""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import psycopg
from django.db import connections

from .. import conf
from ..decode import LogRow
from ..tables import IDS, LOG
from .line import Line, open_line

_LEASES = 12
"""A call that takes as long as so many leases is not waited for any more."""

BEGINNING = "1:1:"
"""The snapshot at which nothing was over."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far somebody has read: all of `since`, and of the window up to `until` the ids up to `last_id`."""

    since: str
    since_floor: int
    until: str
    until_floor: int
    until_ceiling: int
    last_id: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the window has been read to its end."""
        return self.since == self.until

    def done(self) -> Position:
        """At the end of the window."""
        return Position(self.until, 0, self.until, 0, self.until_ceiling)

    def at(self, last_id: int) -> Position:
        """Further within the window."""
        return replace(self, last_id=last_id)


def age(snapshot: str) -> tuple[int, int]:
    """What orders snapshots by time: at a later one fewer transactions are in the future, or still running."""
    _, xmax, running = snapshot.split(":")
    return int(xmax), -len(running.split(",")) if running else 0


def settled(snapshot: str, newest: int) -> str:
    """A snapshot at which nothing was over that is younger than the newest transaction of which an event was read.

    For who keeps a position in memory while the server may crash. It then forgets the youngest transactions whose
    commits waited for no disk, and gives their ids out again, as a standby does that takes over; what these write would
    look as if it had been read. No event was written by those left out, so none is read twice.
    """
    _, xmax, running = snapshot.split(":")
    end = min(int(xmax), newest + 1)
    younger = [one for one in running.split(",") if one and int(one) < end]
    return f"{min([*map(int, younger), end])}:{end}:{','.join(younger)}"


@dataclass(frozen=True, slots=True)
class Horizon:
    """A snapshot, and where the ids stood after it."""

    snapshot: str
    ceiling: int

    def position(self) -> Position:
        """That of whoever begins now."""
        return Position(self.snapshot, 0, self.snapshot, 0, self.ceiling)


_LAST = f"(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {IDS})"
LAST = f"SELECT {_LAST}"
NEWEST = f"SELECT coalesce((SELECT xid::text FROM {LOG} ORDER BY {LOG}.xid DESC LIMIT 1), '0')"
# A statement's snapshot is taken before anything in it is evaluated.
SNAPSHOT = f"SELECT pg_current_snapshot()::text, {_LAST}"


def beginning(horizon: Horizon) -> Position:
    """The position of whoever is to read all that the log has."""
    return Position(BEGINNING, 0, horizon.snapshot, 0, horizon.ceiling)


def horizon(connection: psycopg.Connection[Any]) -> Horizon:
    """Now. The connection is in autocommit: each statement takes its own snapshot."""
    return Horizon(*one(connection.execute(SNAPSHOT)))


# OFFSET 0: PostgreSQL would otherwise look for the minimum from the log's beginning on.
_FIRST = f"""
SELECT coalesce(min(id), 0) FROM (
    SELECT id FROM {LOG} WHERE xid >= pg_snapshot_xmax(%(since)s::pg_snapshot)
        AND pg_visible_in_snapshot(xid, %(until)s::pg_snapshot) OFFSET 0
) AS later
"""


def opened(connection: psycopg.Connection[Any], position: Position, horizon: Horizon) -> Position:
    """The position with a window up to a horizon. It must be done; where it is beyond the horizon it stays."""
    if age(horizon.snapshot) <= age(position.since):
        return position
    first = one(connection.execute(_FIRST, {"since": position.since, "until": horizon.snapshot}))[0]
    floor = max(position.since_floor, first - 1)
    return Position(position.since, floor, horizon.snapshot, 0, horizon.ceiling)


def was_read(event: str, position: str) -> str:
    """The SQL of whether a row of the log lies before a position, given the names of both."""
    return (
        f"(pg_visible_in_snapshot({event}.xid, {position}.since) "
        f"OR (pg_visible_in_snapshot({event}.xid, {position}.until) AND {event}.id <= {position}.last_id))"
    )


def one(cursor: psycopg.Cursor[Any]) -> Any:
    """The row of a query that always has one."""
    return cursor.fetchone()


Row = tuple[int, str, Any, str, str, str, str, int, str]
"""A LogRow, its slot, and its operation's code."""

Key = tuple[str, str]
"""A source and a key in it: what is ordered."""


def key(row: Row) -> Key:
    """Of a row."""
    return row[3], row[4]


_COLUMNS = "id, xid::text, at, source, key, head, body, slot, op"

_READ = f"""
(
    SELECT {_COLUMNS} FROM {LOG}
    WHERE id > greatest(%(floor)s, %(last)s) AND id <= %(ceiling)s AND xid >= pg_snapshot_xmax(%(since)s::pg_snapshot)
        AND pg_visible_in_snapshot(xid, %(until)s::pg_snapshot){{slots}}
    ORDER BY id LIMIT %(limit)s
) UNION ALL (
    SELECT late.* FROM pg_snapshot_xip(%(since)s::pg_snapshot) AS running (xid), LATERAL (
        SELECT {_COLUMNS} FROM {LOG}
        WHERE {LOG}.xid = running.xid AND id > %(last)s{{slots}} ORDER BY id LIMIT %(limit)s
    ) AS late WHERE pg_visible_in_snapshot(running.xid, %(until)s::pg_snapshot)
) ORDER BY id LIMIT %(limit)s
"""
_ALL = _READ.format(slots="")
_SOME = _READ.format(slots=" AND slot %% %(partitions)s = ANY (%(numbers)s)")


def query(
    position: Position, limit: int, partitions: int = 1, numbers: Sequence[int] = (0,)
) -> tuple[str, dict[str, Any]]:
    """The query for the next rows of an open window, of some partitions; of all where they are as many."""
    arguments: dict[str, Any] = {
        "since": position.since,
        "until": position.until,
        "floor": position.since_floor,
        "ceiling": position.until_ceiling,
        "last": position.last_id,
        "limit": limit,
    }
    if len(numbers) == partitions:
        return _ALL, arguments
    return _SOME, {**arguments, "partitions": partitions, "numbers": list(numbers)}


as_log_row: Callable[[Row], LogRow] = itemgetter(slice(7))
"""Without what is for the group alone. Called for every event of every group."""


_PREPARED_FROM = 2
"""How often a statement is made before it is prepared."""


def connect(database: str, name: str) -> Line:
    """A connection of our own to where Django's alias points, in autocommit. Raises psycopg.Error."""
    settings = conf.get()
    wrapper = connections[database]
    given: dict[str, Any] = dict(wrapper.get_connection_params())
    for ours in ("cursor_factory", "context"):
        given.pop(ours, None)
    threshold = given.pop("prepare_threshold", None)
    own = given.get("application_name")
    given["application_name"] = f"{name} {own}" if own else name
    given.setdefault("connect_timeout", math.ceil(settings.CONNECT_TIMEOUT))
    connection = open_line(_LEASES * settings.LEASE, **given)
    connection.prepare_threshold = threshold
    backend = one(connection.execute("SELECT pg_backend_pid()"))[0]
    connection.is_direct = connection.info.backend_pid == backend
    if connection.is_direct:
        # Which halves what a statement takes. A pooler in transaction mode may lose it. A plan that was made while the
        # log was small is kept while it grows: it must not be one that reads all of it.
        connection.prepare_threshold = _PREPARED_FROM
        connection.execute("SET enable_seqscan = off")
        # A sequence can be read in no other way; that looks so costly then that each look would be compiled first.
        connection.execute("SET jit = off")
    return connection


def unique_name(kind: str) -> str:
    """Of a worker: where it runs, and which one it is."""

    return f"{socket.gethostname()[:60]}:{os.getpid()}:{kind[:60]}:{uuid.uuid4().hex[:8]}"
