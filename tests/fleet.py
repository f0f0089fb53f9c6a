"""A project of models made up as a test goes on, and migrations of it, applied as `migrate` applies them."""

from __future__ import annotations

from typing import Any

from django.db import connection, migrations, models
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.state import ModelState, ProjectState
from django.db.migrations.writer import MigrationWriter

from pgsignals import Notify
from pgsignals.triggers import sync


def installed() -> dict[str, list[str]]:
    """The triggers of ours in the database, by table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgrelid::regclass::text, array_agg(tgname::text ORDER BY tgname) FROM pg_trigger "
            "WHERE tgname LIKE 'pgsignals%' GROUP BY tgrelid"
        )
        return dict(cursor.fetchall())


def functions() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT proname FROM pg_proc WHERE proname LIKE 'pgsignals%'")
        return {name for (name,) in cursor.fetchall()}


def state(**tables: list[Notify]) -> ProjectState:
    """A project of models with an id and a text `a`, with these declarations."""
    project = ProjectState()
    for name, constraints in tables.items():
        fields = [("id", models.BigAutoField(primary_key=True)), ("a", models.TextField(default=""))]
        project.add_model(ModelState("fleet", name, fields, options={"constraints": constraints}))
    return project


def change(before: ProjectState, after: ProjectState) -> list[Any]:
    """The operations that makemigrations would write."""
    changes = MigrationAutodetector(before, after)._detect_changes()
    return [operation for migration in changes.get("fleet", []) for operation in migration.operations]


def written(operations: list[Any]) -> list[Any]:
    """The same operations, gone through the text of a migration file."""
    migration = type("Migration", (migrations.Migration,), {"operations": operations, "dependencies": []})
    namespace: dict[str, Any] = {}
    exec(MigrationWriter(migration("0001_x", "fleet")).as_string(), namespace)
    return namespace["Migration"].operations


class Fleet:
    """Applies operations as `migrate` does, and can take them back."""

    def __init__(self) -> None:
        self.steps: list[tuple[migrations.Migration, ProjectState]] = []
        self.state = ProjectState()

    def apply(self, operations: list[Any]) -> None:
        migration = migrations.Migration(f"{len(self.steps):04}", "fleet")
        migration.operations = written(operations)
        self.steps.append((migration, self.state.clone()))
        with connection.schema_editor(atomic=True) as editor:
            self.state = migration.apply(self.state, editor)
        sync.after_migrate(using="default", apps=self.state.apps, verbosity=1)

    def reverse(self) -> None:
        migration, before = self.steps.pop()
        with connection.schema_editor(atomic=True) as editor:
            migration.unapply(before.clone(), editor)
        self.state = before
        sync.after_migrate(using="default", apps=self.state.apps, verbosity=1)
