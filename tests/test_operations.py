"""AddNotify and RemoveNotify: models of others; and `manage.py pgsignals track`, which writes the migration."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.db import connection, migrations, models
from django.db.migrations.optimizer import MigrationOptimizer
from django.db.migrations.state import ModelState, ProjectState
from django.db.migrations.writer import MigrationWriter
from django.test import override_settings

import pgsignals
from pgsignals import AddNotify, Notify, RemoveNotify, checks
from pgsignals.triggers import sync, track, tracked

from .conftest import Listener, connect
from .fleet import Fleet, change, functions, installed, state, written
from .relaying import only_receivers_of_this_test

pytestmark = pytest.mark.django_db(transaction=True)

EVENTS = Notify(name="tracked_events", fields=["a"])


def said(listener: Listener) -> list[dict[str, Any]]:
    return [json.loads(one.payload) for one in listener.notifications()]


def test_adding_and_removing_apply_and_reverse(fleet: Fleet, listener: Listener) -> None:
    fleet.apply(change(ProjectState(), state(plane=[])))
    fleet.apply([AddNotify("fleet.Plane", EVENTS)])
    assert len(installed()["fleet_plane"]) == 4
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
    assert [(one["m"], one["d"], one["r"]) for one in said(listener)] == [
        ("fleet.plane", "tracked_events", [[1, ["x"]]])
    ]
    fleet.apply([RemoveNotify("fleet.Plane", EVENTS)])
    assert "pgsignals_tracked_events" not in functions()
    fleet.reverse()
    assert len(installed()["fleet_plane"]) == 4
    fleet.reverse()
    assert "pgsignals_tracked_events" not in functions()


def test_the_migration_says_what_people_write() -> None:
    operation = AddNotify("auth.User", Notify(name="user_events", fields=["email"], when=models.Q(is_active=True)))
    text = migration_text([operation])
    assert "import pgsignals\n" in text
    assert "pgsignals.AddNotify(" in text
    assert "pgsignals.Notify(" in text
    (again,) = written([operation])
    assert (again.model, again.declaration) == (operation.model, operation.declaration)
    assert operation.describe() == "Announce the changes of auth.User as user_events"
    assert operation.migration_name_fragment == "track_auth_user"
    assert RemoveNotify("auth.User", EVENTS).migration_name_fragment == "untrack_auth_user"


def migration_text(operations: list[Any]) -> str:
    made = type("Migration", (migrations.Migration,), {"operations": operations, "dependencies": []})
    return MigrationWriter(made("0001_x", "fleet")).as_string()


def test_an_unmanaged_models_table_can_announce(fleet: Fleet, listener: Listener) -> None:
    """The way out that the check names."""
    fleet.apply(change(ProjectState(), state(plane=[])))
    project = ProjectState()
    project.add_model(
        ModelState(
            "fleet",
            "ship",
            [("id", models.BigAutoField(primary_key=True)), ("a", models.TextField())],
            options={"managed": False, "db_table": "fleet_plane"},
        )
    )
    fleet.state = project
    fleet.apply([AddNotify("fleet.Ship", EVENTS)])
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
    assert [one["m"] for one in said(listener)] == ["fleet.ship"]


def test_a_many_to_many_table_can_announce(fleet: Fleet, listener: Listener) -> None:
    project = ProjectState()
    project.add_model(ModelState("fleet", "port", [("id", models.BigAutoField(primary_key=True))]))
    project.add_model(
        ModelState(
            "fleet",
            "plane",
            [("id", models.BigAutoField(primary_key=True)), ("ports", models.ManyToManyField("fleet.port"))],
        )
    )
    fleet.apply(change(ProjectState(), project))
    fleet.apply([AddNotify("fleet.Plane_ports", Notify(name="calls", fields="__all__", on=["insert", "delete"]))])
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane VALUES (DEFAULT)")
        writer.execute("INSERT INTO fleet_port VALUES (DEFAULT)")
        writer.execute("INSERT INTO fleet_plane_ports (plane_id, port_id) VALUES (1, 1)")
        writer.execute("DELETE FROM fleet_plane_ports")
    assert [(one["m"], one["o"], one["f"], one["r"]) for one in said(listener)] == [
        ("fleet.plane_ports", "i", ["id", "plane", "port"], [[1, [1, 1, 1]]]),
        ("fleet.plane_ports", "d", ["id", "plane", "port"], [[1, [1, 1, 1]]]),
    ]


def proxy_state() -> ProjectState:
    project = state(plane=[])
    project.add_model(ModelState("fleet", "jet", [], options={"proxy": True}, bases=("fleet.plane",)))
    project.add_model(
        ModelState(
            "fleet",
            "ship",
            [("id", models.BigAutoField(primary_key=True))],
            options={"swappable": "PGSIGNALS_TEST_SHIP"},
        )
    )
    return project


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("fleet.Jet", "fleet.jet is a proxy of fleet.plane, which has the table. Name that model"),
        ("fleet.Ship", "fleet.Ship is swapped for fleet.Plane, which has the table. Name that model"),
        ("fleet.Boat", "there is no model 'fleet.Boat' at this point. Check the label, and that the migration depends"),
    ],
)
def test_a_model_without_a_table_is_refused_with_the_way_out(fleet: Fleet, label: str, message: str) -> None:
    with override_settings(PGSIGNALS_TEST_SHIP="fleet.Plane"):
        fleet.state = proxy_state()
        with pytest.raises(ValueError, match="(?i)" + message):
            fleet.apply([AddNotify(label, EVENTS)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("User", EVENTS), ValueError, "'User' is no label of a model; write 'app.Model'"),
        (("auth.User", "events"), TypeError, "'events' is no Notify"),
        (("auth.User", Notify(name="%(class)s_events")), ValueError, "must be an identifier"),
        (("auth.User", Notify(name="e" * 50)), ValueError, "leaves 49 for it"),
    ],
)
def test_what_can_never_do_is_refused_at_once(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AddNotify(*arguments)


def test_the_optimizer_drops_what_undoes_itself() -> None:
    add, remove = AddNotify("fleet.Plane", EVENTS), RemoveNotify("fleet.Plane", EVENTS)
    other = AddNotify("fleet.Ship", Notify(name="ship_events"))
    assert MigrationOptimizer().optimize([add, other, remove], "fleet") == [other]
    assert MigrationOptimizer().optimize([remove, add], "fleet") == []
    changed = AddNotify("fleet.Plane", Notify(name="tracked_events"))
    assert MigrationOptimizer().optimize([remove, changed], "fleet") == [remove, changed]


@pytest.mark.parametrize(
    "operation",
    [
        migrations.RenameModel("Plane", "Ship"),
        migrations.RenameField("Plane", "ports", "calls"),
        migrations.RemoveField("Plane", "ports"),
        migrations.DeleteModel("Plane"),
    ],
)
def test_the_optimizer_pulls_nothing_past_the_declaration_of_a_many_to_many_table(operation: Any) -> None:
    """CreateModel would take it in, and then there were no `plane_ports` to declare."""
    fields = [("id", models.BigAutoField(primary_key=True)), ("ports", models.ManyToManyField("fleet.port"))]
    steps = [migrations.CreateModel("Plane", fields), CALLS, operation]
    assert MigrationOptimizer().optimize(steps, "fleet") == steps
    plain = MigrationOptimizer().optimize([steps[0], operation], "fleet")
    assert len(plain) < 2, "otherwise this test sees nothing"


# What the migrations together say.


def collected(*steps: Any) -> dict[str, tuple[str, tuple[str, ...] | str]]:
    walk = tracked._Walk()
    for step in steps:
        migration = migrations.Migration("0001", "fleet")
        migration.operations = [step]
        walk.take(migration)
    return {name: (label, declaration.fields) for name, (label, declaration) in walk.found.items()}


ADDED = AddNotify("fleet.Plane", EVENTS)
CALLS = AddNotify("fleet.Plane_ports", Notify(name="calls"))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([ADDED], {"tracked_events": ("fleet.plane", ("a",))}),
        ([ADDED, RemoveNotify("fleet.Plane", EVENTS)], {}),
        ([ADDED, migrations.RenameModel("Plane", "Ship")], {"tracked_events": ("fleet.ship", ("a",))}),
        ([ADDED, migrations.RenameField("plane", "a", "b")], {"tracked_events": ("fleet.plane", ("b",))}),
        ([ADDED, migrations.RenameField("ship", "a", "b")], {"tracked_events": ("fleet.plane", ("a",))}),
        ([ADDED, migrations.DeleteModel("plane")], {}),
        ([CALLS, migrations.RenameModel("Plane", "Ship")], {"calls": ("fleet.ship_ports", ())}),
        ([CALLS, migrations.RenameField("Plane", "ports", "calls")], {"calls": ("fleet.plane_calls", ())}),
        ([CALLS, migrations.RemoveField("Plane", "ports")], {}),
        ([CALLS, migrations.DeleteModel("plane")], {}),
        (
            [migrations.CreateModel("Plane_ports", []), CALLS, migrations.RenameModel("Plane", "Ship")],
            {"calls": ("fleet.plane_ports", ())},
        ),
        (
            [migrations.SeparateDatabaseAndState(database_operations=[ADDED], state_operations=[])],
            {"tracked_events": ("fleet.plane", ("a",))},
        ),
        (
            [ADDED, migrations.SeparateDatabaseAndState(state_operations=[migrations.RenameModel("Plane", "Ship")])],
            {"tracked_events": ("fleet.ship", ("a",))},
        ),
        (
            [ADDED, migrations.SeparateDatabaseAndState(database_operations=[migrations.RenameModel("Plane", "B")])],
            {"tracked_events": ("fleet.plane", ("a",))},
        ),
    ],
)
def test_what_happens_to_a_model_happens_to_its_declaration(steps: list[Any], expected: dict[str, Any]) -> None:
    assert collected(*steps) == expected


def test_every_name_in_a_declaration_follows_a_renamed_field() -> None:
    declared = Notify(name="x", exclude=["a"], watch=["a", "b"], durable=True, key="a")
    walk = tracked._Walk()
    for step in (AddNotify("fleet.Plane", declared), migrations.RenameField("plane", "a", "c")):
        migration = migrations.Migration("0001", "fleet")
        migration.operations = [step]
        walk.take(migration)
    expected = Notify(name="x", exclude=["c"], watch=["c", "b"], durable=True, key="c")
    assert walk.found == {"x": ("fleet.plane", expected)}


@pytest.mark.parametrize(("declares", "renames"), [("shop", "kinds"), ("kinds", "shop")])
def test_a_model_is_followed_whatever_the_apps_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declares: str, renames: str
) -> None:
    """The renaming app knows nothing of the declaring one, and may come before it in every list."""
    packages = {}
    for app in (declares, renames):
        package = tmp_path / f"walked_{declares}_{app}"
        package.mkdir()
        (package / "__init__.py").touch()
        packages[app] = package
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(app: str, name: str, operations: list[Any], dependencies: list[tuple[str, str]]) -> None:
        attributes = {"operations": operations, "dependencies": dependencies}
        made = type("Migration", (migrations.Migration,), attributes)
        (packages[app] / f"{name}.py").write_text(MigrationWriter(made(name, app)).as_string())

    fields = [("id", models.BigAutoField(primary_key=True)), ("a", models.TextField())]
    write(renames, "0001_initial", [migrations.CreateModel("Plane", fields)], [])
    write(declares, "0001_track", [AddNotify(f"{renames}.Plane", EVENTS)], [(renames, "0001_initial")])
    write(
        renames,
        "0002_rename",
        [migrations.RenameModel("Plane", "Ship"), migrations.RenameField("Ship", "a", "b")],
        [(renames, "0001_initial")],
    )
    with override_settings(MIGRATION_MODULES={app: package.name for app, package in packages.items()}):
        ((label, declaration),) = tracked.on_disk().values()
    assert (label, declaration.fields) == (f"{renames}.ship", ("b",))


# The command, and everything else, with an app of migrations that announce auth's models.


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """`tests.shop` with a folder of migrations of its own, empty; what it installs is taken away."""
    package = tmp_path / "accounts_migrations"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    before = functions()

    def run(*arguments: str) -> str:
        out = StringIO()
        call_command("pgsignals", *arguments, stdout=out)
        return out.getvalue()

    with override_settings(MIGRATION_MODULES={"kinds": package.name}):
        yield SimpleNamespace(package=package, run=run)
    with connection.cursor() as cursor:
        for name in functions() - before:
            cursor.execute(f"DROP FUNCTION {name}() CASCADE")
        cursor.execute("DELETE FROM django_migrations WHERE app = 'kinds'")
    for module in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[module]


def test_track_writes_a_migration_that_announces_the_user_model(accounts: SimpleNamespace, listener: Listener) -> None:
    out = accounts.run("track", "auth.User", "--app", "kinds", "--fields", "email", "is_staff", "--watch", "email")
    (path,) = accounts.package.glob("0*.py")
    assert path.name == "0001_track_auth_user.py"
    assert str(path) in out
    assert "manage.py migrate kinds" in out
    text = path.read_text()
    assert "migrations.swappable_dependency(settings.AUTH_USER_MODEL)" in text
    assert "settings.AUTH_USER_MODEL" in text.split("AddNotify")[1]
    assert checks.check_declarations(None) == []
    call_command("migrate", "kinds", verbosity=0)
    user = User.objects.create(username="a", email="old@example.com")
    user.email = "new@example.com"
    user.save()
    user.username = "b"
    user.save()
    inserted, updated = listener.events()
    assert (inserted.op, inserted.model, inserted.new) == (
        "insert",
        User,
        {"email": "old@example.com", "is_staff": False},
    )
    assert (updated.op, updated.changed) == ("update", {"email"})
    rows = {row.name: row.state for row in sync.compare("default")}
    assert rows["auth_user_events"] == "installed"
    call_command("migrate", "kinds", "zero", verbosity=0)
    assert "pgsignals_auth_user_events" not in functions()
    assert {row.name: row.state for row in sync.compare("default")}["auth_user_events"] == "missing"


def test_track_names_a_many_to_many_table_by_its_field(accounts: SimpleNamespace, listener: Listener) -> None:
    accounts.run("track", "auth.User.groups", "--app", "kinds", "--fields", "__all__", "--name", "memberships")
    call_command("migrate", "kinds", verbosity=0)
    user, group = User.objects.create(username="a"), Group.objects.create(name="g")
    user.groups.add(group)
    (event,) = listener.events()
    assert event.new == {"id": event.pk, "user": user.pk, "group": group.pk}
    assert event.model is User.groups.through


def test_a_second_migration_follows_the_first(accounts: SimpleNamespace) -> None:
    accounts.run("track", "auth.User", "--app", "kinds")
    accounts.run("track", "auth.Group", "--app", "kinds")
    text = (accounts.package / "0002_track_auth_group.py").read_text()
    assert "('kinds', '0001_track_auth_user')" in text
    assert "initial" not in text


def test_a_dry_run_prints_and_writes_nothing(accounts: SimpleNamespace) -> None:
    assert "AddNotify(" in accounts.run("track", "auth.Group", "--app", "kinds", "--dry-run")
    assert list(accounts.package.glob("0*.py")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["auth.Nobody"], "there is no model 'auth.Nobody'"),
        (["auth"], "'auth' is no label: write app.Model"),
        (["auth.User.nothing"], "auth.User has no field 'nothing'"),
        (["auth.User.email"], "auth.User.email is no many-to-many field"),
        (["auth.User", "--app", "nowhere"], "There is no app 'nowhere'"),
        (["auth.User", "--name", "e" * 50], "leaves 49 for it"),
        (["auth.User", "--fields", "a", "--exclude", "b"], "fields and exclude are both given"),
    ],
)
def test_track_says_what_cannot_be(accounts: SimpleNamespace, arguments: list[str], message: str) -> None:
    app = [] if "--app" in arguments else ["--app", "kinds"]
    with pytest.raises(CommandError, match=message):
        accounts.run("track", *arguments, *app)


def test_what_is_tracked_is_renewed_when_the_others_model_changes(
    accounts: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an upgrade of the package that the model belongs to: here its function is simply old."""
    accounts.run("track", "auth.Group", "--app", "kinds")
    call_command("migrate", "kinds", verbosity=0)
    with connect() as writer:
        writer.execute("COMMENT ON FUNCTION pgsignals_auth_group_events() IS '{\"pgsignals\": 1}'")
    with caplog.at_level("INFO"):
        call_command("migrate", verbosity=1, stdout=StringIO())
    assert "renewed the trigger function of 'auth_group_events' on auth.Group" in caplog.text


