"""What is installed in a database, against what the models declare; and the repair.

Migrations hold declarations, not SQL. So after every `migrate` the functions whose text is no longer what their
declaration would make (a field was added, pgsignals was upgraded) are replaced, which locks no table. What else is
amiss is reported, and repaired only by `manage.py pgsignals sync`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.apps import apps as global_apps
from django.db import connections, router, transaction

from . import sql
from .declaration import Notify, declarations

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

logger = logging.getLogger("pgsignals.triggers")

# Two processes that migrate at once would otherwise fail with "tuple concurrently updated".
_LOCK = (0x70677369, 1)  # "pgsi"


@dataclass(frozen=True, slots=True)
class Declared:
    """A declaration, where it stands, and what the database has of it."""

    model: type[Model]
    declaration: Notify
    state: str
    """`installed`, `outdated` (the function's text is old) or `missing` (the function, or one of its triggers)."""


def declared(database: str, apps: Apps = global_apps) -> Iterator[tuple[type[Model], Notify]]:
    """Every declaration on a table that this database has by Django's account."""
    for model in apps.get_models(include_auto_created=True):
        if model._meta.managed and not model._meta.proxy and router.allow_migrate_model(database, model):
            for declaration in declarations(model):
                yield model, declaration


def compare(database: str, apps: Apps = global_apps) -> list[Declared]:
    """Each declaration with its state in the database."""
    connection = connections[database]
    found = _installed(connection)
    return [
        Declared(model, declaration, _state(model, declaration, found, connection))
        for model, declaration in declared(database, apps)
    ]


def renew_outdated(database: str, apps: Apps = global_apps) -> list[Declared]:
    """Replace the functions whose text is old, and report what is missing. Returns what was replaced."""
    return _repair(database, apps, {"outdated"})


def repair(database: str) -> list[Declared]:
    """Replace the functions whose text is old, and create what is missing. Returns what was done.

    Creating a trigger takes a SHARE ROW EXCLUSIVE lock on its table for a moment.
    """
    return _repair(database, global_apps, {"outdated", "missing"})


def after_migrate(*, using: str, apps: Apps | None = None, verbosity: int = 1, **kwargs: Any) -> None:
    """Receiver of post_migrate. `apps` are the migrations' own models, so that migrating backwards fits too."""
    # `flush` sends post_migrate without apps; it changed no table.
    if apps is None or connections[using].vendor != "postgresql":
        return
    for done in renew_outdated(using, apps):
        if verbosity >= 1:
            logger.info("pgsignals: renewed the trigger function of %s.", _named(done))
    for row in compare(using, apps):
        if row.state == "missing":
            logger.warning(
                'pgsignals: %s has no trigger in database %r: its changes are not announced. Run "manage.py '
                'pgsignals sync --database %s".',
                _named(row),
                using,
                using,
            )


def _repair(database: str, apps: Apps, states: set[str]) -> list[Declared]:
    connection = connections[database]
    # Looked at before the lock is taken: most runs have nothing to do.
    if not any(row.state in states for row in compare(database, apps)):
        return []
    with transaction.atomic(using=database):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s, %s)", _LOCK)
        done = [row for row in compare(database, apps) if row.state in states]
        for row in done:
            _install(row, connection)
    return done


def _install(row: Declared, connection: BaseDatabaseWrapper) -> None:
    with connection.schema_editor(atomic=False) as editor:
        if row.state == "missing":
            editor.execute(sql.create(row.declaration, row.model, editor), params=None)
        else:
            for statement in sql.renew(row.declaration, row.model, connection):
                editor.execute(statement, params=None)


def _state(
    model: type[Model], declaration: Notify, found: dict[str, tuple[str, set[str]]], connection: BaseDatabaseWrapper
) -> str:
    fingerprint, triggers = found.get(sql.function_name(declaration), ("", set()))
    if not triggers.issuperset(_trigger_keys(model, declaration)):
        return "missing"
    return "installed" if fingerprint == sql.fingerprint(declaration, model, connection) else "outdated"


def _trigger_keys(model: type[Model], declaration: Notify) -> set[str]:
    return {sql.trigger_name(declaration, operation) for operation in declaration.on}


def _installed(connection: BaseDatabaseWrapper) -> dict[str, tuple[str, set[str]]]:
    """By function: the fingerprint in its comment, and the names of the triggers that call it."""
    with connection.cursor() as cursor:
        cursor.execute(_INSTALLED, [f"{sql.PREFIX.replace('_', chr(92) + '_')}%"])
        return {name: (_fingerprint(comment), set(triggers)) for name, comment, triggers in cursor.fetchall()}


_INSTALLED = """
SELECT p.proname, obj_description(p.oid, 'pg_proc'),
    coalesce(array_agg(t.tgname::text) FILTER (WHERE t.oid IS NOT NULL), '{}')
FROM pg_catalog.pg_proc p LEFT JOIN pg_catalog.pg_trigger t ON t.tgfoid = p.oid
WHERE p.proname LIKE %s AND pg_catalog.pg_function_is_visible(p.oid)
GROUP BY p.oid, p.proname
"""


def _fingerprint(comment: str | None) -> str:
    try:
        said = json.loads(comment or "")
        return str(said["fingerprint"])
    except (ValueError, TypeError, KeyError):
        return ""


def _named(row: Declared) -> str:
    return f"{row.declaration.name!r} on {row.model._meta.label}"
