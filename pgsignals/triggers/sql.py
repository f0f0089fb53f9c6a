"""The DDL of a declaration, and all the DDL there is: one function, and a statement-level trigger per operation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from django.db.backends.ddl_references import Statement, Table

from .. import conf, wire
from ..event import DELETE, INSERT, TRUNCATE, UPDATE
from . import appending, function
from .rows import NEW_ROWS, OLD_ROWS, literal

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.models import Model

    from .declaration import Notify

PREFIX = "pgsignals_"

LOCK = (0x70677369, 1)  # "pgsi"
"""The advisory lock that DDL of ours is done under."""

_SUFFIXES = {INSERT: "_ins", UPDATE: "_upd", DELETE: "_del", TRUNCATE: "_tru"}
# PostgreSQL gives each operation the tables that it has, and none for TRUNCATE.
_TABLES = {
    INSERT: f" REFERENCING NEW TABLE AS {NEW_ROWS}",
    UPDATE: f" REFERENCING OLD TABLE AS {OLD_ROWS} NEW TABLE AS {NEW_ROWS}",
    DELETE: f" REFERENCING OLD TABLE AS {OLD_ROWS}",
    TRUNCATE: "",
}


def function_name(declaration: Notify) -> str:
    """The name of a declaration's function in PostgreSQL."""
    return f"{PREFIX}{declaration.name}"


def trigger_name(declaration: Notify, operation: str) -> str:
    """The name of a declaration's trigger for one operation."""
    return f"{PREFIX}{declaration.name}{_SUFFIXES[operation]}"


def create(declaration: Notify, model: type[Model], schema_editor: BaseDatabaseSchemaEditor) -> Statement:
    """One statement that makes, or renews, the function and its triggers.

    It waits for the table's lock for PGSIGNALS["LOCK_TIMEOUT"] seconds and then says what to do.
    """
    quote = schema_editor.quote_name
    function = ";\n".join(renew(declaration, model, schema_editor.connection))
    made = [
        _trigger(declaration, operation, lambda name: quote(name).replace("%", "%%")) for operation in declaration.on
    ]
    # Django renames or drops a waiting Statement together with the table that it refers to.
    return Statement(
        _DDL.replace("{ddl}", "\n".join([_GUARD, "%(function)s;", *made])).replace("$pgsignals_ddl$", _tag(function)),
        table=Table(model._meta.db_table, quote),
        table_text=Table(model._meta.db_table, lambda name: literal(quote(name))),
        function=function,
        name=literal(f"{quote(function_name(declaration))}()"),
        **_waiting(f"pgsignals: the table of {model._meta.label} is in use, so its trigger could not be made."),
    )


# The advisory lock first, for as long as it takes: two that migrate at once would otherwise fail with "tuple
# concurrently updated". A lock on a table only for so long: whoever waits for one holds up all who come after.
_DDL = """DO $pgsignals_ddl$
DECLARE
    stranger text;
    waits_before text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '0', true);
    PERFORM pg_catalog.pg_advisory_xact_lock(%(lock)s);
    PERFORM set_config('lock_timeout', %(timeout)s, true);
{ddl}
    PERFORM set_config('lock_timeout', waits_before, true);
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RAISE EXCEPTION USING ERRCODE = 'lock_not_available', MESSAGE = %(message)s, HINT = %(hint)s;
END $pgsignals_ddl$"""


# Whoever owns a function can replace it later, and every writer to the table would then run what it says.
_GUARD = """    SELECT pg_get_userbyid(proowner) INTO stranger FROM pg_catalog.pg_proc
    WHERE oid = to_regprocedure(%(name)s) AND pg_get_userbyid(proowner) <> current_user
        AND proowner <> (SELECT relowner FROM pg_catalog.pg_class WHERE oid = %(table_text)s::regclass);
    IF FOUND THEN
        RAISE EXCEPTION 'pgsignals: there is a function %% of another role, %%', %(name)s, stranger
            USING HINT = 'It could replace the trigger''s function at any time. Drop that function, or give it to the '
                'owner of the table: ALTER FUNCTION ... OWNER TO ...';
    END IF;"""


