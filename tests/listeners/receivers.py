"""Receivers for the processes that tests start; PGSIGNALS_TEST_RECEIVERS names those that are registered."""

from __future__ import annotations

import os
import sys
import threading

from pgsignals import PgEvent, on_pg_event, on_pg_gap
from pgsignals.sink import Gap
from tests.shop.models import Order

_named = os.environ.get("PGSIGNALS_TEST_RECEIVERS", "").split()


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if "say" in _named:

    @on_pg_event(Order, "update", changed="status")
    def says(event: PgEvent) -> None:
        say(f"receiver says {event.pk} {event.new and event.new['status']}")

    @on_pg_event("app_events", type="user.created")
    async def says_later(event: PgEvent) -> None:
        say(f"receiver says {event.payload['type']} {event.payload['id']}")


if "wait" in _named:

    @on_pg_event("app_events")
    def waits(event: PgEvent) -> None:
        """Until the process is told to go on, by a line of standard input."""
        say("receiver waits")
        sys.stdin.readline()
        say("receiver done")


if "hang" in _named:

    @on_pg_event("app_events")
    def hangs(event: PgEvent) -> None:
        say("receiver hangs")
        threading.Event().wait()


if "block" in _named:

    @on_pg_event("app_events")
    async def blocks(event: PgEvent) -> None:
        """The event loop itself: no asynchronous code should."""
        say("receiver blocks")
        threading.Event().wait()


if "raise" in _named:

    @on_pg_event("app_events")
    def raises(event: PgEvent) -> None:
        raise SystemExit("a receiver ends nothing")


if "once" in _named:

    @on_pg_event("app_events", once=True)
    def once(event: PgEvent) -> None:
        say(f"once {event.payload}")

    @on_pg_gap
    def missed(gap: Gap) -> None:
        say(f"gap: {gap.cause}")


if "fail" in _named:

    @on_pg_event("app_events")
    def fails(event: PgEvent) -> None:
        raise ValueError("as staged")
