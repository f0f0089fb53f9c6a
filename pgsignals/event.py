"""The value that a receiver gets.

Everything here is made for a hot path: what all events of a model and operation share is kept once, in a `Source`, what
the rows of one notification share in a `Statement`, and a `PgEvent` is these two and the row as it came. They are
structs of msgspec, which are made in a third of the time of a class of Python's own, and are no work for the garbage
collector: nothing that they refer to may refer back to them. Values become Python values when they are first read; an
event that nobody looks into costs next to nothing.

This module knows no JSON, no SQL and no connection. It is handed functions that read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from django.db.models import Model

INSERT = "insert"
UPDATE = "update"
DELETE = "delete"
TRUNCATE = "truncate"
MESSAGE = "message"
OPERATIONS = (INSERT, UPDATE, DELETE, TRUNCATE)

Reader = Callable[[Any], Any]

NO_CONTEXT: Mapping[str, Any] = MappingProxyType({})
NOTHING: frozenset[str] = frozenset()

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def as_it_came(raw: Any) -> Any:
    """The reader of a value whose field nobody knows."""
    return raw


class Source(msgspec.Struct, frozen=True, eq=False):
    """What all events of a model and an operation, or all messages of a channel, have in common."""

    op: str
    channel: str
    database: str
    label: str | None = None
    model: type[Model] | None = None
    aliases: Mapping[str, str] = NO_CONTEXT
    readers: Mapping[str, Reader] = NO_CONTEXT
    read_pk: Reader = as_it_came


class Statement(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What all events of one notification have in common."""

    schema: str | None = None
    transaction: int | None = None
    microseconds: int | None = None
    """Since 1970, by the database's clock."""
    fields: tuple[str, ...] = ()
    changed: frozenset[str] | None = NOTHING
    """None where nobody can tell."""
    context: Mapping[str, Any] = NO_CONTEXT
    behind: bool | int = False
    """Whether the trigger was behind its table."""


