"""`Notify`: how a model says that its changes are announced.

It is a Django constraint, so that makemigrations, migrate and sqlmigrate treat it as any other. What it declares goes
into migrations; the SQL does not, and is made anew (sql.py) whenever a migration runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.db.models.constraints import BaseConstraint

from ..event import OPERATIONS
from ..publishing import PublishError, check_channel
from . import sql
from .columns import ALL

if TYPE_CHECKING:
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.models import Model, Q

MAX_NAME = 49
"""Bytes of a declaration's name: the 63 that PostgreSQL allows, less what its function and triggers add."""

_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.IGNORECASE)


class Notify(BaseConstraint):
    """Announce a model's changes: `class Meta: constraints = [Notify(name="flight_events", fields=["status"])]`.

    name: of the trigger's function, unique in the database, at most 49 bytes. `%(app_label)s` and `%(class)s` work
        in abstract bases.
    on: the operations, of `insert`, `update`, `delete`, `truncate`; all four by default.
    fields: names of the fields whose old and new values travel with the event, or `"__all__"`. Any role that can
        connect to the database can listen to them. The primary key, and the names of all changed fields, always
        travel.
    exclude: names of fields whose values do not travel; all others do.
    watch: names of fields; an update is announced only where one of them changed. Inserts, deletes and changes of
        the primary key are not narrowed by it.
    when: a Q; only rows that satisfy it are announced. It is asked of the new values, of a delete of the old ones.
        It cannot look into other tables.
    channel: the PostgreSQL channel on which the events travel, where other clients shall listen to these alone. Every
        relay listens to it.
    durable: each event is appended to the log, in the writer's transaction, and NOTIFY only wakes who reads there.
        Groups (`@on_pg_event(..., group="billing")`) handle each event once; plain receivers get it too.
    key: of a durable declaration, the name of the field whose value orders events: those of a key are handled one
        after the other. The primary key by default.

    A foreign key goes by its field's name or its column's (`customer` or `customer_id`).

    Raises ValueError or TypeError for what can never do. Whether the fields exist, and what `when` asks, is for
    `manage.py check`.
    """

    # Changing these changes the function only. Django then writes an AlterConstraint, which touches no table, and
    # after `migrate` the function is replaced, which takes no lock on the table (sync.py).
    non_db_attrs = (*BaseConstraint.non_db_attrs, "fields", "exclude", "watch", "when", "channel", "durable", "key")

    def __init__(
        self,
        *,
        name: str,
        on: Iterable[str] = OPERATIONS,
        fields: Iterable[str] = (),
        exclude: Iterable[str] = (),
        watch: Iterable[str] = (),
        when: Q | None = None,
        channel: str | None = None,
        durable: bool = False,
        key: str | None = None,
        # Django passes these to every constraint that it clones; a declaration is never violated.
        violation_error_code: str | None = None,
        violation_error_message: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.on = _operations(name, on)
        self.exclude = _names(name, "exclude", exclude)
        self.fields: tuple[str, ...] | str = _values(name, fields, self.exclude)
        self.watch = _names(name, "watch", watch)
        self.when = _condition(name, when)
        self.channel = _channel(name, channel)
        self.durable = bool(durable)
        self.key = _key(name, key, self.durable)

    def deconstruct(self) -> tuple[str, tuple[()], dict[str, Any]]:
        """As Django asks: the path, and the arguments that make an equal declaration."""
        keywords: dict[str, Any] = _Keywords(name=self.name)
        if self.on != OPERATIONS:
            keywords["on"] = self.on
        for argument in ("fields", "exclude", "watch", "when", "channel", "durable", "key"):
            if value := getattr(self, argument):
                keywords[argument] = value
        return ("pgsignals.Notify", (), keywords)

    def named_for(self, model: type[Model]) -> Notify:
        """The same with `%(app_label)s` and `%(class)s` filled in, as Django does for what stands in a Meta."""
        named = self.clone()
        named.name = self.name % {"app_label": model._meta.app_label.lower(), "class": model.__name__.lower()}
        return named

    def renamed(self, old: str, new: str) -> Notify:
        """The same for a model of which a field was renamed. What `when` asks stays as it is."""
        renamed = self.clone()
        for argument in ("fields", "exclude", "watch"):
            names = getattr(self, argument)
            if names != ALL:
                setattr(renamed, argument, tuple(new if name == old else name for name in names))
        if renamed.key == old:
            renamed.key = new
        return renamed

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
        # Django executes this with parameters, of which there are none.
        return sql.drop(self.name, schema_editor).replace("%", "%%")

    def validate(self, model: type[Model], instance: Model, exclude: Any = None, using: str = "default") -> None:
        """No row violates a declaration."""


def declarations(model: type[Model]) -> list[Notify]:
    """The declarations of one model."""
    return [constraint for constraint in model._meta.constraints if isinstance(constraint, Notify)]


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


def _names(name: str, argument: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ValueError(f"Notify {name!r}: {argument} is the text {names!r}; a list is meant: [{names!r}].")
    return tuple(dict.fromkeys(names))


def _values(name: str, fields: Iterable[str], exclude: tuple[str, ...]) -> tuple[str, ...] | str:
    if fields == ALL:
        return ALL
    named = _names(name, "fields", fields)
    if named and exclude:
        raise ValueError(
            f"Notify {name!r}: fields and exclude are both given. Name the fields whose values travel, or exclude "
            "those that do not."
        )
    return ALL if exclude else named


def _condition(name: str, when: Q | None) -> Q | None:
    if when is not None and not getattr(when, "conditional", False):
        raise TypeError(f"Notify {name!r}: when is {when!r}, and must be a Q or another boolean expression.")
    return when


def _channel(name: str, channel: str | None) -> str | None:
    if channel is not None:
        try:
            check_channel(channel)
        except PublishError as error:
            raise ValueError(f"Notify {name!r}: {error}") from None
    return channel


def _key(name: str, key: str | None, durable: bool) -> str | None:
    if key is not None and not isinstance(key, str):
        raise TypeError(f"Notify {name!r}: key is {key!r}, and must be the name of a field.")
    if key is not None and not durable:
        raise ValueError(f"Notify {name!r}: key={key!r} orders the events of the log, so it needs durable=True.")
    return key


class _Keywords(dict[str, Any]):
    """Answers to a key that is not there.

    Where a field with a db_column was renamed, the autodetector of Django 6.0 and 6.1 takes `non_db_attrs` out of a
    constraint's keywords and then reads `fields` from what is left (autodetector.py,
    _constraint_should_be_dropped_and_recreated), which would be a KeyError in every makemigrations.
    """

    def __missing__(self, key: str) -> tuple[()]:
        return ()
