"""The body of a declaration's trigger function.

The write must never fail because of us. So there are several attempts, each in a subtransaction of its own: the short
way for a single row; all that was declared, of any number of rows; keys only; and one event that says no more than
"something in this table changed". From the second on, an attempt that fails (a column is gone, or something that
nobody thought of) leaves a WARNING that says what to do. The first ends quietly where there is not one row (STRICT
raises then), where the key changed, and where the table was changed during the session.
"""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING

from .. import wire
from ..context import MAX_CONTEXT, MAX_NESTED
from ..event import DELETE, INSERT, UPDATE
from ..values import field_kind
from .columns import travelling
from .rows import NEW, NEW_ROWS, OLD, OLD_ROWS, SEPARATOR, Rows, json_text, literal, unless

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

    from .declaration import Notify

CAPTURED = "pgsignals_captured"
"""The temporary table into which a session that asks for it also gets what it sends; see pgsignals.testing."""


def settings(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The settings that hold while the function runs, whatever the writer's session says."""
    kinds = [field_kind(field, connection) for field in travelling(declaration, model)]
    # Nothing in the writer's search_path can then stand in for a function or an operator of PostgreSQL's own. A
    # condition may need an extension's operators (citext, trigram): it sees what the migration's session sees.
    path = ["search_path = pg_catalog, pg_temp"]
    if declaration.when:
        # pg_temp comes last: a type in it could otherwise pass for one of PostgreSQL's own. What a condition casts to
        # a date is the day of the zone in which Django would ask.
        schemas = ", ".join(["pg_catalog", *map(connection.ops.quote_name, _schemas(connection)), "pg_temp"])
        path = [f"search_path = {schemas}", f"TimeZone = {literal(connection.timezone_name)}"]
    # With many columns PostgreSQL takes the query for one that is worth compiling, for seconds in each statement.
    pinned = dict.fromkeys([*path, "jit = off", *(kind.pinned for kind in kinds if kind.pinned)])
    return " ".join(f"SET {one}" for one in pinned)


def _schemas(connection: BaseDatabaseWrapper) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schemas(false)")
        return list(cursor.fetchone()[0])


def body(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """The PL/pgSQL between the dollars."""
    rows = Rows(model, connection, declaration)
    keys = Rows(model, connection)
    return _BODY.substitute(
        head=literal(f'{{"v":{wire.VERSION},"d":{json_text(declaration.name)},"s":'),
        label=literal(f',"m":{json_text(model._meta.label_lower)}'),
        send=_SEND.substitute(captured=CAPTURED, channel=literal(declaration.channel or wire.CHANNEL)),
        # Entries that fit into any room need not ask for it.
        room="" if rows.is_narrow else f"room := {wire.MAX_PAYLOAD} - octet_length(head) - {rows.reserved};",
        limit=wire.MAX_PAYLOAD,
        reserved=rows.reserved,
        max_context=MAX_CONTEXT,
        separator=SEPARATOR,
        old_rows=OLD_ROWS,
        new_rows=NEW_ROWS,
        old=OLD,
        new=NEW,
        unless_insert_satisfied=unless(rows.satisfied(INSERT)),
        insert_opening=rows.opening(INSERT),
        insert_entry=rows.entry(INSERT),
        unless_delete_satisfied=unless(rows.satisfied(DELETE)),
        delete_opening=rows.opening(DELETE),
        delete_entry=rows.entry(DELETE),
        same_key=rows.same_key(),
        changed_names=rows.changed_names(),
        unless_update_satisfied=unless(rows.update_satisfied()),
        unless_changed=unless(rows.is_changed()),
        changed=rows.changed(),
        update_opening=rows.opening(UPDATE),
        update_entry=rows.entry(UPDATE),
        inserts=rows.insert(),
        deletes=rows.delete(),
        updates=rows.update(),
        surprising=rows.surprising,
        encoding="'UTF8'" if _holds_any_bytes(connection) else "getdatabaseencoding()",
        check_text=_CHECK_TEXT if _holds_any_bytes(connection) else "NULL;",
        many=rows.many,
        many_inserts=rows.insert(blocks=True),
        many_deletes=rows.delete(blocks=True),
        many_updates=rows.update(blocks=True),
        whole_updates=rows.update(blocks=True, whole=True),
        key_inserts=keys.insert(blocks=True),
        key_deletes=keys.delete(blocks=True),
        key_updates=keys.update(blocks=True, whole=True),
        max_nested=MAX_NESTED,
        context_remedy=literal(
            "The write itself is kept. Whoever sets pgsignals.context (in Django, pgsignals.context does) must set it "
            "to such an object, or to nothing."
        ),
        hint=literal(
            'The write itself is kept. Run "manage.py pgsignals sync" where this database is migrated, '
            "so that the trigger knows its table again."
        ),
        value_hint=literal(
            "The write itself is kept. A value of the row cannot be worked with: by what the declaration asks (when), "
            'or in the encoding of this database. Where a column was changed by hand, run "manage.py pgsignals sync".'
        ),
        right_hint=literal(
            "The write itself is kept. Grant the role that writes what it lacks, as PostgreSQL does by itself: for "
            "instance GRANT EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) TO ..."
        ),
    )


def _holds_any_bytes(connection: BaseDatabaseWrapper) -> bool:
    """Whether the database takes any bytes for text. PostgreSQL ends the connections of listeners to whom it would have
    to send such as are no UTF-8."""
    connection.ensure_connection()
    return bool(connection.connection.info.parameter_status("server_encoding") == "SQL_ASCII")


_CHECK_TEXT = "contents := convert_from(convert_to(contents, 'SQL_ASCII'), 'UTF8');"


_SEND = Template("""
    IF current_setting('pgsignals.capture', true) = 'on' THEN
        -- Of another role it could be a trap: what hangs on it would run with the rights of ours.
        IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('pg_temp.$captured')
                AND pg_get_userbyid(relowner) = current_user) THEN
            INSERT INTO pg_temp.$captured (channel, payload) VALUES ($channel, contents);
        END IF;
    END IF;
    -- PERFORM would run a query.
    sent := pg_notify($channel, contents);
""")

# PostgreSQL folds equal payloads of one transaction into one: time and number make each its own.
# PL/pgSQL prepares each of its expressions anew in each transaction, so on the way of a single row there are few.
_BODY = Template("""
#variable_conflict use_column
DECLARE
    head text;
    context text;
    room integer;
    $old record;
    $new record;
    listed text;
    opening text;
    contents text;
    several boolean;
    written bigint;
    texts refcursor;
    entries bytea;
    place integer;
    reach integer;
    taken integer;
    number bigint;
    sent text;
    problem text;
    remedy text;
BEGIN
    IF current_setting('pgsignals.silenced', true) = 'on'
            OR NOT has_function_privilege('pg_notify(text, text)'::regprocedure, 'EXECUTE') THEN
        IF current_setting('pgsignals.silenced', true) IS DISTINCT FROM 'on' THEN
            RAISE WARNING 'pgsignals: trigger % announces nothing of this % of %.%: role % has no right on pg_notify',
                TG_NAME, TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, current_user USING HINT = $right_hint;
        END IF;
        RETURN NULL;
    END IF;
    FOR attempt IN 1..4 LOOP
        BEGIN
            head := $head || to_json(TG_TABLE_SCHEMA::text)::text
                || ',"x":' || pg_current_xact_id()::text
                || ',"t":' || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                || $label;
            IF current_setting('pgsignals.context', true) <> '' AND attempt < 3 THEN
                -- Any role may set it, so it may hold anything.
                context := current_setting('pgsignals.context', true);
                remedy := $context_remedy;
                -- Deeper than that, no listener would read it.
                IF octet_length(context) > $max_context OR json_typeof(context::json) <> 'object'
                        OR octet_length(translate(context, '[{', '')) < octet_length(context) - $max_nested THEN
                    RAISE EXCEPTION 'the setting pgsignals.context is no JSON object that is small and flat enough';
                END IF;
                remedy := NULL;
                head := head || ',"k":' || context;
            END IF;
            $room
            IF attempt = 1 AND TG_OP = 'INSERT' THEN
                SELECT * INTO STRICT $new FROM $new_rows;
                $unless_insert_satisfied
                contents := head || $insert_opening || ',"n":1,"r":[' || $insert_entry || ']}';
            ELSIF attempt = 1 AND TG_OP = 'UPDATE' THEN
                SELECT * INTO STRICT $old FROM $old_rows;
                SELECT * INTO STRICT $new FROM $new_rows;
                CONTINUE WHEN ($same_key) IS NOT TRUE;
                $unless_update_satisfied
                listed := $changed_names;
                $unless_changed
                contents := head || $update_opening || $changed || ',"n":1,"r":[' || $update_entry || ']}';
            ELSIF attempt = 1 AND TG_OP = 'DELETE' THEN
                SELECT * INTO STRICT $old FROM $old_rows;
                $unless_delete_satisfied
                contents := head || $delete_opening || ',"n":1,"r":[' || $delete_entry || ']}';
            ELSIF TG_OP = 'TRUNCATE' THEN
                contents := head || ',"o":"t","n":1,"r":[]}';
            ELSIF attempt = 4 THEN
                several := false;
                contents := head || ',"o":"' || lower(left(TG_OP, 1)) || '","i":1,"n":1,"r":[[]]}';
            ELSE
                several := true;
                room := $limit - octet_length(head) - $reserved;
                number := 0;
                entries := '';
                place := 1;
                IF TG_OP = 'DELETE' THEN
                    SELECT count(*) INTO written FROM (SELECT FROM $old_rows LIMIT $many + 1) AS some_rows;
                ELSE
                    SELECT count(*) INTO written FROM (SELECT FROM $new_rows LIMIT $many + 1) AS some_rows;
                END IF;
                IF written = 0 THEN
                    RETURN NULL;
                ELSIF attempt = 3 THEN
                    IF TG_OP = 'INSERT' THEN
                        OPEN texts FOR $key_inserts;
                    ELSIF TG_OP = 'DELETE' THEN
                        OPEN texts FOR $key_deletes;
                    ELSE
                        OPEN texts FOR $key_updates;
                    END IF;
                ELSIF TG_OP = 'UPDATE' AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = TG_RELID AND attnum > 0
                        AND NOT attisdropped AND ($surprising)) THEN
                    OPEN texts FOR $whole_updates;
                ELSIF written > $many THEN
                    IF TG_OP = 'INSERT' THEN
                        OPEN texts FOR $many_inserts;
                    ELSIF TG_OP = 'DELETE' THEN
                        OPEN texts FOR $many_deletes;
                    ELSE
                        OPEN texts FOR $many_updates;
                    END IF;
                ELSIF TG_OP = 'INSERT' THEN
                    OPEN texts FOR $inserts;
                ELSIF TG_OP = 'DELETE' THEN
                    OPEN texts FOR $deletes;
                ELSE
                    OPEN texts FOR $updates;
                END IF;
            END IF;
            IF several THEN
                LOOP
                    IF place > octet_length(entries) THEN
                        FETCH texts INTO opening, entries;
                        IF NOT FOUND THEN
                            -- An open cursor would hold its memory until the end of the transaction.
                            CLOSE texts;
                            RETURN NULL;
                        END IF;
                        place := 1;
                    END IF;
                    taken := octet_length(entries) - place + 1;
                    IF taken > room THEN
                        -- Cut near the end of the room. In bytes: to count characters, PostgreSQL begins at the first.
                        reach := 100;
                        LOOP
                            reach := least(reach * 2, room);
                            taken := position(decode('01', 'hex') IN
                                substring(entries FROM place + room - reach FOR reach + 1));
                            EXIT WHEN taken > 0;
                            IF reach = room THEN
                                RAISE EXCEPTION 'a value is wider than its column may be';
                            END IF;
                        END LOOP;
                        taken := room - reach + taken - 1;
                    END IF;
                    contents := convert_from(substring(entries FROM place FOR taken), $encoding);
                    contents := replace(contents, $separator, ',');
                    place := place + taken + 1;
                    number := number + 1;
                    contents := head || opening || ',"n":' || number || ',"r":[' || contents || ']}';
                    IF contents IS NULL THEN
                        RAISE EXCEPTION 'a column is of another type than its field';
                    END IF;
                    $send
                END LOOP;
            ELSIF octet_length(contents) <= $limit THEN
                $check_text
            ELSE
                RAISE EXCEPTION 'a column is of another type than its field, or a value wider than its column may be';
            END IF;
        EXCEPTION WHEN OTHERS THEN
            contents := NULL;
            IF attempt > 1 THEN
                GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
                RAISE WARNING 'pgsignals: trigger % cannot say all about this % of %.%: % (%)',
                    TG_NAME, TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, problem, SQLSTATE
                    USING HINT = coalesce(remedy, CASE WHEN SQLSTATE = '42501' THEN $right_hint
                        WHEN SQLSTATE LIKE '22%' THEN $value_hint ELSE $hint END);
                remedy := NULL;
            END IF;
        END;
        IF contents IS NOT NULL THEN
            -- Out here: a notification that was sent in a subtransaction keeps 8 kB until the end of the transaction.
            $send
            RETURN NULL;
        END IF;
    END LOOP;
    RETURN NULL;
END
""")