class Values(Mapping[str, Any]):
    """Field names and their values, each converted when it is first read.

    A foreign key also answers to its column's name: `values["customer"]` and `values["customer_id"]` are the same key.
    Equal to a dict of the same names and values. `raw` holds what came over the wire.
    Reading a value that its field cannot convert raises ValueError, with the field and the raw value.
    """

    __slots__ = ("_fields", "_raw", "_read", "_source")

    def __init__(self, source: Source, fields: tuple[str, ...], raw: list[Any]) -> None:
        self._source = source
        self._fields = fields
        self._raw = raw
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = self._convert(name)
        return self._read[name]

    def _convert(self, name: str) -> Any:
        name = self._source.aliases.get(name, name)
        try:
            raw = self._raw[self._fields.index(name)]
        except ValueError:
            raise KeyError(name) from None
        try:
            return self._source.readers.get(name, as_it_came)(raw)
        except Exception as error:
            raise ValueError(
                f"{self._source.label}.{name}: the value {raw!r} cannot be read ({error}). "
                "Its text is in .raw of this mapping."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return repr(dict(self))

    @property
    def raw(self) -> dict[str, Any]:
        """The values as they travelled: text, numbers, true and false, or lists of these."""
        return dict(zip(self._fields, self._raw, strict=True))


def _is_empty(value: Any) -> bool:
    """Whether a value says nothing; a primary key of 0 does."""
    return value is None or value is False or value == [] or value == {}


# Where the rows of an operation keep the old and the new values. A row is [pk, values...]; see wire.
_OLD = {UPDATE: 1, DELETE: 1}
_NEW = {INSERT: 1, UPDATE: 2}


class PgEvent(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Something that happened in PostgreSQL: a row changed, a table was truncated, or a message was published.

    Frozen: assigning to it raises AttributeError.
    """

    _source: Source
    _statement: Statement
    _row: Any
    _converted: dict[str, Any] | None = None

    # What the event is about.

    @property
    def op(self) -> str:
        """`insert`, `update`, `delete`, `truncate`, or `message` for what an application published."""
        return self._source.op

    @property
    def model(self) -> type[Model] | None:
        """The model, or None for a message."""
        return self._source.model

    @property
    def label(self) -> str | None:
        """The model's label in lower case, such as `flights.flight`; None for a message."""
        return self._source.label

    @property
    def channel(self) -> str:
        """The channel on which it came."""
        return self._source.channel

    @property
    def pk(self) -> Any:
        """The row's primary key, typed as the model types it (a tuple where it is composite).

        None where the event is about the whole table: truncate, or a key that was itself too big to send.
        """
        return self._once("pk", self._read_pk)

    def _read_pk(self) -> Any:
        if self._source.op == MESSAGE or not self._row:
            return None
        try:
            return self._source.read_pk(self._row[0])
        except Exception as error:
            raise ValueError(
                f"{self.label}: the primary key {self._row[0]!r} cannot be read ({error}). Its text is in raw_pk."
            ) from error

    @property
    def raw_pk(self) -> Any:
        """The primary key as it travelled: a number or text, or a list of these where it is composite."""
        return None if self._source.op == MESSAGE or not self._row else self._row[0]

    @property
    def changed(self) -> frozenset[str]:
        """The names of all fields that an update changed. Empty for other operations, and where `incomplete`."""
        return self._statement.changed or NOTHING

    @property
    def old(self) -> Values | None:
        """The declared fields before an update or a delete."""
        old: Values | None = self._once("old", lambda: self._values(_OLD))
        return old

    @property
    def new(self) -> Values | None:
        """The declared fields after an insert or an update."""
        new: Values | None = self._once("new", lambda: self._values(_NEW))
        return new

    def _values(self, places: dict[str, int]) -> Values | None:
        place = places.get(self._source.op)
        fields = self._statement.fields
        if place is None or not fields or len(self._row) <= place:
            return None
        return Values(self._source, fields, self._row[place])

    @property
    def payload(self) -> Any:
        """What a message says: decoded JSON, or the text itself where it was not JSON. None for a row."""
        return self._row if self._source.op == MESSAGE else None

    # When and where.

    @property
    def at(self) -> datetime | None:
        """When the write happened, by the database's clock, aware. None for a message: NOTIFY carries no time."""
        microseconds = self._statement.microseconds
        return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)

    @property
    def transaction(self) -> int | None:
        """The id of the writing transaction (xid8). None for a message."""
        return self._statement.transaction

    @property
    def database(self) -> str:
        """The alias of the database from which it came."""
        return self._source.database

    @property
    def schema(self) -> str | None:
        """The PostgreSQL schema of the table. None for a message."""
        return self._statement.schema

    # What could not be said.

    @property
    def truncated(self) -> bool:
        """Whether values, or even the key, were left out because the row was too big for a notification."""
        if self._source.op in (MESSAGE, TRUNCATE) or self.incomplete:
            return False
        return not self._row or (bool(self._statement.fields) and len(self._row) == 1)

    @property
    def incomplete(self) -> bool:
        """Whether the trigger was behind its table, so that it could not say which fields changed, or to what."""
        return bool(self._statement.behind) or self._statement.changed is None

    # Of durable events.

    @property
    def id(self) -> int | None:
        """The event's number in the log; None for a fast event, which is in no log."""
        return None

    @property
    def key(self) -> Any:
        """What events are ordered by: the primary key, or what the declaration or the message named."""
        return self.pk

    @property
    def context(self) -> Mapping[str, Any]:
        """Who wrote, and why, as `pgsignals.context()` said in the writer's transaction. Empty where nobody said."""
        return MappingProxyType(self._statement.context)

    # The row itself.

    def instance(self) -> Model | None:
        """Load the row as it is now, from the database that the event names; None when it is gone.

        In a list that a receiver with batch=True was given, the first call loads the rows of all its events.
        Raises LookupError for a message, which is about no row.
        """
        queryset = self._queryset()
        if queryset is None:
            return None
        if (batch := self._batch) is None:
            found: Model | None = queryset.first()
            return found
        if batch.missing(self):
            batch.put(self, list(batch.queryset(self)))
        return batch.found(self)

    async def ainstance(self) -> Model | None:
        """`instance()` for asynchronous code."""
        queryset = self._queryset()
        if queryset is None:
            return None
        if (batch := self._batch) is None:
            found: Model | None = await queryset.afirst()
            return found
        if batch.missing(self):
            batch.put(self, [one async for one in batch.queryset(self)])
        return batch.found(self)

    @property
    def _batch(self) -> _Instances | None:
        return None if self._converted is None else self._converted.get("batch")

    def _queryset(self) -> Any:
        if self.model is None:
            raise LookupError(f"A message on channel {self.channel!r} is about no row; its payload is in .payload.")
        if self.pk is None:
            return None
        # The base manager: a default manager that hides rows must not make a living row look deleted.
        return self.model._base_manager.using(self.database).filter(pk=self.pk)

    # Behaviour of a frozen value.

    def _once(self, name: str, read: Callable[[], Any]) -> Any:
        converted = self._converted
        if converted is None:
            converted = {}
            msgspec.structs.force_setattr(self, "_converted", converted)
        if name not in converted:
            converted[name] = read()
        return converted[name]

    def as_dict(self) -> dict[str, Any]:
        """The event's public keys and values in a fixed order, the model as its label, empty ones left out."""
        everything: dict[str, Any] = {
            "id": self.id,
            "op": self.op,
            "model": self.label,
            "pk": self.pk,
            "key": None if self.id is None else self.key,
            "changed": sorted(self.changed),
            "old": None if self.old is None else dict(self.old),
            "new": None if self.new is None else dict(self.new),
            "channel": self.channel,
            "at": self.at,
            "transaction": self.transaction,
            "database": self.database,
            "schema": self.schema,
            "context": dict(self.context),
            "truncated": self.truncated,
            "incomplete": self.incomplete,
        }
        kept = {name: value for name, value in everything.items() if not _is_empty(value)}
        if self.op == MESSAGE:
            # A message's payload may well be false, 0 or null; it is never left out.
            kept["payload"] = self.payload
        return kept

    def __repr__(self) -> str:
        if self.op == MESSAGE:
            return f"<PgEvent message on {self.channel!r}: {self.payload!r}>"
        about = "" if self.op == TRUNCATE else f" {self.raw_pk!r}"
        which = f" {sorted(self.changed)}" if self.changed else ""
        return f"<PgEvent {self.op} {self.label}{about}{which}>"

    def _comparable(self) -> tuple[Any, ...]:
        source, statement = self._source, self._statement
        where_and_when = (source.label, source.channel, statement.transaction, statement.microseconds)
        return (source.op, *where_and_when, statement.changed, self._row)

    def __eq__(self, other: object) -> bool:
        return self._comparable() == other._comparable() if isinstance(other, PgEvent) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._source.op, self._source.label, self._source.channel, self._statement.transaction))


