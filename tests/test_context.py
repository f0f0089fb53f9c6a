"""Who wrote, and why: what a block says reaches the events of its transactions, and nothing else."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DataError, IntegrityError, InternalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext
from django.utils.functional import lazystr

import pgsignals
from pgsignals import context as pgsignals_context
from pgsignals.context import MAX_CONTEXT, Courier, install

from .conftest import Listener, connect
from .servers import free_port, running
from .shop.models import Customer, Line, Order


def setting(name: str = "pgsignals.context") -> str:
    """What the database knows now."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s, true)", [name])
        return cursor.fetchone()[0] or ""


def contexts(listener: Listener) -> list[dict[str, Any]]:
    return [dict(event.context) for event in listener.events()]


@contextmanager
def rolled_back() -> Iterator[None]:
    with suppress(ZeroDivisionError), transaction.atomic():
        yield
        raise ZeroDivisionError


def statements(queries: CaptureQueriesContext) -> list[str]:
    return [" ".join(query["sql"].split()[:2]) for query in queries.captured_queries]


# What a transaction says.


def test_the_events_of_a_transaction_carry_the_context(listener: Listener) -> None:
    with pgsignals.context(actor=7, request_id="a1"), transaction.atomic():
        customer = Customer.objects.create(name="Ada")
        Customer.objects.filter(pk=customer.pk).update(name="Grace")
        Order.objects.bulk_create([Order(), Order()])
        customer.delete()
    assert contexts(listener) == [{"actor": 7, "request_id": "a1"}] * 5


def test_it_is_sent_once_in_a_transaction(transactional_db: None) -> None:
    with CaptureQueriesContext(connection) as queries, pgsignals.context(actor=7), transaction.atomic():
        Customer.objects.create(name="Ada")
        Customer.objects.create(name="Grace")
        with transaction.atomic():
            Customer.objects.create(name="Edith")
    assert statements(queries).count("SET LOCAL") == 1


def test_what_is_written_after_the_block_has_no_context(listener: Listener) -> None:
    with pgsignals.context(actor=7):
        Customer.objects.create(name="Ada")
    Customer.objects.create(name="Grace")
    assert contexts(listener) == [{"actor": 7}, {}]


def test_each_transaction_of_a_block_has_it(listener: Listener) -> None:
    with pgsignals.context(actor=7):
        for name in ("Ada", "Grace"):
            with transaction.atomic():
                Customer.objects.create(name=name)
    assert contexts(listener) == [{"actor": 7}] * 2


def test_a_reused_atomic_decorator_has_the_context_of_each_call(listener: Listener) -> None:
    @transaction.atomic
    def create(name: str) -> None:
        Customer.objects.create(name=name)

    for actor in (1, 2):
        with pgsignals.context(actor=actor):
            create("Ada")
    create("Grace")
    assert contexts(listener) == [{"actor": 1}, {"actor": 2}, {}]


def test_a_durable_block_has_it(listener: Listener) -> None:
    with pgsignals.context(actor=7), transaction.atomic(durable=True):
        Customer.objects.create(name="Ada")
    assert contexts(listener) == [{"actor": 7}]


def test_a_block_inside_a_transaction_ends_before_the_transaction_does(listener: Listener) -> None:
    with transaction.atomic():
        Customer.objects.create(name="before")
        with pgsignals.context(actor=7):
            Customer.objects.create(name="inside")
        Customer.objects.create(name="after")
    assert contexts(listener) == [{}, {"actor": 7}, {}]


def test_nested_contexts_are_merged_and_the_inner_one_wins(listener: Listener) -> None:
    with pgsignals.context(actor=1, request_id="a"), transaction.atomic():
        with pgsignals.context(actor=2, reason="import"):
            Customer.objects.create(name="inside")
        Customer.objects.create(name="after")
    assert contexts(listener) == [{"actor": 2, "request_id": "a", "reason": "import"}, {"actor": 1, "request_id": "a"}]


# Rollbacks.


