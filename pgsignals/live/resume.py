"""How far a client is with the log, and what it missed since.

A client's id is a position in the log as a reader of snapshots has it (see durable/reading.py): a number alone would
lose whatever commits out of order. It says: all that was over at `since` was sent, and of what was over at `until` all
up to `last`. Where a client comes back with it, what is in the log and not before that position is read, for the one
model or channel that it is about. That is bounded: who has missed too much is told to fetch anew.

A client may send any id it likes. It then gets what it may hear of, or is told to fetch anew, and costs no more.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from django.db import connections

from .. import conf, wire
from ..decode import Decoder
from ..durable.reading import age
from ..event import LogEvent
from ..tables import IDENTITY, LOG
from .declared import declared
from .hints import MAX_KEYS, Hints, can_travel
from .topics import base_of, durable_group, is_channel

RESUME_WITHIN = 3600.0
"""Seconds for which an id is good; and for no longer than half of PGSIGNALS["LOG_KEEP"]."""

LOOK_AT = 5000
"""Events of the whole log that are looked at for one client; where there were more since, it fetches anew."""

MAX_TOKEN = 2000
"""Characters of an id."""

_SNAPSHOT = re.compile(r"(\d{1,18}):(\d{1,18}):((?:\d{1,18})(?:,\d{1,18})*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """A position in the log, and where and when it was one."""

    cluster: str
    """The system identifier of the log's server."""
    at: int
    """Seconds since 1970."""
    since: str
    until: str
    last: int

    def text(self) -> str | None:
        """As clients get it; None where so many transactions were running that it is too long."""
        said = json.dumps([self.cluster, self.at, self.since, self.until, self.last], separators=(",", ":"))
        text = base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")
        return text if len(text) <= MAX_TOKEN else None

    def moved(self, position: Sequence[Any]) -> Token:
        """The same client, further on."""
        since, until, last = position
        return replace(self, at=int(time.time()), since=since, until=until, last=last)

    def is_beyond(self, position: Sequence[Any]) -> bool:
        """Whether all that was read up to such a position was before this one."""
        return age(position[1]) <= age(self.since)

    def is_fresh(self) -> bool:
        """Whether the log still has all that came after it."""
        return 0 <= time.time() - self.at + 5 <= min(RESUME_WITHIN, conf.get().LOG_KEEP / 2)


def parse(text: Any) -> Token | None:
    """What a client sent. None for what is no id of ours."""
    if not isinstance(text, str) or len(text) > MAX_TOKEN:
        return None
    try:
        cluster, at, since, until, last = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        return None
    numbers = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**63 for one in (at, last))
    if not isinstance(cluster, str) or not numbers or not _is_snapshot(since) or not _is_snapshot(until):
        return None
    return Token(cluster, at, since, until, last)


def _is_snapshot(text: Any) -> bool:
    """Whether PostgreSQL would take it; it raises an error for what it does not."""
    found = _SNAPSHOT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return False
    lowest, end = int(found[1]), int(found[2])
    running = [int(one) for one in found[3].split(",")] if found[3] else []
    inside = all(lowest <= one < end for one in running)
    return 0 < lowest <= end and inside and running == sorted(set(running))


@dataclass(frozen=True, slots=True)
class Missed:
    """What somebody missed of a topic: group messages, as the relay would have sent them, and the position after it."""

    messages: list[dict[str, Any]]
    token: Token


# NULL where the log came from elsewhere, and has not been put right yet: its transactions' numbers mean nothing.
_CLUSTER = f"""
(SELECT here.system_identifier::text FROM pg_catalog.pg_control_system() AS here WHERE NOT EXISTS (
    SELECT 1 FROM {IDENTITY} AS known WHERE known.system_identifier <> here.system_identifier::text
))
"""  # noqa: S608 - names of our own

_NOW = f"SELECT pg_current_snapshot()::text, {_CLUSTER}"

