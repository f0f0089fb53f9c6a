"""The body of a durable declaration's trigger function: a row of the log for each row that a statement wrote.

The log row is written in the writer's transaction, so it is there exactly where the write is. The function is SECURITY
DEFINER: who may write the table needs no rights on the log. There are two attempts: what was declared; and, where the
table is not as the function knows it, the whole row as JSON, marked incomplete. A write fails only where the event
cannot be stored at all.
"""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING, Any

from .. import wire
from ..context import MAX_CONTEXT, MAX_NESTED
from ..event import DELETE, INSERT, TRUNCATE, UPDATE
from ..tables import LOG, RANG, slot_of
from .columns import find_field
from .rows import NEW, NEW_ROWS, OLD, OLD_ROWS, Rows, json_text, literal

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Field, Model

    from .declaration import Notify

CAPTURED_LOG = "log"
"""In place of a channel in what pgsignals.testing captures: the payload is then a log row's id."""


def body(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The PL/pgSQL between the dollars."""
    rows = _LogRows(model, connection, declaration)
    return _BODY.substitute(
        start=literal(
            f'{{"v":{wire.VERSION},"d":{json_text(declaration.name)},"m":{json_text(model._meta.label_lower)},'
            + (f'"ch":{json_text(declaration.channel)},' if declaration.channel else "")
            + '"s":'
        ),
        max_context=MAX_CONTEXT,
        max_nested=MAX_NESTED,
        source=literal(model._meta.label_lower),
        columns=f"{_log(connection)} (xid, at, source, op, key, slot, rings, head, body)",
        rang=literal(RANG),
        inserts=rows.stored(INSERT),
        updates=rows.stored(UPDATE),
        deletes=rows.stored(DELETE),
        raw_inserts=rows.raw(INSERT),
        raw_updates=rows.raw(UPDATE),
        raw_deletes=rows.raw(DELETE),
        truncate_code=literal(wire.OPERATION_CODES[TRUNCATE]),
        no_key=literal("null"),
        no_slot=slot_of(literal("null")),
        old_rows=OLD_ROWS,
        new_rows=NEW_ROWS,
        known=rows.known,
        hint=literal(
            'The write itself is kept, and the whole row with its event. Run "manage.py pgsignals sync" where this '
            "database is migrated, so that the trigger knows its table again."
        ),
    )


def _log(connection: BaseDatabaseWrapper) -> str:
    """The log's table with its schema: the function's search_path leads to no table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce((SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class "
            "WHERE oid = pg_catalog.to_regclass(%s)), quote_ident(current_schema()))",
            [LOG],
        )
        return f"{cursor.fetchone()[0]}.{LOG}"


# Variables of the function. A table may have columns of any name, so these are of none that one would have.
_HEAD = "pgsignals_head"
_RINGS = "pgsignals_rings AND row_number() OVER () = 1"


class _LogRows(Rows):
    """As Rows, where there is room for values of any size."""

    def __init__(self, model: type[Model], connection: BaseDatabaseWrapper, declaration: Notify) -> None:
        super().__init__(model, connection, declaration)
        self.ordered_by: Field[Any, Any] | None = find_field(model, declaration.key) if declaration.key else None

    @property
    def _common(self) -> str:
        return f"pgsignals_writer, pgsignals_moment, {literal(self.model._meta.label_lower)}"

    def stored(self, operation: str) -> str:
        """The SELECT of what the log gets of a statement's rows."""
        if operation == UPDATE:
            return self._stored_updates()
        alias, table = (OLD, OLD_ROWS) if operation == DELETE else (NEW, NEW_ROWS)
        where = f" WHERE {self._satisfied(alias)}" if self.when else ""
        return self._select(
            literal(wire.OPERATION_CODES[operation]),
            self._order_key(alias),
            f"{_HEAD} || {literal(self._opening(operation))} || '}}'",
            f"'[' || {self._key(alias)} || {self._rest(alias)} || ']'",
            f"{table} AS {alias}{where}",
            table,
        )

    def _stored_updates(self) -> str:
        """A changed primary key is a delete and an insert, each in its own row of the log, as everywhere."""
        first = self._key_columns()[0]
        left, came = f"{NEW}.{first} IS NULL", f"{OLD}.{first} IS NULL"
        names = self.changed_names()
        tests = [self._watched_differ() or f"{OLD}.* *<> {NEW}.*"]
        condition = f"({left} OR {came} OR {tests[0]})"
        if self.when:
            condition += f" AND CASE WHEN {left} THEN {self._satisfied(OLD)} ELSE {self._satisfied(NEW)} END"
        code, opening = (
            f"CASE WHEN {left} THEN {literal(of_left)} WHEN {came} THEN {literal(of_came)} ELSE {stays} END"
            for of_left, of_came, stays in (
                (wire.OPERATION_CODES[DELETE], wire.OPERATION_CODES[INSERT], literal(wire.OPERATION_CODES[UPDATE])),
                (
                    self._opening(DELETE),
                    self._opening(INSERT),
                    f"""{literal(self._opening(UPDATE))} || ',"c":' """
                    # A column that this function does not know has changed: nobody can tell which.
                    f"|| coalesce('[' || nullif(substr({names}, 2), '') || ']', 'null')",
                ),
            )
        )
        key = f"(CASE WHEN {left} THEN {self._order_key(OLD)} ELSE {self._order_key(NEW)} END)"
        body = (
            f"'[' || CASE WHEN {left} THEN {self._key(OLD)} || {self._rest(OLD)} "
            f"WHEN {came} THEN {self._key(NEW)} || {self._rest(NEW)} "
            f"ELSE {self._key(OLD)} || {self._rest(OLD, NEW)} END || ']'"
        )
        joined = f"{OLD_ROWS} AS {OLD} FULL JOIN {NEW_ROWS} AS {NEW} ON {self.same_key()} WHERE {condition}"
        return self._select(code, key, f"{_HEAD} || {opening} || '}}'", body, joined, NEW_ROWS)

    def _select(self, code: str, key: str, head: str, body: str, source: str, table: str) -> str:
        # NULL where a column is of another type than its field: the log's NOT NULL then leads to the second attempt.
        # OFFSET 0 keeps PostgreSQL from working the key out once more for its slot.
        return (
            f"SELECT {self._common}, entries.code, entries.key, {slot_of('entries.key')}, {_RINGS}, "
            "entries.head, entries.body "
            f"FROM (SELECT {code} AS code, {key} AS key, {self._checked(table, head)} AS head, {body} AS body "
            f"FROM {source} OFFSET 0) AS entries"
        )

    def _rest(self, *aliases: str) -> str:
        if not self.fields:
            return "''"
        sides = [" || ',' || ".join(self._json_of(field, alias) for field in self.fields) for alias in aliases]
        return "',[' || " + " || '],[' || ".join(sides) + " || ']'"

    def _order_key(self, alias: str) -> str:
        return self._json_of(self.ordered_by, alias) if self.ordered_by is not None else self._key(alias)

    def raw(self, operation: str) -> str:
        """The SELECT that names no column, and so fits every table."""
        sides = {INSERT: (None, NEW), DELETE: (OLD, None), UPDATE: (OLD, NEW)}[operation]
        row = NEW if sides[1] else OLD
        columns = [literal(str(field.column)) for field in ([self.ordered_by] if self.ordered_by else self.keys)]
        code = literal(wire.OPERATION_CODES[operation])
        if len(columns) == 1:
            key = f"coalesce((to_jsonb({row}.*) -> {columns[0]})::text, 'null')"
        else:
            key = (
                "'[' || "
                + " || ',' || ".join(f"coalesce((to_jsonb({row}.*) -> {column})::text, 'null')" for column in columns)
                + " || ']'"
            )
        said = [
            f"""',"{name}":' || coalesce(to_jsonb({alias}.*)::text, 'null')"""
            for name, alias in (("old", sides[0]), ("new", sides[1]))
            if alias
        ]
        tables = {INSERT: f"{NEW_ROWS} AS {NEW}", DELETE: f"{OLD_ROWS} AS {OLD}"}
        keys = [literal(str(field.column)) for field in self.keys]
        # Hashed: a nested loop would stay one for a session's bulk statements.
        same = " AND ".join(f"to_jsonb({OLD}.*) -> {column} = to_jsonb({NEW}.*) -> {column}" for column in keys)
        tables[UPDATE] = f"{NEW_ROWS} AS {NEW} FULL JOIN {OLD_ROWS} AS {OLD} ON {same}"
        if operation == UPDATE:
            key = key.replace(f"to_jsonb({NEW}.*)", f"to_jsonb(coalesce({NEW}, {OLD}))")
        return (
            f"SELECT {self._common}, {code}, entries.key, {slot_of('entries.key')}, {_RINGS}, "
            f"""{_HEAD} || ',"o":"{wire.OPERATION_CODES[operation]}","i":1}}', entries.body """
            f"FROM (SELECT {key} AS key, '{{' || substr({' || '.join(said)}, 2) || '}}' AS body "
            f"FROM {tables[operation]} OFFSET 0) AS entries"
        )


_BODY = Template("""
#variable_conflict use_variable
DECLARE
    pgsignals_head text;
    pgsignals_context text;
    pgsignals_writer xid8 := pg_current_xact_id();
    pgsignals_moment timestamptz := clock_timestamp();
    pgsignals_rings boolean := current_setting($rang, true) IS DISTINCT FROM pgsignals_writer::text;
    pgsignals_written bigint;
    pgsignals_problem text;
BEGIN
    IF current_setting('pgsignals.silenced', true) = 'on' THEN
        RETURN NULL;
    END IF;
    pgsignals_head := $start || to_json(TG_TABLE_SCHEMA::text)::text;
    pgsignals_context := current_setting('pgsignals.context', true);
    IF pgsignals_context <> '' THEN
        BEGIN
            IF octet_length(pgsignals_context) > $max_context OR json_typeof(pgsignals_context::json) <> 'object' OR
                octet_length(translate(pgsignals_context, '[{', '')) < octet_length(pgsignals_context) - $max_nested
            THEN
                RAISE EXCEPTION 'it is no JSON object that is small and flat enough';
            END IF;
            pgsignals_head := pgsignals_head || ',"k":' || pgsignals_context;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'pgsignals: the setting pgsignals.context is left out of this event: %', SQLERRM
                USING HINT = 'The write itself is kept. Whoever sets it must set it to such an object, or to nothing.';
        END;
    END IF;
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO $columns $inserts;
        ELSIF TG_OP = 'UPDATE' THEN
            INSERT INTO $columns $updates;
        ELSIF TG_OP = 'DELETE' THEN
            INSERT INTO $columns $deletes;
        ELSE
            INSERT INTO $columns VALUES (pgsignals_writer, pgsignals_moment, $source, $truncate_code, $no_key, $no_slot,
                pgsignals_rings, pgsignals_head || ',"o":"t"}', '[]');
        END IF;
        GET DIAGNOSTICS pgsignals_written = ROW_COUNT;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS pgsignals_problem = MESSAGE_TEXT;
        RAISE WARNING 'pgsignals: trigger % cannot say all about this % of %.%: % (%)',
            TG_NAME, TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, pgsignals_problem, SQLSTATE USING HINT = $hint;
        IF TG_OP = 'INSERT' THEN
            INSERT INTO $columns $raw_inserts;
        ELSIF TG_OP = 'UPDATE' THEN
            INSERT INTO $columns $raw_updates;
        ELSE
            INSERT INTO $columns $raw_deletes;
        END IF;
        GET DIAGNOSTICS pgsignals_written = ROW_COUNT;
    END;
    IF pgsignals_rings AND pgsignals_written > 0 THEN
        PERFORM set_config($rang, pgsignals_writer::text, true);
    END IF;
    RETURN NULL;
END
""")
