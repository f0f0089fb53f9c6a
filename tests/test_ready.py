"""Ready receivers: `invalidate` drops cache entries, `enqueue` hands events to background tasks."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.core.cache import InvalidCacheKey, caches
from django.core.cache.backends.locmem import LocMemCache
from django.db import connection
from django.test import override_settings

from pgsignals import PgEvent, on_pg_event, publish
from pgsignals.listening.printing import to_line
from pgsignals.ready import enqueue, invalidate
from pgsignals.receivers import Registry
from pgsignals.signals import receiver_failed
from pgsignals.testing import capture_events

from .declaring.models import Restaurant
from .making import made
from .relaying import Box, only_receivers_of_this_test, relaying
from .shop import models as shop
from .shop.models import Article, Customer, Line, Order, Page, Token

try:
    from django import tasks
except ImportError:
    tasks = None  # type: ignore[assignment]

DOCS = Path(__file__).parent.parent / "docs"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"


class StrictCache(LocMemCache):
    """Takes no key that memcached would not take, and counts the deletes of many."""

    calls: list[list[str]] = []

    def validate_key(self, key: str) -> None:
        if " " in key:
            raise InvalidCacheKey(key)

    def delete_many(self, keys: Any, version: int | None = None) -> None:
        type(self).calls.append(sorted(keys))
        super().delete_many(keys, version)


class BrokenCache(LocMemCache):
    def delete_many(self, keys: Any, version: int | None = None) -> None:
        raise ConnectionError("the cache is gone")


CACHES = {
    "default": {"BACKEND": LOCMEM, "LOCATION": "ready"},
    "board": {"BACKEND": LOCMEM, "LOCATION": "ready-board"},
    "strict": {"BACKEND": f"{__name__}.StrictCache", "LOCATION": "ready-strict"},
    "broken": {"BACKEND": f"{__name__}.BrokenCache", "LOCATION": "ready-broken"},
}


@pytest.fixture(autouse=True)
def _caches() -> Iterator[None]:
    with override_settings(CACHES=CACHES):
        yield
        for alias in CACHES:
            caches[alias].clear()
    StrictCache.calls.clear()


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with only_receivers_of_this_test() as registry:
        yield registry


def fill(*keys: str, alias: str = "default", version: int | None = None) -> None:
    for key in keys:
        caches[alias].set(key, "cached", version=version)


def left(*keys: str, alias: str = "default", version: int | None = None) -> list[str]:
    """Those of the keys that are in the cache."""
    return [key for key in keys if caches[alias].get(key, version=version)]


def sql(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def made_up(row: Any, op: str = "update", **more: Any) -> PgEvent:
    about = {"op": op, "channel": "pgsignals", "database": "default", "label": "shop.order", "model": Order}
    return made(row, **{**about, "fields": ("status",), **more})


@pytest.mark.django_db
def test_the_entry_of_a_row_is_dropped_whatever_happens_to_the_row() -> None:
    """By the key that an f-string with the row's pk makes, and no other entry."""
    for change in (
        lambda order: order.save(force_insert=True),
        lambda order: Order.objects.filter(pk=order.pk).update(status="paid"),
        lambda order: order.delete(),
    ):
        order = Order(pk=17)
        fill("order:17", "order:171", "order:1")
        with capture_events() as events:
            change(order)
        invalidate("order:{pk}")(events[0])
        assert left("order:17", "order:171", "order:1") == ["order:171", "order:1"]


@pytest.mark.django_db
def test_a_list_of_events_is_one_call_of_the_cache_with_each_key_once() -> None:
    one, two = Order.objects.bulk_create([Order(), Order()])
    with capture_events() as events:
        Order.objects.update(status="paid")
        Order.objects.filter(pk=one.pk).update(status="sent")
    assert len(events) == 3
    invalidate("order:{pk}", "orders", cache="strict")(events)
    assert StrictCache.calls == [sorted([f"order:{one.pk}", f"order:{two.pk}", "orders"])]


