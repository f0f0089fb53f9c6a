"""Whatever is written, the events are enough to write it again.

Hypothesis makes up transactions of statements. After each statement the table is read, inside the transaction, so that
what must be announced is known from PostgreSQL itself and not from a second account of SQL. Then the events that a
listener got are replayed into an empty table.

A long run: PGSIGNALS_EXAMPLES=5000 python -m pytest tests/test_replay_property.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest
from django.db import IntegrityError, connection, models, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgsignals import Notify, PgEvent

from .conftest import Listener
from .declaring.models import Thing
from .shop.models import Customer, Line, Order

EXAMPLES = int(os.environ.get("PGSIGNALS_EXAMPLES", "0"))

REFETCH = "the values did not fit; load them"

# Values are text that PostgreSQL casts to the column's type, or None.
Text = str | None
Key = tuple[str, ...]

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
HOSTILE = ["'", '"', "\\", "\\'", "\n\r\t", "\x01", "\x01\x01,[", "🛫é", "%s %%", "$pgsignals$", "null", "{}", "]}", ""]
SHORT = st.sampled_from(["a", "b", *HOSTILE]) | st.text(CHARACTERS, max_size=20)
BIG = st.builds(lambda one, size: one * size, st.sampled_from("xé\x01"), st.sampled_from([900, 3000, 7600, 8500]))
LONG = SHORT | BIG | BIG.map(lambda text: text + "!")


@dataclass(frozen=True)
class Table:
    """A declared table, and what may be written to it."""

    model: type[models.Model]
    travelling: tuple[str, ...]
    keys: tuple[Key, ...]
    many: Callable[[int], Key]
    """Keys without end, for bulk writes."""
    defaults: dict[str, Text]
    values: dict[str, st.SearchStrategy[Text]]
    deferrable: bool = False
    """The key is checked at the end of a statement, so that rows can swap keys. ON CONFLICT cannot use such a key."""
    behind: str = ""
    """A column that Django does not know of."""
    often: tuple[str, ...] = ()
    """Columns that updates change more often than others."""
    name: str = ""

    @property
    def table(self) -> str:
        return self.quoted(self.model._meta.db_table)

    @property
    def key_columns(self) -> list[str]:
        return [self.column(one.name) for one in self.model._meta.pk_fields]

    def column(self, name: str) -> str:
        return self.quoted(name if name == self.behind else self.model._meta.get_field(name).column)

    def value(self, name: str) -> str:
        """A parameter of the column's type."""
        if name == self.behind:
            return "%s::text"
        return f"%s::{self.model._meta.get_field(name).rel_db_type(connection)}"

    def key(self) -> str:
        """The key as a row of parameters."""
        return f"({', '.join(self.value(one.name) for one in self.model._meta.pk_fields)})"

    @staticmethod
    def quoted(name: str) -> str:
        return connection.ops.quote_name(name)


