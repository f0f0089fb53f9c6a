"""What a write makes the trigger say."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection, models, transaction

from pgsignals import PgEvent, wire

from .conftest import Listener, connect
from .shop.models import Article, Customer, Line, Order, Page, Silent, Token

HOSTILE = [
    "'",
    '"',
    "\\",
    "\\'",
    "\n\r\t",
    "\x01\x1f",
    "é" * 50,
    "🛫",
    "%s %(a)s %%",
    "$pgsignals$",
    "NULL",
    "null",
    "{}",
    "",
]


def said(event: PgEvent) -> tuple[str, object, frozenset[str], object, object]:
    return (event.op, event.pk, event.changed, event.old, event.new)


@pytest.fixture
def warnings_of() -> Iterator[tuple[psycopg.Connection, list[str]]]:
    """A writer, and what the server warns it of."""
    heard: list[str] = []
    with connect() as writer:
        writer.add_notice_handler(lambda notice: heard.append(f"{notice.message_primary} {notice.message_hint}"))
        yield writer, heard


def test_insert_update_and_delete_say_key_changes_and_declared_values(listener: Listener) -> None:
    order = Order.objects.create(status="new", note="n")
    order.status, order.note = "paid", "m"
    order.save()
    order_pk = order.pk
    order.delete()
    new = {"status": "new", "total": 0, "customer": None}
    paid = {**new, "status": "paid"}
    assert [said(event) for event in listener.events()] == [
        ("insert", order_pk, frozenset(), None, new),
        ("update", order_pk, frozenset({"status", "note"}), new, paid),
        ("delete", order_pk, frozenset(), paid, None),
    ]


def test_a_declaration_without_fields_sends_no_values(listener: Listener) -> None:
    """The name of a customer is not in the payload at all."""
    Customer.objects.create(name="secret")
    (notification,) = listener.notifications()
    assert "secret" not in notification.payload


def test_every_way_to_write_is_seen(listener: Listener) -> None:
    """bulk_create, update(), raw SQL, another client."""
    Customer.objects.bulk_create([Customer(name=str(number)) for number in range(3)])
    Customer.objects.filter(name="1").update(name="one")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE shop_customer SET name = 'two' WHERE name = '2'")
    with connect() as other:
        other.execute("DELETE FROM shop_customer")
    assert [event.op for event in listener.events()] == ["insert"] * 3 + ["update"] * 2 + ["delete"] * 3


def test_rows_of_one_statement_share_notifications_cut_by_bytes(listener: Listener) -> None:
    """Ten thousand rows of uneven size arrive complete, in far fewer payloads, none over the limit."""
    rows = [Article(title="é" * (number % 300)) for number in range(10_000)]
    Article.objects.bulk_create(rows)
    notifications = listener.notifications()
    assert len(notifications) < 700
    assert max(len(one.payload.encode()) for one in notifications) <= wire.MAX_PAYLOAD
    events = [event for one in notifications for event in listener.decoder.decode(one.channel, one.payload)]
    assert {event.pk: event.new["title"] for event in events if event.new} == {row.pk: row.title for row in rows}
    assert not any(event.truncated or event.incomplete for event in events)


@pytest.mark.parametrize("size", [999, 1000, 1001, 3900, 7600, 7700, 7800, 7900, 8000, 100_000])
def test_a_row_of_any_size_arrives_whole_or_truncated(listener: Listener, size: int) -> None:
    """Around every limit there is: whole where it fits, and otherwise its key, and marked."""
    rows = Article.objects.bulk_create([Article(title="x" * size), Article(title="small"), Article(title="y" * size)])
    events = {event.pk: event for event in listener.events()}
    assert events.keys() == {row.pk for row in rows}
    for row in rows:
        event = events[row.pk]
        assert event.truncated == (event.new is None)
        assert event.new is None or event.new["title"] == row.title
    assert events[rows[1].pk].new == {"title": "small"}
    if size <= 7600:
        assert not any(event.truncated for event in events.values())
    if size >= 8000:
        assert events[rows[0].pk].truncated


def test_a_key_too_big_to_send_leaves_an_event_about_the_table(listener: Listener) -> None:
    Page.objects.create(slug="k" * 100_000)
    event = listener.event()
    assert (event.op, event.pk, event.truncated, event.instance()) == ("insert", None, True, None)


def test_update_names_all_changed_fields_and_groups_rows_by_them(listener: Listener) -> None:
    """One statement that changes other fields in each row tells them apart, also NULL from text."""
    first, second = Customer.objects.bulk_create([Customer(name="a"), Customer(name="b")])
    one, two, three = Order.objects.bulk_create(
        [Order(status="a", customer=first), Order(status="b"), Order(status="c", customer=second)]
    )
    listener.notifications()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE shop_order SET state = 'a', customer_id = %s, total = CASE WHEN state = 'c' THEN 5 ELSE total END",
            [first.pk],
        )
    assert {event.pk: event.changed for event in listener.events()} == {
        two.pk: {"status", "customer"},
        three.pk: {"status", "customer", "total"},
    }
    assert one.pk


def test_rows_that_did_not_change_are_not_announced(listener: Listener) -> None:
    order = Order.objects.create()
    listener.notifications()
    order.save()
    Order.objects.update(status=models.F("status"))
    Order.objects.filter(pk=-1).update(status="x")
    Order.objects.filter(pk=-1).delete()
    assert listener.events() == []


def test_a_changed_key_is_a_delete_and_an_insert(listener: Listener) -> None:
    """Also where the keys of all rows move by one, and each new key was another row's old one."""
    Article.objects.bulk_create([Article(id=number, title=str(number)) for number in (1, 2, 3)])
    listener.notifications()
    Article.objects.filter(pk=3).update(id=9)
    assert [(event.op, event.pk) for event in listener.events()] == [("delete", 3), ("insert", 9)]
    with connection.cursor() as cursor:
        cursor.execute("UPDATE shop_article SET id = id + 1000, title = title || '!'")
    events = listener.events()
    assert [(event.op, event.pk) for event in events[:3]] == [("delete", 1), ("delete", 2), ("delete", 9)]
    assert {event.pk: event.new["title"] for event in events[3:] if event.new} == {1001: "1!", 1002: "2!", 1009: "3!"}


