"""What migrations, and others, do to tables and models that announce: the triggers go with them."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import DatabaseError, connection, connections, migrations, models, transaction
from django.db.migrations.state import ModelState, ProjectState
from django.db.migrations.writer import MigrationWriter
from django.test import override_settings

from pgsignals import Notify
from pgsignals.triggers import sync

from .conftest import Listener, connect
from .fleet import Fleet, change, functions, installed, state
from .shop.models import Article

pytestmark = pytest.mark.django_db(transaction=True)

EVENTS = Notify(name="plane_events", fields=["a"])
TRIGGERS = [f"pgsignals_plane_events_{operation}" for operation in ("del", "ins", "tru", "upd")]


def said(listener: Listener) -> list[dict[str, Any]]:
    return [json.loads(one.payload) for one in listener.notifications()]


def states(fleet: Fleet, database: str = "default") -> dict[str, str]:
    """Of the fleet's declarations, and of orphans of the fleet's."""
    found = sync.compare(database, fleet.state.apps, {})
    return {row.name: row.state for row in found if row.model.startswith("fleet.")}


@pytest.fixture
def plane(fleet: Fleet) -> Fleet:
    """A table with a declaration, and one row with the key 1 and a = 'x'."""
    fleet.apply(change(ProjectState(), state(plane=[EVENTS])))
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
    return fleet


def test_a_renamed_field_goes_by_its_new_name(plane: Fleet, listener: Listener) -> None:
    """With the declaration's name for it, as makemigrations writes both."""
    renamed = Notify(name="plane_events", fields=["b"])
    plane.apply(
        [
            migrations.RenameField("plane", "a", "b"),
            migrations.AlterConstraint("plane", renamed.name, renamed),
        ]
    )
    with connect() as writer:
        writer.execute("UPDATE fleet_plane SET b = 'y'")
    (payload,) = said(listener)
    assert (payload["f"], payload["c"], payload["r"]) == (["b"], ["b"], [[1, ["x"], ["y"]]])
    assert states(plane) == {"plane_events": "installed"}


def test_a_renamed_column_is_followed(plane: Fleet, listener: Listener) -> None:
    plane.apply([migrations.AlterField("plane", "a", models.TextField(default="", db_column="letter"))])
    with connect() as writer:
        writer.execute("UPDATE fleet_plane SET letter = 'y'")
    (payload,) = said(listener)
    assert (payload["c"], payload["r"], payload.get("i")) == (["a"], [[1, ["x"], ["y"]]], None)


def test_a_moved_table_keeps_its_triggers(plane: Fleet, listener: Listener) -> None:
    plane.apply([migrations.AlterModelTable("plane", "fleet_ship")])
    assert installed()["fleet_ship"] == TRIGGERS
    with connect() as writer:
        writer.execute("UPDATE fleet_ship SET a = 'y'")
    assert [one["m"] for one in said(listener)] == ["fleet.plane"]
    assert states(plane) == {"plane_events": "installed"}
    plane.reverse()
    assert installed()["fleet_plane"] == TRIGGERS
    assert states(plane) == {"plane_events": "installed"}


def test_a_renamed_model_is_announced_once_by_its_new_name(plane: Fleet, listener: Listener) -> None:
    plane.apply([migrations.RenameModel("Plane", "Ship")])
    with connect() as writer:
        writer.execute("UPDATE fleet_ship SET a = 'y'")
    assert [one["m"] for one in said(listener)] == ["fleet.ship"]
    assert states(plane) == {"plane_events": "installed"}
    plane.reverse()
    with connect() as writer:
        writer.execute("UPDATE fleet_plane SET a = 'z'")
    assert [one["m"] for one in said(listener)] == ["fleet.plane"]


