"""What pgsignals sees, and what it does not: every line of docs/limits.md, in its order."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, models, transaction
from django.db.models.signals import post_delete
from django.db.utils import DatabaseError
from django.test.utils import isolate_apps

from pgsignals import Notify, PgEvent
from pgsignals.decode import Decoder

from .conftest import Listener, connect
from .postgres import Server, binaries
from .shop.models import Customer, Order

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


def variant(db_table: str = "limits_thing", **fields: Any) -> type[models.Model]:
    """A model that is called as Thing is, with other fields, or on another table."""
    with isolate_apps("tests.shop"):
        meta = type("Meta", (), {"app_label": "shop", "db_table": db_table})
        return type("Thing", (models.Model,), {"__module__": __name__, "Meta": meta, **fields})


Make = Callable[..., None]
PlaceMaker = Callable[..., "Place"]


@pytest.fixture
def make(listener: Listener) -> Iterator[Make]:
    """Makes what a test needs, all of it named limits_..., and declares Thing. It is gone after the test."""

    def made(*statements: str, declaration: Notify = THINGS) -> None:
        run(*statements)
        declare(Thing, declaration)
        listener.notifications()

    yield made
    with connection.cursor() as cursor:
        # Left by a test that failed, it would hold the table for ever.
        cursor.execute("SELECT FROM pg_prepared_xacts WHERE gid = 'limits'")
        if cursor.fetchone():
            cursor.execute("ROLLBACK PREPARED 'limits'")
        cursor.execute(
            "SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'm' THEN 'MATERIALIZED VIEW' "
            "ELSE 'TABLE' END, relname "
            "FROM pg_class WHERE relname LIKE 'limits%' AND relkind IN ('r', 'p', 'v', 'm', 'f')"
        )
        for kind, name in cursor.fetchall():
            cursor.execute(f"DROP {kind} IF EXISTS {name} CASCADE")
        cursor.execute(
            "SELECT oid::regprocedure::text FROM pg_proc "
            "WHERE proname LIKE 'limits%' OR proname LIKE 'pgsignals_limits%'"
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
    run("INSERT INTO limits_thing (id, name) VALUES (1, 'a'), (2, 'b')")
    listener.notifications()
    run("UPDATE limits_thing SET name = name")
    Thing.objects.get(pk=1).save()
    run("UPDATE limits_thing SET name = 'a'")
    assert brief(listener.events()) == [("update", 2, "b", "a")]


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
        run("INSERT INTO limits_thing (id, name) VALUES (1, 'a')")
        other.execute("INSERT INTO limits_thing (id, name) VALUES (2, 'b')")
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


@pytest.mark.usefixtures("two_phases")
def test_two_phase_commit_takes_a_transaction_that_is_silenced(things: Make, listener: Listener) -> None:
    """And the next transaction of the same session is announced again."""
    with connect() as writer:
        writer.execute("BEGIN")
        writer.execute("SET LOCAL pgsignals.silenced = 'on'")
        writer.execute("INSERT INTO limits_thing (id, name) VALUES (1, 'a')")
        writer.execute("PREPARE TRANSACTION 'limits'")
        writer.execute("COMMIT PREPARED 'limits'")
        assert listener.notifications() == []
        writer.execute("UPDATE limits_thing SET name = 'b'")
    assert brief(listener.events()) == [("update", 1, "a", "b")]


def test_what_a_transaction_announces_is_in_memory_until_its_commit(things: Make, listener: Listener) -> None:
    """And not several times; a silenced transaction has nothing there."""

    def memory(writer: psycopg.Connection[Any]) -> int:
        found = writer.execute("SELECT sum(total_bytes) FROM pg_backend_memory_contexts").fetchone()
        return int(found[0]) if found else 0

    taken = []
    with connect() as writer:
        many = "INSERT INTO limits_thing (name) SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
        # What the trigger is given counts too, up to this.
        writer.execute("SET work_mem = '64kB'")
        writer.execute("INSERT INTO limits_thing (name) VALUES ('a'), ('b')")
        for silenced in ("off", "on"):
            writer.execute("BEGIN")
            writer.execute(f"SET LOCAL pgsignals.silenced = {silenced}")
            before = memory(writer)
            writer.execute(many)
            taken.append(memory(writer) - before)
            writer.execute("ROLLBACK")
    assert 20_000_000 < taken[0] < 40_000_000
    assert taken[1] < 1_000_000
    assert len(listener.events()) == 2


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
    """However many parents go in one statement, their children share notifications, and come after them."""
    make(PARENT, CHILD.format(REFERENCES.format("CASCADE")))
    declare(variant(db_table="limits_parent"), Notify(name="limits_parent_events"))
    run(
        "INSERT INTO limits_parent SELECT generate_series(1, 50)",
        "INSERT INTO limits_thing (id, amount) SELECT n + 50, n FROM generate_series(1, 50) AS n",
    )
    listener.notifications()
    run("DELETE FROM limits_parent")
    notifications = listener.notifications()
    assert len(notifications) == 2
    events = [event for one in notifications for event in listener.decoder.decode(one.channel, one.payload)]
    assert [(event.op, event.pk) for event in events] == [("delete", number) for number in range(1, 101)]


def test_set_null_and_a_new_parent_key_by_the_database_are_updates(make: Make, listener: Listener) -> None:
    make(PARENT, CHILD.format(REFERENCES.format("SET NULL")))
    run("INSERT INTO limits_parent VALUES (1)", "INSERT INTO limits_thing (id, amount) VALUES (1, 1)")
    listener.notifications()
    run("UPDATE limits_parent SET id = 2", "DELETE FROM limits_parent")
    assert [(event.op, event.pk, event.changed) for event in listener.events()] == [("update", 1, {"amount"})] * 2


@pytest.mark.skipif(django.VERSION < (6, 1), reason="NOT RUN: DB_CASCADE, which is new in Django 6.1")
def test_db_cascade_of_django_is_a_delete_of_each_row(make: Make, listener: Listener) -> None:
    with isolate_apps("tests.shop"):

        class Parent(models.Model):
            class Meta:
                app_label = "shop"
                db_table = "limits_parent"

        class Child(models.Model):
            parent = models.ForeignKey(Parent, on_delete=models.DB_CASCADE)
            name = models.TextField(default="")

            class Meta:
                app_label = "shop"
                db_table = "limits_thing"

    with connection.schema_editor() as editor:
        editor.create_model(Parent)
        editor.create_model(Child)
    make()
    parent = Parent.objects.create()
    children = [Child.objects.create(parent=parent).pk for _ in range(2)]
    listener.notifications()
    said: list[models.Model] = []
    post_delete.connect(lambda instance, **kwargs: said.append(instance), weak=False, dispatch_uid="limits")
    try:
        parent.delete()
    finally:
        post_delete.disconnect(dispatch_uid="limits")
    assert said == [parent]
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
    run(
        "CREATE TABLE limits_base (id integer, name text, amount integer)",
        "CREATE VIEW limits_thing AS SELECT * FROM limits_base",
    )
    with pytest.raises(DatabaseError, match="views cannot have transition tables"):
        make()


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
        "INSERT INTO limits_thing VALUES (2, 'a')",
    )
    assert brief(listener.events()) == [("insert", 2, None, "a")]


def test_a_partition_attached_or_detached_is_not_seen(make: Make, listener: Listener) -> None:
    make(*PARTITIONED)
    run("INSERT INTO limits_thing VALUES (1, 'a')", "ALTER TABLE limits_thing DETACH PARTITION limits_a")
    assert Thing.objects.count() == 0
    run("ALTER TABLE limits_thing ATTACH PARTITION limits_a FOR VALUES IN ('a')")
    assert Thing.objects.count() == 1
    assert brief(listener.events()) == [("insert", 1, None, "a")]


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


def test_rows_with_the_same_key_are_paired_with_each_other(make: Make, listener: Listener) -> None:
    make(*INHERITED)
    run(
        "INSERT INTO limits_heir (id, name) VALUES (1, 'a')",
        "INSERT INTO limits_thing (id, name) VALUES (1, 'b')",
    )
    listener.events()
    run("UPDATE limits_thing SET name = name || '!'")
    heard = [
        (event.pk, event.old and event.old["name"], event.new and event.new["name"]) for event in listener.events()
    ]
    assert sorted(map(str, heard)) == sorted(map(str, [(1, "a", "a!"), (1, "a", "b!"), (1, "b", "a!"), (1, "b", "b!")]))


def test_a_row_whose_key_is_null_is_deleted_and_inserted_by_an_update(make: Make, listener: Listener) -> None:
    """Alone, and beside others; and a row gets its key, or loses it."""
    make("CREATE TABLE limits_thing (id bigint UNIQUE, name text, amount integer)")
    run(
        "INSERT INTO limits_thing (id, name) VALUES (NULL, 'a')",
        "UPDATE limits_thing SET name = 'b'",
        "INSERT INTO limits_thing (id, name) VALUES (1, NULL)",
        "UPDATE limits_thing SET name = coalesce(name, '') || '!'",
        "UPDATE limits_thing SET id = 2 WHERE id IS NULL",
        "UPDATE limits_thing SET id = NULL, name = NULL WHERE id = 2",
        "UPDATE limits_thing SET name = name",
    )
    assert brief(listener.events()) == [
        ("insert", None, None, "a"),
        ("delete", None, "a", None),
        ("insert", None, None, "b"),
        ("insert", 1, None, None),
        ("delete", None, "b", None),
        ("insert", None, None, "b!"),
        ("update", 1, None, "!"),
        ("delete", None, "b!", None),
        ("insert", 2, None, "b!"),
        ("delete", 2, "b!", None),
        ("insert", None, None, None),
        ("delete", None, None, None),
        ("insert", None, None, None),
    ]


def test_writes_straight_into_an_inheriting_table_are_not_seen(make: Make, listener: Listener) -> None:
    make(*INHERITED)
    run(
        "INSERT INTO limits_heir (id, name) VALUES (1, 'a')",
        "UPDATE limits_heir SET name = 'b'",
        "DELETE FROM limits_heir",
        "INSERT INTO limits_thing (id, name) VALUES (2, 'c')",
    )
    assert brief(listener.events()) == [("insert", 2, None, "c")]


def test_a_foreign_table_itself_cannot_be_declared(make: Make) -> None:
    run(
        "CREATE EXTENSION IF NOT EXISTS file_fdw",
        "CREATE SERVER limits_files FOREIGN DATA WRAPPER file_fdw",
        "CREATE FOREIGN TABLE limits_thing (id integer, name text, amount integer) SERVER limits_files "
        "OPTIONS (filename '/nowhere')",
    )
    try:
        with pytest.raises(DatabaseError, match="foreign tables cannot have transition tables"):
            make()
    finally:
        run("DROP EXTENSION file_fdw CASCADE")


def test_a_write_through_postgres_fdw_is_heard_where_the_table_is(things: Make, listener: Listener) -> None:
    place = connection.settings_dict
    run(
        "CREATE EXTENSION IF NOT EXISTS postgres_fdw",
        "CREATE SERVER limits_far FOREIGN DATA WRAPPER postgres_fdw "
        f"OPTIONS (host '{place['HOST']}', port '{place['PORT'] or 5432}', dbname '{place['NAME']}')",
        "CREATE USER MAPPING FOR CURRENT_USER SERVER limits_far "
        f"OPTIONS (user '{place['USER']}', password '{place['PASSWORD']}')",
        "CREATE FOREIGN TABLE limits_far (id integer, name text) SERVER limits_far OPTIONS (table_name 'limits_thing')",
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO limits_far VALUES (1, 'a')")
    finally:
        run("DROP EXTENSION postgres_fdw CASCADE")
    assert brief(listener.events()) == [("insert", 1, None, "a")]


# Columns, triggers and rules


def generated(kind: str) -> str:
    return (
        "CREATE TABLE limits_thing (id integer PRIMARY KEY, name text NOT NULL DEFAULT '', amount integer, "
        f"double integer GENERATED ALWAYS AS (amount * 2) {kind})"
    )


def declare_double(stored: bool) -> None:
    double = models.GeneratedField(
        expression=models.F("amount") * 2, output_field=models.IntegerField(), db_persist=stored
    )
    model = variant(amount=models.IntegerField(), double=double)
    declare(model, Notify(name="limits_thing_events", fields=["double"]))


WRITES = ["INSERT INTO limits_thing (id, amount) VALUES (1, 2)", "UPDATE limits_thing SET amount = 3"]


def test_a_stored_generated_column_travels(make: Make, listener: Listener) -> None:
    run(generated("STORED"))
    declare_double(stored=True)
    run(*WRITES)
    assert [(event.op, event.changed, event.old, event.new) for event in listener.events()] == [
        ("insert", frozenset(), None, {"double": 4}),
        ("update", {"amount", "double"}, {"double": 4}, {"double": 6}),
    ]


@pytest.fixture
def virtual_columns(transactional_db: None) -> None:
    if connection.pg_version < 180000:
        pytest.skip("NOT RUN: virtual generated columns, which are new in PostgreSQL 18")


@pytest.mark.usefixtures("virtual_columns")
def test_a_virtual_generated_column_is_never_named_as_changed(make: Make, listener: Listener) -> None:
    """And does no harm to what else is declared."""
    make(generated("VIRTUAL"))
    run(*WRITES)
    assert [(event.op, event.changed, event.new, event.incomplete) for event in listener.events()] == [
        ("insert", frozenset(), {"name": ""}, False),
        ("update", {"amount"}, {"name": ""}, False),
    ]


@pytest.mark.usefixtures("virtual_columns")
def test_the_value_of_a_virtual_generated_column_does_not_travel(make: Make, listener: Listener) -> None:
    run(generated("VIRTUAL"))
    declare_double(stored=False)
    run(*WRITES)
    events = listener.events()
    assert [(event.op, event.pk) for event in events] == [("insert", 1), ("update", 1)]
    assert not any((event.new or {}).get("double") for event in events)


def test_a_trigger_that_changes_the_row_before_it_is_written_is_seen_in_the_values(
    things: Make, listener: Listener
) -> None:
    run(
        "CREATE FUNCTION limits_upper() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.name := upper(NEW.name); RETURN NEW; END $$",
        "CREATE TRIGGER limits_upper BEFORE INSERT OR UPDATE ON limits_thing "
        "FOR EACH ROW EXECUTE FUNCTION limits_upper()",
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a')",
        "UPDATE limits_thing SET name = 'a'",
        "UPDATE limits_thing SET name = 'b'",
    )
    assert brief(listener.events()) == [("insert", 1, None, "A"), ("update", 1, "A", "B")]


def test_a_trigger_that_cancels_the_write_leaves_nothing(things: Make, listener: Listener) -> None:
    run(
        "CREATE FUNCTION limits_no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        "CREATE TRIGGER limits_no BEFORE INSERT ON limits_thing "
        "FOR EACH ROW WHEN (NEW.name = 'no') EXECUTE FUNCTION limits_no()",
        "INSERT INTO limits_thing (id, name) VALUES (1, 'no'), (2, 'yes')",
    )
    assert brief(listener.events()) == [("insert", 2, None, "yes")]


def test_a_trigger_that_updates_the_row_after_its_insert_is_heard_before_the_insert(
    things: Make, listener: Listener
) -> None:
    run(
        "CREATE FUNCTION limits_again() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN UPDATE limits_thing SET name = 'second' WHERE id = NEW.id; RETURN NULL; END $$",
        "CREATE TRIGGER limits_again AFTER INSERT ON limits_thing FOR EACH ROW EXECUTE FUNCTION limits_again()",
        "INSERT INTO limits_thing (id, name) VALUES (1, 'first')",
    )
    assert brief(listener.events()) == [("update", 1, "first", "second"), ("insert", 1, None, "first")]


def test_a_rule_is_heard_as_what_it_makes_of_the_statement(things: Make, listener: Listener) -> None:
    run(
        "CREATE RULE limits_soft AS ON DELETE TO limits_thing DO INSTEAD "
        "UPDATE limits_thing SET name = 'gone' WHERE id = OLD.id",
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a')",
        "DELETE FROM limits_thing",
    )
    assert brief(listener.events()) == [("insert", 1, None, "a"), ("update", 1, "a", "gone")]


def test_a_disabled_trigger_is_silent_until_it_is_enabled(things: Make, listener: Listener) -> None:
    run(
        "ALTER TABLE limits_thing DISABLE TRIGGER USER",
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a')",
        "ALTER TABLE limits_thing ENABLE TRIGGER USER",
        "INSERT INTO limits_thing (id, name) VALUES (2, 'b')",
    )
    assert brief(listener.events()) == [("insert", 2, None, "b")]


# The table and the role


def test_ddl_that_rewrites_rows_is_not_seen(things: Make, listener: Listener) -> None:
    run(
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a')",
        "ALTER TABLE limits_thing ADD COLUMN token uuid NOT NULL DEFAULT gen_random_uuid()",
        "ALTER TABLE limits_thing ALTER COLUMN name TYPE varchar(5) USING name || '!'",
        "ALTER TABLE limits_thing DROP COLUMN amount",
        "VACUUM FULL limits_thing",
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM limits_thing WHERE token IS NOT NULL")
        assert cursor.fetchall() == [("a!",)]
    run("DROP TABLE limits_thing")
    assert brief(listener.events()) == [("insert", 1, None, "a")]


def test_a_role_that_may_only_write_the_table_announces(things: Make, listener: Listener) -> None:
    """It needs no right on our functions, nor to read what it writes."""
    run(
        "CREATE ROLE limits_writer",
        "REVOKE ALL ON FUNCTION pgsignals_limits_thing_events() FROM PUBLIC",
        "GRANT INSERT (id, name) ON limits_thing TO limits_writer",
    )
    try:
        with connect() as writer:
            writer.execute("SET ROLE limits_writer")
            writer.execute("INSERT INTO limits_thing (id, name) VALUES (1, 'a')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute("SELECT name FROM limits_thing")
    finally:
        run("DROP OWNED BY limits_writer", "DROP ROLE limits_writer")
    assert brief(listener.events()) == [("insert", 1, None, "a")]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_role_that_may_not_notify_writes_and_announces_nothing(things: Make, listener: Listener, rows: int) -> None:
    """Each of its statements is warned of, with what helps."""
    run(
        "CREATE ROLE limits_mute",
        "GRANT INSERT, UPDATE, DELETE, SELECT, TRUNCATE ON limits_thing TO limits_mute",
        "REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC",
    )
    heard: list[str] = []
    try:
        with connect() as writer:
            writer.add_notice_handler(lambda notice: heard.append(f"{notice.message_primary} {notice.message_hint}"))
            writer.execute("SET ROLE limits_mute")
            writer.execute(f"INSERT INTO limits_thing (id, name) SELECT i, 'a' FROM generate_series(1, {rows}) AS i")
            writer.execute("UPDATE limits_thing SET name = 'b'")
            assert writer.execute("SELECT DISTINCT name FROM limits_thing").fetchall() == [("b",)]
            writer.execute("DELETE FROM limits_thing")
            writer.execute("TRUNCATE limits_thing")
            writer.execute("SET pgsignals.silenced = 'on'")
            writer.execute("INSERT INTO limits_thing (id) VALUES (1)")
    finally:
        run(
            "GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO PUBLIC",
            "DROP OWNED BY limits_mute",
            "DROP ROLE limits_mute",
        )
    assert listener.events() == []
    assert len(heard) == 4
    for warning, operation in zip(heard, ("INSERT", "UPDATE", "DELETE", "TRUNCATE"), strict=True):
        assert f"announces nothing of this {operation} of public.limits_thing" in warning
        assert "GRANT EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text)" in warning


def test_row_security_hides_no_row_from_those_who_listen(things: Make, listener: Listener) -> None:
    run(
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a')",
        "ALTER TABLE limits_thing ENABLE ROW LEVEL SECURITY",
        "CREATE ROLE limits_reader",
        "GRANT SELECT ON limits_thing TO limits_reader",
    )
    try:
        with connect() as reader:
            reader.execute("SET ROLE limits_reader")
            assert reader.execute("SELECT * FROM limits_thing").fetchall() == []
            heard: list[str] = []
            reader.add_notify_handler(lambda notification: heard.append(notification.payload))
            reader.execute("LISTEN pgsignals")
            run("UPDATE limits_thing SET name = 'secret'")
            reader.execute("NOTIFY pgsignals")
    finally:
        run("DROP OWNED BY limits_reader", "DROP ROLE limits_reader")
    assert len(heard) == 2
    assert "secret" in heard[0]


def test_replica_role_is_silent_unless_the_trigger_is_always_enabled(things: Make, listener: Listener) -> None:
    with connect() as writer:
        writer.execute("SET session_replication_role = replica")
        writer.execute("INSERT INTO limits_thing (id, name) VALUES (1, 'a')")
        run("ALTER TABLE limits_thing ENABLE ALWAYS TRIGGER pgsignals_limits_thing_events_ins")
        writer.execute("INSERT INTO limits_thing (id, name) VALUES (2, 'b')")
    assert brief(listener.events()) == [("insert", 2, None, "b")]


def test_a_limit_on_temporary_files_counts_the_rows_of_a_big_statement(things: Make, listener: Listener) -> None:
    """PostgreSQL itself keeps them for the trigger, before the trigger runs."""
    with connect() as writer:
        writer.execute("INSERT INTO limits_thing (id) SELECT i FROM generate_series(1, 20000) AS i")
        listener.notifications()
        writer.execute("SET work_mem = '64kB'; SET temp_file_limit = '64kB'")
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            writer.execute("DELETE FROM limits_thing")
        writer.execute("DELETE FROM limits_thing WHERE id = 1")
        writer.execute("DROP FUNCTION pgsignals_limits_thing_events() CASCADE")
        writer.execute("DELETE FROM limits_thing")
    assert brief(listener.events()) == [("delete", 1, "", None)]


# Other databases, and the whole cluster


class Place:
    """A database on a server of this file's own, with a listener to its row events."""

    def __init__(self, server: Server, name: str, options: str = "") -> None:
        self.server = server
        self.name = name
        with psycopg.connect(**self.parameters("postgres")) as admin:
            admin.execute(f"CREATE DATABASE {name} {options}")
        self.connection = psycopg.connect(**self.parameters(name))
        self.heard: list[psycopg.Notify] = []
        self.connection.add_notify_handler(self.heard.append)
        self.connection.execute("LISTEN pgsignals")
        self.connection.execute("LISTEN sentinel")

    def parameters(self, name: str) -> dict[str, Any]:
        return {
            "dbname": name,
            "host": str(self.server.folder),
            "port": self.server.port,
            "user": "postgres",
            "autocommit": True,
        }

    def run(self, *statements: str) -> psycopg.Cursor[Any]:
        for statement in statements:
            cursor = self.connection.execute(statement)
        return cursor

    def declare(self) -> None:
        """Thing, on a table that is there."""
        wrapper = connection.copy()
        wrapper.settings_dict.update(self.server.django(), NAME=self.name, PASSWORD="")
        try:
            declare(Thing, THINGS, on=wrapper)
        finally:
            wrapper.close()

    def events(self) -> list[PgEvent]:
        """What was committed before this call. One's own notification comes after all that were sent earlier."""
        self.connection.execute("NOTIFY sentinel")
        assert self.heard.pop().channel == "sentinel"
        heard, self.heard[:] = list(self.heard), []
        decoder = Decoder("default")
        return [event for one in heard for event in decoder.decode(one.channel, one.payload)]

    def program(self, name: str, *arguments: str) -> None:
        """One of PostgreSQL's own programs, on this database."""
        where = ["--host", str(self.server.folder), "--port", str(self.server.port), "--username", "postgres"]
        subprocess.run([str(self.server.programs / name), *where, "--dbname", self.name, *arguments], check=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that replicates, and whose queue of notifications is as small as can be."""
    version = subprocess.run([str(binaries() / "postgres"), "--version"], capture_output=True, text=True, check=True)
    small = int(version.stdout.split()[2].split(".")[0]) >= 17
    server = Server(options=f"-c wal_level=logical {'-c max_notify_queue_pages=64' if small else ''}").start()
    yield server
    server.close()


@pytest.fixture
def place(server: Server, transactional_db: None) -> Iterator[PlaceMaker]:
    """Makes databases."""
    places: list[Place] = []

    def made(name: str, options: str = "") -> Place:
        places.append(Place(server, name, options))
        return places[-1]

    yield made
    for one in places:
        one.connection.close()
    with psycopg.connect(**one.parameters("postgres")) as admin:
        for one in places:
            admin.execute(f"DROP DATABASE {one.name} WITH (FORCE)")


def test_a_database_in_another_encoding_announces_what_it_can_hold(place: PlaceMaker) -> None:
    western = place("western", "TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'")
    western.connection.execute("SET client_encoding = 'UTF8'")
    western.run(TABLE)
    western.declare()
    western.run(
        "INSERT INTO limits_thing VALUES (1, 'é')",
        "UPDATE limits_thing SET name = 'à'",
        "INSERT INTO limits_thing SELECT i, repeat('é', 3900) FROM generate_series(2, 4) AS i",
    )
    assert brief(western.events()) == [
        ("insert", 1, None, "é"),
        ("update", 1, "é", "à"),
        *(("insert", number, None, "é" * 3900) for number in (2, 3, 4)),
    ]


@pytest.mark.parametrize("rows", [1, 3])
def test_text_that_is_no_utf_8_in_a_database_without_encoding_leaves_the_key(place: PlaceMaker, rows: int) -> None:
    """PostgreSQL would end the connection of every listener to whom it had to send it."""
    without = place("without", "TEMPLATE template0 ENCODING SQL_ASCII LOCALE 'C'")
    without.connection.execute("SET client_encoding = 'UTF8'")
    heard: list[str] = []
    without.connection.add_notice_handler(lambda notice: heard.append(str(notice.message_hint)))
    without.run(TABLE)
    without.declare()
    latin = "convert_from(decode('e9', 'hex'), 'SQL_ASCII')"
    without.run(
        f"INSERT INTO limits_thing SELECT i, {latin} FROM generate_series(1, {rows}) AS i",
        "UPDATE limits_thing SET name = 'é'",
        "DELETE FROM limits_thing",
    )
    assert [(event.op, event.pk, event.incomplete, event.old and event.old["name"]) for event in without.events()] == [
        *(("insert", number, True, None) for number in range(1, rows + 1)),
        *(("update", number, True, None) for number in range(1, rows + 1)),
        *(("delete", number, False, "é") for number in range(1, rows + 1)),
    ]
    assert [one.count("in the encoding of this database") for one in heard] == [1, 1]


def test_logical_replication_is_heard_at_the_publisher_only(place: PlaceMaker) -> None:
    """Neither the first copy of the table nor what follows is announced where it arrives."""
    publisher, subscriber = place("publisher"), place("subscriber")
    for one in (publisher, subscriber):
        one.run(TABLE)
        one.declare()
    publisher.run(
        "INSERT INTO limits_thing (id, name) VALUES (1, 'a')",
        "CREATE PUBLICATION things FOR TABLE limits_thing",
        "SELECT pg_create_logical_replication_slot('things', 'pgoutput')",
    )
    where = f"host={publisher.server.folder} port={publisher.server.port} user=postgres dbname=publisher"
    # A slot made by itself: on one server CREATE SUBSCRIPTION would wait for its own transaction.
    subscriber.run(f"CREATE SUBSCRIPTION things CONNECTION '{where}' PUBLICATION things WITH (create_slot = false)")
    try:
        arrived(subscriber, "a")
        publisher.run("UPDATE limits_thing SET name = 'b'")
        arrived(subscriber, "b")
        assert brief(publisher.events()) == [("insert", 1, None, "a"), ("update", 1, "a", "b")]
        assert subscriber.events() == []
        subscriber.run("ALTER TABLE limits_thing ENABLE ALWAYS TRIGGER pgsignals_limits_thing_events_upd")
        publisher.run("UPDATE limits_thing SET name = 'c'")
        arrived(subscriber, "c")
        assert subscriber.events() == []
    finally:
        subscriber.run("DROP SUBSCRIPTION things")


def arrived(place: Place, name: str) -> None:
    for _ in range(2000):
        if place.run("SELECT name FROM limits_thing").fetchall() == [(name,)]:
            return
        place.run("SELECT pg_sleep(0.01)")
    pytest.fail(f"{name!r} was not replicated within 20 s")


@pytest.fixture
def dumped(place: PlaceMaker, tmp_path: Path) -> tuple[Place, str]:
    """A database with one row in a declared table, and a dump of it."""
    source = place("source")
    source.run(TABLE)
    source.declare()
    source.run("INSERT INTO limits_thing (name) VALUES ('a')")
    source.events()
    dump = str(tmp_path / "dump")
    source.program("pg_dump", "--format=custom", f"--file={dump}")
    return source, dump


def test_a_whole_dump_is_restored_silently_and_its_triggers_work(dumped: tuple[Place, str], place: PlaceMaker) -> None:
    target = place("target")
    target.program("pg_restore", "--exit-on-error", dumped[1])
    assert target.events() == []
    target.run("INSERT INTO limits_thing (id, name) VALUES (2, 'b')")
    assert brief(target.events()) == [("insert", 2, None, "b")]
    (comment,) = target.run("SELECT obj_description('pgsignals_limits_thing_events()'::regprocedure)").fetchone() or ()
    assert "fingerprint" in comment


def test_data_restored_into_tables_that_are_there_is_announced(dumped: tuple[Place, str]) -> None:
    source, dump = dumped
    source.run("TRUNCATE limits_thing")
    source.program("pg_restore", "--exit-on-error", "--data-only", dump)
    assert brief(source.events())[1:] == [("insert", 1, None, "a")]
    source.run("TRUNCATE limits_thing")
    source.program("pg_restore", "--exit-on-error", "--data-only", "--disable-triggers", dump)
    assert [event.op for event in source.events()] == ["truncate"]


@pytest.fixture
def small_queue(server: Server) -> None:
    if "max_notify_queue_pages" not in server.options:
        pytest.skip("NOT RUN: a full queue of notifications, which PostgreSQL makes small enough to fill from 17 on")


def write_often(writer: psycopg.Connection) -> None:
    """Twenty transactions of 280 kB each."""
    for _ in range(20):
        writer.execute("INSERT INTO limits_thing (name) SELECT repeat('x', 7000) FROM generate_series(1, 40)")


@pytest.mark.usefixtures("small_queue")
def test_a_listener_inside_a_long_transaction_fills_the_queue_and_fails_commits(place: PlaceMaker) -> None:
    """Nothing of the failed transaction is kept. Writes go on when the queue's usage was asked for."""
    sleeper = place("crowded")
    sleeper.run(TABLE)
    sleeper.declare()
    sleeper.run("BEGIN", "SELECT 1")
    with psycopg.connect(**sleeper.parameters("crowded")) as writer:
        with pytest.raises(psycopg.errors.OperationalError, match="too many notifications in the NOTIFY queue"):
            write_often(writer)
        kept = writer.execute("SELECT count(*) FROM limits_thing").fetchone()
        sleeper.run("COMMIT")
        # The listener has caught up, and yet PostgreSQL refuses: it only looks when it is asked.
        with pytest.raises(psycopg.errors.OperationalError, match="too many notifications in the NOTIFY queue"):
            writer.execute("INSERT INTO limits_thing (name) VALUES ('refused')")
        assert writer.execute("SELECT pg_notification_queue_usage()").fetchone() == (0,)
        writer.execute("INSERT INTO limits_thing (name) VALUES ('goes')")
    events = sleeper.events()
    assert [(len(events) - 1,)] == [kept]
    assert events[-1].new == {"name": "goes"}


def test_a_standby_refuses_to_listen_to_notify_and_to_write() -> None:
    server = Server()
    try:
        server.start()
        server.stop()
        # Without a primary it waits for one, as a standby that has lost it does.
        (server.data / "standby.signal").touch()
        server.start()
        with psycopg.connect(dbname="postgres", host=str(server.folder), user="postgres", autocommit=True) as reader:
            for statement in ("LISTEN pgsignals", "NOTIFY pgsignals", "CREATE TABLE a (a integer)"):
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    reader.execute(statement)
    finally:
        server.close()


# The page


def test_the_page_names_every_test_of_this_file_in_its_order_and_no_other() -> None:
    named = re.findall(r"`(test_\w+)`", PAGE.read_text())
    tests = re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE)
    assert named == tests[:-1]
