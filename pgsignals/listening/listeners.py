"""Who listens to a database now, as the server tells: for `manage.py pgsignals status`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from django.db import connections

from .connection import PREFIX
from .leadership import CLASS, number_of

_LISTENERS = """
    SELECT pid, application_name, usename, client_addr::text, backend_start
    FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s ORDER BY backend_start
"""

_LOCKS = """
    SELECT objid::bigint, pid FROM pg_locks
    WHERE locktype = 'advisory' AND classid::bigint = %s AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# What ListeningConnection.say() shows.
_SAID = re.compile(r"(?P<process>\S+:\d+) (?P<state>[a-z]+) (?P<waiting>\d+) (?P<lag>[\d.]+)s$")


@dataclass(frozen=True, slots=True)
class Listening:
    """A relay's connection, and what it said of itself when it last proved delivery."""

    pid: int
    """Of the server's process."""
    user: str
    address: str | None
    """Where it connects from; None for a local socket."""
    since: datetime
    process: str | None
    """Host and process id there; this and what follows is None until its first proof."""
    state: str | None
    waiting: int | None
    """Events that wait for receivers."""
    lag: float | None
    """Seconds that the oldest of them has waited."""
    leads: tuple[str, ...]
    """What it alone does; a duty that this project does not know is its number."""


def listeners(alias: str, duties: Collection[str] = ()) -> list[Listening]:
    """The relays that listen to a database, the oldest first. duties: those whose names are to be shown."""
    names = {number_of(duty): duty for duty in duties}
    with connections[alias].cursor() as cursor:
        cursor.execute(_LOCKS, [CLASS])
        held: dict[int, list[str]] = {}
        for number, pid in cursor.fetchall():
            held.setdefault(pid, []).append(names.get(number, f"duty {number}"))
        cursor.execute(_LISTENERS, [f"{PREFIX}%"])
        return [
            _listening(pid, name, user, address, since, held.get(pid, ()))
            for pid, name, user, address, since in cursor.fetchall()
        ]


def queue_usage(alias: str) -> float:
    """How full the server's queue of notifications is, 0 to 1. When it is full, commits that notify fail."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_notification_queue_usage()")
        return float(cursor.fetchone()[0])


def _listening(
    pid: int, name: str, user: str, address: str | None, since: datetime, leads: Collection[str]
) -> Listening:
    said = _SAID.search(name)
    return Listening(
        pid=pid,
        user=user,
        address=address,
        since=since,
        process=said and said["process"],
        state=said and said["state"],
        waiting=int(said["waiting"]) if said else None,
        lag=float(said["lag"]) if said else None,
        leads=tuple(sorted(leads)),
    )
