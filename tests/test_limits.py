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


# Statements


def test_an_upsert_is_inserts_and_updates(things: Make, listener: Listener) -> None:
    """The updates come first, as PostgreSQL calls the triggers."""
    run(
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO limits_thing (id, name) VALUES (2, 'B'), (3, 'c') "
        "ON CONFLICT (id) DO UPDATE SET name = excluded.name",
    )
    Thing.objects.bulk_create(
        [Thing(id=3, name="C"), Thing(id=4, name="d")],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["name"],
    )
    assert brief(listener.events()) == [
        ("insert", 1, None, "a"),
        ("insert", 2, None, "b"),
        ("update", 2, "b", "B"),
        ("insert", 3, None, "c"),
        ("update", 3, "c", "C"),
        ("insert", 4, None, "d"),
    ]


def test_an_insert_that_does_nothing_on_conflict_is_silent(things: Make, listener: Listener) -> None:
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'a')")
    listener.notifications()
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'b'), (2, 'c') ON CONFLICT DO NOTHING")
    Thing.objects.bulk_create([Thing(id=2, name="d")], ignore_conflicts=True)
    assert brief(listener.events()) == [("insert", 2, None, "c")]


def test_merge_is_what_each_of_its_branches_does(things: Make, listener: Listener) -> None:
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    listener.notifications()
    run(
        "MERGE INTO limits_thing t USING (VALUES (1, 'A'), (2, NULL), (4, 'd')) AS s (id, name) ON t.id = s.id "
        "WHEN MATCHED AND s.name IS NULL THEN DELETE "
        "WHEN MATCHED THEN UPDATE SET name = s.name "
        "WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, s.name)"
    )
    assert sorted(brief(listener.events())) == [
        ("delete", 2, "b", None),
        ("insert", 4, None, "d"),
        ("update", 1, "a", "A"),
    ]


def test_update_from_and_delete_using_are_updates_and_deletes(things: Make, listener: Listener) -> None:
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'a'), (2, 'b')")
    listener.notifications()
    run(
        "UPDATE limits_thing t SET name = s.name FROM (VALUES (1, 'A')) AS s (id, name) WHERE t.id = s.id",
        "DELETE FROM limits_thing t USING (VALUES (2)) AS s (id) WHERE t.id = s.id",
    )
    assert brief(listener.events()) == [("update", 1, "a", "A"), ("delete", 2, "b", None)]


def test_statements_inside_with_are_all_seen(things: Make, listener: Listener) -> None:
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'a')")
    listener.notifications()
    run(
        "WITH gone AS (DELETE FROM limits_thing RETURNING name) "
        "INSERT INTO limits_thing (id, name) SELECT 2, name FROM gone"
    )
    assert sorted(brief(listener.events())) == [("delete", 1, "a", None), ("insert", 2, None, "a")]


def test_copy_is_inserts(things: Make, listener: Listener) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY limits_thing (id, name) FROM STDIN") as copy:
        copy.write_row((1, "a"))
        copy.write_row((2, "b"))
    assert brief(listener.events()) == [("insert", 1, None, "a"), ("insert", 2, None, "b")]


def test_truncate_says_no_rows(things: Make, listener: Listener) -> None:
    run("INSERT INTO limits_thing (name) VALUES ('a'), ('b')")
    listener.notifications()
    run("TRUNCATE limits_thing")
    assert brief(listener.events()) == [("truncate", None, None, None)]


def test_truncate_cascade_is_an_event_of_each_declared_table_it_reaches(listener: Listener) -> None:
    run("TRUNCATE shop_customer CASCADE")
    assert {(event.op, event.label) for event in listener.events()} == {
        ("truncate", "shop.customer"),
        ("truncate", "shop.order"),
    }


def test_flush_is_a_truncate_of_every_declared_table(listener: Listener) -> None:
    """It is what TransactionTestCase does after each test: a listener on a test database hears it."""
    Customer.objects.create(name="a")
    listener.notifications()
    call_command("flush", interactive=False, verbosity=0)
    heard = [(event.op, event.label) for event in listener.events()]
    assert {"shop.customer", "shop.order", "shop.article"} <= {label for _, label in heard}
    assert {op for op, _ in heard} == {"truncate"}


