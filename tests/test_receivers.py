"""Which receivers an event finds, and what `@on_pg_event` refuses."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import models
from django.test.utils import isolate_apps, override_settings
from django.utils.module_loading import autodiscover_modules

from pgsignals import PgEvent, on_pg_event
from pgsignals.receivers import Registry

from .making import made
from .relaying import only_receivers_of_this_test
from .shop.models import Article, Customer, Order


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with only_receivers_of_this_test() as registry:
        yield registry


def row(model: type[models.Model], op: str, *changed: str, incomplete: bool = False) -> PgEvent:
    about = {"label": model._meta.label_lower, "model": model, "changed": frozenset(changed), "behind": incomplete}
    return made([1], op=op, **about)


def message(payload: Any, channel: str = "app_events") -> PgEvent:
    return made(payload, op="message", channel=channel)


def ignore(event: PgEvent) -> None:
    """A receiver."""


def found(registry: Registry, event: PgEvent) -> bool:
    return [receiver.function for receiver in registry.matching(event)] == [ignore]


def test_a_model_alone_matches_all_its_operations_and_no_other_model(registry: Registry) -> None:
    on_pg_event(Order)(ignore)
    assert all(found(registry, row(Order, op)) for op in ("insert", "update", "delete", "truncate"))
    assert not found(registry, row(Customer, "insert"))
    assert not found(registry, message({}))


def test_named_operations_match_only_these(registry: Registry) -> None:
    on_pg_event(Order, "insert", "delete")(ignore)
    assert found(registry, row(Order, "insert"))
    assert found(registry, row(Order, "delete"))
    assert not found(registry, row(Order, "update", "status"))
    assert not found(registry, row(Order, "truncate"))


@pytest.mark.parametrize("changed", ["status", ["status", "note"], {"status"}])
def test_changed_narrows_updates(registry: Registry, changed: Any) -> None:
    """To those that changed one of the fields; a single name need not be in a list."""
    on_pg_event(Order, "update", changed=changed)(ignore)
    assert found(registry, row(Order, "update", "status", "total"))
    assert not found(registry, row(Order, "update", "total"))


def test_changed_narrows_updates_only(registry: Registry) -> None:
    on_pg_event(Order, changed="status")(ignore)
    assert found(registry, row(Order, "insert"))
    assert found(registry, row(Order, "delete"))
    assert not found(registry, row(Order, "update", "total"))


def test_an_incomplete_update_passes_changed(registry: Registry) -> None:
    """Nobody can tell what it changed, so nobody may leave it out."""
    on_pg_event(Order, "update", changed="status")(ignore)
    assert found(registry, row(Order, "update", incomplete=True))


def test_a_channel_matches_its_messages_alone(registry: Registry) -> None:
    on_pg_event("app_events")(ignore)
    assert found(registry, message("plain text"))
    assert not found(registry, message({}, "other"))
    assert not found(registry, row(Order, "insert"))
    assert registry.channels() == {"app_events"}


@pytest.mark.parametrize("payload", [{"type": "user.deleted"}, {}, "user.created", None, ["user.created"], 5])
def test_type_matches_objects_with_that_type_alone(registry: Registry, payload: Any) -> None:
    on_pg_event("app_events", type="user.created")(ignore)
    assert found(registry, message({"type": "user.created", "id": 5}))
    assert not found(registry, message(payload))


def test_stacked_conditions_call_a_function_once(registry: Registry) -> None:
    """Also for an event that meets several."""

    @on_pg_event("app_events")
    @on_pg_event(Customer, "insert")
    @on_pg_event(Order, "update", changed="status")
    @on_pg_event(Order, "update", changed="total")
    def stacked(event: PgEvent) -> None:
        pass

    for event in (row(Order, "update", "status", "total"), row(Customer, "insert"), message(1)):
        assert [receiver.function for receiver in registry.matching(event)] == [stacked]
    assert registry.matching(row(Order, "update", "note")) == []
    assert len(registry) == 1


def test_the_decorated_function_stays_itself() -> None:
    assert on_pg_event(Order)(ignore) is ignore


def test_receivers_are_found_in_the_order_of_registration(registry: Registry) -> None:
    functions = [lambda event: None for _ in range(5)]
    for function in functions:
        on_pg_event(Order)(function)
    assert [receiver.function for receiver in registry.matching(row(Order, "insert"))] == functions


def test_a_receiver_registered_after_the_first_event_is_found(registry: Registry) -> None:
    assert registry.matching(row(Order, "insert")) == []
    on_pg_event(Order)(ignore)
    assert found(registry, row(Order, "insert"))


def test_a_receiver_defined_inside_a_function_is_kept(registry: Registry) -> None:
    """Django's own signals forget it: they hold their receivers weakly."""

    def define() -> None:
        @on_pg_event(Order)
        def inside(event: PgEvent) -> None:
            pass

    define()
    assert len(registry.matching(row(Order, "insert"))) == 1


