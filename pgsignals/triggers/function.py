"""The body of a declaration's trigger function.

A statement-level trigger sees what its statement did as two tables, of old and of new rows. One query turns them into
*pieces*: the text of many rows, cut so that each piece fits into one notification. UPDATE pairs old with new by
primary key in one FULL JOIN, which also finds the rows whose key changed: they are a delete and an insert. (A FULL
JOIN can only be hashed or merged. An inner join, first planned for one row, would stay a nested loop for the rest of
the session, and a bulk update later in it would take minutes.) Columns are named in the text of the function, so
nothing is worked out at run time.

The write must never fail because of us. So there are three attempts, each in a subtransaction of its own: all that
was declared; keys only; and one event that says no more than "something in this table changed". An attempt that
fails (a column is gone, or something that nobody thought of) leaves a WARNING that says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from string import Template
from typing import TYPE_CHECKING, Any

from psycopg import sql

from .. import wire
from ..event import DELETE, INSERT, UPDATE
from ..values import Kind, field_kind, key_fields

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Field, Model

    from .declaration import Notify

OLD_ROWS = "pgsignals_old"
NEW_ROWS = "pgsignals_new"

_OLD = "pgsignals_o"
_NEW = "pgsignals_n"

_SMALL = 1000
"""Bytes. Smaller rows share a payload; a bigger one gets its own. See _piece."""

_MAX_CHANGED = 3000
"""Bytes for the names of the changed fields in a payload; a longer list is left out and the event is incomplete."""

_MASK_BITS = 62
"""Fields whose being changed fits into one bigint."""

_HUGE = 8000
"""Bytes. A stored value of this size cannot fit, and writing a gigabyte as JSON could exhaust memory."""

# What an update did to a row, where it did not merely change fields.
_KEY_LEFT, _KEY_CAME = -2, -1


def literal(text: str) -> str:
    """The text as an SQL literal."""
    return sql.Literal(text).as_string(None).strip()


def columns(model: type[Model]) -> list[Field[Any, Any]]:
    """The fields that are columns of the model's own table: what a parent's table holds, the parent announces."""
    return [field for field in model._meta.local_concrete_fields if field.column]


def settings(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The settings that hold while the function runs, whatever the writer's session says."""
    kinds = [field_kind(field, connection) for field in _named(model, declaration.fields)]
    # Nothing in the writer's search_path can then stand in for a function or an operator of PostgreSQL's own.
    pinned = dict.fromkeys(["search_path = pg_catalog, pg_temp", *(kind.pinned for kind in kinds if kind.pinned)])
    return " ".join(f"SET {one}" for one in pinned)


