"""What is installed in a database, against what is declared; and the repair.

Migrations hold declarations, not SQL. So after every `migrate` the functions whose text is no longer what their
declaration would make (a field was added, pgsignals was upgraded) are replaced, which locks no table. What else is
amiss is reported, and repaired only by `manage.py pgsignals sync`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from django.apps import apps as global_apps
from django.db import DatabaseError, connections, router, transaction

from .. import wire
from ..publishing import check_channel
from ..values import key_fields
from . import sql, tracked
from .declaration import Notify, declarations

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

logger = logging.getLogger("pgsignals.triggers")

INSTALLED, OUTDATED, MISSING, ORPHAN = "installed", "outdated", "missing", "orphan"


@dataclass(frozen=True, slots=True)
class Status:
    """A declaration with what the database has of it, or what the database has without a declaration."""

    name: str
    """Of the declaration."""
    model: str
    """The label of its model."""
    state: str
    """`installed`; `outdated` (the function's text is old, or there is a trigger too many); `missing` (the function,
    one of its triggers, or one of these is disabled); `orphan` (nothing declares it)."""
    detail: str
    """What is amiss, and what helps; empty where nothing is."""
    table: str
    """The table, as PostgreSQL knows it."""
    operations: tuple[str, ...]
    """Those that are declared; of an orphan, none."""
    partitioned: bool = False
    """Whether the table is partitioned, so that writes straight into a partition are not seen."""
    unique: bool = True
    """Whether the database keeps the model's key unique and free of NULL: by it an update's rows are paired."""
    renewable: bool = False
    """Whether replacing the function is all that is to be done."""
    elsewhere: bool = False
    """Whether an orphan is declared in this project, for another database."""
    foreign: bool = False
    """Whether an orphan's app is not in this project, so that it is probably another project's."""
    superfluous: tuple[str, ...] = ()
    """Triggers on the table that call the function, and that no declaration has."""
    declared: tuple[type[Model], Notify] | None = None
    problem: str = ""
    """Why a repair did not succeed."""

    def __str__(self) -> str:
        return f"{self.name!r} on {self.model}" if self.model else repr(self.name)


# What is declared.


def declared(
    database: str, apps: Apps = global_apps, found: tracked.Tracked | None = None
) -> Iterator[tuple[type[Model], Notify]]:
    """Every model with a declaration on a table that this database has by Django's account, and the declaration.

    `found` are the declarations that stand in migrations; without it, all that are on disk.
    """
    for model, declaration in _declared(apps, found):
        if router.allow_migrate_model(database, model) and _vendor_fits(model, database):
            yield model, declaration


def _declared(apps: Apps, found: tracked.Tracked | None) -> Iterator[tuple[type[Model], Notify]]:
    for model in apps.get_models(include_auto_created=True):
        if model._meta.managed and not model._meta.proxy:
            for declaration in declarations(model):
                yield model, declaration
    for label, declaration in (tracked.on_disk() if found is None else found).values():
        try:
            model = apps.get_model(label)
        except (LookupError, ValueError):
            # Its app was taken out of the project. What the database has of it is an orphan.
            continue
        if not model._meta.proxy and not model._meta.swapped:
            yield model, declaration


def _vendor_fits(model: type[Model], database: str) -> bool:
    return not model._meta.managed or model._meta.can_migrate(database)


def declared_channels() -> set[str]:
    """The channels that the models' declarations name."""
    models = global_apps.get_models(include_auto_created=True)
    return {one.channel for model in models for one in declarations(model) if one.channel}


# What is installed.

CHANNELS = f"""
SELECT DISTINCT pg_catalog.obj_description(p.oid, 'pg_proc') FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_trigger t ON t.tgfoid = p.oid JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
WHERE p.proname LIKE '{sql.PREFIX}%' AND c.relpersistence <> 't'
"""
"""A query for the comments of our functions, in whatever schema, that triggers call; `channel_of` reads them."""


def channel_of(comment: str | None) -> str | None:
    """The channel on which an installed function speaks, where that is one of its own that can be listened to."""
    channel = _read(comment).get("channel")
    try:
        check_channel(channel)  # type: ignore[arg-type]
    except ValueError:
        return None
    return channel


def compare(database: str, apps: Apps = global_apps, found: tracked.Tracked | None = None) -> list[Status]:
    """Each declaration with its state in the database, and what is installed without one."""
    connection = connections[database]
    installed = _installed(connection)
    rows = []
    for model, declaration in declared(database, apps, found):
        function = installed.pop(sql.function_name(declaration), None)
        rows.append(_status(model, declaration, function, connection))
    everywhere = {declaration.name for _, declaration in _declared(apps, found)}
    return rows + [_orphan(function, everywhere) for function in installed.values() if function.comment]


@dataclass(frozen=True, slots=True)
class _Trigger:
    name: str
    table: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    owner: str
    comment: dict[str, Any]
    triggers: tuple[_Trigger, ...]
    tables: str