def test_an_update_that_changes_nothing_is_silent(things: Make, listener: Listener) -> None:
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'a')")
    listener.notifications()
    run("UPDATE limits_thing SET name = 'a'", "UPDATE limits_thing SET name = name")
    Thing.objects.get(pk=1).save()
    assert listener.events() == []


def test_a_changed_primary_key_is_a_delete_and_an_insert(things: Make, listener: Listener) -> None:
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'a')", "UPDATE limits_thing SET id = 2")
    assert brief(listener.events())[1:] == [("delete", 1, "a", None), ("insert", 2, None, "a")]


def test_null_is_a_value_and_a_change_to_or_from_it_is_a_change(make: Make, listener: Listener) -> None:
    make(TABLE, declaration=Notify(name="limits_thing_events", fields=["amount"]))
    run(
        "INSERT INTO limits_thing (id, amount) VALUES (1, NULL)",
        "UPDATE limits_thing SET amount = NULL",
        "UPDATE limits_thing SET amount = 1",
        "UPDATE limits_thing SET amount = NULL",
    )
    assert [(event.op, event.changed, event.old, event.new) for event in listener.events()] == [
        ("insert", frozenset(), None, {"amount": None}),
        ("update", {"amount"}, {"amount": None}, {"amount": 1}),
        ("update", {"amount"}, {"amount": 1}, {"amount": None}),
    ]


# Transactions


def test_events_come_in_the_order_of_statements_and_of_commits(things: Make, listener: Listener) -> None:
    with connect() as other, transaction.atomic():
        run("INSERT INTO limits_thing (id, name) VALUES (1, 'began first')")
        other.execute("INSERT INTO limits_thing (id, name) VALUES (2, 'committed first')")
        run("UPDATE limits_thing SET name = 'then' WHERE id = 1", "DELETE FROM limits_thing WHERE id = 1")
    assert [(event.op, event.pk) for event in listener.events()] == [
        ("insert", 2),
        ("insert", 1),
        ("update", 1),
        ("delete", 1),
    ]


def test_a_savepoint_that_is_rolled_back_takes_only_its_own_events(things: Make, listener: Listener) -> None:
    with transaction.atomic():
        Thing.objects.create(id=1, name="before")
        with transaction.atomic():
            Thing.objects.create(id=2, name="inside")
            transaction.set_rollback(True)
        Thing.objects.create(id=3, name="after")
    assert brief(listener.events()) == [("insert", 1, None, "before"), ("insert", 3, None, "after")]


