"""How one column's value travels: the SQL that writes it into a payload, and the function that reads it back.

Both sides stand side by side here, by the column's type in PostgreSQL, because they must agree. The SQL side writes
JSON that does not depend on the session's settings (DateStyle, IntervalStyle, bytea_output) and keeps every digit:
numeric and json travel as text. The reading side gives what Django's own cursor would give; the field's
`from_db_value` is then called as a query would call it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import prod
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db.models import ForeignKey

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Field, Model

    from .event import Reader

Localize = Callable[[datetime], datetime]


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of column."""

    sql: Callable[[str], str]
    """From an SQL expression of the column to an SQL expression of type text: its JSON, or NULL."""

    read: Callable[[Any], Any]
    """From the JSON value (never None) to what the database driver would give."""

    comparable: bool = False
    """Whether `=` on this type tells all that can be told apart, so that the quick IS DISTINCT FROM may compare it."""

    width: int | None = None
    """Bytes of the widest JSON of this type; None where there is no such limit."""

    pinned: str = ""
    """A setting of the session that the SQL depends on after all, and the value that it must have."""

    family: str = ""
    """Which of FAMILIES, or arrays of them, the column's type must be of for `sql` and `read` to fit; empty where any
    type fits."""


FAMILIES = {
    "pg_catalog.int2": "integer",
    "pg_catalog.int4": "integer",
    "pg_catalog.int8": "integer",
    "pg_catalog.bool": "boolean",
    "pg_catalog.float4": "float",
    "pg_catalog.float8": "float",
    "pg_catalog.numeric": "numeric",
    "pg_catalog.text": "text",
    "pg_catalog.varchar": "text",
    "pg_catalog.bpchar": "text",
    "pg_catalog.name": "text",
    "pg_catalog.uuid": "uuid",
    "pg_catalog.date": "date",
    "pg_catalog.time": "time",
    "pg_catalog.timestamp": "timestamp",
    "pg_catalog.timestamptz": "timestamptz",
    "pg_catalog.interval": "interval",
    "pg_catalog.bytea": "bytea",
    "pg_catalog.json": "json",
    "pg_catalog.jsonb": "json",
    "pg_catalog.inet": "network",
    "pg_catalog.cidr": "network",
    "pg_catalog.int4range": "integer range",
    "pg_catalog.int8range": "integer range",
    "pg_catalog.numrange": "numeric range",
    "pg_catalog.daterange": "date range",
    "pg_catalog.tsrange": "timestamp range",
    "pg_catalog.tstzrange": "timestamptz range",
}
"""PostgreSQL's types by family; those of one family travel and are read in the same way."""


def types_of(family: str) -> list[str]:
    """The types of a family; `integer[]` is the family of arrays of integers."""
    base = family.removesuffix("[]")
    return [f"{name}{family[len(base) :]}" for name, of in FAMILIES.items() if of == base]


def _plain(column: str) -> str:
    """Digits need no quotes."""
    return f"{column}::text"


def _quoted(column: str) -> str:
    """Text that can hold no character that JSON would escape."""
    return f"""('"' || {column}::text || '"')"""


def _json(column: str) -> str:
    return f"to_json({column})::text"


def _as_text(column: str) -> str:
    return f"to_json({column}::text)::text"


def _hex(column: str) -> str:
    return f"""('"' || encode({column}, 'hex') || '"')"""


def _interval(column: str) -> str:
    # In parts, as a session's IntervalStyle has many ways to write one.
    parts = (f"extract(year FROM {column})", f"extract(month FROM {column})", f"extract(day FROM {column})")
    micro = f"(extract(hour FROM {column}) * 60 + extract(minute FROM {column})) * 60000000"
    whole = [*parts, f"{micro} + extract(microsecond FROM {column})"]
    parts_of = "'[' || " + " || ',' || ".join(f"({part})::bigint" for part in whole) + " || ']'"
    # From PostgreSQL 17 on an interval may be infinite, which Python's timedelta cannot.
    return f"(CASE WHEN isfinite({column}) THEN {parts_of} ELSE {_as_text(column)} END)"