@pytest.mark.django_db
def test_a_field_stands_for_its_old_and_its_new_value() -> None:
    """A list by status is wrong where the row was, and where it is now."""
    boards = ["board:new", "board:paid", "board:sent"]
    order = Order(status="new")
    for change, rest in (
        (lambda: order.save(), ["board:paid", "board:sent"]),
        (lambda: Order.objects.update(status="paid"), ["board:sent"]),
        (lambda: order.delete(), ["board:new", "board:sent"]),
    ):
        fill(*boards)
        with capture_events() as events:
            change()
        invalidate("board:{status}")(events)
        assert left(*boards) == rest


@pytest.mark.django_db
def test_several_fields_are_those_of_the_row_before_and_of_the_row_after() -> None:
    """Not a mixture of both, which no row ever was."""
    Order.objects.create(status="new", total=1)
    keys = ["new:1.00", "new:2.00", "paid:1.00", "paid:2.00"]
    fill(*keys)
    with capture_events() as events:
        Order.objects.update(status="paid", total=2)
    invalidate("{status}:{total}")(events)
    assert left(*keys) == ["new:2.00", "paid:1.00"]


@pytest.mark.django_db
def test_a_value_stands_in_the_key_as_an_f_string_writes_it() -> None:
    """A foreign key by both its names, NULL, a UUID, and braces that are meant as such."""
    customer = Customer.objects.create(name="ada")
    token = Token(id=uuid.uuid4())
    keys = [f"of:{customer.pk}", f"by:{customer.pk}", "of:None", f"token:{token.pk}", "{7}"]
    fill(*keys)
    with capture_events() as events:
        order = Order.objects.create(customer=customer)
        Order.objects.filter(pk=order.pk).update(customer=None)
        token.save()
    _, update, of_token = events
    invalidate("of:{customer}", "by:{customer_id}")(update)
    assert left(*keys) == keys[3:]
    invalidate("token:{pk}", "{{7}}")(of_token)
    assert left(*keys) == []


@pytest.mark.django_db
def test_the_fields_of_the_key_go_by_their_own_names_too() -> None:
    """They travel always, and of a composite key each alone."""
    keys = ["order:5", "page:about", "line:7:b"]
    fill(*keys)
    with capture_events() as events:
        Order.objects.create(pk=5)
        Page.objects.create(slug="about")
        Line.objects.create(order_number=7, position="b")
    parent = made_up([3], model=Restaurant, label="declaring.restaurant")
    fill("place:3", "place:3:3")
    invalidate("place:{place_ptr}", "place:{place_ptr_id}:{pk}")(parent)
    assert left("place:3", "place:3:3") == []
    for template, event in zip(("order:{id}", "page:{slug}", "line:{order_number}:{position}"), events, strict=True):
        invalidate(template)(event)
    assert left(*keys) == []


@pytest.mark.django_db
def test_alias_and_version_say_which_entries_are_meant() -> None:
    fill("order:5", alias="default")
    fill("order:5", alias="board")
    fill("order:5", alias="board", version=2)
    with capture_events() as events:
        Order.objects.create(pk=5)
    invalidate("order:{pk}", cache="board", version=2)(events)
    assert left("order:5") == ["order:5"]
    assert left("order:5", alias="board") == ["order:5"]
    assert left("order:5", alias="board", version=2) == []


def truncate() -> None:
    sql("TRUNCATE shop_order")


UNTOLD: list[tuple[Callable[[], object], str, str]] = [
    (truncate, "order:{pk}", "a truncate names no rows"),
    (truncate, "order:{status}", "a truncate names no rows"),
    (lambda: Page.objects.create(slug="k" * 100_000), "page:{pk}", "the row was too big"),
    (lambda: Article.objects.create(title="t" * 9_000), "title:{title}", "the row was too big"),
    (lambda: Order.objects.create(), "note:{note}", r"add it to Notify\(fields=...\) of shop.order"),
    (lambda: Customer.objects.create(), "customer:{name}:{pk}", r"'name' does not travel \(add it"),
    (lambda: publish("news", {"pk": 5}), "order:{pk}", "a message is about no row"),
]


def events_of(change: Callable[[], object]) -> list[PgEvent]:
    with capture_events() as events:
        change()
    return events


