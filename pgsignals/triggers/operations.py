"""`AddNotify` and `RemoveNotify`: migration operations that declare what models of others announce.

A model of Django's or of another package has no Meta that we could write to, and a many-to-many table has none at
all. So these declarations live in migrations alone; tracked.py finds them there again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.db.migrations.operations.base import Operation, OperationCategory

from .declaration import Notify, name_problem

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState
    from django.db.models import Model


class _NotifyOperation(Operation):
    """What both have in common: a model by its label, and a declaration."""

    reversible = True
    serialization_expand_args: ClassVar[list[str]] = []

    def __init__(self, model: str, declaration: Notify) -> None:
        if not isinstance(declaration, Notify):
            raise TypeError(f"{type(self).__name__}({model!r}, ...): {declaration!r} is no Notify.")
        if model.count(".") != 1:
            raise ValueError(f"{type(self).__name__}: {model!r} is no label of a model; write 'app.Model'.")
        # No class's name is filled in here: the model is one, and named.
        if problem := name_problem(declaration.name):
            raise ValueError(f"{type(self).__name__}: Notify {declaration.name!r}: {problem}.")
        self.model = model
        self.declaration = declaration

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return (type(self).__name__, [self.model, self.declaration], {})

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Nothing changes in the models."""

    def references_model(self, name: str, app_label: str) -> bool:
        # A many-to-many table goes by the names of the model and the field that it belongs to.
        return f"{self.model.lower()}_".startswith(f"{app_label}.{name}_".lower())

    def reduce(self, operation: Operation, app_label: str) -> bool | list[Operation]:
        if isinstance(operation, _NotifyOperation) and operation.declaration.name == self.declaration.name:
            # Adding and removing the same undo each other.
            undone = type(operation) is not type(self) and operation.declaration == self.declaration
            return [] if undone else False
        app, name = self.model.split(".")
        if "_" in name and not isinstance(operation, _NotifyOperation):
            # Perhaps a many-to-many table: an operation on the model that it belongs to would not know of it.
            return super().reduce(operation, app_label)
        return super().reduce(operation, app_label) or not operation.references_model(name, app)

    def _add(self, schema_editor: BaseDatabaseSchemaEditor, apps: Apps) -> None:
        if model := self._table_of(schema_editor, apps):
            schema_editor.add_constraint(model, self.declaration)

    def _remove(self, schema_editor: BaseDatabaseSchemaEditor, apps: Apps) -> None:
        if model := self._table_of(schema_editor, apps):
            schema_editor.remove_constraint(model, self.declaration)

    def _table_of(self, schema_editor: BaseDatabaseSchemaEditor, apps: Apps) -> type[Model] | None:
        model = find_model(self.model, apps, f"{type(self).__name__} of Notify {self.declaration.name!r}")
        return model if router.allow_migrate_model(schema_editor.connection.alias, model) else None


def find_model(label: str, apps: Apps, who: str) -> type[Model]:
    """The model whose table is meant. Raises ValueError with the remedy where it has none."""
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"{who}: there is no model {label!r} at this point. Check the label, and that the migration depends on the "
            "one that creates the model."
        ) from error
    if model._meta.swapped:
        raise ValueError(f"{who}: {label} is swapped for {model._meta.swapped}, which has the table. Name that model.")
    if model._meta.proxy:
        concrete = model._meta.concrete_model
        owner = concrete._meta.label if concrete else "another model"
        raise ValueError(f"{who}: {label} is a proxy of {owner}, which has the table. Name that model.")
    return model


class AddNotify(_NotifyOperation):
    """Announce the changes of a model that is not yours: `pgsignals.AddNotify("auth.User", Notify(name=...))`.

    model: the label of a model with a table: of another app, unmanaged, or a many-to-many table
        (`auth.User_groups`). In a project with its own user model, `settings.AUTH_USER_MODEL`.
    declaration: a Notify, its name without `%(class)s`.

    The migration must depend on the one that creates the model. `manage.py pgsignals track auth.User --app myapp`
    writes all this. Raises ValueError or TypeError for what can never do.
    """

    category = OperationCategory.ADDITION

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._add(schema_editor, to_state.apps)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._remove(schema_editor, to_state.apps)

    def describe(self) -> str:
        return f"Announce the changes of {self.model} as {self.declaration.name}"

    @property
    def migration_name_fragment(self) -> str:
        return f"track_{self.model.lower().replace('.', '_')}"


class RemoveNotify(_NotifyOperation):
    """Take back an AddNotify. It names the whole declaration, so that it can be reversed."""

    category = OperationCategory.REMOVAL

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._remove(schema_editor, to_state.apps)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._add(schema_editor, to_state.apps)

    def describe(self) -> str:
        return f"Announce the changes of {self.model} as {self.declaration.name} no more"

    @property
    def migration_name_fragment(self) -> str:
        return f"untrack_{self.model.lower().replace('.', '_')}"


# Migration files then say what people write: pgsignals.AddNotify(...).
AddNotify.__module__ = RemoveNotify.__module__ = "pgsignals"