def _waiting(message: str) -> dict[str, str]:
    """How long DDL waits, and what is said when that was not long enough."""
    return {
        "lock": f"{LOCK[0]}, {LOCK[1]}",
        "timeout": literal(f"{int(conf.get().LOCK_TIMEOUT * 1000)}ms"),
        "message": literal(message),
        "hint": literal(
            "A transaction holds the table (pg_stat_activity shows it), and nothing was changed. End it, or wait, and "
            'do the same again; PGSIGNALS["LOCK_TIMEOUT"] says how many seconds to wait.'
        ),
    }


def _trigger(declaration: Notify, operation: str, quote: Callable[[str], str]) -> str:
    return (
        f"CREATE OR REPLACE TRIGGER {quote(trigger_name(declaration, operation))} AFTER {operation.upper()} "
        f"ON %(table)s{_TABLES[operation]} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {quote(function_name(declaration))}();"
    )


def drop(name: str, schema_editor: BaseDatabaseSchemaEditor) -> str:
    """One statement that drops the function of the declaration of this name, and with it the triggers."""
    waiting = _waiting(f"pgsignals: a table that {name!r} announces is in use, so its trigger could not be dropped.")
    function = schema_editor.quote_name(f"{PREFIX}{name}")
    return (_DDL % waiting).replace("{ddl}", f"    DROP FUNCTION IF EXISTS {function}() CASCADE;")


def drop_trigger(trigger: str, model: type[Model], schema_editor: BaseDatabaseSchemaEditor) -> str:
    """One statement that drops one trigger, which no declaration has."""
    waiting = _waiting(
        f"pgsignals: the table of {model._meta.label} is in use, so its trigger {trigger} could not be dropped."
    )
    quote = schema_editor.quote_name
    ddl = f"    DROP TRIGGER IF EXISTS {quote(trigger)} ON {quote(model._meta.db_table)};"
    return (_DDL % waiting).replace("{ddl}", ddl)


def renew(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> tuple[str, str]:
    """Two statements that replace the function and its comment; neither takes a lock on the table.

    The comment is where an installed function says which declaration it serves, and by which version of its text.
    """
    name = f"{connection.ops.quote_name(function_name(declaration))}()"
    said = {
        "pgsignals": wire.VERSION,
        "model": model._meta.label_lower,
        "fingerprint": fingerprint(declaration, model, connection),
        **declaration.deconstruct()[2],
    }
    return (
        f"CREATE OR REPLACE FUNCTION {name} RETURNS trigger LANGUAGE plpgsql "
        f"{_definition(declaration, model, connection)}",
        f"COMMENT ON FUNCTION {name} IS {literal(json.dumps(said, default=str))}",
    )


def fingerprint(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """Sixteen digits that tell whether an installed function is what its declaration would make today."""
    return hashlib.sha256(_definition(declaration, model, connection).encode()).hexdigest()[:16]


def _definition(declaration: Notify, model: type[Model], connection: BaseDatabaseWrapper) -> str:
    settings = function.settings(declaration, model, connection)
    if declaration.durable:
        # Who may write the table needs no rights on the log.
        return f"SECURITY DEFINER {settings} AS {_dollars(appending.body(declaration, model, connection))}"
    return f"{settings} AS {_dollars(function.body(declaration, model, connection))}"


def _dollars(text: str) -> str:
    tag = _tag(text)
    return f"{tag}{text}{tag}"


def _tag(text: str) -> str:
    """A quote that the text does not contain: a column, or a value in a condition, may be of any name."""
    tag = "$pgsignals$"
    while tag in text:
        tag = f"{tag[:-1]}_$"
    return tag
