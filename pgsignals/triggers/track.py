"""`manage.py pgsignals track`: the migration that announces a model of somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from django.apps import apps
from django.conf import SettingsReference, settings
from django.core.exceptions import FieldDoesNotExist
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.writer import MigrationWriter

from .operations import AddNotify, find_model

if TYPE_CHECKING:
    from django.db.models import Model

    from .declaration import Notify


class TrackError(ValueError):
    """What was asked for cannot be a migration; the message says why, and what can."""


def find_tracked(label: str) -> type[Model]:
    """The model of a label: `auth.User`, or `auth.User.groups` for the table of a many-to-many field.

    Raises TrackError where there is none, or where it has no table of its own.
    """
    parts = label.split(".")
    if len(parts) not in (2, 3):
        raise TrackError(f"{label!r} is no label: write app.Model, or app.Model.field for a many-to-many table.")
    try:
        model = find_model(".".join(parts[:2]), apps, "track")
    except ValueError as error:
        raise TrackError(str(error).removeprefix("track: ")) from error
    if len(parts) == 3:
        try:
            through = getattr(model._meta.get_field(parts[2]), "remote_field", None)
        except FieldDoesNotExist as error:
            raise TrackError(f"{model._meta.label} has no field {parts[2]!r}.") from error
        if not (table := getattr(through, "through", None)):
            raise TrackError(f"{label} is no many-to-many field, so it has no table of its own.")
        return find_tracked(table._meta.label)
    return model


def default_name(model: type[Model]) -> str:
    """A declaration's name for a model."""
    return f"{model._meta.app_label}_{model._meta.model_name}_events"


def migration(model: type[Model], declaration: Notify, app_label: str) -> tuple[Path, str]:
    """The migration's file, in the app's own folder, and its text. Nothing is written.

    Raises TrackError where the app has no place for migrations, or more than one latest one.
    """
    try:
        config = apps.get_app_config(app_label)
    except LookupError as error:
        raise TrackError(f"There is no app {app_label!r}; the labels are those of INSTALLED_APPS.") from error
    loader = MigrationLoader(None, ignore_no_migrations=True)
    label = _label(model)
    operation = AddNotify(label, declaration)
    leaves = loader.graph.leaf_nodes(config.label)
    if len(leaves) > 1:
        raise TrackError(f"{config.label} has several latest migrations; run makemigrations --merge first.")
    number = max((_number(name) for app, name in loader.disk_migrations if app == config.label), default=0) + 1
    name = f"{number:04}_{operation.migration_name_fragment}"
    made: Migration = type(
        "Migration",
        (Migration,),
        {
            "operations": [operation],
            "dependencies": [*leaves, *_dependencies(model, loader, config.label, label)],
            "initial": None if leaves else True,
        },
    )(name, config.label)
    writer = MigrationWriter(made)
    return Path(writer.path), writer.as_string()


def _label(model: type[Model]) -> str:
    # A project may choose another model for users; the migration then follows the setting.
    if model._meta.swappable == "AUTH_USER_MODEL" or model._meta.label == settings.AUTH_USER_MODEL:
        return SettingsReference(settings.AUTH_USER_MODEL, "AUTH_USER_MODEL")
    return str(model._meta.label)


def _dependencies(model: type[Model], loader: MigrationLoader, app_label: str, label: str) -> list[tuple[str, str]]:
    # The table of a many-to-many field comes with the model that has the field.
    owner = model._meta.auto_created or model
    if isinstance(label, SettingsReference):
        # As the writer of migrations wants it: it writes migrations.swappable_dependency(...).
        return [("__setting__", str(label.setting_name))]  # type: ignore[attr-defined]
    needed = loader.graph.leaf_nodes(owner._meta.app_label)  # type: ignore[union-attr]
    return [key for key in needed if key[0] != app_label]


def _number(name: str) -> int:
    digits = name.split("_", 1)[0]
    return int(digits) if digits.isdigit() else 0