def _read_interval(raw: list[int]) -> timedelta:
    # A year of 365 days and a month of 30, as psycopg reads them (psycopg.types.datetime).
    years, months, days, micro = raw
    return timedelta(days=365 * years + 30 * months + days, microseconds=micro)


_NUMBER = Kind(_plain, int, comparable=True, width=50, family="integer")
# Every digit of a float that tells it from its neighbours; 0, an old habit, would round it.
_FLOAT = Kind(_json, float, width=50, pinned="extra_float_digits = 1", family="float")
_STRING = Kind(_json, str, comparable=True, family="text")
_JSON = Kind(_as_text, str, family="json")
_OTHER = Kind(_as_text, str)

_KINDS: dict[str, Kind] = {
    "smallint": _NUMBER,
    "integer": _NUMBER,
    "bigint": _NUMBER,
    "smallserial": _NUMBER,
    "serial": _NUMBER,
    "bigserial": _NUMBER,
    "boolean": Kind(_plain, bool, comparable=True, width=50, family="boolean"),
    "real": _FLOAT,
    "double precision": _FLOAT,
    "numeric": Kind(_quoted, Decimal, family="numeric"),
    "text": _STRING,
    "varchar": _STRING,
    "character varying": _STRING,
    # Not comparable by =: it takes two paddings for equal, as citext takes two cases.
    "char": Kind(_json, str, family="text"),
    "citext": Kind(_as_text, str),
    "uuid": Kind(_quoted, UUID, comparable=True, width=50, family="uuid"),
    "date": Kind(_json, date.fromisoformat, comparable=True, width=50, family="date"),
    "time": Kind(_json, time.fromisoformat, comparable=True, width=50, family="time"),
    "timestamp": Kind(_json, datetime.fromisoformat, comparable=True, width=50, family="timestamp"),
    "interval": Kind(_interval, _read_interval, width=120, family="interval"),
    "bytea": Kind(_hex, bytes.fromhex, comparable=True, family="bytea"),
    "json": _JSON,
    "jsonb": _JSON,
    # Not ::text, which adds the length of the netmask.
    "inet": Kind(_json, str, width=60, family="network"),
    "cidr": Kind(_json, str, width=60, family="network"),
    "hstore": Kind(_json, dict),
}

_RANGES = {
    "int4range": "integer",
    "int8range": "bigint",
    "numrange": "numeric",
    "daterange": "date",
    "tsrange": "timestamp",
    "tstzrange": "timestamp with time zone",
}


def _as_is(moment: datetime) -> datetime:
    return moment


def kind_of(db_type: str, localize: Localize = _as_is) -> Kind:
    """The kind of a column by its type as Django writes it, such as `varchar(20)` or `numeric(5, 2)[]`.

    `localize` brings a `timestamp with time zone` into the time zone in which Django would give it.
    A type that is not known travels as its text.
    """
    name = db_type.strip().lower()
    if name.endswith("]"):
        # integer[][2] is one type to PostgreSQL, integer[]: each value says how many dimensions it has.
        return _array(kind_of(re.sub(r"(\s*\[\d*\])+$", "", name), localize))
    sized = re.fullmatch(r"(?P<type>varchar|character varying|numeric)\s*\((?P<size>\d+)[^)]*\)", name)
    if sized:
        # A character is written in six bytes at most (\\u0001); a decimal may have a sign and a point.
        width = 6 * int(sized["size"]) if sized["type"] != "numeric" else int(sized["size"]) + 2
        return replace(_KINDS[sized["type"]], width=width + 2)
    name = re.sub(r"\s*\([^)]*\)", "", name)
    if name in _RANGES:
        return _range(kind_of(_RANGES[name], localize))
    if name in ("timestamp with time zone", "timestamptz"):

        def read(raw: str) -> datetime:
            return localize(datetime.fromisoformat(raw))

        return Kind(_json, read, comparable=True, width=50, family="timestamptz")
    return _KINDS.get(name.removesuffix(" without time zone"), _OTHER)


