"""What `manage.py check` finds before anything runs: each message names the places, the value and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.core import checks
from django.core.management import get_commands
from django.db import models
from django.test.utils import isolate_apps, override_settings

from pgsignals import Notify, PgEvent, on_pg_event
from pgsignals import checks as ours
from pgsignals.live import admin as live_admin_module
from pgsignals.live.admin import LiveModelAdmin
from pgsignals.receivers import Registry

from .relaying import only_receivers_of_this_test
from .shop.models import Order, Silent, Token


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with only_receivers_of_this_test() as registry:
        yield registry


@pytest.fixture
def _own_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models that the test defines are all there are."""
    with isolate_apps("tests.shop") as isolated:
        monkeypatch.setattr(ours, "apps", isolated)
        yield


def heard(event: PgEvent) -> None:
    """A receiver."""


HEARD = f"{__file__}:{heard.__code__.co_firstlineno}"


def place(model: type) -> str:
    return f"{inspect.getsourcefile(model)}:{inspect.getsourcelines(model)[1]}"


def only(messages: list[checks.CheckMessage]) -> checks.CheckMessage:
    (message,) = messages
    return message


def test_django_runs_our_checks() -> None:
    """And the project of the tests has no problem but the one that this test makes."""

    def said() -> list[str]:
        return [message.id for message in checks.run_checks() if not message.is_silenced()]

    on_pg_event(Order, "update", changed="status")(heard)
    assert said() == []
    on_pg_event(Silent)(heard)
    assert said() == ["pgsignals.E011"]


# Declarations.


@pytest.mark.usefixtures("_own_models")
def test_a_declaration_on_a_proxy_is_refused() -> None:
    """Django would accept it, write it into the migration, and create nothing."""

    class Parent(models.Model):
        class Meta:
            app_label = "shop"

    class Proxy(Parent):
        class Meta:
            app_label = "shop"
            proxy = True
            constraints = [Notify(name="proxy_events")]

    message = only(ours.check_declarations(None))
    assert (message.id, message.obj) == ("pgsignals.E001", Proxy)
    assert "'proxy_events' is declared on shop.Proxy, a proxy" in message.msg
    assert message.hint is not None
    assert message.hint.startswith("Declare it on shop.Parent, whose table it is; or, where that model is not yours")
    assert message.hint.endswith("pgsignals.AddNotify('shop.Parent', Notify(name='proxy_events', ...))")


@pytest.mark.usefixtures("_own_models")
def test_a_declaration_on_an_unmanaged_model_is_refused() -> None:
    class View(models.Model):
        class Meta:
            app_label = "shop"
            managed = False
            constraints = [Notify(name="view_events")]

    message = only(ours.check_declarations(None))
    assert (message.id, message.obj) == ("pgsignals.E002", View)
    assert "'view_events' is declared on shop.View, which is not managed" in message.msg
    assert "pgsignals.AddNotify('shop.View', Notify(name='view_events', ...))" in str(message.hint)


@pytest.mark.usefixtures("_own_models")
@pytest.mark.parametrize(
    ("name", "says"), [("n" * 50, "it has 50 bytes"), ("with-dash", "an identifier"), ("1st", "an identifier")]
)
def test_a_name_that_postgresql_would_cut_or_refuse_is_refused(name: str, says: str) -> None:
    class Named(models.Model):
        class Meta:
            app_label = "shop"
            constraints = [Notify(name=name)]

    message = only(ours.check_declarations(None))
    assert (message.id, message.obj) == ("pgsignals.E003", Named)
    assert name in message.msg
    assert says in message.msg


@pytest.mark.usefixtures("_own_models")
@pytest.mark.parametrize("field", ["stat", "tags", "children"])
def test_a_declared_field_without_a_column_is_refused(field: str) -> None:
    """Unknown, many-to-many, and a relation from the other side."""

    class Tag(models.Model):
        class Meta:
            app_label = "shop"

    class Tagged(models.Model):
        state = models.TextField()
        tags = models.ManyToManyField(Tag)
        owner = models.ForeignKey("self", models.CASCADE, related_name="children")

        class Meta:
            app_label = "shop"
            constraints = [Notify(name="tagged_events", fields=["state", field])]

    message = only(ours.check_declarations(None))
    assert (message.id, message.obj) == ("pgsignals.E004", Tagged)
    assert f"'tagged_events' on shop.Tagged names the field '{field}'" in message.msg
    assert message.hint == "The fields are: id, state, owner."


def test_a_check_of_one_app_looks_at_its_models_alone() -> None:
    assert ours.check_declarations([apps.get_app_config("auth")]) == []


# Receivers.