@pytest.fixture
def two_phases(transactional_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW max_prepared_transactions")
        if cursor.fetchone()[0] == "0":
            pytest.skip("NOT RUN: two-phase commit. The server that the tests use has max_prepared_transactions = 0")


@pytest.mark.usefixtures("two_phases")
def test_two_phase_commit_refuses_a_transaction_that_wrote_to_a_declared_table(
    things: Make, listener: Listener
) -> None:
    with connect() as writer:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO limits_thing (name) VALUES ('a')")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="LISTEN, UNLISTEN, or NOTIFY"):
            writer.execute("PREPARE TRANSACTION 'limits'")
    assert (listener.events(), Thing.objects.count()) == ([], 0)


# Deletes that cascade


def test_djangos_cascade_is_a_delete_of_each_row(listener: Listener) -> None:
    customer = Customer.objects.create(name="a")
    orders = Order.objects.bulk_create([Order(customer=customer), Order(customer=customer)])
    listener.notifications()
    keys = [order.pk for order in orders]
    customer_pk = customer.pk
    customer.delete()
    assert [(event.op, event.label, event.pk) for event in listener.events()] == [
        *(("delete", "shop.order", key) for key in keys),
        ("delete", "shop.customer", customer_pk),
    ]


CHILD = "CREATE TABLE limits_thing (id integer PRIMARY KEY, name text NOT NULL DEFAULT '', amount integer {})"
REFERENCES = "REFERENCES limits_parent (id) ON DELETE {} ON UPDATE CASCADE"
PARENT = "CREATE TABLE limits_parent (id integer PRIMARY KEY)"


def test_a_cascade_by_the_database_is_a_delete_of_each_row(make: Make, listener: Listener) -> None:
    """However many parents go in one statement, their children share notifications."""
    make(PARENT, CHILD.format(REFERENCES.format("CASCADE")))
    run(
        "INSERT INTO limits_parent SELECT generate_series(1, 100)",
        "INSERT INTO limits_thing (id, amount) SELECT n, n FROM generate_series(1, 100) AS n",
    )
    listener.notifications()
    run("DELETE FROM limits_parent")
    (notification,) = listener.notifications()
    events = listener.decoder.decode(notification.channel, notification.payload)
    assert [(event.op, event.pk) for event in events] == [("delete", number) for number in range(1, 101)]


def test_set_null_and_a_new_parent_key_by_the_database_are_updates(make: Make, listener: Listener) -> None:
    make(PARENT, CHILD.format(REFERENCES.format("SET NULL")))
    run("INSERT INTO limits_parent VALUES (1)", "INSERT INTO limits_thing (id, amount) VALUES (1, 1)")
    listener.notifications()
    run("UPDATE limits_parent SET id = 2", "DELETE FROM limits_parent")
    assert [(event.op, event.pk, event.changed) for event in listener.events()] == [("update", 1, {"amount"})] * 2


@pytest.mark.skipif(django.VERSION < (6, 1), reason="NOT RUN: DB_CASCADE, which is new in Django 6.1")
def test_db_cascade_of_django_is_a_delete_of_each_row(make: Make, listener: Listener) -> None:
    class LimitsParent(models.Model):
        class Meta:
            app_label = "shop"
            managed = False
            db_table = "limits_parent"

    class LimitsChild(models.Model):
        parent = models.ForeignKey(LimitsParent, on_delete=models.DB_CASCADE)

        class Meta:
            app_label = "shop"
            managed = False
            db_table = "limits_child"

    with connection.schema_editor() as editor:
        editor.create_model(LimitsParent)
        editor.create_model(LimitsChild)
    declare(LimitsChild, Notify(name="limits_child_events"))
    parent = LimitsParent.objects.create()
    children = [LimitsChild.objects.create(parent=parent).pk for _ in range(2)]
    listener.notifications()
    parent.delete()
    assert [(event.op, event.pk) for event in listener.events()] == [("delete", key) for key in children]


# Tables of other shapes


def test_a_write_through_a_simple_view_is_a_write_to_its_table(things: Make, listener: Listener) -> None:
    run(
        "CREATE VIEW limits_view AS SELECT id, name FROM limits_thing WHERE name <> ''",
        "INSERT INTO limits_view VALUES (1, 'a')",
        "UPDATE limits_view SET name = 'b'",
        "DELETE FROM limits_view",
    )
    assert brief(listener.events()) == [
        ("insert", 1, None, "a"),
        ("update", 1, "a", "b"),
        ("delete", 1, "b", None),
    ]


INSTEAD = """
CREATE FUNCTION limits_instead() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO limits_thing (id, name) VALUES (NEW.number, 'by ' || NEW.word);
    RETURN NEW;
END $$
"""


def test_a_view_with_an_instead_of_trigger_is_what_that_trigger_writes(things: Make, listener: Listener) -> None:
    run(
        "CREATE VIEW limits_view AS SELECT id AS number, max(name) AS word FROM limits_thing GROUP BY id",
        INSTEAD,
        "CREATE TRIGGER limits_instead INSTEAD OF INSERT ON limits_view FOR EACH ROW EXECUTE FUNCTION limits_instead()",
        "INSERT INTO limits_view VALUES (1, 'view')",
    )
    assert brief(listener.events()) == [("insert", 1, None, "by view")]


def test_a_view_itself_cannot_be_declared(make: Make) -> None:
    with pytest.raises(psycopg.errors.Error) as caught:
        try:
            make(
                "CREATE TABLE limits_base (id integer, name text, amount integer)",
                "CREATE VIEW limits_thing AS SELECT * FROM limits_base",
            )
        except Exception as error:
            raise error.__cause__ or error from None
    assert "view" in str(caught.value)


PARTITIONED = [
    "CREATE TABLE limits_thing (id integer, name text NOT NULL, amount integer) PARTITION BY LIST (name)",
    "CREATE TABLE limits_a PARTITION OF limits_thing FOR VALUES IN ('a')",
    "CREATE TABLE limits_b PARTITION OF limits_thing FOR VALUES IN ('b')",
]


def test_writes_through_a_partitioned_table_are_seen(make: Make, listener: Listener) -> None:
    """An update that moves a row to another partition is an update."""
    make(*PARTITIONED)
    run(
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a'), (2, 'b')",
        "UPDATE limits_thing SET name = 'b' WHERE id = 1",
        "UPDATE limits_thing SET amount = 3 WHERE id = 2",
        "DELETE FROM limits_thing WHERE id = 1",
        "TRUNCATE limits_thing",
    )
    assert brief(listener.events()) == [
        ("insert", 1, None, "a"),
        ("insert", 2, None, "b"),
        ("update", 1, "a", "b"),
        ("update", 2, "b", "b"),
        ("delete", 1, "b", None),
        ("truncate", None, None, None),
    ]


def test_writes_straight_into_a_partition_are_not_seen(make: Make, listener: Listener) -> None:
    make(*PARTITIONED)
    run(
        "INSERT INTO limits_a VALUES (1, 'a')",
        "UPDATE limits_a SET amount = 1",
        "DELETE FROM limits_a",
        "TRUNCATE limits_a",
    )
    assert listener.notifications() == []


def test_a_partition_attached_or_detached_is_not_seen(make: Make, listener: Listener) -> None:
    make(*PARTITIONED)
    run("INSERT INTO limits_a VALUES (1, 'a')", "ALTER TABLE limits_thing DETACH PARTITION limits_a")
    assert Thing.objects.count() == 0
    run("ALTER TABLE limits_thing ATTACH PARTITION limits_a FOR VALUES IN ('a')")
    assert Thing.objects.count() == 1
    assert listener.notifications() == []


def test_a_trigger_of_its_own_makes_a_partition_seen_and_nothing_doubled(make: Make, listener: Listener) -> None:
    make(*PARTITIONED)
    run(
        "CREATE TRIGGER limits_a_insert AFTER INSERT ON limits_a REFERENCING NEW TABLE AS pgsignals_new "
        "FOR EACH STATEMENT EXECUTE FUNCTION pgsignals_limits_thing_events()",
        "INSERT INTO limits_a VALUES (1, 'a')",
        "INSERT INTO limits_thing VALUES (2, 'a')",
    )
    assert brief(listener.events()) == [("insert", 1, None, "a"), ("insert", 2, None, "a")]


INHERITED = [TABLE, "CREATE TABLE limits_heir (extra integer) INHERITS (limits_thing)"]


def test_writes_to_a_parent_that_reach_inherited_rows_are_seen(make: Make, listener: Listener) -> None:
    make(*INHERITED)
    run(
        "INSERT INTO limits_heir (id, name) VALUES (1, 'a')",
        "UPDATE limits_thing SET name = 'b'",
        "DELETE FROM limits_thing",
    )
    assert brief(listener.events()) == [("update", 1, "a", "b"), ("delete", 1, "b", None)]


def test_writes_straight_into_an_inheriting_table_are_not_seen(make: Make, listener: Listener) -> None:
    make(*INHERITED)
    run(
        "INSERT INTO limits_heir (id, name) VALUES (1, 'a')",
        "UPDATE limits_heir SET name = 'b'",
        "DELETE FROM limits_heir",
    )
    assert listener.notifications() == []
