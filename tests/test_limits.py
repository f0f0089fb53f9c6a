"""What pgsignals sees, and what it does not: every line of docs/limits.md, in its order."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from pgsignals import Notify, PgEvent, wire
from pgsignals.decode import Decoder

from .conftest import Listener, connect
from .postgres import Server, binaries
from .shop.models import Article, Customer, Order

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"


class Thing(models.Model):
    """Stands for whatever a test makes under this name: a table, a partitioned table, a foreign one."""

    name = models.TextField(default="")
    amount = models.IntegerField(default=0, null=True)

    class Meta:
        app_label = "shop"
        db_table = "limits_thing"
        managed = False


THINGS = Notify(name="limits_thing_events", fields=["name"])
TABLE = "CREATE TABLE limits_thing (id bigserial PRIMARY KEY, name text NOT NULL DEFAULT '', amount integer DEFAULT 0)"


def run(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def declare(model: type[models.Model], declaration: Notify, on: Any = connection) -> None:
    """As the migration that adds the declaration does."""
    with on.schema_editor() as editor:
        editor.add_constraint(model, declaration)


Make = Callable[..., None]


@pytest.fixture
def make(listener: Listener) -> Iterator[Make]:
    """Makes what a test needs, all of it named limits_..., and declares Thing. It is gone after the test."""

    def made(*statements: str, declaration: Notify = THINGS) -> None:
        run(*statements)
        declare(Thing, declaration)
        listener.notifications()

    yield made
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'm' THEN 'MATERIALIZED VIEW' "
            "ELSE 'TABLE' END, relname "
            "FROM pg_class WHERE relname LIKE 'limits%' AND relkind IN ('r', 'p', 'v', 'm', 'f')"
        )
        for kind, name in cursor.fetchall():
            cursor.execute(f"DROP {kind} IF EXISTS {name} CASCADE")
        cursor.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'limits%' OR proname LIKE 'pgsignals_limits%'"
        )
        for (name,) in cursor.fetchall():
            cursor.execute(f"DROP FUNCTION {name} CASCADE")


@pytest.fixture
def things(make: Make) -> Make:
    """An ordinary table."""
    make(TABLE)
    return make


def brief(events: list[PgEvent]) -> list[tuple[Any, ...]]:
    """Operation, key, and the name before and after where it travels."""
    return [
        (event.op, event.pk, *(side["name"] if side else None for side in (event.old, event.new))) for event in events
    ]
