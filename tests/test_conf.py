"""The one dict of settings: defaults, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from pgsignals import conf


def test_without_the_setting_everything_has_its_default() -> None:
    with override_settings():
        from django.conf import settings

        del settings.PGSIGNALS
        assert conf.get() == conf.Settings()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATABASE", "events"),
        ("CHANNELS", ("a", "b")),
        ("CHANNEL_LAYER", None),
        ("BUFFER", 1),
        ("RECONNECT_MAX", 0.5),
        ("CONNECT_TIMEOUT", 3),
        ("LOCK_TIMEOUT", 1.5),
        ("LIVE_URL", "wss://elsewhere.example/ws/"),
        ("LIVE_ACCESS", "shop.access.Access"),
        ("LIVE_FIELDS", {"shop.order": ("status",)}),
    ],
)
def test_each_key_is_taken(key: str, value: Any) -> None:
    with override_settings(PGSIGNALS={key: value}):
        assert getattr(conf.get(), key) == value
        assert conf.problems() == []


def test_channels_may_be_a_list() -> None:
    with override_settings(PGSIGNALS={"CHANNELS": ["a", "b"]}):
        assert conf.get().CHANNELS == ("a", "b")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "settings.PGSIGNALS is [], and must be a dict."),
        ({"DATABSE": "x"}, "settings.PGSIGNALS has the unknown key 'DATABSE'. Did you mean 'DATABASE'?"),
        ({"zzz": 1}, "The keys are DATABASE, LISTEN, CHANNELS, CHANNEL_LAYER"),
        ({5: 1}, "unknown key 5"),
        ({"DATABASE": 5}, "settings.PGSIGNALS['DATABASE'] is 5, and must be of type str."),
        ({"CHANNEL_LAYER": 5}, "of type str or None."),
        ({"CHANNELS": "app_events"}, "settings.PGSIGNALS['CHANNELS'] is 'app_events', and must be of type list or"),
        ({"CHANNELS": ["a", 5]}, "must hold channel names only."),
        ({"BUFFER": 0}, "settings.PGSIGNALS['BUFFER'] is 0, and must be greater than 0."),
        ({"BUFFER": True}, "must be of type int."),
        ({"BUFFER": 0.5}, "must be of type int."),
        ({"RECONNECT_MAX": -1}, "greater than 0."),
        ({"RECONNECT_MAX": "30"}, "of type int or float."),
        ({"CONNECT_TIMEOUT": float("nan")}, "greater than 0."),
        ({"PARTITIONS": 1025}, "settings.PGSIGNALS['PARTITIONS'] is 1025, and must be 1024 at most."),
        ({"LIVE_URL": "ws/pg/"}, "is 'ws/pg/', and must begin with /, ws:// or wss://."),
        ({"LIVE_URL": 5}, "must be of type str."),
        ({"LIVE_FIELDS": ["status"]}, "must be of type dict."),
        ({"LIVE_FIELDS": {"shop.order": "status"}}, "must hold lists of fields by the model's label."),
        ({"LIVE_FIELDS": {5: ["status"]}}, "must hold lists of fields"),
        ({"LIVE_FIELDS": {"shop.order": [5]}}, "must hold lists of fields"),
    ],
)
def test_what_is_wrong_is_said(given: Any, says: str) -> None:
    """Key, value and what is allowed; by the check, and by whoever needs the settings."""
    with override_settings(PGSIGNALS=given):
        (problem,) = conf.problems()
        assert says in problem
        with pytest.raises(ImproperlyConfigured) as caught:
            conf.get()
        assert str(caught.value) == problem


def test_every_problem_is_said_at_once() -> None:
    with override_settings(PGSIGNALS={"DATABASE": 5, "BUFFER": -1, "zzz": 1}):
        assert len(conf.problems()) == 3


def test_every_key_is_documented_and_has_a_kind() -> None:
    """A key's unit and meaning stand below it, in the source."""
    source = inspect.getsource(conf.Settings).splitlines()
    for key in conf.Settings.__dataclass_fields__:
        (place,) = [number for number, line in enumerate(source) if line.startswith(f"    {key}: ")]
        assert source[place + 1].strip().startswith('"""'), key
        with override_settings(PGSIGNALS={key: object()}):
            assert "must be of type" in conf.problems()[0]