def test_a_receiver_may_wait_for_what_is_tracked(accounts: SimpleNamespace) -> None:
    def heard(event: pgsignals.PgEvent) -> None: ...

    with only_receivers_of_this_test():
        pgsignals.on_pg_event(Group, "update")(heard)
        assert [one.id for one in checks.check_receivers(None)] == ["pgsignals.E011"]
        accounts.run("track", "auth.Group", "--app", "kinds", "--on", "insert")
        assert [one.id for one in checks.check_receivers(None)] == ["pgsignals.E013"]
        accounts.run("track", "auth.Group", "--app", "kinds", "--on", "update", "--name", "group_updates")
        assert checks.check_receivers(None) == []


def test_a_declaration_that_is_there_twice_is_refused(accounts: SimpleNamespace) -> None:
    """In the model's Meta, and in a migration: every event would come twice."""
    accounts.run("track", "shop.Customer", "--app", "kinds", "--name", "again")
    (message,) = checks.check_declarations(None)
    assert (message.id, message.obj) == ("pgsignals.E006", apps.get_model("shop.Customer"))
    assert "announces every insert twice: by Notify 'customer_events' and by Notify 'again'" in message.msg
    (accounts.package / "0001_track_shop_customer.py").unlink()
    accounts.run("track", "shop.Article", "--app", "kinds", "--name", "customer_events")
    found = [one.id for one in checks.check_declarations(None)]
    assert "pgsignals.E007" in found


def test_the_name_of_a_declaration_is_made_of_the_models() -> None:
    assert track.default_name(User) == "auth_user_events"
    assert settings.AUTH_USER_MODEL == "auth.User"