def _array(item: Kind) -> Kind:
    """[[lengths of the dimensions], items...], the items in PostgreSQL's order, which is row by row."""

    def sql(column: str) -> str:
        dimensions = f"generate_series(1, array_ndims({column})) AS d"
        lengths = f"(SELECT string_agg(array_length({column}, d)::text, ',') FROM {dimensions})"
        each = f"',' || coalesce({item.sql('item')}, 'null')"
        unnested = f"unnest({column}) WITH ORDINALITY AS items (item, place)"
        items = f"(SELECT string_agg({each}, '' ORDER BY place) FROM {unnested})"
        # An empty array has no dimensions and no items; NULL must stay NULL.
        whole = f"'[[' || coalesce({lengths}, '') || ']' || coalesce({items}, '') || ']'"
        return f"(CASE WHEN {column} IS NOT NULL THEN {whole} END)"

    def read(raw: list[Any]) -> list[Any]:
        lengths, *items = raw
        # Checked, for whoever forges an event could otherwise ask for a billion empty lists.
        if 0 in lengths or (prod(lengths) if lengths else 0) != len(items):
            raise ValueError(f"an array of {lengths} has {len(items)} items")
        return _shape(lengths, [_none_or(item, one) for one in items])

    return Kind(sql, read, pinned=item.pinned, family=f"{item.family}[]" if item.family else "")


def _shape(lengths: list[int], items: list[Any]) -> list[Any]:
    if len(lengths) <= 1:
        return items
    step = len(items) // lengths[0]
    return [_shape(lengths[1:], items[start : start + step]) for start in range(0, len(items), step)]


def _range(bound: Kind) -> Kind:
    """[lower, upper, "[)"], or [] for the empty range."""

    def sql(column: str) -> str:
        lower = f"coalesce({bound.sql(f'lower({column})')}, 'null')"
        upper = f"coalesce({bound.sql(f'upper({column})')}, 'null')"
        opening = f"CASE WHEN lower_inc({column}) THEN '[' ELSE '(' END"
        closing = f"CASE WHEN upper_inc({column}) THEN ']' ELSE ')' END"
        whole = f"""'[' || {lower} || ',' || {upper} || ',"' || {opening} || {closing} || '"]'"""
        return f"(CASE WHEN isempty({column}) THEN '[]' WHEN {column} IS NOT NULL THEN {whole} END)"

    def read(raw: list[Any]) -> Any:
        from psycopg.types.range import Range

        if not raw:
            return Range(empty=True)
        lower, upper, bounds = raw
        return Range(_none_or(bound, lower), _none_or(bound, upper), bounds)

    return Kind(sql, read, family=f"{bound.family} range")


def _none_or(kind: Kind, raw: Any) -> Any:
    return None if raw is None else kind.read(raw)


def field_kind(field: Field[Any, Any], connection: BaseDatabaseWrapper, localize: Localize = _as_is) -> Kind:
    """The kind of a model's field in this database."""
    return kind_of(field.db_type(connection) or "text", localize)


def reader(field: Field[Any, Any], connection: BaseDatabaseWrapper) -> Reader:
    """The function that makes of a raw value what a query would give for the field."""
    kind = field_kind(field, connection, _localizer(connection))
    while isinstance(field, ForeignKey):
        # A query reads a foreign key with the converters of the column that it refers to.
        field = field.target_field
    converters = field.get_db_converters(connection)

    def read(raw: Any) -> Any:
        value = None if raw is None else kind.read(raw)
        for convert in converters:
            value = convert(value, field.cached_col, connection)
        return value

    return read


def key_reader(model: type[Model], connection: BaseDatabaseWrapper) -> Reader:
    """The function that makes of a raw primary key what `instance.pk` would be."""
    readers = [reader(field, connection) for field in key_fields(model)]
    if len(readers) == 1:
        return readers[0]
    return lambda raw: tuple(read(one) for read, one in zip(readers, raw, strict=True))


def key_fields(model: type[Model]) -> tuple[Field[Any, Any], ...]:
    """The fields of the primary key: one, or several where it is composite."""
    return tuple(model._meta.pk_fields)


def _localizer(connection: BaseDatabaseWrapper) -> Localize:
    from django.conf import settings

    zone = connection.timezone if settings.USE_TZ else ZoneInfo(connection.timezone_name)
    if settings.USE_TZ:
        return lambda moment: moment.astimezone(zone)
    return lambda moment: moment.astimezone(zone).replace(tzinfo=None)