def test_a_renamed_model_whose_declaration_goes_by_its_class_is_announced_once(
    fleet: Fleet, listener: Listener
) -> None:
    """The autodetector renames the model, removes the constraint by its old name, and adds the new one."""
    named = Notify(name="fleet_plane_events")
    fleet.apply(change(ProjectState(), state(plane=[named])))
    fleet.apply(
        [
            migrations.RenameModel("plane", "ship"),
            migrations.RemoveConstraint("ship", "fleet_plane_events"),
            migrations.AddConstraint("ship", Notify(name="fleet_ship_events")),
        ]
    )
    with connect() as writer:
        writer.execute("INSERT INTO fleet_ship (a) VALUES ('x')")
    assert [one["d"] for one in said(listener)] == ["fleet_ship_events"]
    assert states(fleet) == {"fleet_ship_events": "installed"}


@pytest.mark.parametrize(
    ("old", "new", "statement"),
    [
        (models.AutoField, models.BigAutoField, "ALTER TABLE fleet_plane ALTER id TYPE bigint"),
        (models.BigAutoField, models.TextField, "ALTER TABLE fleet_plane ALTER id TYPE text"),
    ],
)
def test_a_key_of_another_type_is_written_as_such(
    fleet: Fleet, listener: Listener, old: type[models.Field], new: type[models.Field], statement: str
) -> None:
    """Also by a session that wrote to the table before."""
    project = ProjectState()
    project.add_model(
        ModelState(
            "fleet",
            "plane",
            [("id", old(primary_key=True)), ("a", models.TextField(default=""))],
            options={"constraints": [EVENTS]},
        )
    )
    fleet.apply(change(ProjectState(), project))
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
        fleet.apply([migrations.AlterField("plane", "id", new(primary_key=True))])
        writer.execute("UPDATE fleet_plane SET a = 'y'")
    inserted, updated = said(listener)
    assert inserted["r"] == [[1, ["x"]]]
    assert updated.get("i") is None
    assert updated["r"] == [["1" if new is models.TextField else 1, ["x"], ["y"]]]


def test_a_state_that_is_separated_from_the_database_is_reported_and_made(
    plane: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """The migration says that there is a declaration, and touches no table."""
    declared = Notify(name="plane_more", on=["insert"])
    plane.apply(
        [
            migrations.SeparateDatabaseAndState(
                state_operations=[migrations.AddConstraint("plane", declared)], database_operations=[]
            )
        ]
    )
    assert states(plane) == {"plane_events": "installed", "plane_more": "missing"}
    assert "'plane_more' on fleet.plane does not announce all that it declares" in caplog.text
    plane.apply(
        [
            migrations.SeparateDatabaseAndState(
                state_operations=[migrations.RemoveConstraint("plane", "plane_events")], database_operations=[]
            )
        ]
    )
    assert states(plane) == {"plane_events": "orphan", "plane_more": "missing"}
    assert "triggers of 'plane_events' on fleet.plane, which nothing declares" in caplog.text
    assert installed()["fleet_plane"] == TRIGGERS, "nothing is dropped by itself"


def test_declaring_what_is_there_already_doubles_nothing(plane: Fleet, listener: Listener) -> None:
    """As where `sync` was faster than the migration, or a migration is applied again."""
    with connection.schema_editor() as editor:
        editor.add_constraint(plane.state.apps.get_model("fleet.plane"), EVENTS)
    with connect() as writer:
        writer.execute("UPDATE fleet_plane SET a = 'y'")
    assert len(said(listener)) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"fields": "__all__"},
        {"fields": ["a"], "watch": ["a"]},
        {"fields": ["a"], "when": models.Q(a="z")},
        {"exclude": ["id"]},
        {"channel": "planes"},
    ],
    ids=["fields", "watch", "when", "exclude", "channel"],
)
def test_what_changes_the_function_only_takes_no_lock_on_the_table(plane: Fleet, changed: dict[str, Any]) -> None:
    """Another session holds the table in a mode that keeps every trigger from being made."""
    with connect() as holder:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE fleet_plane IN SHARE UPDATE EXCLUSIVE MODE")
        with override_settings(PGSIGNALS={"LOCK_TIMEOUT": 0.2}):
            operations = change(state(plane=[EVENTS]), state(plane=[Notify(name="plane_events", **changed)]))
            assert [type(one) for one in operations] == [migrations.AlterConstraint]
            plane.apply(operations)
        assert states(plane) == {"plane_events": "installed"}
        holder.execute("ROLLBACK")