@isolate_apps("tests.shop")
def test_a_receiver_of_a_proxy_gets_the_events_of_its_table(registry: Registry) -> None:
    class Parent(models.Model):
        class Meta:
            app_label = "shop"

    class Proxy(Parent):
        class Meta:
            app_label = "shop"
            proxy = True

    on_pg_event(Proxy, "insert")(ignore)
    assert found(registry, row(Parent, "insert"))


@pytest.mark.parametrize("label", ["shop.Order", "shop.order"])
def test_a_lazy_model_is_named_by_its_label(registry: Registry, label: str) -> None:
    on_pg_event(None, "update", model=label)(ignore)
    assert found(registry, row(Order, "update"))
    assert not found(registry, row(Order, "insert"))


def test_a_lazy_model_may_come_to_be_later(registry: Registry) -> None:
    on_pg_event(model="shop.Tomorrow")(ignore)
    with isolate_apps("tests.shop"):

        class Tomorrow(models.Model):
            class Meta:
                app_label = "shop"

        assert found(registry, row(Tomorrow, "insert"))


def test_a_model_class_as_keyword_is_a_model_too(registry: Registry) -> None:
    on_pg_event(model=Order)(ignore)
    assert found(registry, row(Order, "insert"))


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "says"),
    [
        ((), {}, TypeError, "needs one source"),
        ((Order,), {"model": Order}, TypeError, "needs one source"),
        ((5,), {}, TypeError, "a model class or a channel's name"),
        ((Order, "updated"), {}, ValueError, "'updated' is no operation.*Did you mean 'update'"),
        ((Order, "UPDATE"), {}, ValueError, "Did you mean 'update'"),
        ((Order, "message"), {}, ValueError, "'message' is no operation"),
        ((Order, "insert"), {"changed": "status"}, ValueError, "only updates change fields"),
        ((Order,), {"type": "x"}, TypeError, "only messages of a channel have a type"),
        (("app_events", "insert"), {}, TypeError, "write model='app_events'"),
        (("shop.Order",), {"changed": "status"}, TypeError, "write model='shop.Order'"),
        (("",), {}, ValueError, "1 to 63 bytes"),
        (("é" * 32,), {}, ValueError, "64 bytes"),
        (("pgsignals",), {}, ValueError, "own row events"),
        ((), {"model": "order"}, ValueError, "a label is meant"),
        ((), {"model": "a.b.c"}, ValueError, "a label is meant"),
    ],
)
def test_what_can_never_fit_is_refused(
    registry: Registry, arguments: tuple[Any, ...], keywords: dict[str, Any], error: type[Exception], says: str
) -> None:
    """With the remedy, and where the mistake is: at import, in the developer's line."""
    with pytest.raises(error, match=says):
        on_pg_event(*arguments, **keywords)
    assert len(registry) == 0


def test_an_argument_of_a_later_version_is_never_ignored() -> None:
    with pytest.raises(NotImplementedError, match="key"):
        on_pg_event(Order, key="customer")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"atomic": True}, TypeError, "name group="),
        ({"start": "beginning"}, TypeError, "name group="),
        ({"max_attempts": 3}, TypeError, "name group="),
        ({"group": "mail", "max_attempts": 0}, ValueError, "at least 1"),
        ({"group": "mail", "start": "yesterday"}, ValueError, "'yesterday'"),
        ({"group": "no spaces"}, ValueError, "'no spaces'"),
        ({"group": "mail", "once": True}, TypeError, "neither everywhere nor once"),
    ],
)
def test_what_a_group_cannot_do_it_says(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        on_pg_event(Order, **arguments)


def test_what_a_receiver_of_a_group_cannot_be_it_says() -> None:
    async def later(event: PgEvent) -> None: ...

    with pytest.raises(TypeError, match="cannot be a coroutine function"):
        on_pg_event(Order, group="mail", atomic=True)(later)
    with pytest.raises(TypeError, match="cannot be ended"):
        on_pg_event(Order, group="mail", timeout=1)(print)


def test_every_argument_is_accepted_now_or_refused() -> None:
    """Their names are fixed now, so that no receiver need change."""
    assert list(inspect.signature(on_pg_event).parameters) == [
        *("source", "ops", "model", "changed", "type", "everywhere", "once", "batch"),
        *("group", "atomic", "start", "key", "max_attempts", "timeout"),
    ]


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="decorates a function"):
        on_pg_event(Order)("ignore")  # type: ignore[type-var]