def test_a_receiver_of_a_model_that_is_not_installed_is_refused() -> None:
    on_pg_event(model="shop.Ordre")(heard)
    message = only(ours.check_receivers(None))
    assert message.id == "pgsignals.E010"
    assert f"{__name__}.heard ({HEARD}) waits for the model 'shop.Ordre'" in message.msg
    assert "INSTALLED_APPS" in (message.hint or "")


def test_a_receiver_of_a_silent_model_is_refused() -> None:
    """The message names the receiver's place and the model's."""
    on_pg_event(Silent)(heard)
    message = only(ours.check_receivers(None))
    assert message.id == "pgsignals.E011"
    assert f"{__name__}.heard ({HEARD}) waits for shop.Silent ({place(Silent)}), which announces nothing" in message.msg
    assert message.hint is not None
    assert message.hint.startswith("Add Notify(name=...) to the Meta.constraints of shop.Silent and migrate; or,")
    assert message.hint.endswith("manage.py pgsignals track shop.Silent --app ...")


@pytest.mark.parametrize("field", ["stat", "state", "customer_id", "order"])
def test_a_receiver_of_an_unknown_field_is_refused(field: str) -> None:
    """A column's name is no field's name, and an event would never have it in `changed`."""
    on_pg_event(Order, changed=["total", field])(heard)
    message = only(ours.check_receivers(None))
    assert message.id == "pgsignals.E012"
    assert f"({HEARD}) names the field '{field}', which shop.Order ({place(Order)}) lacks" in message.msg
    assert message.hint == "The fields are: id, customer, status, total, note, placed_at."


def test_a_receiver_of_an_operation_that_is_not_announced_is_refused() -> None:
    on_pg_event(Token, "insert", "update", "truncate")(heard)
    message = only(ours.check_receivers(None))
    assert message.id == "pgsignals.E013"
    assert f"({HEARD}) waits for update, truncate, which shop.Token ({place(Token)}) does not" in message.msg
    assert "on=..." in (message.hint or "")


def test_a_receiver_that_names_no_operation_takes_what_there_is() -> None:
    on_pg_event(Token)(heard)
    assert ours.check_receivers(None) == []


def test_every_condition_of_a_stacked_receiver_is_checked() -> None:
    on_pg_event("app_events")(heard)
    on_pg_event(Silent)(heard)
    on_pg_event(Order, changed="nothing")(heard)
    assert [message.id for message in ours.check_receivers(None)] == ["pgsignals.E011", "pgsignals.E012"]


@pytest.mark.usefixtures("_own_models")
def test_a_receiver_of_a_proxy_is_satisfied_by_its_tables_declaration() -> None:
    class Parent(models.Model):
        class Meta:
            app_label = "shop"
            constraints = [Notify(name="parent_events")]

    class Proxy(Parent):
        class Meta:
            app_label = "shop"
            proxy = True

    on_pg_event(Proxy)(heard)
    assert ours.check_receivers(None) == []


# Settings and the project around us.


def test_an_unknown_key_and_a_wrong_value_are_refused() -> None:
    with override_settings(PGSIGNALS={"BUFER": 5, "CHANNELS": "app_events"}):
        messages = ours.check_settings(None)
    assert [message.id for message in messages] == ["pgsignals.E020"] * 2
    assert "'BUFER'. Did you mean 'BUFFER'?" in messages[0].msg
    assert "'app_events'" in messages[1].msg


def test_an_alias_that_is_not_there_is_refused() -> None:
    with override_settings(PGSIGNALS={"DATABASE": "events"}):
        message = only(ours.check_settings(None))
    assert message.id == "pgsignals.E021"
    assert "'events'" in message.msg
    assert message.hint == "The aliases are: default, sqlite."


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("direct", "neither an alias of settings.DATABASES (default, sqlite) nor a connection string"),
        ("host=db pasword=secret", 'invalid connection option "pasword"'),
        ("postgresql://db/?foo=1", 'invalid URI query parameter: "foo"'),
        ("sqlite", "that database is SQLite"),
    ],
)
def test_a_way_to_listen_that_leads_nowhere_is_refused(given: str, says: str) -> None:
    with override_settings(PGSIGNALS={"LISTEN": given}):
        message = only(ours.check_settings(None))
    assert message.id == "pgsignals.E023"
    assert says in message.msg
    assert "secret" not in message.msg
    for fine in ("default", "host=db dbname=app", "postgresql://app@db/app"):
        with override_settings(PGSIGNALS={"LISTEN": fine}):
            assert ours.check_settings(None) == []