def test_a_composite_key_is_a_tuple_and_its_change_is_seen(listener: Listener) -> None:
    Line.objects.create(order_number=1, position="a")
    Line.objects.update(quantity=2)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE shop_line SET position = 'b'")
    assert [(event.op, event.pk) for event in listener.events()] == [
        ("insert", (1, "a")),
        ("update", (1, "a")),
        ("delete", (1, "a")),
        ("insert", (1, "b")),
    ]


def test_equal_changes_in_one_transaction_are_not_folded(listener: Listener) -> None:
    """PostgreSQL delivers equal payloads of a transaction once; insert, delete, insert must arrive as three."""
    with transaction.atomic():
        for _ in range(3):
            Article.objects.create(pk=1, title="same").delete()
        Article.objects.create(pk=1, title="same")
    assert [event.op for event in listener.events()] == ["insert", "delete"] * 3 + ["insert"]


def test_equal_changes_are_not_folded_across_savepoints(listener: Listener) -> None:
    """A savepoint that is rolled back takes its events with it, and no number of a later event."""
    with transaction.atomic():
        Article.objects.create(pk=1, title="same").delete()
        with transaction.atomic():
            Article.objects.create(pk=1, title="same").delete()
            transaction.set_rollback(True)
        Article.objects.create(pk=1, title="same").delete()
    assert [event.op for event in listener.events()] == ["insert", "delete", "insert", "delete"]


def test_what_is_rolled_back_is_never_announced(listener: Listener) -> None:
    with transaction.atomic():
        Article.objects.create()
        transaction.set_rollback(True)
    assert listener.events() == []


def test_truncate_is_one_event_about_the_table(listener: Listener) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE shop_article")
    assert said(listener.event()) == ("truncate", None, frozenset(), None, None)


