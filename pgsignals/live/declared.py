"""Which models announce their changes, by their topics."""

from __future__ import annotations

from django.apps import apps
from django.db.migrations.exceptions import BadMigrationError, CircularDependencyError, NodeNotFoundError

from ..triggers import tracked
from ..triggers.declaration import Notify, declarations
from .topics import model_topic


def declared() -> dict[str, list[Notify]]:
    """The declarations of each topic: those of models, and those that stand in migrations."""
    found: dict[str, list[Notify]] = {}
    for model in apps.get_models():
        for declaration in declarations(model):
            found.setdefault(model_topic(model._meta.label_lower), []).append(declaration)
    for label, declaration in tracked.on_disk().values():
        found.setdefault(model_topic(label), []).append(declaration)
    return found


def announces(topic: str) -> bool:
    """Whether a model announces anything. It is believed to where that cannot be told: of a check's own project."""
    try:
        return bool(declarations(apps.get_model(topic))) or topic in declared()
    except (BadMigrationError, NodeNotFoundError, CircularDependencyError):
        return True  # Django's own commands say so


def declared_topics() -> set[str]:
    """The topics of all models that announce their changes."""
    return set(declared())