# Both lists are read in the order of an index, and no further than they may be long, whatever the position says.
# (`xid = ...` would leave it to the planner to go through the table in another order.)
_MISSED = f"""
WITH later AS MATERIALIZED (
    SELECT id, xid, source FROM {LOG} WHERE xid >= pg_snapshot_xmax(%(since)s::pg_snapshot)
    ORDER BY xid, id LIMIT %(most)s + 1
), late AS MATERIALIZED (
    SELECT one.* FROM pg_snapshot_xip(%(since)s::pg_snapshot) AS running (xid), LATERAL (
        SELECT id, {LOG}.xid, source FROM {LOG} WHERE {LOG}.xid >= running.xid AND {LOG}.xid <= running.xid
        ORDER BY {LOG}.xid, id LIMIT %(most)s + 1
    ) AS one LIMIT %(most)s + 1
), missed AS (
    SELECT * FROM (SELECT * FROM later UNION ALL SELECT * FROM late) AS one WHERE source = %(source)s
        AND NOT (pg_visible_in_snapshot(xid, %(until)s::pg_snapshot) AND id <= %(last)s)
    ORDER BY id LIMIT %(keys)s + 1
)
SELECT now.snapshot, (SELECT count(*) FROM later) + (SELECT count(*) FROM late) > %(most)s, {_CLUSTER}, whole.*
FROM (SELECT pg_current_snapshot()::text AS snapshot) AS now LEFT JOIN missed ON true LEFT JOIN LATERAL (
    SELECT id, xid::text, at, source, key, head, body FROM {LOG} WHERE {LOG}.id = missed.id OFFSET 0
) AS whole ON true ORDER BY whole.id
"""  # noqa: S608 - names of our own


def start() -> Token | None:
    """The position of whoever begins to listen now; None where there is no log. May raise django.db.Error."""
    with connections[conf.get().DATABASE].cursor() as cursor:
        if not _has_log(cursor):
            return None
        cursor.execute(_NOW)
        snapshot, cluster = cursor.fetchone()
    return None if cluster is None else Token(cluster, int(time.time()), snapshot, snapshot, 0)


def missed(topic: str, token: Token | None) -> Missed | None:
    """What came since for a topic; None where nobody can tell any more. May raise django.db.Error."""
    if token is None or not token.is_fresh() or kept(topic) is None or not can_travel(topic):
        return None
    base, database = base_of(topic), conf.get().DATABASE
    given: dict[str, Any] = {
        "since": token.since,
        "until": token.until,
        "last": token.last,
        "most": LOOK_AT,
        "keys": MAX_KEYS,
    }
    with connections[database].cursor() as cursor:
        if not _has_log(cursor):
            return None
        cursor.execute(_MISSED, {**given, "source": base.removeprefix("channel:")})
        rows = cursor.fetchall()
    snapshot, too_many, cluster = rows[0][:3]
    if too_many or cluster != token.cluster:
        return None
    hints = Hints(conf.get().LIVE_FIELDS.get(base, ()), database)
    for event in _events(database, [row[3:] for row in rows if row[3] is not None], is_channel(base)):
        hints.add(event)
    here = Token(token.cluster, int(time.time()), snapshot, snapshot, 0)
    return Missed([{**said, "resumed": True} for said in hints.messages(base, None)], here)


def _events(database: str, rows: list[Any], messages: bool) -> Iterable[LogEvent]:
    decoder = Decoder(database)
    for row in rows:
        try:
            event = decoder.logged(row)
        except wire.WireError:
            continue  # the relay says so, with the row's number
        # A channel may have the name of a model's label.
        if (event.label is None) is messages:
            yield event


def _has_log(cursor: Any) -> bool:
    cursor.execute("SELECT pg_catalog.to_regclass(%s), pg_catalog.to_regclass(%s)", [LOG, IDENTITY])
    return None not in cursor.fetchone()


ALL = "all"
SOME = "some"


def kept(topic: str) -> str | None:
    """How much of a topic the log has: `all` of it, `some`, or nothing (None).

    Of a channel it has what was published as durable, and whoever else publishes there is not known.
    """
    if durable_group(topic) is not None:
        return None
    base = base_of(topic)
    return SOME if is_channel(base) else _kept_models().get(base)


@lru_cache(maxsize=1)
def _kept_models() -> Mapping[str, str]:
    durable = {topic: [one.durable for one in said] for topic, said in declared().items()}
    return {topic: ALL if all(said) else SOME for topic, said in durable.items() if any(said)}


def bundle(ids: Mapping[str, str]) -> str:
    """The ids of several topics in one; where that would be too long, of none.

    It is never empty: a browser that has no id does not say that it has been here, and is not told what it missed.
    """
    said: dict[str, list[str]] = {}
    for topic, text in ids.items():
        said.setdefault(text, []).append(topic)
    text = base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")
    return text if len(text) <= 2 * MAX_TOKEN else bundle({})


def unbundle(text: str, topics: Collection[str]) -> dict[str, str]:
    """The ids of these topics in such an id; none of what is no id of ours."""
    if len(text) > 2 * MAX_TOKEN:
        return {}
    try:
        said = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return {topic: token for token, named in said.items() for topic in named if topic in topics}
    except (binascii.Error, ValueError, TypeError, AttributeError, RecursionError):
        return {}