def test_a_savepoint_rolled_back_takes_the_context_from_nobody(listener: Listener) -> None:
    """The first write is in the savepoint: the rollback undoes what was sent there."""
    with transaction.atomic():
        with rolled_back(), pgsignals.context(actor=1):
            Customer.objects.create(name="undone")
        Customer.objects.create(name="none")
        with pgsignals.context(actor=7):
            with rolled_back():
                Customer.objects.create(name="undone")
            Customer.objects.create(name="kept")
    assert contexts(listener) == [{}, {"actor": 7}]


def test_a_context_left_inside_a_savepoint_does_not_come_back_with_its_rollback(listener: Listener) -> None:
    """PostgreSQL goes back to what held at the savepoint: to a context that was left since."""
    with transaction.atomic():
        block = pgsignals.context(actor=7)
        block.__enter__()
        Customer.objects.create(name="inside")
        with rolled_back():
            block.__exit__(None, None, None)
            Customer.objects.create(name="undone")
        Customer.objects.create(name="after")
    assert contexts(listener) == [{"actor": 7}, {}]


def test_an_error_in_a_savepoint_is_djangos_own_and_the_context_goes_on(listener: Listener) -> None:
    Line.objects.create(order_number=1, position="a")
    with pgsignals.context(actor=7), transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic(), pgsignals.context(actor=8):
            Line.objects.bulk_create([Line(order_number=1, position="a")])
        Customer.objects.create(name="kept")
    assert contexts(listener)[1:] == [{"actor": 7}]


def test_a_savepoint_of_raw_sql_is_seen(listener: Listener) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SAVEPOINT mine")
        with pgsignals.context(actor=7):
            Customer.objects.create(name="undone")
            cursor.execute("  /* back */ ROLLBACK TO SAVEPOINT mine")
            Customer.objects.create(name="kept")
    assert contexts(listener) == [{"actor": 7}]


def test_in_a_broken_transaction_django_says_what_it_always_says(transactional_db: None) -> None:
    with pytest.raises(TransactionManagementError), transaction.atomic(), pgsignals.context(actor=7):  # noqa: PT012
        with suppress(ZeroDivisionError), transaction.atomic(savepoint=False):
            raise ZeroDivisionError
        Customer.objects.create(name="Ada")


def test_leaving_a_block_after_an_error_asks_the_database_nothing(transactional_db: None) -> None:
    Line.objects.create(order_number=1, position="a")
    with pytest.raises(IntegrityError), transaction.atomic(), pgsignals.context(actor=7):
        Line.objects.bulk_create([Line(order_number=1, position="a")])
    with transaction.atomic():
        assert setting() == ""


def test_a_transaction_rolled_back_leaves_nothing(listener: Listener) -> None:
    with pgsignals.context(actor=7):
        with rolled_back():
            Customer.objects.create(name="undone")
        with transaction.atomic():
            Customer.objects.create(name="kept")
    Customer.objects.create(name="after")
    assert contexts(listener) == [{"actor": 7}, {}]


def test_in_a_transaction_that_failed_nothing_is_sent(transactional_db: None) -> None:
    with suppress(InternalError), transaction.atomic(), connection.cursor() as cursor:
        with suppress(DataError):
            cursor.execute("SELECT 1 / 0")
        with CaptureQueriesContext(connection) as queries, pgsignals.context(actor=7):
            cursor.execute("SELECT 1")
    assert "SET LOCAL" not in statements(queries)


def test_leaving_a_savepoint_sends_nothing(transactional_db: None) -> None:
    capture = CaptureQueriesContext(connection)
    with capture as queries, transaction.atomic(), transaction.atomic(), pgsignals.context(actor=7):
        Customer.objects.create(name="Ada")
    assert statements(queries).count("SET LOCAL") == 1


# Other ways to hold a transaction.


def test_manual_transactions_have_it(listener: Listener) -> None:
    transaction.set_autocommit(False)
    try:
        with pgsignals.context(actor=7):
            for name in ("Ada", "Grace"):
                Customer.objects.create(name=name)
                transaction.commit()
            Customer.objects.create(name="undone")
            transaction.rollback()
            Customer.objects.create(name="Edith")
            transaction.commit()
        Customer.objects.create(name="after")
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert contexts(listener) == [{"actor": 7}] * 3 + [{}]