def test_a_table_in_use_ends_the_removal_with_what_to_do(plane: Fleet) -> None:
    with connect() as holder, override_settings(PGSIGNALS={"LOCK_TIMEOUT": 0.2}):
        holder.execute("BEGIN")
        holder.execute("SELECT * FROM fleet_plane")
        with pytest.raises(DatabaseError, match="is in use, so its trigger could not be dropped") as raised:
            plane.apply(change(state(plane=[EVENTS]), state(plane=[])))
        assert "LOCK_TIMEOUT" in str(raised.value)
        holder.execute("ROLLBACK")
    assert installed()["fleet_plane"] == TRIGGERS


def waiting_for_advisory_lock(watcher: psycopg.Connection) -> bool:
    found = watcher.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
    return bool(found and found[0])


def test_two_that_migrate_at_once_do_not_collide(fleet: Fleet) -> None:
    """The second waits for the first, however long, and finds the function made."""
    fleet.apply(change(ProjectState(), state(plane=[])))
    model = state(plane=[]).apps.get_model("fleet.plane")
    failures: list[Exception] = []

    def second() -> None:
        try:
            with connection.schema_editor() as editor:
                editor.add_constraint(model, EVENTS)
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=second)
    with connect() as watcher, override_settings(PGSIGNALS={"LOCK_TIMEOUT": 0.05}):
        with connection.schema_editor() as editor:
            editor.add_constraint(model, EVENTS)
            thread.start()
            until(lambda: waiting_for_advisory_lock(watcher))
        thread.join(30)
    assert not thread.is_alive()
    assert failures == []
    assert installed()["fleet_plane"] == TRIGGERS


def test_two_that_renew_functions_at_once_do_not_collide(plane: Fleet) -> None:
    """The second waits, and then finds nothing to do."""
    with connect() as other:
        other.execute("COMMENT ON FUNCTION pgsignals_plane_events() IS '{\"pgsignals\": 1}'")
    assert states(plane)["plane_events"] == "outdated"
    done: list[Any] = []

    def second() -> None:
        try:
            done.append(sync.renew_outdated("default", plane.state.apps, {}))
        except Exception as error:
            done.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=second)
    with connect() as watcher:
        with transaction.atomic():
            first = sync.renew_outdated("default", plane.state.apps, {})
            thread.start()
            until(lambda: waiting_for_advisory_lock(watcher))
        thread.join(30)
    assert [(row.name, row.problem) for row in first] == [("plane_events", "")]
    assert done == [[]]
    assert states(plane)["plane_events"] == "installed"


def until(true: Callable[[], bool]) -> None:
    moment = threading.Event()
    for _ in range(3000):
        if true():
            return
        moment.wait(0.01)
    raise AssertionError("it never came true")


# With files, and the command itself.


