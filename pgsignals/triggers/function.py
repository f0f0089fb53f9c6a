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

from django.core.exceptions import EmptyResultSet, FieldDoesNotExist, FieldError, FullResultSet
from django.db.models import QuerySet, Subquery
from django.db.models.sql.query import Query
from psycopg import sql

from .. import wire
from ..event import DELETE, INSERT, UPDATE
from ..values import FAMILIES, Kind, field_kind, key_fields

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Field, Model, Q

    from .declaration import Notify

ALL = "__all__"
"""As `fields`: every field of the model's own table, whichever these are when the function is made."""

CAPTURED = "pgsignals_captured"
"""The temporary table into which a session that asks for it also gets what it sends; see pgsignals.testing."""

MAX_CONTEXT = 1024
"""Bytes of the context that a transaction may put into its events."""

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


def find_field(model: type[Model], name: str) -> Field[Any, Any] | None:
    """The field of the model's own table that goes by this name, or whose column's attribute does; or None."""
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return next((own for own in columns(model) if own is field), None)


def travelling(declaration: Notify, model: type[Model]) -> list[Field[Any, Any]]:
    """The fields whose values travel."""
    if declaration.fields == ALL:
        excluded = _found(model, declaration.exclude)
        return [field for field in columns(model) if field not in excluded]
    return _found(model, declaration.fields)


def _found(model: type[Model], names: Iterable[str]) -> list[Field[Any, Any]]:
    # A name that is no column of the table is the system check's to refuse; here it is nothing.
    return list(dict.fromkeys(field for name in names if (field := find_field(model, name)) is not None))


def condition(when: Q, model: type[Model], connection: BaseDatabaseWrapper, alias: str = _NEW) -> str:
    """The SQL of a declaration's `when`, asked of the row that goes by `alias`.

    Raises what Django raises for an unknown field or a value that a field cannot have, FieldError for what would need
    more than the row itself.
    """
    query, where = ask(when, model)
    where.relabel_aliases({model._meta.db_table: alias})
    try:
        text, parameters = where.as_sql(query.get_compiler(connection=connection), connection)
    except EmptyResultSet:
        return "false"
    except FullResultSet:
        return "true"
    if parameters:
        # How a value is written may depend on the connection's adapters.
        connection.ensure_connection()
    with_values: str = text % tuple(_value(one, connection) for one in parameters)
    return f"({with_values})"


def ask(when: Q, model: type[Model]) -> tuple[Query, Any]:
    """Django's query for a condition, and its WHERE. Raises as `condition` does."""
    query = Query(model)
    where = query.build_where(when)
    if any(isinstance(part, Subquery | QuerySet) for part in when.flatten()) or where.contains_aggregate:
        raise FieldError("A trigger can ask the row itself only: no subqueries, no aggregates")
    if where.contains_over_clause:
        raise FieldError("A trigger can ask the row itself only: no window functions")
    return query, where


def _value(parameter: Any, connection: BaseDatabaseWrapper) -> str:
    return sql.Literal(parameter).as_string(connection.connection).strip()