def test_only_the_declared_operations_are_announced(listener: Listener) -> None:
    """`on` leaves out update and truncate here."""
    token = Token.objects.create(label="a")
    Token.objects.update(label="b")
    Token.objects.filter(pk=token.pk).delete()
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE shop_token")
    assert [event.op for event in listener.events()] == ["insert", "delete"]


def test_a_model_without_a_declaration_is_silent(listener: Listener) -> None:
    Silent.objects.create()
    assert listener.events() == []


def test_an_abstract_declaration_reaches_each_child_under_its_own_name(listener: Listener) -> None:
    Article.objects.create(title="a")
    Page.objects.create(slug="p", title="b")
    payloads = [json.loads(notification.payload) for notification in listener.notifications()]
    assert [(one["d"], one["m"]) for one in payloads] == [
        ("shop_article_events", "shop.article"),
        ("shop_page_events", "shop.page"),
    ]


def test_an_event_says_when_where_and_in_which_transaction(listener: Listener) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        Article.objects.create()
        Article.objects.create()
        cursor.execute("SELECT pg_current_xact_id()::text::bigint, clock_timestamp()")
        xid, now = cursor.fetchone()
    first, second = listener.events()
    assert (first.transaction, second.transaction) == (xid, xid)
    assert first.at is not None
    assert second.at is not None
    assert first.at < second.at <= now
    assert (first.schema, first.database, first.channel) == ("public", "default", "pgsignals")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_written_and_arrives(listener: Listener, text: str) -> None:
    """In a value and in a key alike."""
    Page.objects.create(slug=text, title=text)
    event = listener.event()
    assert event.pk == text
    assert event.new == {"title": text}


def test_eight_kilobytes_of_quotes_do_not_fail_the_write(listener: Listener) -> None:
    """Escaping doubles them, so that what would fit as text does not fit as JSON."""
    rows = Article.objects.bulk_create([Article(title='"' * size) for size in (3800, 4200, 8000)])
    assert [event.truncated for event in sorted(listener.events(), key=lambda event: event.pk)] == [False, True, True]
    assert Article.objects.count() == len(rows)


