"""Declarations in migrations: found, applied, reversed, renewed."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections, migrations, models
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter
from django.test import override_settings
from django.test.utils import isolate_apps

from pgsignals import Notify
from pgsignals.event import OPERATIONS
from pgsignals.triggers import sync

from .conftest import Listener, connect
from .fleet import Fleet, change, functions, installed, state, written
from .shop.models import Article

pytestmark = pytest.mark.django_db(transaction=True)


EVENTS = Notify(name="plane_events", fields=["a"])
TRIGGERS = [f"pgsignals_plane_events_{operation}" for operation in ("del", "ins", "tru", "upd")]


def test_makemigrations_finds_a_declaration_its_changes_and_its_removal() -> None:
    plain, declared = state(plane=[]), state(plane=[EVENTS])
    (added,) = change(plain, declared)
    assert isinstance(added, migrations.AddConstraint)
    assert written([added])[0].constraint == EVENTS
    (altered,) = change(declared, state(plane=[Notify(name="plane_events")]))
    assert type(altered).__name__ == "AlterConstraint"
    replaced = change(declared, state(plane=[Notify(name="plane_events", on=["insert"], fields=["a"])]))
    assert [type(one).__name__ for one in replaced] == ["RemoveConstraint", "AddConstraint"]
    (removed,) = change(declared, plain)
    assert isinstance(removed, migrations.RemoveConstraint)


def test_an_unchanged_declaration_makes_no_migration() -> None:
    """In whatever order and type its arguments were given."""
    same = Notify(name="plane_events", fields=("a",), on=list(reversed(OPERATIONS)))
    assert change(state(plane=[EVENTS]), state(plane=[same])) == []


@pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])
def test_makemigrations_writes_the_tests_own_models() -> None:
    """The command itself, on declarations as projects write them."""
    out = StringIO()
    call_command("makemigrations", "shop", dry_run=True, verbosity=3, stdout=out)
    text = out.getvalue()
    assert "pgsignals.Notify(fields=('status', 'total', 'customer'), name='order_events')" in text
    assert "name='shop_article_events'" in text
    assert "on=('insert', 'delete')" in text


def test_adding_and_removing_apply_and_reverse(fleet: Fleet) -> None:
    fleet.apply(change(ProjectState(), state(plane=[])))
    fleet.apply(change(state(plane=[]), state(plane=[EVENTS])))
    assert installed()["fleet_plane"] == TRIGGERS
    fleet.apply(change(state(plane=[EVENTS]), state(plane=[])))
    assert "fleet_plane" not in installed()
    assert "pgsignals_plane_events" not in functions()
    fleet.reverse()
    assert installed()["fleet_plane"] == TRIGGERS
    fleet.reverse()
    assert "fleet_plane" not in installed()


def test_a_new_model_is_created_with_its_triggers(fleet: Fleet) -> None:
    fleet.apply(change(ProjectState(), state(plane=[EVENTS])))
    assert installed()["fleet_plane"] == TRIGGERS
    fleet.reverse()
    assert "fleet_plane" not in installed()


def test_a_field_renamed_in_the_migration_that_creates_the_model_does_not_confuse_the_trigger(
    fleet: Fleet, listener: Listener
) -> None:
    """The trigger waits for the table; by then a column, and even the table, may have another name."""
    create = change(ProjectState(), state(plane=[Notify(name="plane_events")]))
    fleet.apply([*create, migrations.RenameField("plane", "a", "b"), migrations.AlterModelTable("plane", "fleet_ship")])
    assert installed()["fleet_ship"] == TRIGGERS
    with connect() as writer:
        writer.execute("INSERT INTO fleet_ship (b) VALUES ('x')")
        writer.execute("UPDATE fleet_ship SET b = 'y'")
    payloads = [json.loads(one.payload) for one in listener.notifications()]
    assert [(one["o"], one.get("c")) for one in payloads] == [("i", None), ("u", ["b"])]


@pytest.mark.parametrize("table", ["o'brien", '%(table)s"."x', "$pgsignals_ddl$", "{ddl}", "50% of it", "ünï"])
def test_a_table_may_have_any_name(listener: Listener, table: str) -> None:
    if '"' in table:  # Django's way to name a schema
        with connection.cursor() as cursor:
            cursor.execute('CREATE SCHEMA "%(table)s"')
    with isolate_apps("tests.shop"):
        meta = type("Meta", (), {"app_label": "shop", "db_table": table})
        model = type("Odd", (models.Model,), {"__module__": __name__, "a": models.TextField(), "Meta": meta})
    quoted = connection.ops.quote_name(table)
    try:
        with connection.schema_editor() as editor:
            editor.create_model(model)
            editor.add_constraint(model, EVENTS)
        with connect() as writer:
            writer.execute(f"INSERT INTO {quoted} (a) VALUES ('x')".encode())
        with connection.schema_editor() as editor:
            editor.remove_constraint(model, EVENTS)
    finally:
        with connect() as writer:
            writer.execute(f"DROP TABLE IF EXISTS {quoted} CASCADE".encode())
            writer.execute(b'DROP SCHEMA IF EXISTS "%(table)s" CASCADE')
    (payload,) = [json.loads(one.payload) for one in listener.notifications()]
    assert payload["r"] == [[1, ["x"]]]
    assert "pgsignals_plane_events" not in functions()


def test_changing_fields_replaces_the_function_and_locks_no_table(fleet: Fleet, listener: Listener) -> None:
    """Another session holds the table all the while, as a long transaction would."""
    fleet.apply(change(ProjectState(), state(plane=[EVENTS])))
    with connect() as holder:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE fleet_plane IN ROW EXCLUSIVE MODE")
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '2s'")
        fleet.apply(change(state(plane=[EVENTS]), state(plane=[Notify(name="plane_events")])))
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
        holder.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
        holder.execute("COMMIT")
    (payload,) = [json.loads(one.payload) for one in listener.notifications()]
    assert payload["r"] == [[1]]
    fleet.reverse()
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
    (payload,) = [json.loads(one.payload) for one in listener.notifications()]
    assert payload["r"] == [[2, ["x"]]]


def test_a_field_added_later_is_named_when_it_changes(fleet: Fleet, listener: Listener) -> None:
    """No migration mentions the declaration; the function is renewed all the same."""
    fleet.apply(change(ProjectState(), state(plane=[EVENTS])))
    fleet.apply([migrations.AddField("plane", "colour", models.TextField(default="red"))])
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane (a, colour) VALUES ('x', 'red')")
        writer.execute("UPDATE fleet_plane SET colour = 'blue'")
    changed = [json.loads(one.payload).get("c") for one in listener.notifications()]
    assert changed == [None, ["colour"]]


def test_a_table_in_use_ends_the_migration_with_what_to_do(fleet: Fleet) -> None:
    """The wait for the lock has a limit; nothing is left half done, and the session's own limit is as before."""
    fleet.apply(change(ProjectState(), state(plane=[])))
    with connect() as holder, override_settings(PGSIGNALS={"LOCK_TIMEOUT": 0.2}):
        holder.execute("BEGIN")
        holder.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
        with pytest.raises(Exception, match="is in use, so its trigger could not be made") as raised:
            fleet.apply(change(state(plane=[]), state(plane=[EVENTS])))
        assert "LOCK_TIMEOUT" in str(raised.value)
        holder.execute("ROLLBACK")
    assert "pgsignals_plane_events" not in functions()
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",)