@pytest.mark.django_db
@pytest.mark.parametrize(("change", "template", "why"), UNTOLD)
def test_an_event_that_does_not_tell_its_keys_is_said_with_the_remedy(
    change: Callable[[], object], template: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The entries stay, and what can be told is dropped all the same."""
    fill("everything", "elsewhere")
    invalidate(template, "everything")(events_of(change))
    assert left("everything", "elsewhere") == ["elsewhere"]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pgsignals.ready", logging.WARNING)
    assert re.search(why, record.getMessage())
    assert template in record.getMessage()
    assert "stay until they time out" in record.getMessage()


@pytest.mark.django_db
@pytest.mark.parametrize(("change", "template", "why"), UNTOLD)
def test_clear_clears_the_whole_cache_where_an_event_does_not_tell_its_keys(
    change: Callable[[], object], template: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that is named, and no other; and it is said."""
    fill("anything", alias="board")
    fill("anything")
    receiver = invalidate(template, cache="board", clear=True)
    receiver(events_of(change))
    assert left("anything", alias="board") == []
    assert left("anything") == ["anything"]
    assert "The cache 'board' is cleared." in caplog.text


@pytest.mark.django_db
def test_clear_clears_nothing_where_the_keys_are_told(caplog: pytest.LogCaptureFixture) -> None:
    fill("order:5", "order:6")
    with capture_events() as events:
        Order.objects.create(pk=5)
    invalidate("order:{pk}", clear=True)(events)
    assert left("order:5", "order:6") == ["order:6"]
    assert caplog.records == []


def test_an_incomplete_event_names_its_own_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """Its key is told, so entries by the key are dropped."""
    fill("order:5")
    invalidate("order:{pk}", "board:{status}")(made_up([5], behind=True, fields=()))
    assert left("order:5") == []
    assert "pgsignals sync" in caplog.text


def test_a_value_that_cannot_be_read_is_said_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def unreadable(raw: Any) -> Any:
        raise TypeError("no such status")

    fill("order:5", "order:6")
    bad = made_up([5, ["a"], ["b"]], readers={"status": unreadable})
    worse = made_up([5, ["a"], ["b"]], read_pk=unreadable)
    invalidate("order:{pk}", "board:{status}", "orders")([bad, worse, made_up([6, ["a"], ["b"]])])
    assert left("order:5", "order:6") == []
    first, second = (record.getMessage() for record in caplog.records)
    assert "the value 'a' cannot be read (no such status)" in first
    assert "the primary key 5 cannot be read (no such status)" in second
    fill("orders")
    invalidate("orders")(worse)
    assert left("orders") == []


def test_the_same_warning_is_said_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each template and model: a bulk update would fill the log."""
    receiver = invalidate("order:{pk}", "board:{status}")
    truncated = made_up([], op="truncate")
    receiver([truncated] * 100)
    receiver(truncated)
    assert len(caplog.records) == 2
    receiver(made_up([], op="truncate", label="shop.line"))
    assert len(caplog.records) == 4
    monkeypatch.setattr("pgsignals.ready._REMIND", 0)
    receiver(truncated)
    assert len(caplog.records) == 6


def test_a_key_that_the_cache_would_not_take_keeps_no_other_entry() -> None:
    """Values come from outside; memcached refuses a key with a space, and so has no such entry."""
    keys = [f"board:{number}" for number in range(20)]
    fill(*keys, alias="strict")
    invalidate("board:{status}", cache="strict")([made_up([1, [f"{n} n"], [str(n)]]) for n in range(20)])
    assert left(*keys, alias="strict") == []


def test_what_the_cache_raises_is_raised() -> None:
    """So that it is reported as the failure of a receiver."""
    with pytest.raises(ConnectionError, match="the cache is gone"):
        invalidate("order:{pk}", cache="broken")(made_up([5]))


@pytest.mark.parametrize(
    "template",
    [
        *("order:{}", "order:{0}", "order:{", "order:}", "{pk.__class__}", "{pk[0]}", "{new[status]}", "{pk!r}"),
        *("{pk:>5}", "{pk:{status}}", "{customer__name}", "{a b}", "{pk!}"),
    ],
)
def test_a_template_of_more_than_plain_names_is_refused_where_it_stands(template: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(template))):
        invalidate("order:{pk}", template)


def test_what_is_no_template_and_no_cache_is_refused() -> None:
    with pytest.raises(TypeError, match="needs the key"):
        invalidate()
    with pytest.raises(TypeError, match=r"\['order:\{pk\}'\].*a key is text"):
        invalidate(["order:{pk}"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'bord'.*it has default, board, strict, broken"):
        invalidate("order:{pk}", cache="bord")


def test_it_says_which_fields_must_travel() -> None:
    assert invalidate("order:{pk}", "{status}:{total}", "all").fields == {"status", "total"}


def test_ready_receivers_are_told_apart_and_say_what_they_do(registry: Registry) -> None:
    """Equal ones too: each stands for what was written."""
    on_pg_event(Order, everywhere=True)(invalidate("order:{pk}"))
    on_pg_event(Customer, everywhere=True)(invalidate("order:{pk}"))
    on_pg_event(Order)(invalidate("a", "b", cache="board", version=2, clear=True))
    on_pg_event(Order)(enqueue(sends))
    on_pg_event(Customer)(enqueue(sends))
    assert [receiver.name for receiver in registry] == [
        "pgsignals.ready.invalidate('order:{pk}')",
        "pgsignals.ready.invalidate('order:{pk}')",
        "pgsignals.ready.invalidate('a', 'b', cache='board', version=2, clear=True)",
        f"pgsignals.ready.enqueue({__name__}.sends)",
        f"pgsignals.ready.enqueue({__name__}.sends)",
    ]
    assert [receiver.is_async for receiver in registry] == [False] * 5


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("batch", [False, True])
def test_a_relay_drops_the_entries_of_its_process(batch: bool) -> None:
    """The in-memory cache belongs to the process, and receivers have a thread of their own."""
    one, two = Order.objects.bulk_create([Order(), Order()])
    fill(f"order:{one.pk}", f"order:{two.pk}", "order:0")
    dropped = Box()
    on_pg_event(Order, everywhere=True, batch=batch)(invalidate("order:{pk}"))
    on_pg_event(Order, batch=batch)(lambda given: dropped.put(given))
    with relaying():
        sql("UPDATE shop_order SET state = 'paid'")
        given = dropped.wait(1 if batch else 2)
    assert {type(one) for one in given} == {list if batch else PgEvent}
    assert left(f"order:{one.pk}", f"order:{two.pk}", "order:0") == ["order:0"]


def documented(*words: str) -> str:
    """The code in docs/receivers.md that has these words, one block for each."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "receivers.md").read_text(), re.DOTALL)
    return "\n".join(next(block for block in blocks if word in block) for word in words)


def run_documented(code: str, monkeypatch: pytest.MonkeyPatch, **further: Any) -> None:
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", shop)
    exec(compile(code, "docs/receivers.md", "exec"), {"__name__": __name__, **further})


def call_all(registry: Registry, event: PgEvent) -> None:
    for receiver in registry.matching(event):
        receiver.function(event)


@pytest.mark.django_db(transaction=True)
def test_the_documentation_drops_what_it_says(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with override_settings(CACHES=CACHES | {"orders": CACHES["board"]}):
        run_documented(documented('"orders:{status}"', "clear=True"), monkeypatch)
        fill("order:5", "order:6", "orders:new", "orders:paid", "orders:sent", "orders")
        fill("order:5", "anything", alias="orders")
        with capture_events() as events:
            order = Order.objects.create(pk=5)
            order.status = "paid"
            order.save()
            truncate()
        call_all(registry, events[1])
        assert left("order:5", "order:6", "orders:new", "orders:paid", "orders:sent", "orders") == [
            "order:6",
            "orders:sent",
        ]
        assert left("order:5", "anything", alias="orders") == ["anything"]
        call_all(registry, events[2])
        assert left("anything", alias="orders") == []


# Tasks.

received: list[Any] = []


def sends(*arguments: Any) -> None:
    received.append(arguments)


@pytest.fixture(autouse=True)
def _nothing_received() -> None:
    received.clear()


@pytest.mark.django_db
def test_a_task_gets_the_object_that_listen_prints() -> None:
    """Plain JSON, so that every queue can carry it."""
    with capture_events() as events:
        order = Order.objects.create(total=Decimal("1.50"))
        Order.objects.update(status="paid")
    enqueue(sends)(events[1])
    (((said,),)) = received
    assert said == json.loads(to_line(events[1]))
    assert (said["op"], said["model"], said["pk"], said["changed"]) == ("update", "shop.order", order.pk, ["status"])
    assert said["new"] == {"status": "paid", "total": "1.50", "customer": None}
    assert json.loads(json.dumps(said)) == said


@pytest.mark.django_db
def test_a_list_of_events_is_one_task_with_a_list() -> None:
    with capture_events() as events:
        Token.objects.bulk_create([Token(), Token()])
    enqueue(sends)(events)
    assert received == [([json.loads(to_line(event)) for event in events],)]


@pytest.mark.django_db
def test_a_task_gets_the_payload_of_a_message() -> None:
    with capture_events() as events:
        publish("news", {"type": "sale"})
    enqueue(sends)(events[0])
    assert received == [({"op": "message", "channel": "news", "database": "default", "payload": {"type": "sale"}},)]


def test_arguments_are_made_from_what_the_receiver_is_given() -> None:
    """As they are: nothing is converted."""
    one, two = made_up([uuid.uuid4()]), made_up([6])
    enqueue(sends, arguments=lambda event: (event.pk, event.op))(one)
    enqueue(sends, arguments=lambda events: ([event.pk for event in events],))([one, two])
    enqueue(sends, arguments=lambda event: ())(one)
    assert received == [(one.pk, "update"), ([one.pk, 6],), ()]


@pytest.mark.parametrize("made", [5, "ab", ["a"], None])
def test_arguments_that_are_no_tuple_are_refused(made: Any) -> None:
    """A text would be taken for its letters."""
    with pytest.raises(TypeError, match=rf"arguments= returned {re.escape(repr(made))}; a tuple is needed"):
        enqueue(sends, arguments=lambda event: made)(made_up([5]))
    assert received == []


async def asynchronous(event: Any) -> None:
    pass


class Celeryish:
    """A task that runs here and now when it is called, and has the name of its function."""

    def __init__(self) -> None:
        self.__qualname__ = "send_board"

    def __call__(self, event: Any) -> None:
        pass

    def delay(self, event: Any) -> None:
        received.append(("delayed", event))


class Dramatic:
    """Likewise, with another word for it."""

    def __call__(self, event: Any) -> None:
        pass

    def send(self, event: Any) -> None:
        pass


class AsynchronousCall:
    async def __call__(self, event: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("send_board", "a task of django.tasks is needed"),
        (None, "a task of django.tasks is needed"),
        (asynchronous, f"{__name__}.asynchronous.*nobody would await"),
        (functools.partial(asynchronous), "nobody would await"),
        (AsynchronousCall(), "nobody would await"),
        (Celeryish(), r"send_board.*here and now.*Pass its \.delay"),
        (Dramatic(), r"here and now.*Pass its \.send"),
    ],
)
def test_what_would_enqueue_nothing_is_refused_where_it_stands(task: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        enqueue(task)


def test_the_method_of_a_task_that_puts_it_into_its_queue_is_taken() -> None:
    enqueue(Celeryish().delay, arguments=lambda event: (event.pk,))(made_up([5]))
    assert received == [("delayed", 5)]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (sends, f"{__name__}.sends"),
        (lambda event: None, f"{__name__}.<lambda>"),
        (Celeryish().delay, f"{__name__}.send_board.delay"),
        (functools.partial(sends, 1), f"partial of {__name__}.sends"),
        (print, "builtins.print"),
        (SimpleNamespace(enqueue=sends), "types.SimpleNamespace"),
    ],
)
def test_the_name_is_the_same_in_every_process(task: Any, name: str) -> None:
    """An address in memory would tell a receiver apart from itself in another process."""
    assert repr(enqueue(task)) == f"enqueue({name})"


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_fails_is_the_failure_of_the_receiver() -> None:
    """It is reported, and the next event is enqueued."""
    failures, queue = Box(), Box()

    def refuses_new(said: dict[str, Any]) -> None:
        if said["new"]["status"] == "new":
            raise ConnectionError("the queue is gone")
        queue.put(said)

    def failed(**said: Any) -> None:
        failures.put(said)

    receiver = enqueue(refuses_new)
    on_pg_event(Order, "insert")(receiver)
    receiver_failed.connect(failed, sender=receiver)
    try:
        with relaying():
            Order.objects.create(status="new")
            Order.objects.create(status="paid")
            (said,) = queue.wait()
    finally:
        receiver_failed.disconnect(failed, sender=receiver)
    assert said["new"]["status"] == "paid"
    (failure,) = failures.items
    assert str(failure["exception"]) == "the queue is gone"
    assert failure["event"].new["status"] == "new"