def body(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The PL/pgSQL between the dollars."""
    label = f',"m":{_json(model._meta.label_lower)}'
    full = _Queries(model, connection, declaration.fields)
    keys = _Queries(model, connection, (), behind=True)
    return _BODY.substitute(
        head=literal(f'{{"v":{wire.VERSION},"d":{_json(declaration.name)},"s":'),
        label=literal(label),
        channel=literal(wire.CHANNEL),
        limit=wire.MAX_PAYLOAD,
        reserved=full.reserved,
        full_insert=full.insert(),
        full_delete=full.delete(),
        full_update=full.update(),
        keys_insert=keys.insert(),
        keys_delete=keys.delete(),
        keys_update=keys.update(),
        hint=literal(
            'The write itself is kept. Run "manage.py pgsignals sync" where this database is migrated, '
            "so that the trigger knows its table again."
        ),
    )


_BODY = Template("""
#variable_conflict use_column
DECLARE
    number bigint;
    head text;
    room integer;
    pieces refcursor;
    opening text;
    contents text;
    problem text;
BEGIN
    FOR attempt IN 1..3 LOOP
        BEGIN
            -- Any role may set it, so it may hold anything.
            number := coalesce(substring(current_setting('pgsignals.number', true) FROM '^[0-9]{1,17}$$'), '0')::bigint;
            head := $head || to_json(TG_TABLE_SCHEMA::text)::text
                || ',"x":' || pg_current_xact_id()::text
                || ',"t":' || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                || $label;
            room := $limit - octet_length(head) - $reserved;
            IF TG_OP = 'TRUNCATE' THEN
                OPEN pieces FOR SELECT ',"o":"t"', '';
            ELSIF attempt = 3 THEN
                OPEN pieces FOR SELECT ',"o":"' || lower(left(TG_OP, 1)) || '","i":1', '[]';
            ELSIF TG_OP = 'INSERT' AND attempt = 1 THEN
                OPEN pieces FOR $full_insert;
            ELSIF TG_OP = 'UPDATE' AND attempt = 1 THEN
                OPEN pieces FOR $full_update;
            ELSIF TG_OP = 'DELETE' AND attempt = 1 THEN
                OPEN pieces FOR $full_delete;
            ELSIF TG_OP = 'INSERT' THEN
                OPEN pieces FOR $keys_insert;
            ELSIF TG_OP = 'UPDATE' THEN
                OPEN pieces FOR $keys_update;
            ELSE
                OPEN pieces FOR $keys_delete;
            END IF;
            LOOP
                FETCH pieces INTO opening, contents;
                EXIT WHEN NOT FOUND;
                -- PostgreSQL folds equal payloads of one transaction into one: the number makes each its own.
                number := number + 1;
                PERFORM pg_notify($channel, head || opening || ',"n":' || number || ',"r":[' || contents || ']}');
            END LOOP;
            CLOSE pieces;
            PERFORM set_config('pgsignals.number', number::text, true);
            RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
            RAISE WARNING 'pgsignals: trigger % cannot say all about this % of %.%: % (%)',
                TG_NAME, TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, problem, SQLSTATE
                USING HINT = $hint;
        END;
    END LOOP;
    RETURN NULL;
END
""")


class _Queries:
    """The queries that turn the changed rows of one model into pieces: an opening of the payload, and rows."""

    def __init__(
        self, model: type[Model], connection: BaseDatabaseWrapper, names: Iterable[str], behind: bool = False
    ) -> None:
        self.model = model
        self.connection = connection
        self.keys = key_fields(model)
        self.fields = _named(model, names)
        # The trigger that is behind its table names no column but the key's, so it cannot tell what changed.
        self.compared = [] if behind else columns(model)
        self.common = f',"f":[{_names(self.fields)}]' if self.fields else ""
        if behind:
            self.common += ',"i":1'

    @property
    def reserved(self) -> int:
        """Bytes of a payload that hold neither head nor rows."""
        changed = min(len(_names(self.compared).encode()), _MAX_CHANGED)
        return len(self.common.encode()) + changed + len(',"o":"u","c":[],"n":9223372036854775807,"r":[]}')

    def insert(self) -> str:
        """New rows, all of them."""
        return self._one_sided(INSERT, NEW_ROWS, _NEW)

    def delete(self) -> str:
        """Old rows, all of them."""
        return self._one_sided(DELETE, OLD_ROWS, _OLD)

    def _one_sided(self, operation: str, table: str, alias: str) -> str:
        rows = f"SELECT {self._key(alias)} AS key, {self._rest(alias)} AS rest FROM {table} AS {alias} OFFSET 0"
        return _pieces(literal(self._opening(operation)), (), rows)

    def update(self) -> str:
        """Rows that differ, grouped by what changed; a row whose key changed is a delete and an insert."""
        same = " AND ".join(f"{_OLD}.{key} = {_NEW}.{key}" for key in self._key_columns())
        first = self._key_columns()[0]
        left, came = f"{_NEW}.{first} IS NULL", f"{_OLD}.{first} IS NULL"
        masks = self._masks()
        moves = f"CASE WHEN {left} THEN {_KEY_LEFT} WHEN {came} THEN {_KEY_CAME} ELSE {masks[0]} END AS m0"
        others = [f"{mask} AS m{place}" for place, mask in enumerate(masks) if place]
        key = f"CASE WHEN {came} THEN {self._key(_NEW)} ELSE {self._key(_OLD)} END AS key"
        rest = self._rest(_OLD, _NEW)
        if self.fields:
            rest = f"CASE WHEN {left} THEN {self._rest(_OLD)} WHEN {came} THEN {self._rest(_NEW)} ELSE {rest} END"
        rows = (
            f"SELECT {', '.join([moves, *others, key])}, {rest} AS rest "
            f"FROM {OLD_ROWS} AS {_OLD} FULL JOIN {NEW_ROWS} AS {_NEW} ON {same} "
            # Compared byte by byte: a column may be of a type that has no =, such as json.
            f"WHERE {left} OR {came} OR {_OLD}.* *<> {_NEW}.* OFFSET 0"
        )
        names = [f"m{place}" for place in range(len(masks))]
        return _pieces(self._update_opening(), names, rows)

    def _opening(self, operation: str) -> str:
        return f',"o":"{wire.OPERATION_CODES[operation]}"{self.common}'

    def _update_opening(self) -> str:
        """The opening of a group, from its masks."""
        left, came, stayed = (literal(self._opening(operation)) for operation in (DELETE, INSERT, UPDATE))
        changed = f"""{stayed} || ',"c":' || {self._changed()}"""
        return f"CASE m0 WHEN {_KEY_LEFT} THEN {left} WHEN {_KEY_CAME} THEN {came} ELSE {changed} END"

    def _masks(self) -> list[str]:
        """One bigint for each 62 columns, with a bit for each that differs."""
        groups = _chunks([self._differs(field) for field in self.compared])
        return [
            "("
            + " + ".join(f"CASE WHEN {one} THEN {1 << bit} ELSE 0 END" for bit, one in enumerate(group))
            + ")::bigint"
            for group in groups
        ] or ["0::bigint"]

    def _differs(self, field: Field[Any, Any]) -> str:
        old, new = (f"{alias}.{self._column(field)}" for alias in (_OLD, _NEW))
        if self._kind(field).comparable and not getattr(field, "db_collation", None):
            return f"{old} IS DISTINCT FROM {new}"
        return f"record_image_ne(ROW({old}), ROW({new}))"

    def _changed(self) -> str:
        """The JSON of the names whose bits are set.

        null where none is (a column that this function does not know has changed), or where they are too long.
        """
        tests = [
            f"CASE WHEN m{place} & {1 << bit} <> 0 THEN {literal(',' + _json(field.name))} ELSE '' END"
            for place, group in enumerate(_chunks(self.compared))
            for bit, field in enumerate(group)
        ]
        if not tests:
            return "'null'"
        listed = " || ".join(tests)
        return (
            f"(SELECT CASE WHEN listed = '' OR octet_length(listed) > {_MAX_CHANGED} THEN 'null' "
            f"ELSE '[' || substr(listed, 2) || ']' END FROM (SELECT {listed} AS listed OFFSET 0) AS names)"
        )

    def _key_columns(self) -> list[str]:
        return [self._column(field) for field in self.keys]

    def _key(self, alias: str) -> str:
        parts = [self._json_of(field, alias) for field in self.keys]
        return parts[0] if len(parts) == 1 else _list(parts)

    def _rest(self, *aliases: str) -> str:
        """What follows the key in a row: the values of each side; NULL where one of them is too big in any case."""
        if not self.fields:
            return "''"
        sides = " || ',' || ".join(_list([self._json_of(field, alias) for field in self.fields]) for alias in aliases)
        huge = [
            f"pg_column_size({alias}.{self._column(field)}) > {_HUGE}"
            for alias in aliases
            for field in self.fields
            if not self._kind(field).bounded
        ]
        values = f"',' || {sides}"
        return f"CASE WHEN {' OR '.join(huge)} THEN NULL ELSE {values} END" if huge else values

    def _json_of(self, field: Field[Any, Any], alias: str) -> str:
        return f"coalesce({self._kind(field).sql(f'{alias}.{self._column(field)}')}, 'null')"

    def _kind(self, field: Field[Any, Any]) -> Kind:
        return field_kind(field, self.connection)

    def _column(self, field: Field[Any, Any]) -> str:
        return self.connection.ops.quote_name(str(field.column))


def _pieces(opening: str, masks: list[str] | tuple[str, ...], rows: str) -> str:
    """Rows, given as masks, key and rest, cut into pieces that fit into `room` bytes.

    A row that does not fit alone leaves its key; a key that does not fit leaves `[]`. Small rows are numbered by the
    bytes before them, divided by the room less one small row, so that whatever begins in a piece also ends in it;
    each bigger row is a piece of its own. OFFSET 0 keeps PostgreSQL from working an expression out again for each
    place where it is used.
    """
    groups = "".join(f"{mask}, " for mask in masks)
    partition = f"PARTITION BY {', '.join(masks)} " if masks else ""
    whole = (
        f"SELECT {groups}CASE WHEN octet_length(key) + octet_length(rest) + 2 <= room THEN '[' || key || rest || ']' "
        f"WHEN octet_length(key) + 2 <= room THEN '[' || key || ']' ELSE '[]' END AS entry "
        f"FROM ({rows}) AS parts OFFSET 0"
    )
    numbered = (
        f"SELECT {groups}entry, CASE WHEN octet_length(entry) > {_SMALL} THEN -row_number() OVER earlier "
        f"ELSE sum(CASE WHEN octet_length(entry) > {_SMALL} THEN 0 ELSE octet_length(entry) + 1 END) OVER earlier "
        f"/ greatest(room - {_SMALL} - 1, 1) END AS piece "
        f"FROM ({whole}) AS entries WINDOW earlier AS ({partition}ROWS UNBOUNDED PRECEDING)"
    )
    return (
        f"SELECT {opening}, string_agg(entry, ',') FROM ({numbered}) AS numbered "
        f"GROUP BY {groups}piece ORDER BY {groups}piece"
    )


def _named(model: type[Model], names: Iterable[str]) -> list[Field[Any, Any]]:
    # A name that is no column of the table is the system check's to refuse; here it has no value.
    return [field for name in names for field in columns(model) if field.name == name]


def _list(parts: list[str]) -> str:
    return "'[' || " + " || ',' || ".join(parts) + " || ']'"


def _chunks(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + _MASK_BITS] for start in range(0, len(items), _MASK_BITS)]


def _names(fields: Iterable[Any]) -> str:
    return ",".join(_json(field.name) for field in fields)


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
