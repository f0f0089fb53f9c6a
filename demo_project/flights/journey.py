"""Follows one event from the write to the receivers: each station notes what it saw, and when.

Nothing here is part of how events travel. A second listener hears what PostgreSQL sends to everybody, two receivers
(see receivers.py) say when the event came by, and the browser adds the frame that it got.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

import pgsignals
from pgsignals import PgEvent

from . import doing

CHANNEL = "pgsignals"
"""Where row events travel, unless a declaration names another channel."""

WITHIN = 5.0
"""Seconds for which the stations are waited for."""

MARK = "journey"
"""The context's key: it travels with the event, so that it is known again."""


class Log:
    """What the stations have noted of one event."""

    def __init__(self) -> None:
        self.stations: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()

    def note(self, station: str, seen: dict[str, Any]) -> None:
        with self._changed:
            self.stations.setdefault(station, seen)
            self._changed.notify_all()

    def wait(self, *stations: str) -> None:
        """Until all of them have been passed, or it takes too long."""
        with self._changed:
            self._changed.wait_for(lambda: all(one in self.stations for one in stations), WITHIN)


_followed: dict[str, Log] = {}


def note(station: str, event: PgEvent, *, loads: bool = False) -> None:
    """An event comes by a station, which may load the row. Only one that is followed is looked at."""
    if not _followed or (log := _followed.get(str(event.context.get(MARK)))) is None:
        return
    seen = {"at": now(), "event": describe(event)}
    log.note(station, {**seen, "instance": repr(event.instance())} if loads else seen)


def now() -> float:
    """Milliseconds since 1970."""
    return time.time() * 1000


def describe(event: PgEvent) -> dict[str, Any]:
    """What a receiver can read of it, ready for JSON."""
    return {
        "op": event.op,
        "label": event.label,
        "pk": event.pk,
        "changed": sorted(event.changed),
        "old": dict(event.old or {}),
        "new": dict(event.new or {}),
        "at": event.at,
        "transaction": event.transaction,
        "context": dict(event.context),
    }


def follow() -> dict[str, Any]:
    """Delay one flight, and say what became of it at each station."""
    mark = uuid.uuid4().hex[:8]
    log = _followed[mark] = Log()
    try:
        with _tap() as tap, ThreadPoolExecutor(1) as hearing:
            heard = hearing.submit(_hear, tap, mark)
            log.note("write", _write(mark))
            log.note("trigger", heard.result())
            log.wait("relay", "receiver")
    finally:
        del _followed[mark]
    return log.stations


def _write(mark: str) -> dict[str, Any]:
    begun = now()
    with pgsignals.context(**{MARK: mark}), CaptureQueriesContext(connection) as queries:
        with transaction.atomic():
            deed = doing.delay()
            asked = now()
        done = now()
    statement = next(one["sql"] for one in queries if one["sql"].startswith("UPDATE"))
    return {"begun": begun, "commit": asked, "done": done, "sql": statement, "said": deed.said, "keys": deed.keys}


@contextmanager
def _tap() -> Iterator[psycopg.Connection[Any]]:
    """A listener as any client of PostgreSQL can be one."""
    place = connection.get_connection_params()
    place.pop("cursor_factory", None)
    context = place.pop("context", None)
    with psycopg.connect(**place, context=context, autocommit=True) as listening:
        listening.execute(f'LISTEN "{CHANNEL}"')
        yield listening


def _hear(tap: psycopg.Connection[Any], mark: str) -> dict[str, Any]:
    deadline = time.monotonic() + WITHIN
    while (left := deadline - time.monotonic()) > 0:
        for notification in tap.notifies(timeout=left, stop_after=1):
            payload = json.loads(notification.payload)
            if payload.get("k", {}).get(MARK) == mark:
                return {
                    "at": now(),
                    "triggered": payload["t"] / 1000,
                    "pid": notification.pid,
                    "bytes": len(notification.payload.encode()),
                    "payload": payload,
                }
    raise TimeoutError(f"PostgreSQL has sent no notification in {WITHIN:.0f} s.")