def _installed(connection: BaseDatabaseWrapper) -> dict[str, _Function]:
    """Our functions that this session's search_path finds, by name."""
    with connection.cursor() as cursor:
        cursor.execute(_INSTALLED, [f"{sql.PREFIX.replace('_', chr(92) + '_')}%"])
        return {
            name: _Function(name, owner, _read(comment), tuple(_Trigger(*one) for one in triggers), tables or "")
            for name, owner, comment, triggers, tables in cursor.fetchall()
        }


# A session with session_replication_role = replica apart, an "always" trigger fires as others do.
_INSTALLED = """
SELECT p.proname, pg_get_userbyid(p.proowner)::text, obj_description(p.oid, 'pg_proc'),
    coalesce(json_agg(json_build_array(t.tgname, t.tgrelid::bigint, t.tgenabled IN ('O', 'A')) ORDER BY t.tgname)
        FILTER (WHERE t.oid IS NOT NULL), '[]'),
    string_agg(DISTINCT t.tgrelid::regclass::text, ', ')
FROM pg_catalog.pg_proc p
LEFT JOIN pg_catalog.pg_trigger t ON t.tgfoid = p.oid AND t.tgparentid = 0
WHERE p.proname LIKE %s AND pg_catalog.pg_function_is_visible(p.oid)
GROUP BY p.oid, p.proname
ORDER BY p.proname
"""


def _read(comment: str | None) -> dict[str, Any]:
    # Whoever may create a function may write anything there.
    try:
        said = wire.parse_json(comment or "")
    except wire.WireError:
        return {}
    return said if isinstance(said, dict) and "pgsignals" in said else {}


def _status(
    model: type[Model], declaration: Notify, function: _Function | None, connection: BaseDatabaseWrapper
) -> Status:
    table, name, kind, unique, owners = _table(model, connection)
    row = Status(
        name=declaration.name,
        model=model._meta.label,
        state=MISSING,
        detail="",
        table=name or model._meta.db_table,
        operations=declaration.on,
        partitioned=kind == "p",
        unique=unique,
        declared=(model, declaration),
    )
    if table is None:
        return replace(row, detail=f"there is no table {model._meta.db_table!r}; migrate")
    if function is None:
        return replace(row, detail="it was never installed, or was dropped by hand")
    ours = {trigger.name: trigger for trigger in function.triggers if trigger.table == table}
    wanted = {sql.trigger_name(declaration, operation): operation for operation in declaration.on}
    if absent := [operation for trigger, operation in wanted.items() if trigger not in ours]:
        return replace(row, detail=f"no trigger for {', '.join(absent)}")
    if disabled := [operation for trigger, operation in wanted.items() if not ours[trigger].enabled]:
        return replace(row, detail=f"the trigger for {', '.join(disabled)} is disabled")
    superfluous = tuple(trigger for trigger in ours if trigger not in wanted)
    try:
        outdated = function.comment.get("fingerprint") != sql.fingerprint(declaration, model, connection)
    except Exception as error:  # of a field that is gone, for instance
        return replace(row, state=OUTDATED, detail=f"its declaration does not fit its model any more: {error}")
    if function.owner not in owners:
        detail = f"its function belongs to the role {function.owner!r}, who can replace it; the table to {owners[0]!r}"
        return replace(row, state=OUTDATED, detail=detail)
    if superfluous:
        detail = f"triggers that are not declared: {', '.join(superfluous)}"
        return replace(row, state=OUTDATED, detail=detail, superfluous=superfluous)
    if outdated:
        return replace(row, state=OUTDATED, detail="the function's text is of an older version", renewable=True)
    return replace(row, state=INSTALLED)


def _table(model: type[Model], connection: BaseDatabaseWrapper) -> tuple[int | None, str, str, bool, list[str]]:
    """The table that a model's name means to this session: its oid, its name in PostgreSQL's words, its kind, whether
    its key is unique and never NULL, and the roles that may own the function: its own owner, and the one that asks."""
    keys = [field.column for field in key_fields(model)]
    with connection.cursor() as cursor:
        cursor.execute(_TABLE, [keys, keys, connection.ops.quote_name(model._meta.db_table)])
        row: tuple[int, str, str, bool, list[str]] | None = cursor.fetchone()
        return row or (None, "", "", True, [])


# Tables that inherit from one may repeat its keys.
_TABLE = """
SELECT c.oid::bigint, c.oid::regclass::text, c.relkind::text,
    (c.relkind = 'p' OR NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid)) AND EXISTS (
        SELECT FROM pg_catalog.pg_index i
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
            AND (
                SELECT array_agg(a.attname::text) FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
            ) <@ %s::text[]
    ) AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY (%s) AND NOT a.attnotnull
    ),
    ARRAY[pg_get_userbyid(c.relowner)::text, current_user::text]
FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(%s)
"""


