"""Durable events reach those who have no group too: receivers, signals, `--print`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from pgsignals import PgEvent, on_pg_event, publish
from pgsignals.durable import reading
from pgsignals.durable.identity import recognise
from pgsignals.durable.line import Line
from pgsignals.durable.tail import Tail
from pgsignals.signals import pg_event

from .conftest import connect
from .ledger.models import Account
from .relaying import WITHIN, Box, relaying
from .working import alone, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]


@contextmanager
def tailing() -> Iterator[None]:
    """A relay that also reads the log, from now."""
    with relaying(channels=["app_events"], companions=[Tail("default")]):
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


@contextmanager
def out_of_reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The log cannot be connected to, until this is set."""
    reachable, connecting = threading.Event(), reading.connect

    def late(database: str, name: str) -> Line:
        assert reachable.wait(WITHIN)
        return connecting(database, name)

    monkeypatch.setattr(reading, "connect", late)
    try:
        yield reachable
    finally:
        reachable.set()


def test_what_is_written_once_the_relay_listens_comes_although_the_log_is_reached_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Box()
    on_pg_event(Account)(lambda event: box.put(event.new["owner"]))
    Account.objects.create(owner="before")
    with out_of_reach(monkeypatch) as reachable, tailing():
        Account.objects.create(owner="soon")
        reachable.set()
        assert box.wait(1) == ["soon"]


def test_a_log_that_is_put_right_meanwhile_is_not_told_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """To put it right gives each of its rows a new transaction id."""
    box = Box()
    on_pg_event(Account)(lambda event: box.put(event.new["owner"]))
    Account.objects.create(owner="restored")
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM pgsignals_identity")
        cursor.execute("INSERT INTO pgsignals_identity (system_identifier) VALUES ('another')")
    with reading.connect("default", "pgsignals test") as line, out_of_reach(monkeypatch) as reachable, tailing():
        assert recognise(line)
        reachable.set()
        until(lambda: Account.objects.create(owner="new") and box.items, "events")
    assert set(box.items) == {"new"}


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