@pytest.mark.parametrize("channel", ["", "é" * 32, "pgsignals"])
def test_a_channel_that_cannot_be_listened_to_is_refused(channel: str) -> None:
    """PostgreSQL would cut a long name, and listen to another channel than was meant."""
    with override_settings(PGSIGNALS={"CHANNELS": ["app_events", channel]}):
        message = only(ours.check_settings(None))
    assert message.id == "pgsignals.E022"
    assert repr(channel) in message.msg


@pytest.fixture
def other_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An app with a `listen` command of its own."""
    commands = tmp_path / "other_listener" / "management" / "commands"
    commands.mkdir(parents=True)
    for folder in (commands, commands.parent, commands.parent.parent):
        (folder / "__init__.py").touch()
    (commands / "listen.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield "other_listener"
    get_commands.cache_clear()


@pytest.mark.parametrize("first", [True, False])
def test_another_apps_listen_command_before_ours_is_warned_of(other_app: str, first: bool) -> None:
    """Of two, Django silently takes the app that stands first."""
    order = [other_app, "pgsignals"] if first else ["pgsignals", other_app]
    with override_settings(INSTALLED_APPS=order):
        get_commands.cache_clear()
        messages = ours.check_listen_command(None)
    assert [message.id for message in messages] == (["pgsignals.W030"] if first else [])
    if first:
        assert "other_listener" in messages[0].msg
        assert "manage.py pgsignals listen" in (messages[0].hint or "")


MEMORY = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
REDIS = {"BACKEND": "channels_redis.core.RedisChannelLayer"}


def test_the_in_memory_layer_is_warned_of() -> None:
    """With the two ways out."""
    with override_settings(CHANNEL_LAYERS={"default": MEMORY}):
        message = only(ours.check_channel_layer(None))
    assert message.id == "pgsignals.W031"
    assert "with_relay" in (message.hint or "")
    assert "channels_redis" in (message.hint or "")


@pytest.mark.parametrize(
    ("layers", "ours_is"),
    [
        ({}, "default"),
        ({"default": REDIS}, "default"),
        ({"default": MEMORY}, None),
        ({"default": MEMORY, "shared": REDIS}, "shared"),
    ],
)
def test_no_layer_and_a_layer_that_crosses_processes_are_fine(layers: dict[str, Any], ours_is: str | None) -> None:
    """What counts is the layer that PGSIGNALS names."""
    with override_settings(CHANNEL_LAYERS=layers, PGSIGNALS={"CHANNEL_LAYER": ours_is}):
        assert ours.check_channel_layer(None) == []


# Live pages.


def live_admin(model: Any) -> Any:
    return type("LiveAdmin", (LiveModelAdmin, admin.ModelAdmin), {})(model, admin.site)


def test_a_live_admin_that_has_all_it_needs_is_fine() -> None:
    with override_settings(CHANNEL_LAYERS={"default": MEMORY}):
        assert live_admin(Order).check() == []


@pytest.mark.parametrize("said", [{"CHANNEL_LAYERS": {}}, {"PGSIGNALS": {"CHANNEL_LAYER": None}}])
def test_a_live_admin_without_a_channel_layer_is_an_error(said: dict[str, Any]) -> None:
    with override_settings(**{"CHANNEL_LAYERS": {"default": MEMORY}, **said}):
        message = only(live_admin(Order).check())
    assert message.id == "pgsignals.E051"
    assert "LIVE_URL" in (message.hint or "")


def test_a_live_admin_without_channels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_admin_module, "find_spec", lambda name: None)
    assert only(live_admin(Order).check()).id == "pgsignals.E050"


def test_a_live_admin_of_a_model_that_announces_nothing_is_warned_of() -> None:
    with override_settings(CHANNEL_LAYERS={"default": MEMORY}):
        message = only(live_admin(Silent).check())
    assert (message.id, "shop.Silent announces nothing" in message.msg) == ("pgsignals.W052", True)


def test_an_access_that_cannot_be_imported_is_an_error() -> None:
    with override_settings(PGSIGNALS={"LIVE_ACCESS": "shop.access.Nobody"}):
        message = only(ours.check_settings(None))
    assert (message.id, "'shop.access.Nobody'" in message.msg) == ("pgsignals.E053", True)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"shop.Order": ["status", "customer"]}, 0),
        ({"shop.Order": ["note"]}, 1),
        ({"no.Such": ["a", "b"]}, 2),
        ({"shop.Customer": ["name"]}, 1),
    ],
)
def test_a_field_that_goes_along_must_travel(fields: dict[str, list[str]], count: int) -> None:
    with override_settings(PGSIGNALS={"LIVE_FIELDS": fields}):
        assert [message.id for message in ours.check_settings(None)] == ["pgsignals.E054"] * count