def settings(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The settings that hold while the function runs, whatever the writer's session says."""
    kinds = [field_kind(field, connection) for field in travelling(declaration, model)]
    # Nothing in the writer's search_path can then stand in for a function or an operator of PostgreSQL's own. A
    # condition may need an extension's operators (citext, trigram): it sees what the migration's session sees.
    path = "search_path FROM CURRENT" if declaration.when else "search_path = pg_catalog, pg_temp"
    pinned = dict.fromkeys([path, *(kind.pinned for kind in kinds if kind.pinned)])
    return " ".join(f"SET {one}" for one in pinned)


def body(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The PL/pgSQL between the dollars."""
    label = f',"m":{_json(model._meta.label_lower)}'
    full = _Queries(model, connection, declaration)
    keys = _Queries(model, connection)
    return _BODY.substitute(
        head=literal(f'{{"v":{wire.VERSION},"d":{_json(declaration.name)},"s":'),
        label=literal(label),
        channel=literal(declaration.channel or wire.CHANNEL),
        limit=wire.MAX_PAYLOAD,
        reserved=full.reserved,
        max_context=MAX_CONTEXT,
        captured=CAPTURED,
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
    context text;
    capturing boolean;
BEGIN
    IF current_setting('pgsignals.silenced', true) = 'on' THEN
        RETURN NULL;
    END IF;
    FOR attempt IN 1..3 LOOP
        BEGIN
            -- Any role may set it, so it may hold anything.
            number := coalesce(substring(current_setting('pgsignals.number', true) FROM '^[0-9]{1,17}$$'), '0')::bigint;
            head := $head || to_json(TG_TABLE_SCHEMA::text)::text
                || ',"x":' || pg_current_xact_id()::text
                || ',"t":' || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                || $label;
            context := current_setting('pgsignals.context', true);
            IF context <> '' AND attempt = 1 THEN
                IF octet_length(context) > $max_context OR json_typeof(context::json) <> 'object' THEN
                    RAISE EXCEPTION 'the setting pgsignals.context is no JSON object of at most $max_context bytes';
                END IF;
                head := head || ',"k":' || context;
            END IF;
            capturing := current_setting('pgsignals.capture', true) = 'on'
                AND to_regclass('pg_temp.$captured') IS NOT NULL;
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
                IF opening IS NULL THEN
                    RAISE EXCEPTION 'a column is of another type than its field';
                END IF;
                -- PostgreSQL folds equal payloads of one transaction into one: the number makes each its own.
                number := number + 1;
                contents := head || opening || ',"n":' || number || ',"r":[' || contents || ']}';
                PERFORM pg_notify($channel, contents);
                IF capturing THEN
                    INSERT INTO pg_temp.$captured (channel, payload) VALUES ($channel, contents);
                END IF;
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

    def __init__(self, model: type[Model], connection: BaseDatabaseWrapper, declaration: Notify | None = None) -> None:
        """Without a declaration: for the trigger that is behind its table, and trusts in the key's columns alone."""
        self.model = model
        self.connection = connection
        self.keys = key_fields(model)
        self.fields = travelling(declaration, model) if declaration else []
        self.watched = _found(model, declaration.watch) if declaration else []
        self.when = declaration.when if declaration else None
        self.compared = columns(model) if declaration else []
        self.common = f',"f":[{_names(self.fields)}]' if self.fields else ""
        if declaration is None:
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
        where = f" WHERE {self._satisfied(alias)}" if self.when else ""
        rows = f"SELECT {self._key(alias)} AS key, {self._rest(alias)} AS rest FROM {table} AS {alias}{where} OFFSET 0"
        return _pieces(self._checked(table, literal(self._opening(operation))), (), rows)

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
        # Compared byte by byte: a column may be of a type that has no =, such as json.
        differs = " OR ".join(self._differs(field) for field in self.watched) or f"{_OLD}.* *<> {_NEW}.*"
        where = f"({left} OR {came} OR {differs})"
        if self.when:
            where += f" AND CASE WHEN {left} THEN {self._satisfied(_OLD)} ELSE {self._satisfied(_NEW)} END"
        rows = (
            f"SELECT {', '.join([moves, *others, key])}, {rest} AS rest "
            f"FROM {OLD_ROWS} AS {_OLD} FULL JOIN {NEW_ROWS} AS {_NEW} ON {same} WHERE {where} OFFSET 0"
        )
        names = [f"m{place}" for place in range(len(masks))]
        return _pieces(self._checked(NEW_ROWS, self._update_opening()), names, rows)

    def _satisfied(self, alias: str) -> str:
        return condition(self.when, self.model, self.connection, alias) if self.when else "true"

    def _checked(self, table: str, opening: str) -> str:
        """The opening; NULL where a column was given another type by hand, so that its text may be no JSON.

        The types are looked at in one row of a statement: within a statement they are the same.
        """
        tests = [
            f"pg_typeof({self._column(field)}) <> ALL ({wrong})"
            for field in dict.fromkeys([*self.keys, *self.fields])
            if (wrong := _other_types(self._kind(field)))
        ]
        if not tests:
            return opening
        return f"CASE WHEN (SELECT {' AND '.join(tests)} FROM {table} LIMIT 1) THEN {opening} END"

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


def _other_types(kind: Kind) -> str:
    """The well-known types that a column of this kind cannot have, as an SQL array.

    What is not well known (an enum, a domain, an extension's type) may pass for anything.
    """
    if not kind.family:
        return ""
    others = sorted(name for name, family in FAMILIES.items() if family != kind.family)
    return f"'{{{','.join(others)}}}'::regtype[]"


def _list(parts: list[str]) -> str:
    return "'[' || " + " || ',' || ".join(parts) + " || ']'"


def _chunks(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + _MASK_BITS] for start in range(0, len(items), _MASK_BITS)]


def _names(fields: Iterable[Any]) -> str:
    return ",".join(_json(field.name) for field in fields)


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