@dataclass(frozen=True)
class Row:
    """A row as the database has it: every column as text, and the travelling ones as Django loads them."""

    texts: dict[str, Text]
    values: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What an event must say."""

    op: str
    pk: Any = None
    changed: frozenset[str] = frozenset()
    old: Row | None = None
    new: Row | None = None
    incomplete: bool = False


class Writer:
    """Writes to one table, and keeps account of what each statement did that was not rolled back."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.statements: list[list[Said]] = []
        self.rows: dict[Any, Row] = {}

    def keys(self) -> list[Key]:
        """The keys of the rows, in their order, as text."""
        names = [one.name for one in self.table.model._meta.pk_fields]
        return [tuple(str(row.texts[name]) for name in names) for row in self.rows.values()]

    def execute(self, statement: str, *parameters: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
        before, self.rows = self.rows, self.read()
        self.statements.append(list(self.differences(before, self.rows)))

    def truncate(self) -> None:
        with connection.cursor() as cursor:
            # PostgreSQL truncates no table that a deferred constraint has yet to look at.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute(f"TRUNCATE {self.table.table} CASCADE")
        self.rows = {}
        self.statements.append([Said("truncate")])

    def read(self) -> dict[Any, Row]:
        table = self.table
        names = [one.name for one in table.model._meta.concrete_fields] + ([table.behind] if table.behind else [])
        texts = ", ".join(f"{table.column(name)}::text" for name in names)
        # By the table's name: the text of a column goes by the column's name too.
        order = ", ".join(f"{table.table}.{column}" for column in table.key_columns)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {texts} FROM {table.table} ORDER BY {order}")
            read = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        keys = [one.name for one in table.model._meta.pk_fields]
        loaded = table.model._base_manager.order_by(*keys).values(*dict.fromkeys([*keys, *table.travelling]))
        rows = {}
        for row, values in zip(read, loaded, strict=True):
            key = tuple(values[name] for name in keys)
            travelling = {name: values[name] for name in table.travelling}
            rows[key[0] if len(key) == 1 else key] = Row(row, travelling)
        return rows

    def differences(self, before: dict[Any, Row], after: dict[Any, Row]) -> Iterator[Said]:
        for pk in before.keys() - after.keys():
            yield Said("delete", pk, old=before[pk])
        for pk in after.keys() - before.keys():
            yield Said("insert", pk, new=after[pk])
        for pk in before.keys() & after.keys():
            old, new = before[pk], after[pk]
            if changed := {name for name, text in old.texts.items() if new.texts[name] != text}:
                known = frozenset(changed - {self.table.behind})
                yield Said("update", pk, known, old, new, incomplete=not known)

    @contextmanager
    def transaction(self, rolled_back: bool) -> Iterator[None]:
        """A transaction, or a savepoint inside one."""
        rows, statements = self.rows, len(self.statements)
        with transaction.atomic():
            yield
            if rolled_back:
                transaction.set_rollback(True)
                self.rows = rows
                del self.statements[statements:]


# The statements. Each can be written to any table in any state; where there is nothing for it to do, it does nothing.


@dataclass(frozen=True)
class Pick:
    """Some of the rows, by their place among those that are there, or all."""

    places: frozenset[int] | None = None

    def among(self, keys: list[Key]) -> list[Key]:
        if self.places is None:
            return keys
        return [keys[place] for place in sorted({place % len(keys) for place in self.places})] if keys else []

    def where(self, writer: Writer) -> tuple[str, list[Any]]:
        if self.places is None:
            return "true", []
        chosen = self.among(writer.keys())
        condition = f"({', '.join(writer.table.key_columns)}) IN ({', '.join([writer.table.key()] * len(chosen))})"
        return (condition, [part for key in chosen for part in key]) if chosen else ("false", [])


@dataclass(frozen=True)
class Assign:
    """A column set in all rows, or only in those with an even or odd key; to a value, or to what it is."""

    column: str
    value: Text
    parity: int | None = None
    same: bool = False

    def sql(self, table: Table) -> tuple[str, list[Any]]:
        column = table.column(self.column)
        if self.same:
            return f"{column} = {column}", []
        if self.parity is None:
            return f"{column} = {table.value(self.column)}", [self.value]
        test = f"{table.table}.{table.key_columns[0]} %% 2 = {self.parity}"
        return f"{column} = CASE WHEN {test} THEN {table.value(self.column)} ELSE {column} END", [self.value]


def assigned(assigns: tuple[Assign, ...], table: Table) -> tuple[str, list[Any]]:
    parts = [one.sql(table) for one in {one.column: one for one in assigns}.values()]
    return ", ".join(text for text, _ in parts), [value for _, values in parts for value in values]


@dataclass(frozen=True)
class Insert:
    """Rows; where one is there already, the statement fails and nothing of it is left."""

    rows: dict[Key, dict[str, Text]]

    def run(self, writer: Writer) -> None:
        try:
            with transaction.atomic():
                writer.execute(
                    f"INSERT INTO {inserted(writer.table)} VALUES {lines(writer.table, self.rows)}",
                    *cells(writer.table, self.rows),
                )
        except IntegrityError:
            assert set(self.rows) & set(writer.keys())


def inserted(table: Table) -> str:
    return f"{table.table} ({', '.join([*table.key_columns, *(table.column(name) for name in table.defaults)])})"


def lines(table: Table, rows: dict[Key, dict[str, Text]]) -> str:
    line = ", ".join([table.key()[1:-1], *(table.value(name) for name in table.defaults)])
    return ", ".join([f"({line})"] * len(rows))


def cells(table: Table, rows: dict[Key, dict[str, Text]]) -> list[Text]:
    return [cell for key, row in rows.items() for cell in (*key, *(table.defaults | row).values())]


@dataclass(frozen=True)
class Bulk:
    """Many new rows, of which no notification can hold all."""

    count: int
    row: dict[str, Text]

    def run(self, writer: Writer) -> None:
        taken = set(writer.keys())
        rows = {key: self.row for number in range(self.count) if (key := writer.table.many(number)) not in taken}
        if rows:
            Insert(rows).run(writer)


@dataclass(frozen=True)
class Update:
    pick: Pick
    assigns: tuple[Assign, ...]

    def run(self, writer: Writer) -> None:
        assigns, values = assigned(self.assigns, writer.table)
        where, keys = self.pick.where(writer)
        writer.execute(f"UPDATE {writer.table.table} SET {assigns} WHERE {where}", *values, *keys)


@dataclass(frozen=True)
class Delete:
    pick: Pick

    def run(self, writer: Writer) -> None:
        where, keys = self.pick.where(writer)
        writer.execute(f"DELETE FROM {writer.table.table} WHERE {where}", *keys)


@dataclass(frozen=True)
class Upsert:
    """INSERT ... ON CONFLICT DO UPDATE of some columns, or DO NOTHING."""

    rows: dict[Key, dict[str, Text]]
    columns: frozenset[str]

    def run(self, writer: Writer) -> None:
        table = writer.table
        columns = [table.column(name) for name in table.defaults if name in self.columns]
        update = ", ".join(f"{column} = EXCLUDED.{column}" for column in columns)
        writer.execute(
            f"INSERT INTO {inserted(table)} VALUES {lines(table, self.rows)} "
            f"ON CONFLICT ({', '.join(table.key_columns)}) DO {f'UPDATE SET {update}' if update else 'NOTHING'}",
            *cells(table, self.rows),
        )


@dataclass(frozen=True)
class Merge:
    """Rows that are there are updated, and those with an even key deleted or left alone; the others are inserted."""

    rows: dict[Key, dict[str, Text]]
    even: str

    def run(self, writer: Writer) -> None:
        table = writer.table
        names = [*table.key_columns, *(table.column(name) for name in table.defaults)]
        updates = ", ".join(f"{name} = s.{name}" for name in names[len(table.key_columns) :])
        same = " AND ".join(f"t.{key} = s.{key}" for key in table.key_columns)
        writer.execute(
            f"MERGE INTO {table.table} AS t "
            f"USING (VALUES {lines(table, self.rows)}) AS s ({', '.join(names)}) ON {same} "
            f"WHEN MATCHED AND s.{names[0]} %% 2 = 0 THEN {self.even} WHEN MATCHED THEN UPDATE SET {updates} "
            f"WHEN NOT MATCHED THEN INSERT ({', '.join(names)}) VALUES ({', '.join(f's.{name}' for name in names)})",
            *cells(table, self.rows),
        )


@dataclass(frozen=True)
class Move:
    """The first column of the key is shifted; other columns may change along with it."""

    pick: Pick
    by: int
    assigns: tuple[Assign, ...]

    def run(self, writer: Writer) -> None:
        keys = writer.keys()
        moving = self.pick.among(keys)
        moved = {(str(int(first) + self.by), *rest) for first, *rest in moving}
        if moved & (set(keys) - set(moving) if writer.table.deferrable else set(keys)):
            return
        assigns, values = assigned(self.assigns, writer.table)
        where, picked = self.pick.where(writer)
        first = writer.table.key_columns[0]
        writer.execute(
            f"UPDATE {writer.table.table} SET {', '.join(filter(None, [f'{first} = {first} + %s', assigns]))} "
            f"WHERE {where}",
            self.by,
            *values,
            *picked,
        )


@dataclass(frozen=True)
class Swap:
    """Two rows change keys, in one statement."""

    one: int
    other: int

    def run(self, writer: Writer) -> None:
        keys = Pick(frozenset([self.one, self.other])).among(writer.keys())
        if len(keys) < 2 or not writer.table.deferrable:
            return
        table, (one, other) = writer.table, keys
        columns = f"({', '.join(table.key_columns)})"
        both = ", ".join(
            f"{table.column(part.name)} = CASE WHEN {columns} = {table.key()} "
            f"THEN {table.value(part.name)} ELSE {table.value(part.name)} END"
            for part in table.model._meta.pk_fields
        )
        values = [value for here, there in zip(one, other, strict=True) for value in (*one, there, here)]
        writer.execute(
            f"UPDATE {table.table} SET {both} WHERE {columns} IN ({table.key()}, {table.key()})", *values, *one, *other
        )


@dataclass(frozen=True)
class Carry:
    """One statement that deletes rows and inserts them elsewhere."""

    pick: Pick

    def run(self, writer: Writer) -> None:
        table, keys = writer.table, writer.keys()
        if {(str(int(first) + 2000), *rest) for first, *rest in self.pick.among(keys)} & set(keys):
            return
        where, picked = self.pick.where(writer)
        first, *others = [*table.key_columns, *(table.column(name) for name in table.defaults)]
        writer.execute(
            f"WITH gone AS (DELETE FROM {table.table} WHERE {where} RETURNING *) "
            f"INSERT INTO {inserted(table)} SELECT {', '.join([f'{first} + 2000', *others])} FROM gone",
            *picked,
        )


@dataclass(frozen=True)
class UpdateTwice:
    """One statement with two updates, of rows with even and with odd keys."""

    even: tuple[Assign, ...]
    odd: tuple[Assign, ...]

    def run(self, writer: Writer) -> None:
        table = writer.table
        even, even_values = assigned(self.even, table)
        odd, odd_values = assigned(self.odd, table)
        first = table.key_columns[0]
        writer.execute(
            f"WITH others AS (UPDATE {table.table} SET {even} WHERE {first} %% 2 = 0 RETURNING 1) "
            f"UPDATE {table.table} SET {odd} WHERE {first} %% 2 = 1",
            *even_values,
            *odd_values,
        )


@dataclass(frozen=True)
class Truncate:
    def run(self, writer: Writer) -> None:
        writer.truncate()


@dataclass(frozen=True)
class Block:
    """Steps in a transaction (in a savepoint, where there is one already), or, as `plain`, each as it stands."""

    kind: str
    steps: list[Any] = field(default_factory=list)

    def run(self, writer: Writer) -> None:
        if self.kind == "plain":
            for step in self.steps:
                step.run(writer)
            return
        with writer.transaction(rolled_back=self.kind == "rolled back"):
            for step in self.steps:
                step.run(writer)


def writes(table: Table) -> st.SearchStrategy[tuple[dict[Key, dict[str, Text]], list[Block]]]:
    """Rows to begin with, and transactions with steps that suit the table."""
    row = st.fixed_dictionaries({}, optional=dict(table.values))
    rows = st.dictionaries(st.sampled_from(table.keys), row, min_size=1, max_size=4)
    pick = st.builds(Pick, st.frozensets(st.integers(0, 4), min_size=1, max_size=3) | st.none())
    assign = st.sampled_from(table.often + tuple(table.values)).flatmap(
        lambda name: st.builds(
            Assign,
            st.just(name),
            table.values[name],
            st.sampled_from([None, 0, 1]),
            st.sampled_from([False, False, True]),
        )
    )
    assigns = st.lists(assign, min_size=1, max_size=4).map(tuple)
    steps = [
        st.builds(Insert, rows),
        st.builds(Update, pick, assigns),
        st.builds(Update, pick, assign.map(lambda one: (one,))),
        st.builds(Update, pick, assigns.map(lambda several: several[:2])),
        st.builds(Delete, pick),
        st.builds(Merge, rows, st.sampled_from(["DELETE", "DO NOTHING"])),
        st.builds(Move, pick, st.sampled_from([1000, -1000, 1, -1]), st.lists(assign, max_size=2).map(tuple)),
        st.builds(Carry, pick),
        st.builds(UpdateTwice, assigns, assigns),
        st.builds(Bulk, st.integers(20, 60), row),
        st.builds(Truncate),
    ]
    if table.deferrable:
        steps.append(st.builds(Swap, st.integers(0, 4), st.integers(0, 4)))
    else:
        steps.append(st.builds(Upsert, rows, st.frozensets(st.sampled_from(sorted(table.values)))))
    step = st.one_of(steps)
    kinds = st.sampled_from(["plain", "kept", "kept", "rolled back"])
    inner = st.builds(Block, kinds, st.lists(step, min_size=1, max_size=4))
    outer = st.builds(Block, kinds, st.lists(step | step | inner, min_size=1, max_size=6))
    return st.tuples(rows, st.lists(outer, min_size=1, max_size=4))


# What the events must be.


def exact(value: Any) -> Any:
    """Equal only where the type is the same too, also within: 1 is neither True nor 1.0."""
    if isinstance(value, dict):
        return {key: exact(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(exact, value)]
    # Decimals of other scale are equal to Python.
    return (type(value).__name__, value, str(value))


def replay(events: list[PgEvent]) -> dict[Any, Any]:
    """The table that the events make. Each must fit what those before it made."""
    table: dict[Any, Any] = {}
    for event in events:
        if event.op == "truncate":
            table.clear()
            continue
        if event.op == "insert":
            assert event.pk not in table, event
        else:
            assert event.pk in table, event
            before = table.pop(event.pk)
            if not event.truncated and before != REFETCH:
                assert event.old is not None
                assert exact(dict(event.old)) == before, event
        if event.op != "delete":
            if not event.truncated:
                assert event.new is not None
            table[event.pk] = REFETCH if event.new is None else exact(dict(event.new))
    return table


def fits(said: Said, travelling: tuple[str, ...]) -> bool | None:
    """Whether the event's values fit into a notification; None where that is close."""
    texts = [row.texts[name] or "" for row in (said.old, said.new) if row for name in travelling]
    if sum(len(text.encode()) for text in texts) > 8000:
        return False
    return True if sum(len(json.dumps(text)) + 40 for text in texts) < 6500 else None


def compare(event: PgEvent, said: Said, travelling: tuple[str, ...]) -> None:
    assert (event.op, event.pk, event.changed, event.incomplete) == (said.op, said.pk, said.changed, said.incomplete)
    assert type(event.pk) is type(said.pk)
    if said.op == "truncate":
        return
    if not said.incomplete:
        assert fits(said, travelling) in (not event.truncated, None)
    for values, row in ((event.old, said.old), (event.new, said.new)):
        if event.truncated or row is None:
            assert values is None
        else:
            assert values is not None
            assert exact(dict(values)) == exact(row.values)


def check(table: Table, rows: dict[Key, dict[str, Text]], transactions: list[Block], listener: Listener) -> None:
    writer = Writer(table)
    writer.truncate()
    listener.notifications()
    writer.statements.clear()
    Insert(rows).run(writer)
    for block in transactions:
        block.run(writer)
    events = listener.events()

    rest = iter(events)
    for statement in writer.statements:
        # Statements come in their order; the rows of one in any.
        here = {event.pk: event for event in islice(rest, len(statement))}
        assert here.keys() == {said.pk for said in statement}
        for said in statement:
            compare(here[said.pk], said, table.travelling)
    assert list(rest) == []

    replayed = replay(events)
    in_fact = {pk: exact(row.values) for pk, row in writer.read().items()}
    assert replayed.keys() == in_fact.keys()
    assert {pk: in_fact[pk] if row == REFETCH else row for pk, row in replayed.items()} == in_fact


# The tables.

THINGS = Table(
    name="__all__ of many types",
    model=Thing,
    often=("title", "title", "title"),
    travelling=tuple(one.name for one in Thing._meta.concrete_fields),
    keys=tuple((str(number),) for number in range(1, 6)),
    many=lambda number: (str(100 + number),),
    defaults={
        "title": "",
        "status": "new",
        "number": "0",
        "other": "0",
        "price": None,
        "day": None,
        "moment": None,
        "lasts": None,
        "active": None,
        "colour": "r",
        "token": "00000000-0000-0000-0000-000000000000",
        "data": None,
        "blob": None,
        "address": None,
        "numbers": None,
    },
    values={
        "title": st.none() | LONG,
        "status": SHORT,
        "number": st.sampled_from([None, "1", "-2147483648"]),
        "price": st.sampled_from([None, "0", "0.10", "-9999999999.99"]),
        "day": st.sampled_from([None, "2013-07-10", "0001-01-01"]),
        "moment": st.sampled_from([None, "2013-07-10 12:00:00.123456+02", "1900-01-01 00:00:00+00"]),
        "lasts": st.sampled_from([None, "1 day", "24:00:00", "1 mon", "-00:00:00.000001"]),
        "active": st.sampled_from([None, "true", "false"]),
        "token": st.uuids().map(str),
        "data": st.sampled_from([None, "null", "1", "1.0", '{"a": [1, "\\u0001\\"", null]}', '"x"']),
        "blob": st.none() | st.binary(max_size=8).map(lambda blob: "\\x" + blob.hex()),
        "address": st.sampled_from([None, "192.168.0.1", "::1"]),
        "numbers": st.sampled_from([None, "{}", "{1,NULL,3}"]),
    },
)

LINES = Table(
    name="composite key",
    model=Line,
    travelling=("quantity",),
    keys=tuple((str(number), text) for number in (1, 2, 3) for text in ("a", "'\\\"\x01,", "")),
    many=lambda number: (str(100 + number), "é" * 150),
    defaults={"quantity": "1"},
    values={"quantity": st.sampled_from(["0", "1", "2", "2147483647"])},
    deferrable=True,
)

ORDERS = Table(
    name="some fields, and a column behind Django's back",
    model=Order,
    often=("behind",),
    travelling=("status", "total", "customer"),
    keys=tuple((str(number),) for number in range(1, 6)),
    many=lambda number: (str(100 + number),),
    defaults={"status": "new", "total": "0", "customer": None, "note": "", "placed_at": None, "behind": None},
    values={
        "status": SHORT,
        "total": st.sampled_from(["0", "1.5", "-1.50"]),
        "customer": st.sampled_from([None, "1", "2"]),
        "note": LONG,
        "placed_at": st.sampled_from([None, "2013-07-10 12:00:00.123456+02"]),
        "behind": st.none() | SHORT,
    },
    behind="behind",
)


def statements(*texts: str) -> None:
    with connection.cursor() as cursor:
        for text in texts:
            cursor.execute(text)


@pytest.fixture(params=[THINGS, LINES, ORDERS], ids=lambda table: table.name)
def table(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[Table]:
    """The table, declared; and as it was, afterwards."""
    if request.param is THINGS:
        declaration = Notify(name="replayed", fields="__all__")
        with connection.schema_editor() as editor:
            editor.add_constraint(Thing, declaration)
        yield request.param
        with connection.schema_editor() as editor:
            editor.remove_constraint(Thing, declaration)
    elif request.param is LINES:
        key = "ALTER TABLE shop_line DROP CONSTRAINT shop_line_pkey, ADD PRIMARY KEY (order_number, position)"
        statements(f"{key} DEFERRABLE")
        yield request.param
        statements(key)
    else:
        Customer.objects.bulk_create([Customer(pk=1), Customer(pk=2)])
        statements("ALTER TABLE shop_order ADD COLUMN behind text")
        yield request.param
        statements("ALTER TABLE shop_order DROP COLUMN behind")


def test_the_events_of_any_writes_make_the_same_table(table: Table, listener: Listener) -> None:
    """And each says exactly what its statement did: no event too many, none too few, of nothing rolled back."""

    @settings(
        # The same examples in each run, unless a long one is asked for.
        max_examples=EXAMPLES or 50,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(writes(table))
    def run(written: tuple[dict[Key, dict[str, Text]], list[Block]]) -> None:
        check(table, *written, listener)

    run()