def _orphan(function: _Function, everywhere: set[str]) -> Status:
    name = function.name.removeprefix(sql.PREFIX)
    elsewhere = name in everywhere
    return Status(
        name=name,
        model=str(function.comment.get("model", "")),
        state=ORPHAN,
        detail="a router keeps its model from this database"
        if elsewhere
        else "nothing here declares it: a leftover, or of another project in this database",
        table=function.tables,
        operations=(),
        elsewhere=elsewhere,
        foreign=_is_foreign(str(function.comment.get("model", ""))),
    )


def _is_foreign(label: str) -> bool:
    return label.split(".")[0] not in global_apps.app_configs


# The repair.


def renew_outdated(database: str, apps: Apps = global_apps, found: tracked.Tracked | None = None) -> list[Status]:
    """Replace the functions whose text is old. Returns what was replaced, or could not be."""
    return _repair(database, apps, found, _is_renewable)


def _is_renewable(row: Status) -> bool:
    return row.state == OUTDATED and row.renewable


def repair(database: str, *, prune: bool = False) -> list[Status]:
    """Replace the functions whose text is old, and create what is missing. Returns what was done, or could not be.

    With `prune`, orphans are dropped, but not those that the project declares and a router keeps from this alias: it
    may be another name for the same database. Creating a trigger takes a SHARE ROW EXCLUSIVE lock on its table for a
    moment, dropping one an ACCESS EXCLUSIVE lock.
    """

    def amiss(row: Status) -> bool:
        return row.state in (OUTDATED, MISSING) or (prune and row.state == ORPHAN and not row.elsewhere)

    return _repair(database, global_apps, None, amiss)


def _repair(
    database: str,
    apps: Apps,
    found: tracked.Tracked | None,
    amiss: Callable[[Status], bool],
) -> list[Status]:
    connection = connections[database]
    # Looked at before the lock is taken: most runs have nothing to do.
    if not any(map(amiss, compare(database, apps, found))):
        return []
    done = []
    with transaction.atomic(using=database):
        with connection.cursor() as cursor:
            # Two that migrate at once would otherwise fail with "tuple concurrently updated".
            cursor.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s, %s)", sql.LOCK)
        for row in filter(amiss, compare(database, apps, found)):
            try:
                # One that cannot be put right keeps no other from it.
                with transaction.atomic(using=database), connection.schema_editor(atomic=False) as editor:
                    for statement in _statements(row, connection):
                        editor.execute(statement, params=None)
            except Exception as error:
                done.append(replace(row, problem=_why(error)))
            else:
                done.append(row)
    return done


def _statements(row: Status, connection: BaseDatabaseWrapper) -> list[Any]:
    editor = connection.schema_editor()
    if row.declared is None:
        return [sql.drop(row.name, editor)]
    model, declaration = row.declared
    if row.state == MISSING or not (row.renewable or row.superfluous):
        return [sql.create(declaration, model, editor)]
    dropped = [sql.drop_trigger(trigger, model, editor) for trigger in row.superfluous]
    return [*sql.renew(declaration, model, connection), *dropped]


def _why(error: Exception) -> str:
    diagnosis = getattr(error.__cause__, "diag", None)
    if isinstance(error, DatabaseError) and diagnosis:
        hint = diagnosis.message_hint
        if diagnosis.sqlstate == "42501":  # insufficient_privilege
            hint = "Only the function's and the table's owner may do this: use the role that migrates."
        return " ".join(filter(None, [f"{diagnosis.message_primary}.".replace("..", "."), hint]))
    return f"{error.__class__.__name__}: {error}"


# After `migrate`.


def after_migrate(
    *, using: str, apps: Apps | None = None, plan: object = None, verbosity: int = 1, **kwargs: Any
) -> None:
    """Receiver of post_migrate. `apps` are the migrations' own models, so that migrating backwards fits too."""
    # `flush` sends post_migrate without apps; it changed no table.
    if apps is None or connections[using].vendor != "postgresql":
        return
    if plan:
        # With --fake the given models are those from before the plan (django/db/migrations/executor.py), and a
        # function that fits the database already would be replaced by an older one.
        apps = tracked.applied_models(connections[using])
    found = tracked.applied(connections[using])
    rows = compare(using, apps, found)
    for row in renew_outdated(using, apps, found) if any(map(_is_renewable, rows)) else ():
        if row.problem:
            logger.error("pgsignals: the trigger function of %s is old, and was not renewed: %s", row, row.problem)
        elif verbosity >= 1:
            logger.info("pgsignals: renewed the trigger function of %s.", row)
    for row in rows:
        if row.state == MISSING:
            logger.warning(
                "pgsignals: %s does not announce all that it declares in database %r (%s). "
                'Run "manage.py pgsignals sync --database %s".',
                row,
                using,
                row.detail,
                using,
            )
        elif row.state == ORPHAN:
            logger.warning(
                "pgsignals: database %r has triggers of %s, which nothing declares (another project's, or a leftover). "
                'Look at "manage.py pgsignals status --database %s"; its "sync --prune" drops them.',
                using,
                row,
                using,
            )