def test_a_transaction_of_raw_sql_has_it(listener: Listener) -> None:
    with pgsignals.context(actor=7), connection.cursor() as cursor:
        cursor.execute("BEGIN")
        Customer.objects.create(name="Ada")
        Customer.objects.create(name="Grace")
        cursor.execute("COMMIT")
        assert setting() == ""
    assert contexts(listener) == [{"actor": 7}] * 2


@pytest.mark.parametrize("end", ["COMMIT", "END", "ROLLBACK", "ABORT"])
def test_a_transaction_chained_to_another_has_it(listener: Listener, end: str) -> None:
    with pgsignals.context(actor=7), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.execute(f"{end} AND CHAIN")
        Customer.objects.create(name="Ada")
    assert contexts(listener) == [{"actor": 7}]


def test_a_transaction_may_still_choose_its_isolation(transactional_db: None) -> None:
    """SET TRANSACTION must come before any query: neither before it nor by ourselves is one made."""
    with pgsignals.context(actor=7), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE shop_customer")
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert setting() == '{"actor":7}'


def test_a_function_that_writes_and_is_called_by_select_has_it(listener: Listener) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION pg_temp.hire() RETURNS void LANGUAGE sql "
            "AS $$INSERT INTO shop_customer (name) VALUES ('Ada')$$"
        )
        with pgsignals.context(actor=7), transaction.atomic():
            cursor.execute("SELECT pg_temp.hire()")
    assert contexts(listener) == [{"actor": 7}]


def test_copy_has_it_after_any_other_statement(listener: Listener) -> None:
    """Django lets no library see COPY."""
    with pgsignals.context(actor=7), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        with cursor.copy("COPY shop_customer (name) FROM STDIN") as copy:
            copy.write_row(["Ada"])
    assert contexts(listener) == [{"actor": 7}]


# Autocommit.


def test_a_write_in_autocommit_becomes_a_transaction(listener: Listener) -> None:
    with CaptureQueriesContext(connection) as queries, pgsignals.context(actor=7), connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop_customer (name) VALUES ('Ada') RETURNING name")
        assert cursor.fetchone() == ("Ada",)
        assert not connection.in_atomic_block
        assert setting() == ""
    # Django writes down a statement when it is done: ours with all that went around it.
    assert statements(queries)[:4] == ["BEGIN", "SET LOCAL", "COMMIT", "INSERT INTO"]
    assert contexts(listener) == [{"actor": 7}]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into shop_customer (name) values ('Ada')",
        "\n  -- INSERT\n /* why */ (/**/\tUPDATE shop_customer SET name = 'Grace'".replace("(", ""),
        "DELETE FROM shop_customer",
        "MERGE INTO shop_customer USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
        "WITH gone AS (DELETE FROM shop_customer RETURNING id) SELECT id FROM gone",
        "TRUNCATE shop_customer CASCADE",
        "COPY shop_customer (name) FROM PROGRAM 'echo Ada'",
        psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier("shop_customer")),
        b"DELETE FROM shop_customer",
    ],
    ids=lambda statement: str(statement).split()[0],
)
def test_every_statement_that_writes_has_it_in_autocommit(listener: Listener, statement: Any) -> None:
    Customer.objects.create(name="there")
    with pgsignals.context(actor=7), connection.cursor() as cursor:
        cursor.execute(statement)
    first, *rest = contexts(listener)
    assert (first, rest) == ({}, [{"actor": 7}] * len(rest))
    assert rest


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "VACUUM shop_customer",
        "WITH one AS (SELECT 1) SELECT * FROM one",
        "(SELECT 1)",
        "/* UPDATE */ SHOW all",
    ],
)
def test_every_other_statement_is_left_alone_in_autocommit(transactional_db: None, statement: str) -> None:
    with CaptureQueriesContext(connection) as queries, pgsignals.context(actor=7), connection.cursor() as cursor:
        cursor.execute(statement)
    assert len(queries) == 1


def test_executemany_has_it(listener: Listener) -> None:
    with pgsignals.context(actor=7), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO shop_customer (name) VALUES (%s)", [["Ada"], ["Grace"]])
    assert contexts(listener) == [{"actor": 7}] * 2


