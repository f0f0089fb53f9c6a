"""`manage.py pgsignals status` and `sync`, and the system check that says the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.migrations.exceptions import NodeNotFoundError
from django.test import override_settings

from pgsignals import checks
from pgsignals.triggers import sync

from .conftest import connect

pytestmark = pytest.mark.django_db(transaction=True)


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("pgsignals", *arguments, stdout=out)
    return out.getvalue()


def found() -> list[tuple[str, str]]:
    return [(str(one.id), one.msg) for one in checks.check_databases(None, databases=["default"])]


@pytest.fixture
def _amiss() -> Iterator[None]:
    """One declaration of each state."""
    with connect() as writer:
        writer.execute("DROP TRIGGER pgsignals_order_events_upd ON shop_order")
        writer.execute("COMMENT ON FUNCTION pgsignals_customer_events() IS '{\"pgsignals\": 1}'")
        writer.execute(
            "CREATE FUNCTION pgsignals_left_over() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        writer.execute("""COMMENT ON FUNCTION pgsignals_left_over() IS '{"pgsignals": 1, "model": "shop.gone"}'""")
        writer.execute("CREATE TRIGGER x AFTER INSERT ON shop_token EXECUTE FUNCTION pgsignals_left_over()")
    yield
    sync.repair("default", prune=True)


def test_status_shows_every_declaration_as_a_table() -> None:
    lines = run("status").splitlines()
    assert lines[0].split() == ["state", "declaration", "model", "table", "announces"]
    (order,) = [line for line in lines if "order_events" in line]
    assert order.split() == ["installed", "order_events", "shop.Order", "shop_order", *OPERATIONS]
    assert all(line.startswith("installed") for line in lines[1 : lines.index("")])


OPERATIONS = ["insert,", "update,", "delete,", "truncate"]


@pytest.mark.usefixtures("_amiss")
def test_status_says_the_state_of_each_as_json() -> None:
    said = json.loads(run("status", "--json"))
    assert said["database"] == "default"
    rows = {row["name"]: row for row in said["triggers"]}
    assert rows["order_events"] == {
        "name": "order_events",
        "model": "shop.Order",
        "table": "shop_order",
        "operations": ["insert", "update", "delete", "truncate"],
        "state": "missing",
        "detail": "no trigger for update",
        "partitioned": False,
    }
    assert rows["customer_events"]["state"] == "outdated"
    assert (rows["left_over"]["state"], rows["left_over"]["model"], rows["left_over"]["table"]) == (
        "orphan",
        "shop.gone",
        "shop_token",
    )
    assert rows["token_events"]["state"] == "installed"


@pytest.mark.usefixtures("_amiss")
def test_status_with_check_fails_unless_all_is_as_declared() -> None:
    with pytest.raises(CommandError, match=r"3 of \d+ are not as declared: .*'order_events' on shop.Order \(missing\)"):
        run("status", "--check")
    run("sync", "--prune")
    run("status", "--check")


def test_another_projects_triggers_are_shown_and_fail_no_check() -> None:
    with connect() as writer:
        writer.execute(
            "CREATE FUNCTION pgsignals_theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
            """COMMENT ON FUNCTION pgsignals_theirs() IS '{"pgsignals": 1, "model": "theirs.thing"}'"""
        )
        try:
            assert "theirs.thing" in run("status", "--check")
        finally:
            writer.execute("DROP FUNCTION pgsignals_theirs()")


@pytest.mark.usefixtures("_amiss")
def test_sync_repairs_and_drops_only_when_told_to() -> None:
    out = run("sync")
    assert "created: order_events (shop.Order)" in out
    assert "renewed: customer_events (shop.Customer)" in out
    assert "orphan: left_over (shop.gone): nothing here declares it" in out
    assert [row.name for row in sync.compare("default") if row.state != "installed"] == ["left_over"]
    assert "dropped: left_over (shop.gone)" in run("sync", "--prune")
    assert run("sync").strip() == "Every declaration has its triggers, and they are up to date."


@pytest.mark.usefixtures("_amiss")
def test_sync_says_what_it_could_not_repair_and_fails() -> None:
    """A table in use: its trigger is not made, what else there is to do is done."""
    errors = StringIO()
    with connect() as holder, override_settings(PGSIGNALS={"LOCK_TIMEOUT": 0.1}):
        holder.execute("BEGIN")
        holder.execute("INSERT INTO shop_order (state, total, note) VALUES ('a', 1, '')")
        with pytest.raises(CommandError, match="Not everything could be repaired"):
            call_command("pgsignals", "sync", stdout=StringIO(), stderr=errors)
    assert "failed: 'order_events' on shop.Order: pgsignals: the table of shop.Order is in use" in errors.getvalue()
    assert "LOCK_TIMEOUT" in errors.getvalue()
    assert {row.name: row.state for row in sync.compare("default")}["customer_events"] == "installed"


@pytest.mark.usefixtures("_amiss")
def test_the_check_of_the_database_says_the_same() -> None:
    said = dict(found())
    assert said.keys() == {"pgsignals.W040", "pgsignals.W041", "pgsignals.W043"}
    assert "'order_events' on shop.Order does not announce all" in said["pgsignals.W040"]
    assert "no trigger for update" in said["pgsignals.W040"]
    assert "'customer_events' on shop.Customer is not as declared" in said["pgsignals.W041"]
    assert "'left_over' on shop.gone, which nothing here declares" in said["pgsignals.W043"]
    out = StringIO()
    call_command("check", databases=["default"], stderr=out, stdout=out)
    assert "pgsignals.W040" in out.getvalue()


def test_the_check_is_content_where_all_is_installed_and_asks_no_database_unless_told_to() -> None:
    assert found() == []
    assert checks.check_databases(None) == []
    assert checks.check_databases(None, databases=["sqlite"]) == []


@pytest.mark.usefixtures("_amiss")
def test_the_check_is_silent_while_migrations_wait() -> None:
    """`migrate` runs it before it begins."""
    with connect() as writer:
        writer.execute("UPDATE django_migrations SET app = 'away' WHERE app = 'sessions'")
    try:
        assert found() == []
        assert "There are migrations that were not applied: migrate first." in run("status")
    finally:
        with connect() as writer:
            writer.execute("UPDATE django_migrations SET app = 'sessions' WHERE app = 'away'")


def test_the_check_says_when_the_database_is_not_there(django_db_blocker: Any) -> None:
    settings: dict[str, Any] = {**connections.databases["default"], "NAME": "no_such_database"}
    connections.databases["away"] = settings
    try:
        with django_db_blocker.unblock():
            (message,) = checks.check_databases(None, databases=["away"])
    finally:
        del connections["away"]
        del connections.databases["away"]
    assert message.id == "pgsignals.W044"
    assert 'database "no_such_database" does not exist' in message.msg


def test_a_partitioned_table_is_warned_of() -> None:
    with connect() as writer:
        writer.execute("ALTER TABLE shop_token RENAME TO shop_token_kept")
        writer.execute("CREATE TABLE shop_token (id uuid PRIMARY KEY, label text) PARTITION BY HASH (id)")
    try:
        sync.repair("default")
        (said,) = found()
        assert said[0] == "pgsignals.W042"
        assert "writes straight into a partition" in said[1]
    finally:
        with connect() as writer:
            writer.execute("DROP TABLE shop_token")
            writer.execute("ALTER TABLE shop_token_kept RENAME TO shop_token")
    assert {row.state for row in sync.compare("default")} == {"installed"}


def test_a_key_that_the_database_does_not_keep_unique_is_warned_of() -> None:
    with connect() as writer:
        writer.execute("ALTER TABLE shop_token DROP CONSTRAINT shop_token_pkey")
        try:
            (said,) = found()
            assert said[0] == "pgsignals.W045"
            assert "keeps the key of shop_token unique and free of NULL" in said[1]
            writer.execute("CREATE UNIQUE INDEX token_partly ON shop_token (id) WHERE label <> ''")
            assert [one for one, _ in found()] == ["pgsignals.W045"], "not of all rows"
            writer.execute("CREATE UNIQUE INDEX token_whole ON shop_token (id)")
            assert found() == []
            writer.execute("CREATE TABLE heir () INHERITS (shop_token)")
            assert [one for one, _ in found()] == ["pgsignals.W045"], "the heir may repeat a key"
            writer.execute("DROP TABLE heir; ALTER TABLE shop_token ALTER id DROP NOT NULL")
            assert [one for one, _ in found()] == ["pgsignals.W045"], "it may be NULL"
        finally:
            writer.execute("DROP TABLE IF EXISTS heir")
            writer.execute("DROP INDEX IF EXISTS token_partly, token_whole")
            writer.execute("ALTER TABLE shop_token ADD PRIMARY KEY (id)")
    assert found() == []


def test_migrations_that_cannot_be_read_leave_the_checks_to_django(monkeypatch: pytest.MonkeyPatch) -> None:
    """`makemigrations` and the like run the checks first; what is wrong they say themselves."""

    def broken() -> Any:
        raise NodeNotFoundError("a migration that is not there", ("shop", "0001"))

    monkeypatch.setattr("pgsignals.triggers.tracked.on_disk", broken)
    assert checks.check_declarations(None) == []


def test_on_another_vendors_database_the_command_says_so() -> None:
    for command in ("status", "sync"):
        with pytest.raises(CommandError, match="The database 'sqlite' is not PostgreSQL"):
            run(command, "--database", "sqlite")