@pytest.fixture
def files(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package of migrations, which stands in for those of `shop`."""
    package = tmp_path / f"made_{uuid.uuid4().hex}"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with override_settings(MIGRATION_MODULES={"shop": package.name}):
        yield package
        call_command("migrate", "shop", "zero", verbosity=0)
        with connect() as writer:
            writer.execute("DELETE FROM django_migrations WHERE app = 'shop'")
            writer.execute("DROP TABLE IF EXISTS shop_plane")


def write(package: Path, name: str, operations: list[Any], **attributes: Any) -> None:
    made = type("Migration", (migrations.Migration,), {"operations": operations, **attributes})
    (package / f"{name}.py").write_text(MigrationWriter(made(name, "shop")).as_string())


FIELDS = [("id", models.BigAutoField(primary_key=True)), ("a", models.TextField(default=""))]


def test_migrating_to_zero_leaves_a_function_that_is_reported_and_pruned(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(files, "0001_initial", [migrations.CreateModel("Plane", FIELDS, options={"constraints": [EVENTS]})])
    call_command("migrate", "shop", verbosity=0)
    assert installed()["shop_plane"] == TRIGGERS
    call_command("migrate", "shop", "zero", verbosity=0)
    assert "pgsignals_plane_events" in functions()
    assert "triggers of 'plane_events' on shop.plane, which nothing declares" in caplog.text
    assert [(row.name, row.problem) for row in sync.repair("default", prune=True) if row.state == "orphan"] == [
        ("plane_events", "")
    ]
    assert "pgsignals_plane_events" not in functions()


def test_a_faked_migration_is_reported(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(files, "0001_initial", [migrations.CreateModel("Plane", FIELDS)])
    call_command("migrate", "shop", verbosity=0)
    write(
        files,
        "0002_events",
        [migrations.AddConstraint("Plane", EVENTS)],
        dependencies=[("shop", "0001_initial")],
    )
    call_command("migrate", "shop", fake=True, verbosity=0)
    assert "shop_plane" not in installed()
    assert "'plane_events' on shop.Plane does not announce all that it declares" in caplog.text
    assert "pgsignals sync" in caplog.text


def test_squashed_migrations_install_what_they_replace_did(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a new database; and on one that has the old ones, where nothing is doubled and nothing is an orphan."""
    write(files, "0001_initial", [migrations.CreateModel("Plane", FIELDS)])
    write(
        files,
        "0002_events",
        [migrations.AddConstraint("Plane", Notify(name="plane_events"))],
        dependencies=[("shop", "0001_initial")],
    )
    write(
        files,
        "0003_more",
        [migrations.AlterConstraint("Plane", "plane_events", EVENTS)],
        dependencies=[("shop", "0002_events")],
    )
    call_command("migrate", "shop", verbosity=0)
    call_command("squashmigrations", "shop", "0003", interactive=False, verbosity=0)
    assert len(list(files.glob("*squashed*.py"))) == 1
    call_command("migrate", "shop", verbosity=0)
    assert installed()["shop_plane"] == TRIGGERS
    call_command("migrate", "shop", "zero", verbosity=0)
    assert "shop_plane" not in installed()
    sync.repair("default", prune=True)
    caplog.clear()
    call_command("migrate", "shop", verbosity=0)
    assert installed()["shop_plane"] == TRIGGERS
    assert "plane_events" not in caplog.text


# Several databases, several schemas.


@pytest.fixture
def second_database() -> Iterator[str]:
    """Another PostgreSQL database, by the alias `second`, of which Django knows while the test runs."""
    name = f"second_{uuid.uuid4().hex[:8]}"
    with connect() as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    settings = {**connection.settings_dict, "NAME": name}
    connections.databases["second"] = settings
    try:
        yield "second"
    finally:
        connections["second"].close()
        del connections["second"]
        del connections.databases["second"]
        with connect() as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


class ShopOnTheSecond:
    """`shop` has its tables in the second database; everything else, in the first."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return (app_label == "shop") == (db == "second")


@pytest.fixture
def _all_databases(django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        yield


@pytest.mark.usefixtures("_all_databases")
def test_a_database_is_asked_for_those_declarations_only_that_the_router_gives_it(second_database: str) -> None:
    unblock(second_database)
    with override_settings(DATABASE_ROUTERS=[ShopOnTheSecond()]):
        before = {row.name: row for row in sync.compare("second")}
        assert (before["order_events"].state, before["order_events"].detail) == (
            "missing",
            "there is no table 'shop_order'; migrate",
        )
        assert {row.name for row in sync.compare("default") if row.state != "orphan"}.isdisjoint(before)
        call_command("migrate", database="second", run_syncdb=True, verbosity=0)
        after = {row.name: row.state for row in sync.compare("second")}
    assert after == dict.fromkeys(before, "installed")


def unblock(alias: str) -> None:
    """pytest-django lets a test use the databases that it names; this one is made by the test."""
    for method in ("connect", "cursor", "chunked_cursor", "temporary_connection"):
        blocked = connections[alias].__dict__.get(method)
        if blocked is not None:
            delattr(connections[alias], method)


def test_each_schema_has_its_own_function_and_triggers(plane: Fleet, listener: Listener) -> None:
    """As with a schema for each tenant. Events say in which schema they happened."""
    model = plane.state.apps.get_model("fleet.plane")
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA tenant")
        try:
            cursor.execute("SET search_path = tenant, public")
            assert states(plane) == {"plane_events": "installed"}, "what is found in public"
            with connection.schema_editor() as editor:
                editor.create_model(model)
            assert states(plane) == {"plane_events": "installed"}
            cursor.execute("DROP FUNCTION tenant.pgsignals_plane_events() CASCADE")
            assert states(plane) == {"plane_events": "missing"}, "public's function has no trigger on this table"
            (row,) = [row for row in sync.compare("default", plane.state.apps, {}) if row.name == "plane_events"]
            assert row.table == "fleet_plane"
            with connection.schema_editor() as editor:
                editor.add_constraint(model, EVENTS)
            assert states(plane) == {"plane_events": "installed"}
            listener.notifications()
            cursor.execute("INSERT INTO fleet_plane (a) VALUES ('in tenant')")
            cursor.execute("SET search_path = public")
            cursor.execute("INSERT INTO fleet_plane (a) VALUES ('in public')")
            assert states(plane) == {"plane_events": "installed"}
        finally:
            cursor.execute("SET search_path = public")
            cursor.execute("DROP SCHEMA tenant CASCADE")
    assert [(one["s"], one["r"][0][1]) for one in said(listener)] == [
        ("tenant", ["in tenant"]),
        ("public", ["in public"]),
    ]


@pytest.mark.parametrize("others", ["", ", (1)"])
def test_a_key_that_equals_another_and_is_not_the_same_has_changed(
    fleet: Fleet, listener: Listener, others: str
) -> None:
    """As text under a collation that ignores case; and 0.0 and -0.0."""
    project = ProjectState()
    project.add_model(
        ModelState(
            "fleet",
            "plane",
            [("id", models.FloatField(primary_key=True)), ("a", models.TextField(default=""))],
            options={"constraints": [Notify(name="plane_events")]},
        )
    )
    fleet.apply(change(ProjectState(), project))
    with connect() as writer:
        writer.execute(f"INSERT INTO fleet_plane (id, a) SELECT id, '' FROM (VALUES (0){others}) AS t (id)")
        listener.notifications()
        writer.execute("UPDATE fleet_plane SET id = CASE id WHEN 0 THEN '-0'::float8 ELSE id END")
    told = [re.sub(r'.*"o":"(.)".*"r":(.*)}', r"\1 \2", one.payload) for one in listener.notifications()]
    assert told == ["d [[0]]", "i [[-0]]"]


@pytest.mark.usefixtures("_all_databases")
def test_another_name_for_the_same_database_is_no_reason_to_drop_everything() -> None:
    """A router says that the alias has no tables of ours; its database has them all the same."""
    connections.databases["again"] = {**connection.settings_dict}
    try:
        with override_settings(DATABASE_ROUTERS=[NothingIn("again")]):
            unblock("again")
            rows = sync.compare("again")
            assert {row.state for row in rows} == {"orphan"}
            assert {row.detail for row in rows} == {"a router keeps its model from this database"}
            assert sync.repair("again", prune=True) == []
    finally:
        connections["again"].close()
        del connections["again"]
        del connections.databases["again"]
    assert {row.state for row in sync.compare("default")} == {"installed"}


class NothingIn:
    """No table of any app is in one database."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if db == self.alias else None


def test_a_trigger_that_was_disabled_is_missing_and_sync_enables_it() -> None:
    with connect() as writer:
        writer.execute("ALTER TABLE shop_article DISABLE TRIGGER pgsignals_shop_article_events_upd")
        (row,) = [row for row in sync.compare("default") if row.state != "installed"]
        assert (row.name, row.state) == ("shop_article_events", "missing")
        assert row.detail == "the trigger for update is disabled"
        assert [(done.name, done.problem) for done in sync.repair("default")] == [("shop_article_events", "")]
        assert {row.state for row in sync.compare("default")} == {"installed"}
        writer.execute("ALTER TABLE shop_article ENABLE ALWAYS TRIGGER pgsignals_shop_article_events_upd")
        assert {row.state for row in sync.compare("default")} == {"installed"}, "always is enabled, too"
        writer.execute("ALTER TABLE shop_article ENABLE TRIGGER pgsignals_shop_article_events_upd")


def test_a_trigger_too_many_is_outdated_and_sync_drops_it(listener: Listener) -> None:
    """`on` was narrowed by hand, or by a migration that was faked."""
    with connect() as writer:
        writer.execute(
            "CREATE TRIGGER pgsignals_token_events_tru AFTER TRUNCATE ON shop_token "
            "EXECUTE FUNCTION pgsignals_token_events()"
        )
    (row,) = [row for row in sync.compare("default") if row.state != "installed"]
    assert (row.name, row.state) == ("token_events", "outdated")
    call_command("migrate", verbosity=0)
    assert "pgsignals_token_events_tru" in installed()["shop_token"], "migrate drops no trigger"
    sync.repair("default")
    assert "pgsignals_token_events_tru" not in installed()["shop_token"]
    assert {row.state for row in sync.compare("default")} == {"installed"}


def test_a_function_that_a_stranger_made_before_is_not_taken_for_ours(fleet: Fleet) -> None:
    """Who owns it could replace it later, and every writer would run what it says."""
    fleet.apply(change(ProjectState(), state(plane=[])))
    role = f"mallory_{uuid.uuid4().hex[:8]}"
    with connect() as admin:
        admin.execute(f"CREATE ROLE {role}")
        admin.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
        admin.execute(f"SET ROLE {role}")
        admin.execute(
            "CREATE FUNCTION pgsignals_plane_events() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        admin.execute("RESET ROLE")
        try:
            with pytest.raises(DatabaseError, match=f"there is a function .* of another role, {role}") as raised:
                fleet.apply(change(state(plane=[]), state(plane=[EVENTS])))
            assert "ALTER FUNCTION" in str(raised.value)
            admin.execute("DROP FUNCTION pgsignals_plane_events()")
            fleet.state = state(plane=[])
            fleet.apply(change(state(plane=[]), state(plane=[EVENTS])))
            assert states(fleet) == {"plane_events": "installed"}
            admin.execute(f"ALTER FUNCTION pgsignals_plane_events() OWNER TO {role}")
            row = next(row for row in sync.compare("default", fleet.state.apps, {}) if row.name == "plane_events")
            assert row.state == "outdated", row
            assert f"its function belongs to the role '{role}', who can replace it" in row.detail
        finally:
            admin.execute("DROP FUNCTION IF EXISTS pgsignals_plane_events() CASCADE")
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


def test_what_one_role_may_not_repair_keeps_nothing_else_from_it(caplog: pytest.LogCaptureFixture) -> None:
    """A function that another role owns is named with the remedy; the next one is renewed."""
    role = f"migrator_{uuid.uuid4().hex[:8]}"
    names = ["shop_article_events", "customer_events"]
    with connect() as admin:
        admin.execute(f"CREATE ROLE {role} SUPERUSER")
        admin.execute(f"ALTER TABLE shop_customer OWNER TO {role}")
        for name in names:
            admin.execute(f"COMMENT ON FUNCTION pgsignals_{name}() IS 'old'")
        admin.execute(f"ALTER FUNCTION pgsignals_customer_events() OWNER TO {role}")
        admin.execute(f"ALTER ROLE {role} NOSUPERUSER")
        admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        admin.execute(f"GRANT ALL ON SCHEMA public TO {role}")
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SET ROLE {role}")
        sync.after_migrate(using="default", apps=apps)
        done = {row.name: row.problem for row in sync.repair("default")}
        assert list(done) == ["shop_article_events"]
        assert "must be owner of function" in done["shop_article_events"]
        assert "use the role that migrates" in done["shop_article_events"]
        assert "shop_article_events' on shop.Article is old, and was not renewed: must be owner" in caplog.text
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET ROLE")
        with connect() as admin:
            admin.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER")
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")
        sync.repair("default")
    assert {row.state for row in sync.compare("default")} == {"installed"}
    Article.objects.create()
