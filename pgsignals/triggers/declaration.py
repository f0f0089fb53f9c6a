"""`Notify`: how a model says that its changes are announced.

It is a Django constraint, so that makemigrations, migrate and sqlmigrate treat it as any other. What it declares goes
into migrations; the SQL does not, and is made anew (sql.py) whenever a migration runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.core.exceptions import FieldDoesNotExist
from django.db.models.constraints import BaseConstraint

from ..event import OPERATIONS
from . import sql
from .function import columns

if TYPE_CHECKING:
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.models import Field, Model

MAX_NAME = 49
"""Bytes of a declaration's name: the 63 that PostgreSQL allows, less what its function and triggers add."""

_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.IGNORECASE)

_LATER: dict[str, Any] = {
    "exclude": (),
    "watch": (),
    "when": None,
    "channel": None,
    "durable": False,
    "key": None,
}


class Notify(BaseConstraint):
    """Announce a model's changes: `class Meta: constraints = [Notify(name="flight_events", fields=["status"])]`.

    name: of the trigger's function, unique in the database. `%(app_label)s` and `%(class)s` work in abstract bases.
    on: the operations, of `insert`, `update`, `delete`, `truncate`; all four by default.
    fields: names of the fields whose old and new values travel with the event. Any role that can connect to the
        database can listen to them. The primary key, and the names of all changed fields, always travel.

    Raises ValueError for an unknown operation, or a name that is no identifier. Whether the fields exist is for
    `manage.py check`. The other arguments belong to later versions and raise NotImplementedError.
    """

    # Changing these changes the function only. Django then writes an AlterConstraint, which touches no table, and
    # after `migrate` the function is replaced, which takes no lock on the table (sync.py).
    non_db_attrs = (*BaseConstraint.non_db_attrs, "fields")

    def __init__(
        self,
        *,
        name: str,
        on: Iterable[str] = OPERATIONS,
        fields: Iterable[str] = (),
        exclude: Iterable[str] = (),
        watch: Iterable[str] = (),
        when: Any = None,
        channel: str | None = None,
        durable: bool = False,
        key: str | None = None,
        # Django passes these to every constraint that it clones; a declaration is never violated.
        violation_error_code: str | None = None,
        violation_error_message: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.on = _operations(name, on)
        self.fields = _fields(name, fields)
        _refuse_later(
            name, exclude=tuple(exclude), watch=tuple(watch), when=when, channel=channel, durable=durable, key=key
        )

    def deconstruct(self) -> tuple[str, tuple[()], dict[str, Any]]:
        """As Django asks: the path, and the arguments that make an equal declaration."""
        keywords: dict[str, Any] = {"name": self.name}
        if self.on != OPERATIONS:
            keywords["on"] = self.on
        # Always there: Django 6.0 and 6.1 raise KeyError('fields') when a constraint without it changes in the same
        # migration in which a field with a db_column is renamed (autodetector.py).
        keywords["fields"] = self.fields
        return ("pgsignals.Notify", (), keywords)

    def __eq__(self, other: object) -> bool:
        return self.deconstruct() == other.deconstruct() if isinstance(other, Notify) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.on, self.fields))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.deconstruct()[2].items())
        return f"<Notify: {arguments}>"

    # What Django's schema editor asks of a constraint. On another vendor's database nothing happens.

    # Django's stubs know neither a Statement here nor that both arguments are always given.

    def constraint_sql(  # type: ignore[override]
        self, model: type[Model], schema_editor: BaseDatabaseSchemaEditor
    ) -> None:
        """Nothing goes into CREATE TABLE; the trigger follows when the table is there."""
        if statement := self.create_sql(model, schema_editor):
            schema_editor.deferred_sql.append(statement)

    def create_sql(  # type: ignore[override]
        self, model: type[Model], schema_editor: BaseDatabaseSchemaEditor
    ) -> Any:
        """One statement that makes the function and its triggers."""
        if schema_editor.connection.vendor != "postgresql":
            return None
        return sql.create(self, model, schema_editor)

    def remove_sql(  # type: ignore[override]
        self, model: type[Model], schema_editor: BaseDatabaseSchemaEditor
    ) -> Any:
        """One statement that drops the function, and with it the triggers."""
        if schema_editor.connection.vendor != "postgresql":
            return None
        return sql.drop(self, schema_editor)

    def validate(self, model: type[Model], instance: Model, exclude: Any = None, using: str = "default") -> None:
        """No row violates a declaration."""


def declarations(model: type[Model]) -> list[Notify]:
    """The declarations of one model."""
    return [constraint for constraint in model._meta.constraints if isinstance(constraint, Notify)]


def find_field(model: type[Model], name: str) -> Field[Any, Any] | None:
    """The model's own column-backed field of that name, or None."""
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return next((own for own in columns(model) if own is field and own.name == name), None)


def name_problem(name: str) -> str | None:
    """What is wrong with a declaration's final name, or None."""
    if not _NAME.fullmatch(name):
        return "it must be an identifier of letters, digits and underscores"
    if (size := len(name.encode())) > MAX_NAME:
        return f"it has {size} bytes, and PostgreSQL's limit of 63 leaves {MAX_NAME} for it"
    return None


def _operations(name: str, on: Iterable[str]) -> tuple[str, ...]:
    given = (on,) if isinstance(on, str) else tuple(on)
    if unknown := [operation for operation in given if operation not in OPERATIONS]:
        raise ValueError(f"Notify {name!r}: on has {unknown[0]!r}; the operations are {', '.join(OPERATIONS)}.")
    if not given:
        raise ValueError(f"Notify {name!r}: on is empty, so it would announce nothing.")
    return tuple(operation for operation in OPERATIONS if operation in given)


def _fields(name: str, fields: Iterable[str]) -> tuple[str, ...]:
    if isinstance(fields, str):
        if fields == "__all__":
            raise NotImplementedError(f"Notify {name!r}: fields='__all__' is not in this version; name the fields.")
        raise ValueError(f"Notify {name!r}: fields is the text {fields!r}; a list is meant: [{fields!r}].")
    return tuple(dict.fromkeys(fields))


def _refuse_later(name: str, **arguments: Any) -> None:
    for argument, value in arguments.items():
        if value != _LATER[argument]:
            raise NotImplementedError(f"Notify {name!r}: {argument}={value!r} is not in this version of pgsignals yet.")
