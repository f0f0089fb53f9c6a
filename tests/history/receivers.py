"""Receivers that note what they saw, and now and then raise, or kill their process before or after that.

Workers kill their process now and then, too: right before and right after a position's commit.
"""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import psycopg
from django.db import connection

from pgsignals import PgEvent, Retry, on_pg_event
from pgsignals.durable.worker import Worker
from tests.ledger.models import Account, Entry

from .models import Seen

FAULT = "fault"
_dice = random.Random()
_RAISES = 0.01
_KILLS = 0.0005
_KILLS_AT_POSITION = 0.001


def _maybe(chance: float) -> bool:
    return os.environ.get("PGSIGNALS_TEST_BAD") == "1" and _dice.random() < chance


def _die(number: int = 0, op: str = "") -> None:
    """Say so on a connection of its own, for nothing of this one will be kept, and end as out of memory would."""
    place = connection.get_connection_params()
    with psycopg.connect(
        host=place["host"], port=place["port"], user=place["user"], dbname=place["dbname"], autocommit=True
    ) as own:
        own.execute(
            'INSERT INTO history_seen ("group", event_id, op, key, tag, pid) VALUES (%s, %s, %s, 0, 0, %s)',
            [FAULT, number, op, os.getpid()],
        )
    os.kill(os.getpid(), signal.SIGKILL)


def _with_deaths(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that commits a position, and before or after which the process may end."""

    @functools.wraps(method)
    def deadly(*args: Any, **options: Any) -> Any:
        if _maybe(_KILLS_AT_POSITION):
            _die(op="before")
        done = method(*args, **options)
        if _maybe(_KILLS_AT_POSITION):
            _die(op="after")
        return done

    return deadly


Worker._move = _with_deaths(Worker._move)  # type: ignore[method-assign]
Worker._try_together = _with_deaths(Worker._try_together)  # type: ignore[method-assign]


def _note(event: PgEvent, group: str) -> Seen:
    values = event.old if event.op == "delete" else event.new
    tag = values["amount"] if event.label == "ledger.entry" else int(values["note"] or 0)
    return Seen(group=group, event_id=event.id, op=event.op, key=event.key, tag=tag, pid=os.getpid())


def _handle(event: PgEvent, group: str) -> None:
    if _maybe(_RAISES):
        raise Retry("by chance", after=_dice.uniform(0, 0.2))
    if _maybe(_KILLS):
        _die(event.id, event.op)
    _note(event, group).save()
    if _maybe(_KILLS):
        _die(event.id, event.op)


@on_pg_event(Account, "insert", "update", "delete", group="plain", start="beginning", max_attempts=1000)
def plain(event: PgEvent) -> None:
    _handle(event, "plain")


@on_pg_event(Account, "insert", "update", "delete", group="atomic", atomic=True, start="beginning", max_attempts=1000)
def atomic(event: PgEvent) -> None:
    _handle(event, "atomic")


@on_pg_event(
    Account, "insert", "update", "delete", group="lists", atomic=True, batch=True, start="beginning", max_attempts=1000
)
def lists(events: list[PgEvent]) -> None:
    if _maybe(_RAISES):
        raise Retry("by chance", after=_dice.uniform(0, 0.2))
    Seen.objects.bulk_create(_note(event, "lists") for event in events)
    if _maybe(_KILLS):
        _die(events[0].id)


@on_pg_event(Entry, "insert", group="entries", start="beginning", max_attempts=1000)
def entries(event: PgEvent) -> None:
    _handle(event, "entries")