if tasks is not None:

    @tasks.task
    def send_board(event: Any) -> None:
        received.append(event)

    @tasks.task
    def fails(event: Any) -> None:
        raise RuntimeError("the task itself")


def with_tasks(backend: str) -> Any:
    return override_settings(TASKS={"default": {"BACKEND": f"django.tasks.backends.{backend}"}})


needs_tasks = pytest.mark.skipif(tasks is None, reason="NOT RUN: tasks of django.tasks, which is new in Django 6.0")


@needs_tasks
@pytest.mark.django_db
def test_a_task_of_django_is_enqueued() -> None:
    with capture_events() as events:
        Token.objects.bulk_create([Token(), Token()])
    with with_tasks("dummy.DummyBackend"):
        enqueue(send_board)(events[0])
        enqueue(send_board)(events)
        enqueue(send_board.using(queue_name="default"), arguments=lambda event: (str(event.pk),))(events[0])
        one, several, by_key = tasks.default_task_backend.results
    said = [json.loads(to_line(event)) for event in events]
    assert (one.task, one.args, one.kwargs) == (send_board, [said[0]], {})
    assert several.args == [said]
    assert by_key.args == [str(events[0].pk)]
    assert received == []


@needs_tasks
def test_a_task_of_django_runs_at_once_under_the_immediate_backend() -> None:
    """What it raises there is the task's failure, as in any queue, and not the receiver's."""
    with with_tasks("immediate.ImmediateBackend"):
        enqueue(send_board, arguments=lambda event: (event.pk,))(made_up([5]))
        enqueue(fails, arguments=lambda event: (event.pk,))(made_up([5]))
    assert received == [5]


