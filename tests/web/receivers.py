"""Receivers that say that they were called, for the tests of the relay in a web process."""

import sys

from pgsignals import PgEvent, on_pg_event
from tests.shop.models import Order


def say(word: str, event: PgEvent) -> None:
    sys.stdout.write(f"receiver {word}: {event.op} {event.pk}\n")
    sys.stdout.flush()


@on_pg_event(Order)
def ordinary(event: PgEvent) -> None:
    say("ordinary", event)


@on_pg_event(Order, everywhere=True)
def everywhere(event: PgEvent) -> None:
    say("everywhere", event)