def test_decorators_of_one_function_agree_about_everywhere(registry: Registry) -> None:
    on_pg_event(Order, everywhere=True)(ignore)
    with pytest.raises(TypeError, match="everywhere must be the same"):
        on_pg_event(Customer)(ignore)
    assert [receiver.options.everywhere for receiver in registry] == [True]


def test_a_receiver_knows_its_place_and_kind(registry: Registry) -> None:
    """The lines that `listen` and the checks show."""

    async def later(event: PgEvent) -> None:
        pass

    on_pg_event(Order, "update", changed="status")(ignore)
    on_pg_event("app_events", type="user.created")(later)
    first, second = registry
    assert first.name == f"{__name__}.ignore"
    assert first.place == f"{__file__}:{ignore.__code__.co_firstlineno}"
    assert (first.is_async, second.is_async) == (False, True)
    assert str(first.conditions[0]) == "shop.order update; changed: status"
    assert str(second.conditions[0]) == "channel 'app_events'; type: 'user.created'"


def test_a_wrapped_receiver_is_of_the_wrappers_kind(registry: Registry) -> None:
    """What counts is whether the call must be awaited, not what stands inside."""

    async def later(event: PgEvent) -> None:
        pass

    on_pg_event(Order)(async_to_sync(later))
    on_pg_event(Order)(sync_to_async(ignore))
    on_pg_event(Order)(functools.partial(later))
    assert [receiver.is_async for receiver in registry] == [False, True, True]


def test_an_object_with_an_async_call_is_async(registry: Registry) -> None:
    class Later:
        async def __call__(self, event: PgEvent) -> None:
            pass

    on_pg_event(Order)(Later())
    assert [receiver.is_async for receiver in registry] == [True]


APP = """
from pgsignals import on_pg_event

@on_pg_event("app_events")
def heard(event):
    pass
"""


def test_an_apps_receivers_module_is_found_by_itself(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And imported anew, as an autoreload does, it registers no second one."""
    package = tmp_path / "listening_app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "receivers.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(INSTALLED_APPS=["pgsignals", "listening_app"]):
        autodiscover_modules("receivers")
        importlib.reload(sys.modules["listening_app.receivers"])
    assert [receiver.name for receiver in registry] == ["listening_app.receivers.heard"]
    assert len(registry.matching(message(1))) == 1


def test_two_functions_of_one_name_are_two_receivers(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many call what nobody calls by name just `_`."""
    (tmp_path / "nameless.py").write_text(APP.replace("heard", "_") + APP.replace("heard", "_"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("nameless")
    assert len(registry.matching(message(1))) == 2


class Counter:
    def __init__(self) -> None:
        self.events: list[PgEvent] = []

    def heard(self, event: PgEvent) -> None:
        self.events.append(event)


def test_two_objects_of_one_class_are_two_receivers(registry: Registry) -> None:
    counters = [Counter(), Counter()]
    for counter in counters:
        on_pg_event(Article)(counter.heard)
    for receiver in registry.matching(row(Article, "insert")):
        receiver.function(row(Article, "insert"))
    assert [len(counter.events) for counter in counters] == [1, 1]


def test_wrappers_of_one_function_are_receivers_of_their_own(registry: Registry) -> None:
    """As a loop makes them that decorates with functools.wraps."""
    calls: list[int] = []

    def wrapped(event: PgEvent) -> None: ...

    wrapped.__qualname__ = "wrapped"

    def wrapper_of(number: int) -> Any:
        @functools.wraps(wrapped)
        def wrapper(event: PgEvent) -> None:
            calls.append(number)

        return wrapper

    for number in range(3):
        on_pg_event("app_events")(wrapper_of(number))
    event = made(1, op="message", channel="app_events")
    for receiver in registry.matching(event):
        receiver.function(event)
    assert calls == [0, 1, 2]


def test_a_receiver_that_comes_while_events_are_matched_hides_no_other(registry: Registry) -> None:
    """A relay in a web process matches in one thread while modules are still imported in another."""
    on_pg_event("app_events")(lambda event: None)
    event = made(1, op="message", channel="app_events")
    missed: list[int] = []
    done = threading.Event()

    def match() -> None:
        while not done.is_set():
            if not registry.matching(event):
                missed.append(1)

    thread = threading.Thread(target=match)
    thread.start()
    for number in range(2000):
        on_pg_event(f"other_{number}")(lambda event: None)
    done.set()
    thread.join()
    assert missed == []
