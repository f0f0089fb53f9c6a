"""Messages of the application's own."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.db.utils import NotSupportedError
from django.utils.translation import gettext_lazy

from pgsignals import PublishError, apublish, publish

from .conftest import Listener
from .postgres import binaries


@pytest.fixture
def app_events(transactional_db: None) -> Iterator[Listener]:
    listening = Listener("app_events")
    yield listening
    listening.connection.close()


def psql(command: str) -> str:
    """PostgreSQL's own client, on the test's database."""
    place = connection.settings_dict
    environment = {**os.environ, "PGPASSWORD": place["PASSWORD"] or ""}
    address = ["-h", place["HOST"], "-p", place["PORT"] or "5432", "-U", place["USER"], "-d", place["NAME"]]
    program = str(binaries() / "psql")
    done = subprocess.run(
        [program, "-X", *address, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_message_arrives_at_the_commit(app_events: Listener) -> None:
    with transaction.atomic():
        publish("app_events", {"type": "user.created", "id": 7})
        assert app_events.events() == []
    event = app_events.event()
    assert (event.op, event.channel, event.payload) == ("message", "app_events", {"type": "user.created", "id": 7})


def test_a_message_of_a_rolled_back_transaction_never_arrives(app_events: Listener) -> None:
    with transaction.atomic():
        publish("app_events", {})
        transaction.set_rollback(True)
    assert app_events.events() == []


def test_apublish_is_its_twin(app_events: Listener) -> None:
    async_to_sync(apublish)("app_events", [1, 2])
    assert app_events.event().payload == [1, 2]


def test_psql_can_publish_to_us(app_events: Listener) -> None:
    psql("""NOTIFY app_events, '{"type": "user.created"}'""")
    psql("NOTIFY app_events")
    assert [event.payload for event in app_events.events()] == [{"type": "user.created"}, None]


def test_psql_can_listen_to_us(transactional_db: None) -> None:
    """What it receives is the channel's name, and the JSON as text."""
    place = connection.settings_dict
    address = ["-h", place["HOST"], "-p", place["PORT"] or "5432", "-U", place["USER"], "-d", place["NAME"]]
    client = subprocess.Popen(
        [str(binaries() / "psql"), "-X", "-q", *address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("LISTEN app_events;\n\\echo listening\n")
    assert client.stdout.readline() == "listening\n"
    publish("app_events", {"type": "user.created"})
    # psql looks for notifications after each command.
    client.stdin.write("SELECT 1;\n\\q\n")
    out, _ = client.communicate(timeout=20)
    assert 'Asynchronous notification "app_events" with payload "{"type":"user.created"}" received' in out


def test_what_django_can_serialise_can_be_published(app_events: Listener) -> None:
    number = uuid.uuid4()
    publish(
        "app_events",
        {
            "at": dt.datetime(2013, 7, 10, tzinfo=dt.UTC),
            "price": Decimal("1.50"),
            "id": number,
            "word": gettext_lazy("word"),
            "text": 'it\'s "é" 🛫 %s \\',
        },
    )
    assert app_events.event().payload == {
        "at": "2013-07-10T00:00:00Z",
        "price": "1.50",
        "id": str(number),
        "word": "word",
        "text": 'it\'s "é" 🛫 %s \\',
    }


def test_the_longest_payload_and_the_longest_name_pass(transactional_db: None) -> None:
    """7,999 bytes and 63 bytes, as PostgreSQL counts them."""
    name = "é" * 31 + "x"
    listening = Listener(name)
    publish(name, "é" * 3998 + "x")
    assert len(listening.event().payload) == 3999
    listening.connection.close()


def deep(levels: int = 100_000) -> Any:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("channel", "payload", "message"),
    [
        ("", {}, "text of 1 to 63 bytes, and not ''"),
        (None, {}, "and not None"),
        ("a\0b", {}, "text of 1 to 63 bytes"),
        ("é" * 32, {}, "has 64 bytes; PostgreSQL allows 63"),
        ("pgsignals", {}, "carries pgsignals' own row events"),
        ("app_events", {1, 2}, "cannot be written as JSON"),
        ("app_events", float("nan"), "cannot be written as JSON"),
        ("app_events", "\ud800", "cannot be written as JSON"),
        ("app_events", deep(), "cannot be written as JSON"),
        ("app_events", "é" * 4000, "has 8002 bytes; PostgreSQL allows 7999"),
        ("app_events", deep(110), "could not be read by a listener: its JSON is nested more than 100 levels"),
        ("half \ud800", {}, "is no text that UTF-8 can write"),
    ],
    ids=["empty", "none", "nul", "long name", "ours", "set", "nan", "surrogate", "deep", "big", "too deep", "half"],
)
def test_what_postgresql_would_refuse_is_refused_before_anything_is_sent(
    app_events: Listener, channel: Any, payload: Any, message: str
) -> None:
    """And the caller's transaction lives on."""
    with transaction.atomic():
        with pytest.raises(PublishError, match=message):
            publish(channel, payload)
        publish("app_events", "after")
    assert app_events.event().payload == "after"


@pytest.mark.parametrize("durable_only", [{"key": 1}, {"delay": dt.timedelta(1)}])
def test_what_needs_the_log_says_so(durable_only: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="need durable=True"):
        publish("app_events", {}, **durable_only)


@pytest.mark.django_db(transaction=True)
def test_without_a_log_a_durable_message_says_what_to_do() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER FUNCTION pgsignals_publish RENAME TO away")
        try:
            with pytest.raises(PublishError, match=r"manage\.py migrate"):
                publish("app_events", {}, durable=True)
        finally:
            cursor.execute("ALTER FUNCTION away RENAME TO pgsignals_publish")


@pytest.mark.django_db(databases=["sqlite"])
def test_another_vendors_database_is_an_error_with_the_way_out() -> None:
    with pytest.raises(NotSupportedError, match=r"'sqlite' is SQLite\. Name another alias"):
        publish("app_events", {}, using="sqlite")