def test_a_write_that_fails_in_autocommit_raises_what_it_raised_before(listener: Listener) -> None:
    """Now also for what is checked at the commit: Django's foreign keys."""
    with pgsignals.context(actor=7):
        with pytest.raises(IntegrityError):
            Order.objects.create(customer_id=404)
        Customer.objects.create(name="Ada")
    assert contexts(listener) == [{"actor": 7}]


def test_a_connection_that_django_does_not_know_by_its_alias_has_it(listener: Listener) -> None:
    other = connection.copy()
    try:
        with pgsignals.context(actor=7), other.cursor() as cursor:
            cursor.execute("INSERT INTO shop_customer (name) VALUES ('Ada')")
            with pytest.raises(IntegrityError):
                cursor.execute("INSERT INTO shop_order (customer_id, state, total, note) VALUES (404, '', 0, '')")
    finally:
        other.close()
    assert contexts(listener) == [{"actor": 7}]


def test_rows_are_still_read_in_pieces(listener: Listener) -> None:
    Customer.objects.bulk_create([Customer(name=str(number)) for number in range(5)])
    with pgsignals.context(actor=7):
        seen = [customer.pk for customer in Customer.objects.iterator(chunk_size=2)]
        with connection.chunked_cursor() as cursor:
            cursor.execute("WITH every AS (SELECT id FROM shop_customer) SELECT id AS delete FROM every")
            assert sorted(cursor.fetchmany(3) + cursor.fetchmany(3)) == sorted((pk,) for pk in seen)
        with transaction.atomic():
            for customer in Customer.objects.iterator(chunk_size=2):
                customer.name += "!"
                customer.save()
    assert contexts(listener)[5:] == [{"actor": 7}] * 5


# Settings of the database.


@pytest.fixture
def with_options(transactional_db: None) -> Iterator[Any]:
    """The default connection, opened anew with further options."""
    before = connection.settings_dict["OPTIONS"]

    def open_with(**options: Any) -> None:
        connection.close()
        connection.settings_dict["OPTIONS"] = {**before, **options}

    yield open_with
    connection.close()
    connection.settings_dict["OPTIONS"] = before


def test_it_works_with_server_side_binding(listener: Listener, with_options: Any) -> None:
    with_options(server_side_binding=True)
    with pgsignals.context(actor="O'Brien \\ %s", reason="100 %"):
        customer = Customer.objects.create(name="Ada")
        with transaction.atomic():
            customer.name = "Grace"
            customer.save()
    assert contexts(listener) == [{"actor": "O'Brien \\ %s", "reason": "100 %"}] * 2


@pytest.fixture
def pgbouncer(transactional_db: None, tmp_path: Path) -> Iterator[int]:
    """The port of a PgBouncer in transaction mode, that has one connection to the server for all its clients."""
    if not (program := shutil.which("pgbouncer", path=f"/usr/sbin:{os.environ['PATH']}")):
        pytest.skip("NOT RUN: tests with a real PgBouncer. Install it: apt-get install pgbouncer")
    place = connection.settings_dict
    password = f" password='{place['PASSWORD']}'" if place["PASSWORD"] else ""
    port = free_port()
    lines = [
        "[databases]",
        f"* = host={place['HOST']} port={place['PORT'] or 5432} user={place['USER']}{password}",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = any",
        "pool_mode = transaction",
        "default_pool_size = 1",
    ]
    if os.geteuid() == 0:
        # It refuses to be root, and must reach the server's socket.
        lines.append(f"user = {Path(place['HOST']).owner() if place['HOST'].startswith('/') else 'nobody'}")
    (tmp_path / "pgbouncer.ini").write_text("\n".join(lines))
    with running([program, str(tmp_path / "pgbouncer.ini")], {"PATH": "/usr/bin:/bin"}) as process:
        process.wait_for("process up")
        yield port


@pytest.fixture
def through_pgbouncer(listener: Listener, pgbouncer: int) -> Iterator[None]:
    """The default connection goes through PgBouncer; the listener does not."""
    place = connection.settings_dict
    before = {name: place[name] for name in ("HOST", "PORT")}
    connection.close()
    place.update(HOST="127.0.0.1", PORT=str(pgbouncer), DISABLE_SERVER_SIDE_CURSORS=True)
    yield
    connection.close()
    place.update(before, DISABLE_SERVER_SIDE_CURSORS=False)


