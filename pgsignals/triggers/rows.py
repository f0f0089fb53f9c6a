"""From the rows that a statement wrote to the text of a payload: the SQL of it.

A statement-level trigger sees what its statement did as two tables, of old and of new rows. One query turns them into
long texts of *entries*, a text for each set of changed fields; the function then cuts each text into payloads. UPDATE
pairs old with new by primary key in one FULL JOIN, which also finds the rows whose key changed: they are a delete and
an insert. (A FULL JOIN can only be hashed or merged. An inner join, first planned for one row, would stay a nested
loop for the rest of the session, and a bulk update later in it would take minutes.) Columns are named in the text, so
nothing is worked out at run time.

Where a statement wrote a single row, the same expressions are asked of two record variables, which go by the same
names as the tables' aliases: PL/pgSQL evaluates such expressions without a query.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from psycopg import sql

from .. import wire
from ..event import DELETE, INSERT, UPDATE
from ..values import Kind, field_kind, key_fields, types_of
from .columns import columns, found, travelling
from .condition import condition

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Field, Model

    from .declaration import Notify

OLD_ROWS = "pgsignals_old"
NEW_ROWS = "pgsignals_new"

OLD = "pgsignals_o"
NEW = "pgsignals_n"

SEPARATOR = r"E'\x01'"
"""Between rows, where a payload has a comma. No JSON holds this character as it is."""

_MEMORY = 64_000_000
"""Bytes of entries, by the widest that they can be, that one statement may have in memory. PostgreSQL holds the text
about three times, and refuses one of a gigabyte."""

_BLOCK = 1_000_000
"""Bytes of entries, by the widest that they can be, in each text of a statement that writes more than that."""

_NARROW = 1000
"""Bytes. Entries that can never be wider fit into any room."""

MAX_NAMES = 3000
"""Bytes for the names of fields in a payload. A longer list of those that changed is left out, and the event is
incomplete; a longer list of those that travel is refused by a check, and nothing travels."""

_MASK_BITS = 62
"""Fields whose being changed fits into one bigint."""

_HUGE = 8000
"""Bytes. A stored value of this size cannot fit, and writing a gigabyte as JSON could exhaust memory."""

_TOASTED = 2000
"""Bytes. PostgreSQL keeps bigger values outside of the row (TOAST_TUPLE_THRESHOLD)."""

_TELLS_TOAST = 170_000
"""The first version of PostgreSQL with pg_column_toast_chunk_id."""

# What an update did to a row, where it did not merely change fields.
_KEY_LEFT, _KEY_CAME = -2, -1


def literal(text: str) -> str:
    """The text as an SQL literal."""
    return sql.Literal(text).as_string(None).strip()


def json_text(text: str) -> str:
    """The text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def unless(satisfied: str) -> str:
    """What ends the function where the only row of a statement is none to be announced."""
    return f"IF ({satisfied}) IS NOT TRUE THEN RETURN NULL; END IF;" if satisfied else ""


def names_fit(declaration: Notify, model: type[Model]) -> bool:
    """Whether the names of the fields that travel leave room for their values."""
    return len(_names(travelling(declaration, model)).encode()) <= MAX_NAMES