class _Instances:
    """The rows that the events of a batch are about, loaded together by the first who asks."""

    def __init__(self, events: Iterable[PgEvent]) -> None:
        # Not the events, which refer to this.
        self._rows = [(event._source, event._statement, event._row) for event in events]
        self._loaded: dict[str, dict[Any, Model]] = {}

    def missing(self, event: PgEvent) -> bool:
        return event.label not in self._loaded

    def queryset(self, event: PgEvent) -> Any:
        same = [PgEvent(*one) for one in self._rows if one[0].label == event.label]
        keys = {one.pk for one in same if one.raw_pk is not None}
        model: Any = event.model
        return model._base_manager.using(event.database).filter(pk__in=keys)

    def put(self, event: PgEvent, instances: list[Model]) -> None:
        self._loaded[event.label or ""] = {one.pk: one for one in instances}

    def found(self, event: PgEvent) -> Model | None:
        return self._loaded[event.label or ""].get(event.pk)


def together(events: Iterable[PgEvent]) -> list[PgEvent]:
    """The same events as one batch: `instance()` of the first loads the rows of all."""
    events = list(events)
    instances = _Instances(events)
    return [msgspec.structs.replace(event, _converted={"batch": instances}) for event in events]


class LogEvent(PgEvent, frozen=True, eq=False, gc=False, kw_only=True):
    """An event that was read from the log. To receivers it is a PgEvent."""

    number: int
    """Its id."""
    writer: int
    moment: datetime
    raw_key: Any
    group: str | None = None
    """The group that handles it; None for receivers without one."""
    window: tuple[str, str] | None = None
    """Between which snapshots it was read, for receivers without a group: what was over at the first has been read,
    and of what was over at the second, all up to this event's number."""

    @property
    def id(self) -> int:
        """The event's number in the log: the same in every group and at every attempt."""
        return self.number

    @property
    def key(self) -> Any:
        """What events are ordered by, as it was stored: the primary key's raw value where nothing else was named."""
        return self.raw_key

    @property
    def at(self) -> datetime:
        """When it was written, by the database's clock, aware."""
        return self.moment

    @property
    def transaction(self) -> int:
        """The id of the writing transaction (xid8)."""
        return self.writer

    @property
    def truncated(self) -> bool:
        """Never: the log has room for every row."""
        return False

    @property
    def raw(self) -> Any:
        """What the log holds of the row: a dict with `old` and `new`, by field names; by columns' where `incomplete`
        because the trigger was behind its table. A message's payload."""
        if self._source.op == MESSAGE or isinstance(self._row, dict):
            return self._row
        sides = {"old": self.old, "new": self.new}
        return {name: values.raw for name, values in sides.items() if values is not None}

    def _read_pk(self) -> Any:
        if isinstance(self._row, dict):
            return self._raw_column()
        return PgEvent._read_pk(self)

    def _raw_column(self) -> Any:
        """The key of a row that was stored as it was, as far as it can be told."""
        columns = self._row.get("new") or self._row.get("old") or {}
        fields = self.model._meta.pk_fields if self.model is not None else ()
        found = [field.to_python(columns.get(field.column)) for field in fields]
        return found[0] if len(found) == 1 else tuple(found) or None

    @property
    def raw_pk(self) -> Any:
        """The primary key as it was stored."""
        return self.raw_key if isinstance(self._row, dict) else PgEvent.raw_pk.fget(self)  # type: ignore[attr-defined]

    def _values(self, places: dict[str, int]) -> Values | None:
        return None if isinstance(self._row, dict) else PgEvent._values(self, places)