def test_creating_a_trigger_leaves_the_sessions_lock_timeout_as_it_was(fleet: Fleet) -> None:
    fleet.apply(change(ProjectState(), state(plane=[])))
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '77s'")
    fleet.apply(change(state(plane=[]), state(plane=[EVENTS])))
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("77s",)
        cursor.execute("RESET lock_timeout")


def test_what_follows_in_the_same_migration_waits_for_locks_as_long_as_it_did(fleet: Fleet) -> None:
    fleet.apply(change(ProjectState(), state(plane=[])))
    model = fleet.state.apps.get_model("fleet.plane")
    with connection.schema_editor() as editor, connection.cursor() as cursor:
        for step in (editor.add_constraint, editor.remove_constraint):
            step(model, EVENTS)
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchone() == ("0",)


@pytest.mark.parametrize("options", [{}, {"server_side_binding": True}], ids=["client", "server"])
def test_both_ways_of_binding_parameters_can_migrate(fleet: Fleet, options: dict[str, Any]) -> None:
    """With server-side binding each of our statements must be a single one, without placeholders."""
    connection.close()
    before = connection.settings_dict["OPTIONS"]
    connection.settings_dict["OPTIONS"] = {**before, **options}
    try:
        fleet.apply(change(ProjectState(), state(plane=[EVENTS])))
        fleet.apply(change(state(plane=[EVENTS]), state(plane=[])))
        fleet.reverse()
        assert installed()["fleet_plane"] == TRIGGERS
    finally:
        connection.close()
        connection.settings_dict["OPTIONS"] = before


