"""What a relay under test hears and is told goes, as JSON lines, into the pipe that PGSIGNALS_TEST_PIPE names."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from django.db import connection

from pgsignals import PgEvent, on_pg_event, on_pg_gap
from pgsignals.sink import Gap
from tests.shop.models import Customer

_pipe = int(os.environ.get("PGSIGNALS_TEST_PIPE", "0"))
_bad = os.environ.get("PGSIGNALS_TEST_BAD", "")


def tell(what: str, value: Any) -> None:
    os.write(_pipe, f"{json.dumps([what, value, time.time()])}\n".encode())


if _pipe:

    @on_pg_event("faults")
    async def heard(event: PgEvent) -> None:
        tell("heard", event.payload)

    @on_pg_event(Customer, "insert")
    async def heard_row(event: PgEvent) -> None:
        tell("row", event.pk)

    @on_pg_gap
    async def missed(gap: Gap) -> None:
        tell("gap", [gap.since.timestamp(), gap.until.timestamp(), gap.cause])


# One that misbehaves, in the thread of the synchronous ones, before one that behaves.


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


if _bad:
    on_pg_event("bad", timeout=1 if _bad == "hangs" else None)(misbehave)

    @on_pg_event("bad")
    def behaves(event: PgEvent) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        tell("behaved", event.payload)
