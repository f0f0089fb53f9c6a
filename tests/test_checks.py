"""What `manage.py check` finds before anything runs: each message names the places, the value and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core import checks
from django.core.management import get_commands
from django.db import models
from django.test.utils import isolate_apps, override_settings

from pgsignals import Notify, PgEvent, on_pg_event
from pgsignals import checks as ours
from pgsignals.receivers import Registry

from .relaying import only_receivers_of_this_test
from .shop.models import Order, Silent, Token


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with only_receivers_of_this_test() as registry:
        yield registry


def heard(event: PgEvent) -> None:
    """A receiver."""


def only(messages: list[checks.CheckMessage]) -> checks.CheckMessage:
    (message,) = messages
    return message


def place(thing: Any) -> str:
    return f"{__file__}:{inspect.getsourcelines(thing)[1]}"


ORDER = f"{inspect.getsourcefile(Order)}:{inspect.getsourcelines(Order)[1]}"


def test_the_tests_own_project_has_no_problem() -> None:
    """Django runs our checks with its own."""
    on_pg_event(Order, "update", changed="status")(heard)
    assert checks.run_checks() == []
    on_pg_event(Silent)(heard)
    assert [message.id for message in checks.run_checks()] == ["pgsignals.E011"]


# Declarations.


def declaration_problems() -> list[checks.CheckMessage]:
    """Of the models that a test has just defined: its registry takes the place of the app's."""
    return [
        message
        for model in isolated_models
        for declaration in ours.declarations(model)
        for message in ours._declaration_problems(model, declaration)
    ]


isolated_models: list[type[models.Model]] = []