def test_it_works_through_pgbouncer_and_reaches_nobody_elses_transaction(
    listener: Listener, through_pgbouncer: None
) -> None:
    with connect() as other, pgsignals.context(actor=7):
        Customer.objects.create(name="autocommit")
        with transaction.atomic():
            with rolled_back():
                Customer.objects.create(name="undone")
            Customer.objects.create(name="kept")
        other.execute("INSERT INTO shop_customer (name) VALUES ('of another client')")
        with pgsignals.silenced():
            Customer.objects.create(name="silent")
        other.execute("INSERT INTO shop_customer (name) VALUES ('of another client')")
        ask = "SELECT pg_backend_pid(), current_setting('pgsignals.context', true)"
        with connection.cursor() as cursor:
            cursor.execute(ask)
            assert cursor.fetchone() == other.execute(ask).fetchone()
    assert contexts(listener) == [{"actor": 7}, {"actor": 7}, {}, {}]


def test_it_works_with_a_pool(listener: Listener, with_options: Any) -> None:
    pytest.importorskip("psycopg_pool", reason="NOT RUN: Django's pool of connections. pip install psycopg_pool")
    with_options(pool={"min_size": 1, "max_size": 1})
    try:
        for actor in (1, 2):
            with pgsignals.context(actor=actor):
                Customer.objects.create(name="autocommit")
                with transaction.atomic():
                    Customer.objects.create(name="Ada")
            connection.close()
            Customer.objects.create(name="Grace")
    finally:
        connection.close_pool()
    assert contexts(listener) == [{"actor": 1}, {"actor": 1}, {}, {"actor": 2}, {"actor": 2}, {}]


@pytest.mark.parametrize("text", ["'", '"', "\\", "\\'; --", "%s %%", "é🛫", "\n\x01", "\0", "$$"])
def test_any_text_arrives(listener: Listener, text: str) -> None:
    with pgsignals.context(actor=text):
        Customer.objects.create(name="Ada")
    assert contexts(listener) == [{"actor": text}]


@pytest.fixture
def latin(transactional_db: None) -> Iterator[None]:
    """The default connection leads to a database in LATIN1."""
    usual = connection.settings_dict["NAME"]
    with connect() as other:
        other.execute("CREATE DATABASE pgsignals_latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        connection.close()
        connection.settings_dict["NAME"] = "pgsignals_latin"
        yield
        connection.close()
        connection.settings_dict["NAME"] = usual
        other.execute("DROP DATABASE pgsignals_latin")


def test_text_that_the_database_cannot_hold_fails_no_write(latin: None, caplog: pytest.LogCaptureFixture) -> None:
    with pgsignals.context(actor="é🛫"), transaction.atomic():
        assert json.loads(setting()) == {"actor": "é🛫"}
        assert caplog.text == ""
        with pgsignals.context(actor="🛫" * 200):
            assert setting() == ""
    assert "LATIN1: The context has 2412 bytes" in caplog.text


def test_a_connection_opened_anew_has_it_and_one_courier(listener: Listener) -> None:
    with pgsignals.context(actor=7):
        Customer.objects.create(name="Ada")
        connection.close()
        Customer.objects.create(name="Grace")
    install(connection)
    assert [isinstance(wrapper, Courier) for wrapper in connection.execute_wrappers].count(True) == 1
    assert contexts(listener) == [{"actor": 7}] * 2


@pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])
def test_another_vendors_database_is_left_alone() -> None:
    with pgsignals.context(actor=7), pgsignals.silenced(using="sqlite"):
        Customer.objects.using("sqlite").create(name="Ada")
    assert not any(isinstance(wrapper, Courier) for wrapper in connections["sqlite"].execute_wrappers)
    assert Customer.objects.using("sqlite").count() == 1


# In a test that never commits, as Django's TestCase.