class Rows:
    """What the function says of the rows of one model."""

    def __init__(self, model: type[Model], connection: BaseDatabaseWrapper, declaration: Notify | None = None) -> None:
        """Without a declaration: for the trigger that is behind its table, and trusts in the key's columns alone."""
        self.model = model
        self.connection = connection
        self._kinds: dict[Field[Any, Any], Kind] = {}
        self.keys = key_fields(model)
        self.fields = travelling(declaration, model) if declaration and names_fit(declaration, model) else []
        self.watched = found(model, declaration.watch) if declaration else []
        self.when = declaration.when if declaration else None
        self.compared = columns(model) if declaration else []
        self.common = f',"f":[{_names(self.fields)}]' if self.fields else ""
        if declaration is None:
            self.common += ',"i":1'

    @property
    def reserved(self) -> int:
        """Bytes of a payload that hold neither head nor rows."""
        changed = min(len(_names(self.compared).encode()), MAX_NAMES)
        return len(self.common.encode()) + changed + len(',"o":"u","c":[],"n":9223372036854775807,"r":[]}')

    @property
    def known(self) -> str:
        """The columns of the table by the model's account, as an SQL array."""
        return _array_of_names(self.compared)

    @property
    def surprising(self) -> str:
        """Of a row of pg_attribute: whether the column is such that an update must look at whole rows.

        One that the model does not have; a key that may be NULL; a text whose collation, which Django knows nothing
        of, takes different texts for equal.
        """
        texts = [one for one in self.compared if self._kind(one).family == "text" and self._is_told_by_equality(one)]
        return (
            f"attname <> ALL ({self.known}) OR (attname = ANY ({_array_of_names(self.keys)}) AND NOT attnotnull) "
            f"OR (attname = ANY ({_array_of_names(texts)}) AND attcollation <> 'pg_catalog.\"default\"'::regcollation "
            "AND NOT (SELECT collisdeterministic FROM pg_collation WHERE pg_collation.oid = attcollation))"
        )

    # Of one row, which is in the record variables OLD and NEW: expressions.

    def opening(self, operation: str) -> str:
        """What the payload says before its rows; for an update, all but the fields that changed."""
        return self._typed(self._old_or_new(operation), literal(self._opening(operation)))

    def entry(self, operation: str) -> str:
        """The row, as it stands in a payload."""
        sides = {INSERT: (NEW,), DELETE: (OLD,), UPDATE: (OLD, NEW)}[operation]
        return f"'[' || {self._fitted(self._key(sides[0]), self._rest(*sides))} || ']'"

    def satisfied(self, operation: str) -> str:
        """Whether the row is one that is to be announced; empty where every row is."""
        return self._satisfied(self._old_or_new(operation))

    def same_key(self) -> str:
        """Whether an update left the key as it was, byte for byte."""
        tests = [self._equal_keys(field) for field in self.keys]
        # Where = takes two keys for one, such as 'a' and 'A'. The join needs the = all the same.
        exact = [self._differs(field) for field in self.keys if not self._is_told_by_equality(field)]
        return _all([*tests, *(f"NOT {differs}" for differs in exact)])

    def _equal_keys(self, field: Field[Any, Any]) -> str:
        old, new = (f"{alias}.{self._column(field)}" for alias in (OLD, NEW))
        family = self._kind(field).family
        if not family:
            # The = of an extension's type is in a schema that the function does not look into, and that of some types
            # (bit, money) cannot be hashed.
            return f"{old}::text = {new}::text"
        # Whatever collation the column was given: 'a' is not 'A'.
        return f'{old} COLLATE "C" = {new} COLLATE "C"' if family == "text" else f"{old} = {new}"

    def changed_names(self) -> str:
        """The names of the fields that differ, each after a comma."""
        return " || ".join(self._each_changed_name()) or "''"

    def _each_changed_name(self) -> list[str]:
        return [
            f"CASE WHEN {self._differs(field)} THEN {literal(',' + json_text(field.name))} ELSE '' END"
            for field in self.compared
        ]

    def update_satisfied(self) -> str:
        """Whether an update of the row is to be announced, by what is watched and by the condition; empty where any."""
        return _all(filter(None, [self._watched_differ(), self.satisfied(UPDATE)]))

    def is_changed(self) -> str:
        """Whether the row, whose changed names are in `listed`, has changed; empty where that was asked already."""
        return "" if self.watched else f"listed <> '' OR {OLD} *<> {NEW}"

    # Of many rows: queries, that give openings with texts of entries.

    @property
    def many(self) -> int:
        """The number of rows from which on a statement's entries are not held in one text, but in blocks.

        Blocks bound the memory and make the query about a tenth slower.
        """
        return max(_MEMORY // self._width, 1)

    def insert(self, *, blocks: bool = False) -> str:
        """New rows, all of them."""
        return self._one_sided(INSERT, NEW_ROWS, NEW, blocks)

    def delete(self, *, blocks: bool = False) -> str:
        """Old rows, all of them."""
        return self._one_sided(DELETE, OLD_ROWS, OLD, blocks)

    def _one_sided(self, operation: str, table: str, alias: str, blocks: bool) -> str:
        where = f" WHERE {self._satisfied(alias)}" if self.when else ""
        rows = f"SELECT {self._parts(self._key(alias), self._rest(alias))} FROM {table} AS {alias}{where} OFFSET 0"
        return self._texts(self._checked(table, literal(self._opening(operation))), [], rows, blocks=blocks)

    def update(self, *, blocks: bool = False, whole: bool = False) -> str:
        """Rows that differ, grouped by what changed; a row whose key changed is a delete and an insert.

        With `whole`, also rows that differ in columns which the model does not have, and rows without a key, which pair
        with none. That costs as much as all the rest: PostgreSQL carries each row through the join twice.
        """
        first = f".{self._key_columns()[0]} IS NULL"
        # IS NULL would be true of a row that is there and has nothing but NULL.
        is_absent = ".* IS NOT DISTINCT FROM NULL" if whole else first
        left, came = f"{NEW}{is_absent}", f"{OLD}{is_absent}"
        masks = self._masks()
        moves = f"CASE WHEN {left} THEN {_KEY_LEFT} WHEN {came} THEN {_KEY_CAME} ELSE {masks[0]} END AS m0"
        others = [f"{mask} AS m{place}" for place, mask in enumerate(masks) if place]
        key = f"(CASE WHEN {came} THEN {self._key(NEW)} ELSE {self._key(OLD)} END)"
        rest = self._rest(OLD, NEW)
        if self.fields:
            rest = f"(CASE WHEN {left} THEN {self._rest(OLD)} WHEN {came} THEN {self._rest(NEW)} ELSE {rest} END)"
        tests = []
        if differs := self._watched_differ() or (f"{OLD}.* *<> {NEW}.*" if whole else ""):
            tests.append(f"({left} OR {came} OR {differs})")
        if self.when:
            tests.append(f"CASE WHEN {left} THEN {self._satisfied(OLD)} ELSE {self._satisfied(NEW)} END")
        where = f" WHERE {_all(tests)}" if tests else ""
        rows = (
            f"SELECT {', '.join([moves, *others, self._parts(key, rest)])} "
            f"FROM {OLD_ROWS} AS {OLD} FULL JOIN {NEW_ROWS} AS {NEW} ON {self.same_key()}{where} OFFSET 0"
        )
        names = [f"m{place}" for place in range(len(masks))]
        news = "" if differs else " WHERE " + " OR ".join(f"{name} <> 0" for name in names)
        return self._texts(self._checked(NEW_ROWS, self._update_opening()), names, rows, news, blocks=blocks)

    def _texts(self, opening: str, groups: list[str], rows: str, where: str = "", *, blocks: bool) -> str:
        """Rows, given as masks and parts, as a text for each group; as several for each where blocks are asked for.

        OFFSET 0 keeps PostgreSQL from working an expression out again for each place where it is used.
        """
        entry = "entry" if self.is_narrow else f"{self._fitted('key', 'rest')} AS entry"
        entries = "".join(f"{mask}, " for mask in groups) + entry
        if blocks:
            entries += f", row_number() OVER () / {max(_BLOCK // self._width, 1)} AS block"
            groups = [*groups, "block"]
        listed = ", ".join(groups)
        return (
            # The brackets of a row stand between rows, where they cost no step for each.
            f"SELECT {opening}, "
            f"convert_to('[' || string_agg(entry, ']' || {SEPARATOR} || '[') || ']', getdatabaseencoding()) "
            f"FROM (SELECT {entries} FROM ({rows}) AS parts{where}) AS entries "
            # Without groups there would be a text, of nothing, where there is no row.
            + (f"GROUP BY {listed} ORDER BY {listed}" if groups else "HAVING count(*) > 0")
        )

    # What both are made of.

    @property
    def _width(self) -> int:
        """Bytes of the widest entry."""
        widths = [self._kind(field).width for field in [*self.keys, *self.fields, *self.fields]]
        # With a comma after each, and the brackets.
        return min(sum(wire.MAX_PAYLOAD if width is None else width + 1 for width in widths) + 10, wire.MAX_PAYLOAD)

    @property
    def is_narrow(self) -> bool:
        """Whether every entry fits into any payload."""
        return self._width <= _NARROW

    def _parts(self, key: str, rest: str) -> str:
        """A row's entry, or what it is made of where it must be seen what fits."""
        return f"{self._fitted(key, rest)} AS entry" if self.is_narrow else f"{key} AS key, {rest} AS rest"

    def _fitted(self, key: str, rest: str) -> str:
        """What stands between the brackets of a row.

        A row that does not fit alone leaves its key; a key that does not fit leaves nothing.
        """
        whole = f"{key} || {rest}" if self.fields else key
        if self.is_narrow:
            return whole
        return (
            f"CASE WHEN octet_length({key}) + octet_length({rest}) + 2 <= room THEN {whole} "
            f"WHEN octet_length({key}) + 2 <= room THEN {key} ELSE '' END"
        )

    @staticmethod
    def _old_or_new(operation: str) -> str:
        return OLD if operation == DELETE else NEW

    def _watched_differ(self) -> str:
        tests = " OR ".join(self._differs(field) for field in self.watched)
        return f"({tests})" if tests else ""

    def _satisfied(self, alias: str) -> str:
        return condition(self.when, self.model, self.connection, alias) if self.when else ""

    def _checked(self, table: str, opening: str) -> str:
        """The opening; NULL where a column was given another type by hand, so that its text may be no JSON.

        The types are looked at in one row of a statement: within a statement they are the same.
        """
        tests = self._right_types("", lambda column: _BASE_TYPE.format(column=column))
        return f"CASE WHEN (SELECT {tests} FROM {table} LIMIT 1) THEN {opening} END" if tests else opening

    def _typed(self, alias: str, opening: str) -> str:
        # A domain is not looked into, which would take a query: here it counts as another type.
        tests = self._right_types(f"{alias}.", lambda column: f"pg_typeof({column})")
        return f"CASE WHEN {tests} THEN {opening} END" if tests else opening

    def _right_types(self, prefix: str, type_of: Callable[[str], str]) -> str:
        return _all(
            f"{type_of(f'{prefix}{self._column(field)}')} = ANY ('{{{','.join(types_of(family))}}}'::regtype[])"
            for field in dict.fromkeys([*self.keys, *self.fields])
            if (family := self._kind(field).family)
        )

    def _opening(self, operation: str) -> str:
        return f',"o":"{wire.OPERATION_CODES[operation]}"{self.common}'

    def _update_opening(self) -> str:
        """The opening of a group, from its masks."""
        left, came, stayed = (literal(self._opening(operation)) for operation in (DELETE, INSERT, UPDATE))
        tests = [
            f"CASE WHEN m{place} & {1 << bit} <> 0 THEN {literal(',' + json_text(field.name))} ELSE '' END"
            for place, group in enumerate(_chunks(self.compared))
            for bit, field in enumerate(group)
        ]
        listed = f"(SELECT {self.changed()} FROM (SELECT {' || '.join(tests) or chr(39) * 2} AS listed OFFSET 0) AS x)"
        return f"CASE m0 WHEN {_KEY_LEFT} THEN {left} WHEN {_KEY_CAME} THEN {came} ELSE {stayed} || {listed} END"

    @staticmethod
    def changed() -> str:
        """The part of an update's opening that names what changed, from `listed`.

        null where nothing is listed (a column that this function does not know has changed), or too much.
        """
        return (
            f"""',"c":' || CASE WHEN listed = '' OR octet_length(listed) > {MAX_NAMES} THEN 'null' """
            "ELSE '[' || substr(listed, 2) || ']' END"
        )

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
        old, new = (f"{alias}.{self._column(field)}" for alias in (OLD, NEW))
        if self._is_told_by_equality(field):
            differs = f"{old} IS DISTINCT FROM {new}"
        else:
            # Compared byte by byte: a column may be of a type that has no =, such as json.
            differs = f"record_image_ne(ROW({old}), ROW({new}))"
        version: int = self.connection.pg_version  # type: ignore[attr-defined]
        if (self._kind(field).width or _TOASTED) < _TOASTED or version < _TELLS_TOAST:
            return differs
        # A big value that an update left alone is the same one on disk, and need not be read.
        return f"({_are_two_on_disk(old, new)} AND {differs})"

    def _is_told_by_equality(self, field: Field[Any, Any]) -> bool:
        # A foreign key has the collation of what it refers to.
        return self._kind(field).comparable and not field.db_parameters(self.connection).get("collation")

    def _key_columns(self) -> list[str]:
        return [self._column(field) for field in self.keys]

    def _key(self, alias: str) -> str:
        parts = [self._json_of(field, alias) for field in self.keys]
        return parts[0] if len(parts) == 1 else _list(parts)

    def _rest(self, *aliases: str) -> str:
        """What follows the key in a row: the values of each side; NULL where one of them is too big in any case."""
        if not self.fields:
            return "''"
        sides = [" || ',' || ".join(self._json_of(field, alias) for field in self.fields) for alias in aliases]
        huge = [
            f"pg_column_size({alias}.{self._column(field)}) > {_HUGE}"
            for alias in aliases
            for field in self.fields
            if (self._kind(field).width or _HUGE) >= _HUGE
        ]
        values = "',[' || " + " || '],[' || ".join(sides) + " || ']'"
        return f"CASE WHEN {' OR '.join(huge)} THEN NULL ELSE {values} END" if huge else values

    def _json_of(self, field: Field[Any, Any], alias: str) -> str:
        return f"coalesce({self._kind(field).sql(f'{alias}.{self._column(field)}')}, 'null')"

    def _kind(self, field: Field[Any, Any]) -> Kind:
        if field not in self._kinds:
            self._kinds[field] = field_kind(field, self.connection)
        return self._kinds[field]

    def _column(self, field: Field[Any, Any]) -> str:
        return self.connection.ops.quote_name(str(field.column))


# Of a column; of a domain, the type that it is made of.
_BASE_TYPE = (
    "coalesce((SELECT nullif(typbasetype, 0) FROM pg_type WHERE oid = pg_typeof({column})), pg_typeof({column}))"
)


def _are_two_on_disk(old: str, new: str) -> str:
    """Whether two values are not one that is kept outside of the row."""
    return f"(pg_column_toast_chunk_id({old}) = pg_column_toast_chunk_id({new})) IS NOT TRUE"


def _all(tests: Iterable[str]) -> str:
    return " AND ".join(tests)


def _array_of_names(fields: Iterable[Any]) -> str:
    return f"ARRAY[{', '.join(literal(str(field.column)) for field in fields)}]::name[]"


def _list(parts: list[str]) -> str:
    return "'[' || " + " || ',' || ".join(parts) + " || ']'"


def _chunks(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + _MASK_BITS] for start in range(0, len(items), _MASK_BITS)]


def _names(fields: Iterable[Any]) -> str:
    return ",".join(json_text(field.name) for field in fields)
