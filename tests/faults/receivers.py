"""What a relay under test hears and is told goes, as JSON lines, into the pipe that PGSIGNALS_TEST_PIPE names."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

from pgsignals import PgEvent, on_pg_event, on_pg_gap
from pgsignals.sink import Gap
from tests.shop.models import Customer

_pipe = int(os.environ.get("PGSIGNALS_TEST_PIPE", "0"))
_bad = os.environ.get("PGSIGNALS_TEST_BAD", "")
_async = _bad.startswith("async ")
_bad = _bad.removeprefix("async ")


def tell(what: str, value: Any) -> None:
    os.write(_pipe, f"{json.dumps([what, value, time.time()])}\n".encode())


if _pipe:

    @on_pg_event("faults")
    async def heard(event: PgEvent) -> None:
        tell("heard", event.payload)

    @on_pg_gap
    async def missed(gap: Gap) -> None:
        tell("gap", [gap.since.timestamp(), gap.until.timestamp(), gap.cause])


if _pipe and _bad != "sleeps":

    @on_pg_event(Customer, "insert")
    async def heard_row(event: PgEvent) -> None:
        tell("row", event.pk)


# One that sleeps, until it is woken.


if _bad == "sleeps":
    awake = threading.Event()

    @on_pg_event(Customer, "insert")
    def sleeps(event: PgEvent) -> None:
        awake.wait()

    @on_pg_event("wake")
    async def wakes(event: PgEvent) -> None:
        awake.set()


# One that misbehaves, before one that behaves.


def misbehave(event: PgEvent) -> None:
    if _bad == "raises":
        raise RuntimeError("as staged")
    if _bad == "exits":
        sys.exit(3)
    if _bad == "closes its connection":
        connection.ensure_connection()
        connection.connection.close()
    if _bad == "leaves a transaction open":
        connection.set_autocommit(False)
        connection.cursor().execute("SELECT 1")
    if _bad == "hangs":
        threading.Event().wait()
    if _bad == "takes two seconds":
        tell("began", event.payload)
        threading.Event().wait(2)
        tell("ended", event.payload)


async def misbehave_later(event: PgEvent) -> None:
    if _bad == "hangs":
        await asyncio.Event().wait()
    if _bad == "hangs in a thread":
        await asyncio.to_thread(threading.Event().wait)
    if _bad == "exits":
        sys.exit(3)
    await sync_to_async(misbehave)(event)


if _bad and _bad != "sleeps":
    on_pg_event("bad", timeout=1 if _bad == "hangs" else None)(misbehave_later if _async else misbehave)

    @on_pg_event("bad")
    def behaves(event: PgEvent) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        tell("behaved", event.payload)