@pytest.mark.django_db
def test_in_a_test_case_the_context_comes_and_goes(django_capture_on_commit_callbacks: Any) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        with pgsignals.context(actor=7), transaction.atomic():
            transaction.on_commit(lambda: None)
            assert setting() == '{"actor":7}'
        assert setting() == ""
        with pgsignals.context(actor=8):
            assert setting() == '{"actor":8}'
    assert setting() == ""


# Python.


def test_a_decorated_function_has_it_in_each_call(listener: Listener) -> None:
    @pgsignals.context(actor=7)
    def create(depth: int) -> None:
        Customer.objects.create(name="Ada")
        if depth:
            create(depth - 1)

    create(1)
    Customer.objects.create(name="Grace")
    assert contexts(listener) == [{"actor": 7}] * 2 + [{}]


def test_async_code_has_it(listener: Listener) -> None:
    @pgsignals.context(actor=7)
    async def create(name: str) -> None:
        await Customer.objects.acreate(name=name)

    async def everything() -> None:
        await create("Ada")
        with pgsignals.context(actor=8):
            await Customer.objects.acreate(name="Grace")
            await sync_to_async(Customer.objects.create)(name="Edith")
        await Customer.objects.acreate(name="Alan")
        await sync_to_async(connections.close_all)()

    asyncio.run(everything())
    assert contexts(listener) == [{"actor": 7}, {"actor": 8}, {"actor": 8}, {}]


def test_tasks_side_by_side_have_their_own(listener: Listener) -> None:
    async def create(actor: int) -> None:
        with pgsignals.context(actor=actor):
            customer = await Customer.objects.acreate(name=str(actor))
            await Customer.objects.filter(pk=customer.pk).aupdate(name=f"{actor} again")

    async def everything() -> None:
        await asyncio.gather(*(create(actor) for actor in range(5)))
        await sync_to_async(connections.close_all)()

    asyncio.run(everything())
    names = {customer.pk: int(customer.name.split()[0]) for customer in Customer.objects.all()}
    events = listener.events()
    assert len(events) == 10
    assert [event.context["actor"] for event in events] == [names[event.pk] for event in events]


def test_generators_are_refused() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="numbers: its body runs after the call"):
        pgsignals.context(actor=7)(numbers)
    with pytest.raises(TypeError, match="numbers: its body runs after the call"):
        pgsignals.silenced()(numbers)


def test_values_are_what_django_writes_as_json(listener: Listener) -> None:
    key = uuid.uuid4()
    day = datetime.date(2026, 7, 1)
    with pgsignals.context(
        actor=key, day=day, sum=decimal.Decimal("1.50"), why=lazystr("because"), more=[1, None, {"a": True}]
    ):
        Customer.objects.create(name="Ada")
    assert contexts(listener) == [
        {"actor": str(key), "day": "2026-07-01", "sum": "1.50", "why": "because", "more": [1, None, {"a": True}]}
    ]


@pytest.mark.parametrize("value", [object(), float("nan"), "\ud800", {1, 2}], ids=["object", "nan", "surrogate", "set"])
def test_a_value_that_is_no_json_is_refused_with_its_key(value: object) -> None:
    with pytest.raises(TypeError, match=r"context\(actor=.*for a model its pk"), pgsignals.context(actor=value):
        pass


def test_a_context_that_is_too_big_is_refused_with_size_and_limit(listener: Listener) -> None:
    room = MAX_CONTEXT - len('{"a":"","b":1}')
    with pgsignals.context(a="x" * room):
        with pgsignals.context(b=1):
            Customer.objects.create(name="fits")
        with pytest.raises(ValueError, match=r"has 1025 bytes .* at most 1024"), pgsignals.context(b=12):
            pass
        Customer.objects.create(name="goes on")
    assert [len(event.context) for event in listener.events()] == [2, 1]


