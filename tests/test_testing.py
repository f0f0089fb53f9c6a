"""`pgsignals.testing`: a project's own tests see the events of a block, though nothing commits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import DataError, IntegrityError, connection, connections, transaction
from django.db.utils import NotSupportedError
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

import pgsignals
from pgsignals import PgEvent, apublish, on_pg_event, publish
from pgsignals.signals import pg_event
from pgsignals.testing import CaptureError, capture_events

from .conftest import Listener, connect
from .relaying import only_receivers_of_this_test
from .shop import models as shop
from .shop.models import Article, Customer, Order

ROOT = Path(pgsignals.__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_other_receivers() -> Iterator[None]:
    with only_receivers_of_this_test():
        yield


def seen(events: list[PgEvent]) -> list[tuple[str, Any]]:
    return [(event.op, event.payload if event.op == "message" else event.pk) for event in events]


def temporary_tables() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'")
        return [name for (name,) in cursor.fetchall()]


def capturing() -> str | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nullif(current_setting('pgsignals.capture', true), '')")
        (setting,) = cursor.fetchone()
        return str(setting) if setting else None


class InATestCase(TestCase):
    """As most projects test."""

    def test_every_way_to_write_is_seen_in_order(self) -> None:
        before = Article.objects.create(title="before")
        with capture_events() as events:
            assert events == []
            one = Article.objects.create(title="a")
            two, three = Article.objects.bulk_create([Article(title="b"), Article(title="c")])
            Article.objects.filter(pk__in=[two.pk, three.pk]).update(title="d")
            publish("news", {"type": "x"})
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM shop_article WHERE id = %s", [before.pk])
        Article.objects.create(title="after")
        publish("news", "after")
        assert seen(events) == [
            ("insert", one.pk),
            ("insert", two.pk),
            ("insert", three.pk),
            ("update", two.pk),
            ("update", three.pk),
            ("message", {"type": "x"}),
            ("delete", before.pk),
        ]
        assert (events[3].old, events[3].new, events[3].changed) == ({"title": "b"}, {"title": "d"}, {"title"})
        assert (events[0].model, events[0].database) == (Article, "default")

    def test_what_on_commit_publishes_is_seen_with_djangos_own_helper(self) -> None:
        with capture_events() as events, self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: publish("news", "committed"))
        assert seen(events) == [("message", "committed")]

    def test_a_block_may_begin_in_set_up_and_end_in_clean_up(self) -> None:
        events = self.enterContext(capture_events())
        Article.objects.create()
        self.doCleanups()
        assert [event.op for event in events] == ["insert"]
        assert capturing() is None

    def test_the_next_test_begins_afresh(self) -> None:
        assert capturing() is None
        with capture_events() as events:
            Article.objects.create()
        assert len(events) == 1


@pytest.mark.django_db
def test_what_is_rolled_back_to_a_savepoint_is_not_seen() -> None:
    with capture_events() as events:
        kept = Article.objects.create(title="kept")
        with pytest.raises(IntegrityError), transaction.atomic():  # noqa: PT012
            Article.objects.create(title="gone")
            publish("news", "gone")
            Article.objects.create(pk=kept.pk)
        publish("news", "kept")
    assert seen(events) == [("insert", kept.pk), ("message", "kept")]


@pytest.mark.django_db
def test_truncate_and_context_and_silence_are_as_in_production() -> None:
    with capture_events() as events:
        with pgsignals.context(actor=7):
            Article.objects.create()
        with pgsignals.silenced():
            Article.objects.create()
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE shop_article")
    assert [(event.op, dict(event.context)) for event in events] == [("insert", {"actor": 7}), ("truncate", {})]


@pytest.mark.django_db
def test_equal_messages_of_one_transaction_arrive_once() -> None:
    """As PostgreSQL folds them; each block would be a transaction, and so would a message outside of one."""
    with capture_events() as events:
        with transaction.atomic():
            publish("news", 1)
            publish("news", 1)
            with transaction.atomic():
                publish("news", 1)
            publish("other", 1)
        with transaction.atomic():
            publish("news", 1)
        publish("news", 1)
        publish("news", 1)
    assert [event.channel for event in events] == ["news", "other", "news", "news", "news"]


@pytest.mark.django_db(transaction=True)
def test_a_block_sees_what_a_listener_hears(listener: Listener) -> None:
    """The same events, with everything in them, from real transactions."""
    with capture_events() as events:
        with transaction.atomic():
            customer = Customer.objects.create(name="a")
            orders = Order.objects.bulk_create([Order(customer=customer, status=str(n), total=n) for n in range(40)])
            Order.objects.filter(total__gt=20).update(status="more", note="x" * 9000)
        with transaction.atomic():
            Order.objects.filter(pk=orders[0].pk).update(id=10_000)
        with pytest.raises(ZeroDivisionError), transaction.atomic():  # noqa: PT012
            Customer.objects.create(name="never")
            raise ZeroDivisionError
        customer.delete()
    heard = listener.events()
    assert len(heard) > 100
    assert [event.as_dict() for event in events] == [event.as_dict() for event in heard]
    assert temporary_tables() == []
    assert capturing() is None


@pytest.mark.django_db(transaction=True)
def test_equal_messages_of_real_transactions_arrive_as_they_do(listener: Listener) -> None:
    heard = Listener("news")
    with capture_events() as events:
        for _ in range(2):
            with transaction.atomic():
                publish("news", 1)
                publish("news", 1)
        publish("news", 1)
        publish("news", 1)
    assert len(events) == len(heard.notifications()) == 4
    heard.connection.close()


@pytest.mark.django_db
def test_blocks_can_be_nested() -> None:
    with capture_events() as outer:
        Article.objects.create(pk=1)
        with capture_events() as inner:
            Article.objects.create(pk=2)
            publish("news", 3)
        Article.objects.create(pk=4)
        publish("news", 5)
    assert seen(inner) == [("insert", 2), ("message", 3)]
    assert seen(outer) == [("insert", 1), ("insert", 2), ("message", 3), ("insert", 4), ("message", 5)]
    assert temporary_tables() == []
    with capture_events() as again:
        publish("news", 1)
    assert len(again) == 1


@pytest.mark.django_db
def test_an_exception_of_the_block_is_not_hidden_and_nothing_is_left_behind() -> None:
    calls: list[PgEvent] = []
    on_pg_event(Article)(calls.append)
    with pytest.raises(ZeroDivisionError), capture_events(run=True) as events:  # noqa: PT012
        Article.objects.create()
        raise ZeroDivisionError
    assert [event.op for event in events] == ["insert"]
    assert calls == []
    assert capturing() is None
    assert temporary_tables() == []


@pytest.mark.django_db
def test_an_error_that_breaks_the_transaction_is_not_hidden() -> None:
    with pytest.raises(IntegrityError), transaction.atomic(), capture_events():  # noqa: PT012
        Article.objects.create(pk=1)
        Article.objects.create(pk=1)
    with capture_events() as events:
        Article.objects.create(pk=1)
    assert len(events) == 1


def break_for_django() -> None:
    transaction.set_rollback(True)


def break_for_postgresql() -> None:
    with connection.cursor() as cursor, pytest.raises(DataError):
        cursor.execute("SELECT 1/0")


@pytest.mark.django_db
@pytest.mark.parametrize("break_it", [break_for_django, break_for_postgresql])
def test_a_transaction_that_was_left_broken_is_told_with_the_remedy(break_it: Callable[[], None]) -> None:
    with (
        pytest.raises(CaptureError, match=r"expected to fail into transaction\.atomic"),
        transaction.atomic(),
        capture_events(),
    ):
        break_it()


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_was_closed_in_the_block_is_told() -> None:
    with pytest.raises(CaptureError, match="'default' was closed in the block"), capture_events():  # noqa: PT012
        Article.objects.create()
        connection.close()
    with capture_events() as events:
        publish("news", 1)
    assert seen(events) == [("message", 1)]


@pytest.mark.django_db(transaction=True)
def test_an_exception_of_a_block_that_closed_the_connection_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), capture_events():  # noqa: PT012
        connection.close()
        raise ZeroDivisionError


def publish_an_event_of_a_model_that_is_gone() -> None:
    Article.objects.create()
    with connection.cursor() as cursor:
        cursor.execute("SELECT payload FROM pg_temp.pgsignals_captured")
        (payload,) = cursor.fetchone()
    publish("news", json.loads(payload) | {"m": "shop.gone"})


@pytest.mark.django_db
def test_what_cannot_be_read_fails_the_test_with_the_reason() -> None:
    with pytest.raises(CaptureError, match=r"'shop\.gone', and this project has no such model"), capture_events():
        publish_an_event_of_a_model_that_is_gone()
    assert temporary_tables() == []


@pytest.mark.django_db
def test_what_cannot_be_read_does_not_hide_an_exception_of_the_block() -> None:
    with pytest.raises(ZeroDivisionError), capture_events():  # noqa: PT012
        publish_an_event_of_a_model_that_is_gone()
        raise ZeroDivisionError


@pytest.mark.django_db
def test_one_object_can_be_used_again() -> None:
    capture = capture_events()
    with capture as first:
        Article.objects.create(pk=1)
    with capture as second:
        Article.objects.create(pk=2)
    assert (seen(first), seen(second)) == ([("insert", 1)], [("insert", 2)])


@pytest.mark.django_db
def test_what_a_block_costs_is_what_the_documentation_says() -> None:
    with CaptureQueriesContext(connection) as queries, capture_events():
        before = len(queries)
    assert (before, len(queries) - before) == (6, 4)


@pytest.mark.django_db(transaction=True)
def test_another_roles_table_of_that_name_is_no_trap() -> None:
    """A trigger on it would run with the rights of whoever writes: of a SECURITY DEFINER function, for example."""
    role = f"mallory_{uuid.uuid4().hex[:8]}"
    with connect() as admin:
        admin.execute(f"CREATE ROLE {role}")
        admin.execute(
            "CREATE FUNCTION write_for_all() RETURNS void LANGUAGE sql SECURITY DEFINER "
            "AS $$INSERT INTO shop_article (title) VALUES ('by the definer')$$"
        )
    try:
        with connect() as mallory:
            session = mallory.info.backend_pid
            mallory.execute(f"SET ROLE {role}")
            mallory.execute("CREATE TEMPORARY TABLE pgsignals_captured (channel text, payload text)")
            mallory.execute(
                "CREATE FUNCTION pg_temp.trap() RETURNS trigger LANGUAGE plpgsql "
                "AS $$BEGIN RAISE EXCEPTION 'I am %', current_user; END$$"
            )
            mallory.execute(
                "CREATE TRIGGER trap BEFORE INSERT ON pgsignals_captured FOR EACH ROW EXECUTE FUNCTION pg_temp.trap()"
            )
            mallory.execute("SET pgsignals.capture = 'on'")
            notices: list[str] = []
            mallory.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
            mallory.execute("SELECT write_for_all()")
            assert notices == []
            assert mallory.execute("SELECT count(*) FROM pgsignals_captured").fetchone() == (0,)
    finally:
        with connect() as admin:
            # A role goes only after its temporary tables, and these only with the last of its session.
            admin.execute("SELECT pg_terminate_backend(%s, 20000)", [session])
            admin.execute("DROP FUNCTION write_for_all()")
            admin.execute(f"DROP ROLE {role}")
    assert Article.objects.get().title == "by the definer"


# Receivers.


@pytest.mark.django_db
def test_receivers_run_at_the_end_in_the_tests_thread_and_for_what_they_cause_too() -> None:
    calls: list[tuple[str, Any]] = []

    @on_pg_event(Order, "insert")
    def ordered(event: PgEvent) -> None:
        calls.append(("ordered", event.instance().status))
        Customer.objects.create(name="caused")

    @on_pg_event(Customer, "insert")
    async def met(event: PgEvent) -> None:
        calls.append(("met", (await Customer.objects.aget(pk=event.pk)).name))

    @on_pg_event("news", type="x")
    def news(event: PgEvent) -> None:
        calls.append(("news", event.payload["type"]))

    def every(sender: Any, event: PgEvent, **kwargs: Any) -> None:
        calls.append(("signal", sender))

    pg_event.connect(every)
    try:
        with capture_events(run=True) as events:
            Order.objects.create(status="new")
            publish("news", {"type": "x"})
            publish("news", {"type": "y"})
            assert calls == []
    finally:
        pg_event.disconnect(every)
    assert calls == [
        ("signal", Order),
        ("ordered", "new"),
        ("signal", "news"),
        ("news", "x"),
        ("signal", "news"),
        ("signal", Customer),
        ("met", "caused"),
    ]
    assert [event.label or event.channel for event in events] == ["shop.order", "news", "news", "shop.customer"]


@pytest.mark.django_db
def test_without_run_no_receiver_is_called() -> None:
    calls: list[PgEvent] = []
    on_pg_event(Article)(calls.append)
    pg_event.connect(lambda **said: calls.append(said["event"]), weak=False, dispatch_uid="none")
    try:
        with capture_events():
            Article.objects.create()
    finally:
        pg_event.disconnect(dispatch_uid="none")
    assert calls == []


@pytest.mark.django_db
def test_what_a_receiver_raises_fails_the_test_and_nothing_is_left_behind() -> None:
    @on_pg_event(Article)
    def broken(event: PgEvent) -> None:
        raise ZeroDivisionError("of the receiver")

    with pytest.raises(ZeroDivisionError, match="of the receiver"), capture_events(run=True):
        Article.objects.create()
    assert capturing() is None
    assert temporary_tables() == []


@pytest.mark.django_db
def test_receivers_that_cause_events_without_end_are_found_out() -> None:
    @on_pg_event(Article, "insert")
    def again(event: PgEvent) -> None:
        Article.objects.create()

    with (
        pytest.raises(CaptureError, match=r"after 100 rounds; the last one called was .*again for <PgEvent"),
        capture_events(run=True),
    ):
        Article.objects.create()


# Async, other databases, pytest.


@pytest.mark.django_db(transaction=True)
def test_async_tests_capture_too() -> None:
    calls: list[Any] = []

    @on_pg_event(Article, "insert")
    async def heard(event: PgEvent) -> None:
        calls.append((await event.ainstance()).title)

    async def test() -> list[PgEvent]:
        async with capture_events(run=True) as events:
            await Article.objects.acreate(title="a")
            await apublish("news", 1)
        return events

    assert [event.op for event in async_to_sync(test)()] == ["insert", "message"]
    assert calls == ["a"]


class InAnAsyncTestCase(TestCase):
    async def test_an_async_test_of_a_test_case(self) -> None:
        async with capture_events() as events:
            await Article.objects.acreate(title="a")
        assert [event.op for event in events] == ["insert"]


@pytest.fixture
def other_database(transactional_db: None) -> Iterator[str]:
    """An alias with a connection of its own. It leads to the same database, which has the triggers."""
    connections["other"] = connection.copy("other")
    yield "other"
    connections["other"].close()
    del connections["other"]


def test_each_database_has_a_block_of_its_own(other_database: str) -> None:
    with capture_events() as here, capture_events(other_database, run=True) as there:
        Article.objects.create(pk=1)
        Article.objects.using("other").create(pk=2)
        publish("news", "here")
        publish("news", "there", using="other")
    assert seen(here) == [("insert", 1), ("message", "here")]
    assert seen(there) == [("insert", 2), ("message", "there")]
    assert [event.database for event in here + there] == ["default", "default", "other", "other"]
    assert there[0].instance()._state.db == "other"


@pytest.mark.django_db(databases=["default", "sqlite"])
def test_another_vendors_database_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="the database 'sqlite' is SQLite"):
        capture_events("sqlite").__enter__()


@pytest.mark.django_db
def test_the_fixture_of_pytest_is_the_same(capture_pg_events: type[capture_events]) -> None:
    with capture_pg_events() as events:
        Article.objects.create()
    assert [event.op for event in events] == ["insert"]


def test_loading_the_plugin_needs_no_settings() -> None:
    code = "import pgsignals.pytest_plugin; from django.conf import settings; print(settings.configured)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.django_db
def test_the_example_of_the_documentation_works(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    project = types.ModuleType("shop")
    project.models = shop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", project)
    monkeypatch.setitem(sys.modules, "shop.models", shop)
    names: dict[str, Any] = {"__name__": "documented"}
    exec(compile(code, "docs/testing.md", "exec"), names)
    tests = names["OrderTests"]
    methods = [name for name in dir(tests) if name.startswith("test_")]
    assert len(methods) == 2
    for method in methods:
        with transaction.atomic():
            getattr(tests(method), method)()
            transaction.set_rollback(True)
