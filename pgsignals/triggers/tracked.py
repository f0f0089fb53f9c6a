"""The declarations that stand in migrations (`AddNotify`), as the migrations together leave them.

They are in no model, and nothing of theirs is in the migrations' state. So the operations of all migrations are gone
through in order; what happens to a model on the way (it is renamed, a field of it is) happens to its declarations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from django.apps import apps as global_apps
from django.db.migrations import operations as django_operations
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ModelState

from .operations import AddNotify, RemoveNotify

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations import Migration

    from .declaration import Notify

Tracked = dict[str, tuple[str, "Notify"]]
"""By the declaration's name: the model's label in lower case, and the declaration."""


def on_disk() -> Tracked:
    """What the migrations say, whether applied or not. Asks no database."""
    return _collect(MigrationLoader(None, ignore_no_migrations=True))


def applied(connection: BaseDatabaseWrapper) -> Tracked:
    """What those migrations say that this database has."""
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    return _collect(loader, set(loader.applied_migrations))


def applied_models(connection: BaseDatabaseWrapper) -> Apps:
    """The models as those migrations leave them that this database has."""
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    nodes, done = loader.graph.node_map, loader.applied_migrations
    latest = [key for key in nodes if key in done and not any(child.key in done for child in nodes[key].children)]
    models = loader.project_state(latest).apps
    # The models of apps without migrations come without their relations; `migrate` makes them anew, too
    # (django/core/management/commands/migrate.py).
    keys = [(one.app_label, one.name_lower) for one in models.real_models]
    with models.bulk_update():
        for key in keys:
            models.unregister_model(*key)
    models.render_multiple([ModelState.from_model(global_apps.get_model(*key)) for key in keys])
    return models


def _collect(loader: MigrationLoader, only: set[tuple[str, str]] | None = None) -> Tracked:
    walk = _Walk()
    graph = loader.graph
    # Each declaration as early as its dependencies allow: what other apps do to its model, unless it says that it
    # comes after that, they do to a model that is declared already.
    ours = [
        key for key, migration in graph.nodes.items() if migration and any(map(_is_ours, _flat(migration.operations)))
    ]
    seen = set()
    for target in [*sorted(ours), *sorted(graph.leaf_nodes())]:
        for key in graph.forwards_plan(target):
            if key not in seen and (only is None or key in only):
                walk.take(graph.nodes[key])
            seen.add(key)
    return walk.found


def _is_ours(operation: Any) -> bool:
    return isinstance(operation, AddNotify | RemoveNotify)


class _Walk:
    def __init__(self) -> None:
        self.found: Tracked = {}
        self._created: set[str] = set()

    def take(self, migration: Migration) -> None:
        for operation in _flat(migration.operations):
            self._take(operation, migration.app_label)

    def _take(self, operation: Any, app: str) -> None:
        if isinstance(operation, AddNotify):
            self.found[operation.declaration.name] = (operation.model.lower(), operation.declaration)
        elif isinstance(operation, RemoveNotify):
            self.found.pop(operation.declaration.name, None)
        elif isinstance(operation, django_operations.CreateModel):
            self._created.add(f"{app}.{operation.name_lower}")
        elif isinstance(operation, django_operations.RenameModel):
            self._rename(f"{app}.{operation.old_name_lower}", f"{app}.{operation.new_name_lower}")
        elif isinstance(operation, django_operations.DeleteModel):
            self._forget(f"{app}.{operation.name_lower}")
        elif isinstance(operation, django_operations.RenameField):
            model = f"{app}.{operation.model_name_lower}"
            self._rename_field(model, operation.old_name, operation.new_name)
            self._rename(f"{model}_{operation.old_name_lower}", f"{model}_{operation.new_name_lower}")
        elif isinstance(operation, django_operations.RemoveField):
            self._forget(f"{app}.{operation.model_name_lower}_{operation.name_lower}")

    def _rename(self, old: str, new: str) -> None:
        """A model, and the tables of its many-to-many fields, which go by its name."""
        for name, (label, declaration) in self.found.items():
            if label == old or (label.startswith(f"{old}_") and label not in self._created):
                self.found[name] = (new + label.removeprefix(old), declaration)

    def _rename_field(self, model: str, old: str, new: str) -> None:
        for name, (label, declaration) in self.found.items():
            if label == model:
                self.found[name] = (label, declaration.renamed(old, new))

    def _forget(self, old: str) -> None:
        self.found = {
            name: (label, declaration)
            for name, (label, declaration) in self.found.items()
            if label != old and not (label.startswith(f"{old}_") and label not in self._created)
        }


def _flat(operations: Iterable[Any]) -> Iterator[Any]:
    for operation in operations:
        if isinstance(operation, django_operations.SeparateDatabaseAndState):
            # What happens to models stands in the one list, what happens to triggers may stand in either.
            yield from _flat(operation.state_operations)
            yield from filter(_is_ours, _flat(operation.database_operations))
        else:
            yield operation
