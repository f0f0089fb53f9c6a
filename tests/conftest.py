"""What all tests share: a listener that sees what PostgreSQL really sends, and a loud list of what did not run."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.backends.postgresql.operations import DatabaseOperations
from django.test import TransactionTestCase
from psycopg import sql

from pgsignals import PgEvent, wire
from pgsignals.decode import Decoder

from .fleet import Fleet, functions

# A shell has what it starts in the background ignore SIGINT, and processes hand that on; the servers that tests end by
# it would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)


SAME_FOR_ALL = {"django_content_type", "auth_permission"}
"""Tables that migrations fill, and no test changes."""


def connect(**options: object) -> psycopg.Connection:
    """A connection of the test's own to the test's database, in autocommit."""
    place = connection.settings_dict
    return psycopg.connect(
        dbname=place["NAME"],
        host=place["HOST"],
        port=place["PORT"] or None,
        user=place["USER"],
        password=place["PASSWORD"] or None,
        autocommit=True,
        **options,
    )


class Listener:
    """Listens as any PostgreSQL client does, and hands over what has arrived up to now."""

    def __init__(self, *channels: str) -> None:
        self.connection = connect()
        self.decoder = Decoder("default")
        for channel in (*channels, "sentinel"):
            self.connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))

    def notifications(self) -> list[psycopg.Notify]:
        """All that was committed before this call: PostgreSQL delivers in the order of commits, so a mark ends it."""
        mark = uuid.uuid4().hex
        with connect() as other:
            other.execute("SELECT pg_notify('sentinel', %s)", [mark])
        found: list[psycopg.Notify] = []
        while True:
            batch = list(self.connection.notifies(timeout=60, stop_after=1))
            assert batch, "the mark did not arrive within 60 s"
            for notification in batch:
                if notification.channel != "sentinel":
                    found.append(notification)
            if any(notification.payload == mark for notification in batch):
                return found

    def events(self) -> list[PgEvent]:
        return [
            event
            for notification in self.notifications()
            for event in self.decoder.decode(notification.channel, notification.payload)
        ]

    def event(self) -> PgEvent:
        (only,) = self.events()
        return only


@pytest.fixture(scope="session", autouse=True)
def flush_what_has_rows() -> Iterator[None]:
    """After a test that commits, Django truncates all tables, which takes PostgreSQL longer than most tests."""
    tear_down = TransactionTestCase._fixture_teardown

    def sql_flush(self: Any, style: Any, tables: Sequence[str], **options: Any) -> list[str]:
        asked = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(sql.Literal(table), sql.Identifier(table))
            for table in tables
            if table not in SAME_FOR_ALL
        )
        with self.connection.cursor() as cursor:
            filled = [table for (table,) in cursor.execute(asked).fetchall()]
        return truncate(self, style, filled, **{**options, "allow_cascade": True}) if filled else []

    def flush(case: TransactionTestCase) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DatabaseOperations, "sql_flush", sql_flush)
            tear_down(case)

    truncate = DatabaseOperations.sql_flush
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", flush)
        yield


@pytest.fixture
def listener(transactional_db: None) -> Iterator[Listener]:
    """A listener to row events. What the fixtures before it wrote is not in it."""
    listening = Listener(wire.CHANNEL)
    yield listening
    listening.connection.close()


@pytest.fixture
def child_environment(transactional_db: None) -> dict[str, str]:
    """The environment of a command that a test runs in a process of its own, on the test's database."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PGSIGNALS_TEST_DATABASE": str(connection.settings_dict["NAME"]),
        "PYTHONUNBUFFERED": "1",
    }


FAULT = "fault"
"""What goes along with the report of a test that staged one: a row of the table at the end."""

_rows: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _rows.extend(str(text) for name, text in report.user_properties if name == FAULT)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A test that cannot run here must not look as if it had; and faults are told in a table."""
    if _rows:
        terminalreporter.section("faults")
        terminalreporter.line("| fault | recovered after, s | lost, inside announced gaps | gaps | MB more |")
        terminalreporter.line("|---|---:|---:|---:|---:|")
        for text in _rows:
            terminalreporter.line(text)
    missing = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []) if report.longrepr}
    if missing:
        terminalreporter.section("NOT RUN", sep="!", red=True, bold=True)
        for reason in sorted(missing):
            terminalreporter.line(reason, red=True)


@pytest.fixture
def fleet(transactional_db: None) -> Iterator[Fleet]:
    before = functions()
    yield Fleet()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS fleet_plane, fleet_ship, fleet_plane_ports, fleet_port CASCADE")
        for name in functions() - before:
            cursor.execute(f"DROP FUNCTION {name}() CASCADE")