def test_a_context_too_deep_for_a_listener_is_refused_here_and_in_the_database(listener: Listener) -> None:
    """A listener reads a hundred levels. Any role can set the setting itself: its writes are kept, and heard of."""
    deep: list[Any] = [1]
    for _ in range(110):
        deep = [deep]
    with pytest.raises(ValueError, match="has 112 brackets and braces; at most 80"), pgsignals_context(a=deep):
        pass
    with connect() as writer:
        heard: list[str] = []
        writer.add_notice_handler(lambda notice: heard.append(f"{notice.message_primary} {notice.message_hint}"))
        with writer.transaction():
            writer.execute("SELECT set_config('pgsignals.context', %s, true)", [json.dumps({"a": deep})])
            writer.execute("INSERT INTO shop_customer (name) VALUES ('a')")
    (event,) = listener.events()
    assert (event.incomplete, event.context) == (True, {})
    assert "small and flat" in heard[0]
    assert "Whoever sets pgsignals.context" in heard[0]
    assert "pgsignals sync" not in heard[0]


def test_the_name_of_the_package_is_the_context_manager() -> None:
    assert pgsignals_context is pgsignals.context


# Silence.


def test_a_silenced_block_announces_nothing_and_the_next_write_does(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with pgsignals.silenced():
        Customer.objects.bulk_create([Customer(name=str(number)) for number in range(3)])
    customer = Customer.objects.create(name="Ada")
    assert [event.pk for event in listener.events()] == [customer.pk]
    assert [(record.name, record.levelno) for record in caplog.records] == [("pgsignals", logging.WARNING)]
    assert "'default'" in caplog.text


def test_a_transaction_around_a_silenced_block_announces_what_is_not_in_it(listener: Listener) -> None:
    with transaction.atomic():
        before = Customer.objects.create(name="before")
        with pgsignals.silenced():
            with pgsignals.silenced():
                Customer.objects.create(name="inner")
            Customer.objects.create(name="outer")
        after = Customer.objects.create(name="after")
    assert [event.pk for event in listener.events()] == [before.pk, after.pk]


def test_a_silenced_block_that_fails_is_rolled_back_and_silence_ends(listener: Listener) -> None:
    with transaction.atomic():
        with rolled_back(), pgsignals.silenced():
            Customer.objects.create(name="undone")
        after = Customer.objects.create(name="after")
    assert [event.pk for event in listener.events()] == [after.pk]


def test_silence_in_a_manual_transaction_ends_with_its_block(listener: Listener) -> None:
    transaction.set_autocommit(False)
    try:
        with pgsignals.silenced():
            Customer.objects.create(name="silent")
        after = Customer.objects.create(name="after")
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert [event.pk for event in listener.events()] == [after.pk]


def test_a_silenced_block_in_a_broken_transaction_hides_no_error(transactional_db: None) -> None:
    """What marked the transaction for rollback was inside; leaving the block says nothing of its own."""
    with transaction.atomic(), pgsignals.silenced(), suppress(ZeroDivisionError), transaction.atomic(savepoint=False):
        raise ZeroDivisionError
    assert not connection.in_atomic_block


def test_silence_decorates_a_function_and_refuses_a_coroutine(listener: Listener) -> None:
    @pgsignals.silenced()
    def load(depth: int) -> None:
        Customer.objects.create(name="silent")
        if depth:
            load(depth - 1)

    async def aload() -> None: ...

    load(2)
    assert listener.events() == []
    with pytest.raises(TypeError, match="aload: Django's transactions know no async"):
        pgsignals.silenced()(aload)


def test_threads_share_a_silenced_function(listener: Listener) -> None:
    """Who came in first leaves first: each leaves its own block."""
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    @pgsignals.silenced()
    def load(arrived: threading.Event, awaited: threading.Event) -> None:
        Customer.objects.create(name="silent")
        arrived.set()
        assert awaited.wait(20)

    def in_a_thread(arrived: threading.Event, awaited: threading.Event) -> None:
        try:
            with transaction.atomic():
                load(arrived, awaited)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(in_a_thread, first_is_in, second_is_in)
        assert first_is_in.wait(20)
        second = threads.submit(in_a_thread, second_is_in, first_is_out)
        first.result()
        first_is_out.set()
        second.result()
    assert Customer.objects.count() == 2
    assert listener.events() == []


def test_a_context_inside_silence_and_silence_inside_a_context(listener: Listener) -> None:
    with pgsignals.context(actor=7), transaction.atomic():
        with pgsignals.silenced(), pgsignals.context(actor=8):
            Customer.objects.create(name="silent")
        Customer.objects.create(name="after")
    assert contexts(listener) == [{"actor": 7}]
