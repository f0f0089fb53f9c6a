"""Which fields a declaration means, by the names that it gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.core.exceptions import FieldDoesNotExist

if TYPE_CHECKING:
    from django.db.models import Field, Model

    from .declaration import Notify

ALL = "__all__"
"""As `fields`: every field of the model's own table, whichever these are when the function is made."""


def columns(model: type[Model]) -> list[Field[Any, Any]]:
    """The fields that are columns of the model's own table: what a parent's table holds, the parent announces."""
    return [field for field in model._meta.local_concrete_fields if field.column]


def find_field(model: type[Model], name: str) -> Field[Any, Any] | None:
    """The field of the model's own table that goes by this name, or whose column's attribute does; or None."""
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return next((own for own in columns(model) if own is field), None)


def found(model: type[Model], names: Iterable[str]) -> list[Field[Any, Any]]:
    """The fields of these names. One that is no column of the table is the system check's to refuse; here it is
    nothing."""
    return list(dict.fromkeys(field for name in names if (field := find_field(model, name)) is not None))


def travelling(declaration: Notify, model: type[Model]) -> list[Field[Any, Any]]:
    """The fields whose values travel."""
    if declaration.fields == ALL:
        excluded = found(model, declaration.exclude)
        return [field for field in columns(model) if field not in excluded]
    return found(model, declaration.fields)