@needs_tasks
def test_arguments_that_djangos_queue_cannot_carry_raise() -> None:
    with with_tasks("dummy.DummyBackend"), pytest.raises(TypeError, match="Unsupported type"):
        enqueue(send_board, arguments=lambda event: (event.pk,))(made_up([uuid.uuid4()]))


@needs_tasks
def test_a_task_of_django_goes_by_its_path() -> None:
    assert repr(enqueue(send_board)) == f"enqueue({__name__}.send_board)"


@pytest.mark.django_db
@pytest.mark.parametrize("word", ["from django.tasks", ".delay"])
def test_the_documentation_enqueues_what_it_says(
    word: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    if word == "from django.tasks" and tasks is None:
        pytest.skip("NOT RUN: tasks of django.tasks, which is new in Django 6.0")
    with with_tasks("dummy.DummyBackend"), capture_events() as events:
        run_documented(
            documented(word), monkeypatch, on_pg_event=on_pg_event, enqueue=enqueue, Order=Order, send_board=Celeryish()
        )
        order = Order.objects.create()
        Order.objects.update(total=2)
        Order.objects.update(status="paid")
    with with_tasks("dummy.DummyBackend"):
        for event in events:
            call_all(registry, event)
        if word == ".delay":
            said = [event for _, event in received]
        else:
            said = [event for result in tasks.default_task_backend.results for event in result.args]
    assert [(one["op"], one["pk"], one["changed"]) for one in said] == [("update", order.pk, ["status"])]
    assert [receiver.options.once for receiver in registry] == [True]