def test_no_two_notifications_are_equal(listener: Listener) -> None:
    """PostgreSQL would fold them into one: statements are told apart by their time, their pieces by a number."""
    with transaction.atomic():
        for _ in range(3):
            Article.objects.bulk_create(Article(title="x" * 500) for _ in range(100))
            Article.objects.all().delete()
    sent = [json.loads(one.payload) for one in listener.notifications()]
    inserts = [(one["t"], one["n"]) for one in sent if one["o"] == "i"]
    assert len(inserts) == len(set(inserts))
    assert [number for _, number in inserts] == [*range(1, len(inserts) // 3 + 1)] * 3


def test_a_long_transaction_keeps_nothing_open(listener: Listener) -> None:
    """An open cursor holds its memory: an import of a thousand small batches would need gigabytes."""
    with transaction.atomic(), connection.cursor() as cursor:
        for _ in range(3):
            Article.objects.bulk_create([Article(title="a"), Article(title="b")])
            Article.objects.update(title="c")
            Article.objects.all().delete()
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE statement LIKE '%%pgsignals%%'")
        assert cursor.fetchone() == (0,)
    assert len(listener.events()) == 3 * 6


def test_a_long_transaction_of_single_writes_takes_little_memory(listener: Listener) -> None:
    """A notification that is sent inside a subtransaction keeps 8 kB of the server's memory until the end."""
    with transaction.atomic(), connection.cursor() as cursor:
        for _ in range(100):
            cursor.execute("INSERT INTO shop_customer (name) VALUES ('a')")
        cursor.execute(
            "SELECT coalesce(sum(total_bytes), 0) FROM pg_backend_memory_contexts WHERE name = 'CurTransactionContext'"
        )
        assert cursor.fetchone()[0] < 200_000
    assert len(listener.events()) == 100


@pytest.mark.django_db
def test_no_query_of_the_trigger_is_compiled() -> None:
    """Where PostgreSQL has JIT, the many expressions of a wide table would be compiled in each statement: seconds."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT p.proname FROM pg_proc p JOIN pg_trigger t ON t.tgfoid = p.oid "
            "WHERE p.proname LIKE 'pgsignals%' AND t.tgrelid <> 'pgsignals_log'::regclass "
            "AND 'jit=off' <> ALL (p.proconfig)"
        )
        assert cursor.fetchall() == []


def test_a_big_value_that_did_not_change_is_not_read(listener: Listener) -> None:
    """To compare it would cost far more than the update itself."""
    if connection.pg_version < 170_000:
        pytest.skip("NOT RUN: values known to be the same on disk, which PostgreSQL tells from 17 on")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE shop_order ALTER note SET STORAGE EXTERNAL")
        orders = Order.objects.bulk_create([Order(note="x" * 1_000_000), Order(note="y" * 1_000_000)])

        def read() -> int:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute(
                "SELECT toast_blks_read + toast_blks_hit FROM pg_statio_user_tables WHERE relname = 'shop_order'"
            )
            return int(cursor.fetchone()[0])

        listener.notifications()
        before = read()
        Order.objects.filter(pk=orders[0].pk).update(total=1)
        Order.objects.update(total=2)
        assert read() - before < 50
        Order.objects.filter(pk=orders[0].pk).update(note="z" * 1_000_000)
        assert read() - before > 100, "otherwise this test sees nothing"
    assert [event.changed for event in listener.events()] == [{"total"}] * 3 + [{"note"}]


BACK = {
    "ALTER TABLE shop_order DROP COLUMN state": "ALTER TABLE shop_order ADD state varchar(20) NOT NULL DEFAULT ''",
    "ALTER TABLE shop_order RENAME state TO other": "ALTER TABLE shop_order RENAME other TO state",
    "ALTER TABLE shop_order DROP COLUMN note": "ALTER TABLE shop_order ADD note text NOT NULL DEFAULT ''",
}


@pytest.mark.parametrize("change", BACK)
def test_a_column_changed_behind_djangos_back_fails_no_write(
    listener: Listener, warnings_of: tuple[psycopg.Connection, list[str]], change: str
) -> None:
    """The event has the key, is marked incomplete, and the writer gets a warning with the remedy."""
    writer, heard = warnings_of
    writer.execute("ALTER TABLE shop_order ALTER note SET DEFAULT '', ALTER state SET DEFAULT ''")
    writer.execute(change)
    try:
        writer.execute("INSERT INTO shop_order (id, total) VALUES (7, 1)")
        writer.execute("UPDATE shop_order SET total = 2")
        writer.execute("DELETE FROM shop_order")
    finally:
        writer.execute(BACK[change])
    # What is declared is missed by every operation; another column by updates alone.
    expected = {"update"} if "note" in change else {"insert", "update", "delete"}
    assert sum("pgsignals sync" in warning for warning in heard) == len(expected)
    events = listener.events()
    assert [(event.op, event.pk) for event in events] == [("insert", 7), ("update", 7), ("delete", 7)]
    assert {event.op for event in events if event.incomplete} == expected
    assert all(event.new is None and event.old is None for event in events if event.incomplete)


def test_a_column_that_the_trigger_does_not_know_makes_the_update_incomplete(
    listener: Listener, warnings_of: tuple[psycopg.Connection, list[str]]
) -> None:
    """Something changed, and the trigger cannot name it."""
    writer, _ = warnings_of
    Customer.objects.create(name="a")
    writer.execute("ALTER TABLE shop_customer ADD extra integer")
    listener.notifications()
    writer.execute("UPDATE shop_customer SET extra = 1")
    event = listener.event()
    assert (event.op, event.incomplete, event.changed) == ("update", True, frozenset())
    Customer.objects.create(name="b")
    Customer.objects.create(name="c")
    listener.notifications()
    writer.execute("UPDATE shop_customer SET extra = 2, name = CASE name WHEN 'b' THEN 'd' ELSE name END")
    writer.execute("ALTER TABLE shop_customer DROP extra")
    names = dict(Customer.objects.values_list("pk", "name"))
    assert {names[event.pk]: (event.incomplete, event.changed) for event in listener.events()} == {
        "a": (True, frozenset()),
        "c": (True, frozenset()),
        "d": (False, {"name"}),
    }


def test_a_key_renamed_behind_djangos_back_leaves_an_event_about_the_table(
    listener: Listener, warnings_of: tuple[psycopg.Connection, list[str]]
) -> None:
    writer, heard = warnings_of
    writer.execute("ALTER TABLE shop_article RENAME id TO number")
    writer.execute("INSERT INTO shop_article (title) VALUES ('a')")
    writer.execute("ALTER TABLE shop_article RENAME number TO id")
    event = listener.event()
    assert (event.op, event.pk, event.incomplete) == ("insert", None, True)
    assert len(heard) == 2


def test_a_session_that_saw_the_table_before_it_changed_goes_on(
    listener: Listener, warnings_of: tuple[psycopg.Connection, list[str]]
) -> None:
    """What PL/pgSQL remembers of a row's types no longer fits; the event is complete all the same."""
    writer, heard = warnings_of
    writer.execute("INSERT INTO shop_article (title) VALUES ('a')")
    with connect() as other:
        other.execute("ALTER TABLE shop_article ALTER title TYPE varchar(50), ALTER id TYPE integer")
    try:
        writer.execute("INSERT INTO shop_article (title) VALUES ('b')")
        writer.execute("UPDATE shop_article SET title = 'c' WHERE title = 'b'")
    finally:
        writer.execute("ALTER TABLE shop_article ALTER title TYPE text, ALTER id TYPE bigint")
    assert [(event.op, event.new and event.new["title"], event.incomplete) for event in listener.events()] == [
        ("insert", "a", False),
        ("insert", "b", False),
        ("update", "c", False),
    ]
    assert heard == []


def test_a_value_wider_than_its_column_may_be_leaves_the_key(
    listener: Listener, warnings_of: tuple[psycopg.Connection, list[str]]
) -> None:
    """Somebody widened the column by hand. The row alone, and among others."""
    writer, heard = warnings_of
    writer.execute("ALTER TABLE shop_order ALTER state TYPE text")
    try:
        for rows in (1, 3):
            writer.execute(
                "INSERT INTO shop_order (state, total, note) "
                f"SELECT repeat('x', 20000), 1, '' FROM generate_series(1, {rows})"
            )
    finally:
        writer.execute("DELETE FROM shop_order; ALTER TABLE shop_order ALTER state TYPE varchar(20)")
    inserted = [event for event in listener.events() if event.op == "insert"]
    assert len([event.pk for event in inserted]) == 4
    assert all(event.incomplete and event.new is None and event.pk for event in inserted)
    assert "pgsignals sync" in heard[0]


def test_after_single_row_updates_a_bulk_update_in_the_same_session_is_planned_well(listener: Listener) -> None:
    """A plan made for one row, and kept, must not turn 20,000 rows into a nested loop: that takes minutes."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop_customer (name) SELECT 'n' FROM generate_series(1, 20000)")
        for _ in range(20):
            cursor.execute("UPDATE shop_customer SET name = name || 'x' WHERE id = (SELECT min(id) FROM shop_customer)")
        cursor.execute("SET statement_timeout = '10s'")
        cursor.execute("UPDATE shop_customer SET name = name || 'y'")
        cursor.execute("RESET statement_timeout")
    assert sum(event.op == "update" for event in listener.events()) == 20_020


def test_a_search_path_full_of_traps_changes_nothing(
    listener: Listener, warnings_of: tuple[psycopg.Connection, list[str]]
) -> None:
    """A function of the writer's own stands before PostgreSQL's only for the writer."""
    writer, heard = warnings_of
    writer.execute("CREATE SCHEMA traps")
    writer.execute("CREATE FUNCTION traps.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT 1 / 0'")
    writer.execute("SET search_path = traps, pg_catalog, public")
    writer.execute("INSERT INTO public.shop_article (title) VALUES ('a')")
    writer.execute("RESET search_path")
    writer.execute("DROP SCHEMA traps CASCADE")
    assert heard[:1] == [] or "drop cascades" in heard[0]
    assert listener.event().new == {"title": "a"}