def test_sqlmigrate_shows_the_sql() -> None:
    """As collected by the schema editor, which is what sqlmigrate prints."""
    project = state(plane=[])
    (add,) = change(project, state(plane=[EVENTS]))
    with connection.schema_editor(collect_sql=True) as editor:
        after = project.clone()
        add.state_forwards("fleet", after)
        add.database_forwards("fleet", editor, project, after)
        add.database_backwards("fleet", editor, after, project)
    text = "\n".join(editor.collected_sql)
    assert 'CREATE OR REPLACE TRIGGER "pgsignals_plane_events_upd" AFTER UPDATE ON "fleet_plane"' in text
    assert "pg_notify" in text
    assert 'DROP FUNCTION IF EXISTS "pgsignals_plane_events"() CASCADE' in text
    assert "%%" not in text


@pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])
def test_on_sqlite_nothing_happens() -> None:
    """The same models, migrated into SQLite: tables, and no word of a trigger."""
    sqlite = connections["sqlite"]
    with sqlite.schema_editor(collect_sql=True) as editor:
        editor.create_model(Article)
        editor.add_constraint(Article, EVENTS)
        editor.remove_constraint(Article, EVENTS)
    assert "TRIGGER" not in "\n".join(editor.collected_sql).upper()
    assert "shop_article" in "\n".join(editor.collected_sql)


def test_after_migrate_the_whole_project_is_installed() -> None:
    """Every declaration of the tests' models has its function and its triggers, with the fingerprint of today."""
    assert {row.state for row in sync.compare("default")} == {"installed"}


def test_a_missing_trigger_is_reported_by_migrate_and_made_by_sync(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with connect() as writer:
        writer.execute("DROP FUNCTION pgsignals_shop_article_events() CASCADE")
    call_command("migrate", verbosity=0)
    assert "'shop_article_events' on shop.Article does not announce all that it declares" in caplog.text
    assert "pgsignals sync --database default" in caplog.text
    Article.objects.create()
    assert listener.events() == []
    assert [row.name for row in sync.repair("default")] == ["shop_article_events"]
    Article.objects.create()
    assert listener.event().op == "insert"


def test_a_function_of_an_older_version_is_replaced_by_migrate(listener: Listener) -> None:
    with connect() as writer:
        writer.execute(
            "CREATE OR REPLACE FUNCTION pgsignals_shop_article_events() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN RETURN NULL; END'"
        )
        writer.execute("COMMENT ON FUNCTION pgsignals_shop_article_events() IS 'no JSON'")
    call_command("migrate", verbosity=0)
    Article.objects.create()
    assert listener.event().op == "insert"


def test_flush_changes_nothing(listener: Listener) -> None:
    """`flush` sends post_migrate too, without the migrations' models."""
    call_command("flush", interactive=False, verbosity=0)
    assert {row.state for row in sync.compare("default")} == {"installed"}


def test_a_full_clean_and_save_ignore_declarations() -> None:
    article = Article(title="a")
    article.full_clean()
    article.validate_constraints()
    article.save()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on": ["upsert"]}, ValueError, "on has 'upsert'; the operations are insert, update, delete, truncate"),
        ({"on": []}, ValueError, "announce nothing"),
        ({"fields": "status"}, ValueError, r"a list is meant: \['status'\]"),
        ({"watch": "a"}, ValueError, r"watch is the text 'a'; a list is meant: \['a'\]"),
        ({"fields": ["a"], "exclude": ["b"]}, ValueError, "fields and exclude are both given"),
        ({"when": "a = 1"}, TypeError, "when is 'a = 1', and must be a Q"),
        ({"channel": "pgsignals"}, ValueError, "carries pgsignals' own row events"),
        ({"channel": "x" * 64}, ValueError, "has 64 bytes; PostgreSQL allows 63"),
        ({"key": "a"}, ValueError, "needs durable=True"),
        ({"key": 1, "durable": True}, TypeError, "the name of a field"),
    ],
)
def test_what_a_declaration_cannot_do_it_says(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Notify(name="x", **arguments)


def test_the_real_executor_migrates_forth_and_back(fleet: Fleet, tmp_path: Path, monkeypatch: Any) -> None:
    """`migrate fleet 0001`, then back to zero, with a migration file and the command itself."""
    package = tmp_path / "fleet_migrations"
    package.mkdir()
    (package / "__init__.py").touch()
    operations = change(ProjectState(), state(plane=[EVENTS]))
    migration = type("Migration", (migrations.Migration,), {"operations": operations, "initial": True})
    (package / "0001_initial.py").write_text(MigrationWriter(migration("0001_initial", "shop")).as_string())
    monkeypatch.syspath_prepend(str(tmp_path))
    with override_settings(MIGRATION_MODULES={"shop": "fleet_migrations"}):
        executor = MigrationExecutor(connection)
        assert ("shop", "0001_initial") in executor.loader.disk_migrations
        call_command("migrate", "shop", verbosity=0)
        assert installed()["shop_plane"] == TRIGGERS
        call_command("migrate", "shop", "zero", verbosity=0)
        assert "shop_plane" not in installed()
