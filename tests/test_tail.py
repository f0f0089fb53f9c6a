"""Durable events reach those who have no group too: receivers, signals, `--print`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from pgsignals import PgEvent, on_pg_event, publish
from pgsignals.durable.tail import Tail
from pgsignals.signals import pg_event

from .conftest import connect
from .ledger.models import Account
from .relaying import Box, relaying
from .working import alone, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]


@contextmanager
def tailing() -> Iterator[None]:
    """A relay that also reads the log, from now."""
    tail = Tail("default")
    with relaying(channels=["app_events"], companions=[tail]):
        until(lambda: tail.position is not None, "the log's position")
        yield


def test_a_plain_receiver_gets_the_events_of_a_durable_declaration() -> None:
    box = Box()
    on_pg_event(Account)(box.put)
    with tailing():
        account = Account.objects.create(owner="ada")
        (event,) = box.wait(1)
    assert (event.op, event.pk, event.new["owner"]) == ("insert", account.pk, "ada")
    assert event.id is not None


def test_the_signal_gets_durable_messages() -> None:
    box = Box()

    def heard(event: PgEvent, **said: object) -> None:
        box.put(event.payload)

    pg_event.connect(heard, sender="app_events")
    try:
        with tailing():
            publish("app_events", "stored", durable=True)
            publish("app_events", "fast")
            assert sorted(box.wait(2)) == ["fast", "stored"]
    finally:
        pg_event.disconnect(heard, sender="app_events")


def test_a_receiver_of_a_group_is_not_called_by_the_relay() -> None:
    plain, grouped = Box(), Box()
    on_pg_event(Account)(plain.put)
    on_pg_event(Account, group="billing")(grouped.put)
    with tailing():
        Account.objects.create()
        plain.wait(1)
    assert grouped.items == []


def test_what_was_written_while_the_logs_connection_was_away_still_comes() -> None:
    box = Box()
    on_pg_event(Account)(lambda event: box.put(event.new["owner"]))
    with tailing():
        Account.objects.create(owner="first")
        box.wait(1)
        with connect() as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'pgsignals log%' AND datname = current_database()"
            )
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('second', 0, '')")
        assert box.wait(2) == ["first", "second"]
