"""Durable writes of those who know nothing of the log, in every state that a deploy can be in."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection
from django.test import override_settings

from pgsignals import PgEvent, on_pg_event
from pgsignals.durable import schema
from pgsignals.models import LogEntry

from .conftest import connect
from .ledger.models import Account
from .relaying import Box
from .servers import ROOT
from .working import alone, drained, rows, working

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]

INSERT = "INSERT INTO ledger_account (owner, balance, note) VALUES (%s, 0, '')"


def run(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture
def waking_up_by_poll() -> Iterator[None]:
    """As `migrate` puts it into the database."""
    with override_settings(PGSIGNALS={"WAKE_UP": "poll"}):
        assert schema.ensure(connection)
    yield
    assert schema.ensure(connection)


def test_who_may_write_the_table_needs_no_right_on_the_log() -> None:
    run("CREATE ROLE deploys_writer", "GRANT INSERT, UPDATE, DELETE, SELECT ON ledger_account TO deploys_writer")
    run("GRANT USAGE ON SEQUENCE ledger_account_id_seq TO deploys_writer")
    try:
        with connect() as writer:
            writer.execute("SET ROLE deploys_writer")
            writer.execute(INSERT, ["theirs"])
            writer.execute("UPDATE ledger_account SET balance = 1")
            writer.execute("DELETE FROM ledger_account")
            writer.execute("SELECT pgsignals_publish('app_events', '1', 'null', '')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute("SELECT 1 FROM pgsignals_log")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute("DELETE FROM pgsignals_log")
    finally:
        run("DROP OWNED BY deploys_writer", "DROP ROLE deploys_writer")
    assert list(LogEntry.objects.order_by("pk").values_list("op", flat=True)) == ["i", "u", "d", "m"]


def test_two_phase_commit_works_with_poll(waking_up_by_poll: None) -> None:
    """What is prepared is not seen, and holds nobody up; whoever commits it may be another session."""
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put(event.new["owner"]))
    drained("billing")
    with connect() as writer, working("billing", WAKE_UP="poll"):
        for name in ("kept", "dropped"):
            writer.execute("BEGIN")
            writer.execute(INSERT, [name])
            writer.execute(f"PREPARE TRANSACTION 'deploys {name}'")
        writer.execute(INSERT, ["meanwhile"])
        assert box.wait(1) == ["meanwhile"]
        with connect() as other:
            other.execute("ROLLBACK PREPARED 'deploys dropped'")
            other.execute("COMMIT PREPARED 'deploys kept'")
        assert box.wait(2) == ["meanwhile", "kept"]


def test_with_poll_nobody_is_notified(waking_up_by_poll: None) -> None:
    with connect() as listener:
        listener.execute("LISTEN pgsignals_log")
        Account.objects.create()
        run("NOTIFY pgsignals_log, 'the mark'")
        (heard,) = listener.notifies(timeout=20, stop_after=1)
    assert heard.payload == "the mark"


def test_a_fresh_migrate_may_write_durable_rows_before_the_logs_own_migration_ran() -> None:
    name = f"early_{uuid.uuid4().hex[:8]}"
    run(f"CREATE DATABASE {name}")
    try:
        environment = {
            **os.environ,
            "PGSIGNALS_TEST_DATABASE": name,
            "DJANGO_SETTINGS_MODULE": "tests.settings_early",
        }
        command = [sys.executable, "-m", "django", "migrate", "-v", "1"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        order = [done.stdout.index(f"Applying {one}") for one in ("early.0002_bird", "pgsignals.0001_log")]
        assert order == sorted(order), "the data migration came first"
        place = connection.settings_dict
        with psycopg.connect(
            dbname=name, host=place["HOST"], port=place["PORT"] or None, user=place["USER"], password=place["PASSWORD"]
        ) as there:
            assert there.execute("SELECT source, op FROM pgsignals_log").fetchall() == [("early.bird", "i")]
    finally:
        run(f"DROP DATABASE {name} WITH (FORCE)")


# An event keeps the shape in which it was written.


@pytest.fixture
def of_another_migration() -> None:
    """An event as code wrote it that had the field `remark` where there is `note` now, and no `balance`."""
    Account.objects.create(owner="ada", note="kept")
    (entry,) = LogEntry.objects.all()
    head = entry.head.replace('"note"', '"remark"').replace('"balance"', '"gone"')
    assert head.count("remark") == head.count("gone") == 1
    LogEntry.objects.update(head=head)


def test_fields_that_the_model_does_not_have_are_kept_raw_and_new_ones_are_not_there(
    of_another_migration: None,
) -> None:
    events: list[PgEvent] = []
    on_pg_event(Account, group="billing", start="beginning")(events.append)
    drained("billing")
    (event,) = events
    assert event.new["owner"] == "ada"
    assert event.new["remark"] == "kept"
    assert "note" not in event.new
    assert event.raw == {"new": {"id": event.pk, "owner": "ada", "gone": 0, "remark": "kept"}}


def test_an_event_of_a_newer_format_waits_for_code_that_reads_it() -> None:
    box = Box()
    on_pg_event(Account, group="billing", start="beginning")(lambda event: box.put(event.new["owner"]))
    for owner in ("before", "newer", "after"):
        Account.objects.create(owner=owner)
    (newer,) = LogEntry.objects.filter(body__contains='"newer"')
    LogEntry.objects.filter(pk=newer.pk).update(head=newer.head.replace('"v":1', '"v":99'))
    drained("billing")
    assert box.items == ["before"]
    LogEntry.objects.filter(pk=newer.pk).update(head=newer.head)
    drained("billing")
    assert box.items == ["before", "newer", "after"]
    assert rows("SELECT 1 FROM pgsignals_dead") == []
