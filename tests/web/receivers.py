"""Receivers that say that they were called, for the tests of the relay in a web process."""

import sys

from django.db import connection

from pgsignals import PgEvent, on_pg_event
from tests.shop.models import Customer, Order


def say(word: str, event: PgEvent) -> None:
    sys.stdout.write(f"receiver {word}: {event.op} {event.pk}\n")
    sys.stdout.flush()


@on_pg_event(Order)
def ordinary(event: PgEvent) -> None:
    say("ordinary", event)


@on_pg_event(Order, everywhere=True)
def everywhere(event: PgEvent) -> None:
    say("everywhere", event)


@on_pg_event(Customer, everywhere=True)
def takes_its_time(event: PgEvent) -> None:
    say("begins", event)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.7)")
    say("has finished", event)
