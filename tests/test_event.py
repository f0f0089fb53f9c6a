"""The value that a receiver gets."""

from __future__ import annotations

from typing import Any

import pytest

from pgsignals.event import PgEvent
from pgsignals.event import Values as EventValues

from .conftest import Listener
from .making import made
from .shop.models import Article, Order


def update(row: Any = (1, ["a"], ["b"]), **more: Any) -> PgEvent:
    reading = {"op": "update", "channel": "pgsignals", "database": "default", "label": "shop.order", "model": Order}
    return made(list(row), **{**reading, "fields": ("status",), "changed": frozenset({"status"}), **more})


def test_an_event_cannot_be_changed() -> None:
    event = update()
    with pytest.raises(AttributeError):
        event.op = "delete"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        event.note = "x"  # type: ignore[attr-defined]
    assert not hasattr(event, "__dict__")


def test_values_are_read_once_and_only_when_asked_for() -> None:
    """An event that nobody looks into costs no conversion."""
    calls: list[Any] = []

    def read(raw: Any) -> Any:
        calls.append(raw)
        return raw.upper()

    event = update(readers={"status": read})
    assert calls == []
    assert event.new is not None
    assert (event.new["status"], event.new["status"]) == ("B", "B")
    assert calls == ["b"]


def test_values_behave_as_a_mapping() -> None:
    event = update()
    assert isinstance(event.new, EventValues)
    assert event.new == {"status": "b"}
    assert dict(event.new) == {"status": "b"}
    assert event.new.get("nothing") is None
    assert "nothing" not in event.new
    assert repr(event.new) == "{'status': 'b'}"
    with pytest.raises(KeyError):
        event.new["nothing"]
    with pytest.raises(TypeError):
        event.new["status"] = "c"  # type: ignore[index]


def test_equal_events_are_equal_and_can_be_kept_in_sets() -> None:
    assert update() == update()
    assert update() != update(row=(2, ["a"], ["b"]))
    assert update() != "something else"
    assert len({update(), update()}) == 1


def test_an_event_shows_itself_shortly() -> None:
    assert repr(update()) == "<PgEvent update shop.order 1 ['status']>"
    message = made({"a": 1}, op="message", channel="app")
    assert repr(message) == "<PgEvent message on 'app': {'a': 1}>"


def test_as_dict_leaves_out_what_is_empty_but_never_a_payload() -> None:
    assert update().as_dict() == {
        "op": "update",
        "model": "shop.order",
        "pk": 1,
        "changed": ["status"],
        "old": {"status": "a"},
        "new": {"status": "b"},
        "channel": "pgsignals",
        "database": "default",
    }
    message = made(0, op="message", channel="app")
    assert message.as_dict() == {"op": "message", "channel": "app", "database": "default", "payload": 0}


def test_instance_is_the_row_as_it_is_now(listener: Listener) -> None:
    article = Article.objects.create(title="first")
    Article.objects.update(title="second")
    created = listener.events()[0]
    assert created.new == {"title": "first"}
    instance = created.instance()
    assert isinstance(instance, Article)
    assert instance.title == "second"
    article.delete()
    assert created.instance() is None


def test_ainstance_is_its_twin(listener: Listener) -> None:
    from asgiref.sync import async_to_sync

    article = Article.objects.create(title="first")
    event = listener.event()
    assert async_to_sync(event.ainstance)() == article
    article.delete()
    assert async_to_sync(event.ainstance)() is None


def test_a_message_has_no_instance() -> None:
    message = made({}, op="message", channel="app")
    with pytest.raises(LookupError, match=r"message on channel 'app' is about no row"):
        message.instance()
