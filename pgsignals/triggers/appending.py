"""The body of a durable declaration's trigger function: a row of the log for each row that a statement wrote.

The log row is written in the writer's transaction, so it is there exactly where the write is. The function is SECURITY
DEFINER: who may write the table needs no rights on the log. There are three attempts: the short way for a single row;
what was declared, of any number of rows; and, where the table is not as the function knows it, the whole row as JSON,
marked incomplete. A write fails only where the event cannot be stored at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import wire
from ..context import MAX_CONTEXT, MAX_NESTED
from ..event import DELETE, INSERT, UPDATE
from ..tables import LOG, RANG, slot_of
from .columns import find_field
from .rows import NEW, NEW_ROWS, OLD, OLD_ROWS, Rows, json_text, literal, unless

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Field, Model

    from .declaration import Notify

CAPTURED_LOG = "log"
"""In place of a channel in what pgsignals.testing captures: the payload is then a log row's id."""


def body(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The PL/pgSQL between the dollars."""
    rows = _LogRows(model, connection, declaration)
    channel = f'"ch":{json_text(declaration.channel)},' if declaration.channel else ""
    start = (
        f'{{"v":{wire.VERSION},"d":{json_text(declaration.name)},"m":{json_text(model._meta.label_lower)},{channel}"s":'
    )
    return _BODY.substitute(
        head=f"{literal(start)} || to_json(TG_TABLE_SCHEMA::text)::text || pgsignals_context",
        max_context=MAX_CONTEXT,
        max_nested=MAX_NESTED,
        columns=f"{_log(connection)} (xid, at, source, op, key, slot, rings, head, body)",
        rang=literal(RANG),
        source=rows.source,
        slot=slot_of("pgsignals_key"),
        first=_FIRST,
        old=OLD,
        new=NEW,
        **rows.of_one(start),
        inserts=rows.stored(INSERT),
        updates=rows.stored(UPDATE),
        deletes=rows.stored(DELETE),
        raw_inserts=rows.raw(INSERT),
        raw_updates=rows.raw(UPDATE),
        raw_deletes=rows.raw(DELETE),
        old_rows=OLD_ROWS,
        new_rows=NEW_ROWS,
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
# Not before there is a row: to ask for a transaction's id gives it one.
_FIRST = f"current_setting({literal(RANG)}, true) IS DISTINCT FROM pg_current_xact_id()::text"
_RINGS = f"row_number() OVER () = 1 AND {_FIRST}"


class _Sql(NamedTuple):
    """An expression among literal text."""

    text: str


_MOST_ARGUMENTS = 50
"""PostgreSQL passes a hundred to a function, at most."""


def _formatted(*parts: str | _Sql) -> str:
    """The text of parts, one after the other.

    By as few functions as can be: for a single row PostgreSQL takes longer to prepare one than to call it.
    """
    expressions = [place for place, part in enumerate(parts) if isinstance(part, _Sql)]
    if len(expressions) > _MOST_ARGUMENTS:
        split = expressions[_MOST_ARGUMENTS]
        return f"{_formatted(*parts[:split])} || {_formatted(*parts[split:])}"
    template = "".join("%s" if isinstance(part, _Sql) else part.replace("%", "%%") for part in parts)
    return f"format({', '.join([literal(template), *(part.text for part in parts if isinstance(part, _Sql))])})"


def _listed(names: str) -> str:
    """The JSON of names that stand each after a comma."""
    # A column that this function does not know has changed: nobody can tell which.
    return f"coalesce('[' || nullif(substr({names}, 2), '') || ']', 'null')"


class _LogRows(Rows):
    """As Rows, where there is room for values of any size."""

    def __init__(self, model: type[Model], connection: BaseDatabaseWrapper, declaration: Notify) -> None:
        super().__init__(model, connection, declaration)
        self.ordered_by: Field[Any, Any] | None = find_field(model, declaration.key) if declaration.key else None

    @property
    def _common(self) -> str:
        return f"pg_current_xact_id(), pgsignals_moment, {self.source}"

    @property
    def source(self) -> str:
        """Where an event comes from, as the log names it."""
        return literal(self.model._meta.label_lower)

    def of_one(self, start: str) -> dict[str, str]:
        """For each operation, the expressions of what the log gets of a statement's only row.

        start: how a head begins, up to the schema.
        """
        parts = {"same_key": self.same_key(), "unless_update_satisfied": unless(self._update_tests())}
        for operation, aliases in ((INSERT, [NEW]), (UPDATE, [OLD, NEW]), (DELETE, [OLD])):
            alias = aliases[-1]
            parts |= {
                f"{operation}_head": self._typed(alias, self._head_of_one(start, operation)),
                f"{operation}_key": self._order_key(alias),
                f"{operation}_body": self._body_of_one(aliases),
            }
            if operation != UPDATE:
                parts[f"unless_{operation}_satisfied"] = unless(self.satisfied(operation))
        return parts

    def _head_of_one(self, start: str, operation: str) -> str:
        head: list[str | _Sql] = [start]
        head += [_Sql("to_json(TG_TABLE_SCHEMA::text)"), _Sql("pgsignals_context"), self._opening(operation)]
        if operation == UPDATE:
            head += [',"c":', _Sql(_listed(_formatted(*map(_Sql, self._each_changed_name()))))]
        return _formatted(*head, "}")

    def _body_of_one(self, aliases: Sequence[str]) -> str:
        key = "pgsignals_key" if self.ordered_by is None else self._key(aliases[-1])
        body: list[str | _Sql] = ["[", _Sql(key)]
        for alias in aliases if self.fields else ():
            for place, field in enumerate(self.fields):
                body += ["," if place else ",[", _Sql(self._json_of(field, alias))]
            body.append("]")
        return _formatted(*body, "]")

    def _update_tests(self) -> str:
        """Whether an update of the row is to be stored."""
        differs = self._watched_differ() or f"{OLD} *<> {NEW}"
        return " AND ".join(filter(None, [differs, self.satisfied(UPDATE)]))

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
        # IS NULL would be true of a row that is there and has nothing but NULL.
        left, came = (f"{alias}.* IS NOT DISTINCT FROM NULL" for alias in (NEW, OLD))
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
                    f"""{literal(self._opening(UPDATE))} || ',"c":' || {_listed(self.changed_names())}""",
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


# First the way of a single row, which is the usual one: its texts are worked out in a subtransaction that writes
# nothing, and so gets no transaction id of its own, and are then appended. It ends quietly where there is not one row
# (STRICT raises then), where the key changed, and where the table is not as the function knows it.
_BODY = Template("""
#variable_conflict use_column
DECLARE
    $old record;
    $new record;
    pgsignals_context text = '';
    pgsignals_code text;
    pgsignals_head text;
    pgsignals_key text;
    pgsignals_body text;
    pgsignals_moment timestamptz;
    pgsignals_written bigint;
    pgsignals_problem text;
BEGIN
    -- One look in the usual case, in which there is neither.
    IF concat(current_setting('pgsignals.silenced', true), current_setting('pgsignals.context', true)) <> '' THEN
        IF current_setting('pgsignals.silenced', true) = 'on' THEN
            RETURN NULL;
        END IF;
        pgsignals_context := coalesce(current_setting('pgsignals.context', true), '');
        BEGIN
            IF pgsignals_context = '' THEN
                NULL;
            ELSIF octet_length(pgsignals_context) > $max_context OR json_typeof(pgsignals_context::json) <> 'object' OR
                octet_length(translate(pgsignals_context, '[{', '')) < octet_length(pgsignals_context) - $max_nested
            THEN
                RAISE EXCEPTION 'it is no JSON object that is small and flat enough';
            ELSE
                pgsignals_context := ',"k":' || pgsignals_context;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            pgsignals_context := '';
            RAISE WARNING 'pgsignals: the setting pgsignals.context is left out of this event: %', SQLERRM
                USING HINT = 'The write itself is kept. Whoever sets it must set it to such an object, or to nothing.';
        END;
    END IF;
    BEGIN
        IF TG_OP = 'INSERT' THEN
            SELECT * INTO STRICT $new FROM $new_rows;
            $unless_insert_satisfied
            pgsignals_code := 'i';
            pgsignals_head := $insert_head;
            pgsignals_key := $insert_key;
            pgsignals_body := $insert_body;
        ELSIF TG_OP = 'UPDATE' THEN
            SELECT * INTO STRICT $old FROM $old_rows;
            SELECT * INTO STRICT $new FROM $new_rows;
            IF $same_key THEN
                $unless_update_satisfied
                pgsignals_code := 'u';
                pgsignals_head := $update_head;
                pgsignals_key := $update_key;
                pgsignals_body := $update_body;
            END IF;
        ELSIF TG_OP = 'DELETE' THEN
            SELECT * INTO STRICT $old FROM $old_rows;
            $unless_delete_satisfied
            pgsignals_code := 'd';
            pgsignals_head := $delete_head;
            pgsignals_key := $delete_key;
            pgsignals_body := $delete_body;
        ELSE
            pgsignals_code := 't';
            pgsignals_head := $head || ',"o":"t"}';
            pgsignals_key := 'null';
            pgsignals_body := '[]';
        END IF;
    EXCEPTION WHEN OTHERS THEN
        pgsignals_head := NULL;
    END;
    IF pgsignals_head IS NOT NULL THEN
        INSERT INTO $columns VALUES (pg_current_xact_id(), clock_timestamp(), $source, pgsignals_code, pgsignals_key,
            $slot, $first, pgsignals_head, pgsignals_body);
        -- PERFORM would run a query.
        pgsignals_head := set_config($rang, pg_current_xact_id()::text, true);
        RETURN NULL;
    END IF;
    pgsignals_head := $head;
    pgsignals_moment := clock_timestamp();
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO $columns $inserts;
        ELSIF TG_OP = 'UPDATE' THEN
            INSERT INTO $columns $updates;
        ELSE
            INSERT INTO $columns $deletes;
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
    IF pgsignals_written > 0 THEN
        pgsignals_head := set_config($rang, pg_current_xact_id()::text, true);
    END IF;
    RETURN NULL;
END
""")
