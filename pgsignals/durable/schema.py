"""The log's tables and functions: all the DDL of the durable side.

It is idempotent and runs before every `migrate`, because another app's data migration may write a durable model before
this app's own migrations ran, and Django has no way to say so. The migration then only tells Django of the models.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from django.db import connections, router, transaction

from .. import conf
from ..tables import (
    DEAD,
    DELAYED,
    GROUP,
    IDENTITY,
    LOG,
    PARKED,
    PARTITION,
    PROCESSED,
    PUBLISH,
    RANG,
    RING,
    WORKER,
    slot_of,
)

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("pgsignals.durable")

LOCK = (0x70677369, 1)
"""The advisory lock that DDL of ours is done under; the same as that of triggers."""
GATE = (0x70677369, 2)
"""The advisory lock by which writers agree on who rings."""

TABLES = (LOG, GROUP, PARTITION, WORKER, PARKED, DEAD, DELAYED, PROCESSED, IDENTITY)

# COLLATE "C": keys are only ever told apart, and to compare bytes is cheapest.
# The log is only appended to, and deleted from at its beginning: vacuum must come by numbers, not by share.
# (Housekeeping vacuums sooner, where its role may.)
_TABLES = f"""
CREATE TABLE IF NOT EXISTS {LOG} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL,
    at timestamptz NOT NULL,
    source varchar(255) COLLATE "C" NOT NULL,
    op varchar(1) NOT NULL,
    key text COLLATE "C" NOT NULL,
    slot smallint NOT NULL,
    rings boolean NOT NULL,
    head text NOT NULL,
    body text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000);
CREATE INDEX IF NOT EXISTS {LOG}_xid ON {LOG} (xid, id);
CREATE INDEX IF NOT EXISTS {LOG}_key ON {LOG} (source, key, id);
CREATE INDEX IF NOT EXISTS {LOG}_at ON {LOG} USING brin (at) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE IF NOT EXISTS {GROUP} (
    name varchar(100) PRIMARY KEY,
    partitions smallint NOT NULL,
    atomic boolean NOT NULL,
    paused_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {PARTITION} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_name varchar(100) NOT NULL REFERENCES {GROUP} (name) ON DELETE CASCADE,
    number smallint NOT NULL,
    since pg_snapshot NOT NULL,
    until pg_snapshot NOT NULL,
    since_floor bigint NOT NULL,
    until_floor bigint NOT NULL,
    until_ceiling bigint NOT NULL,
    last_id bigint NOT NULL,
    owner varchar(200),
    epoch bigint NOT NULL DEFAULT 0,
    leased_until timestamptz,
    claimed_id bigint,
    claims integer NOT NULL DEFAULT 0,
    careful_id bigint,
    waits_until timestamptz,
    failures integer NOT NULL DEFAULT 0,
    handled bigint NOT NULL DEFAULT 0,
    moved_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (group_name, number)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500);
CREATE TABLE IF NOT EXISTS {WORKER} (
    name varchar(200) PRIMARY KEY,
    group_name varchar(100) NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {PARKED} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_name varchar(100) NOT NULL,
    event_id bigint NOT NULL,
    xid xid8 NOT NULL,
    at timestamptz NOT NULL,
    source varchar(255) NOT NULL,
    op varchar(1) NOT NULL,
    key text NOT NULL,
    slot smallint NOT NULL,
    head text NOT NULL,
    body text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(),
    error text NOT NULL DEFAULT '',
    UNIQUE (group_name, event_id)
);
CREATE INDEX IF NOT EXISTS {PARKED}_key ON {PARKED} (group_name, source, key, event_id);
CREATE TABLE IF NOT EXISTS {DEAD} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_name varchar(100) NOT NULL,
    event_id bigint NOT NULL,
    xid xid8 NOT NULL,
    at timestamptz NOT NULL,
    source varchar(255) NOT NULL,
    op varchar(1) NOT NULL,
    key text NOT NULL,
    slot smallint NOT NULL,
    head text NOT NULL,
    body text NOT NULL,
    attempts integer NOT NULL,
    error text NOT NULL,
    traceback text NOT NULL,
    died_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS {DEAD}_died ON {DEAD} (group_name, died_at);
CREATE TABLE IF NOT EXISTS {DELAYED} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    due_at timestamptz NOT NULL,
    channel varchar(63) NOT NULL,
    key text NOT NULL,
    context text NOT NULL,
    payload text NOT NULL
);
CREATE INDEX IF NOT EXISTS {DELAYED}_due ON {DELAYED} (due_at);
CREATE TABLE IF NOT EXISTS {PROCESSED} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name varchar(200) NOT NULL,
    event_id bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, event_id)
);
CREATE TABLE IF NOT EXISTS {IDENTITY} (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    system_identifier varchar(40) NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
INSERT INTO {IDENTITY} (system_identifier, since)
    SELECT system_identifier::text, 'epoch' FROM pg_catalog.pg_control_system() ON CONFLICT DO NOTHING;
"""

# PERFORM would run a query.
_NOTIFIES = f"\n    context := pg_catalog.pg_notify('{LOG}', '');"

# At a commit, the writers agree on one of them: a NOTIFY takes a lock of the whole cluster through the commit's flush.
# Whoever does not get the gate knows that another's bell is on its way, and readers look again for a while. A deferred
# trigger runs at the commit, unless SET CONSTRAINTS ALL IMMEDIATE (as Django's check_constraints says it) has it run
# earlier; the gate would then stay shut for the rest of that transaction. So in that statement, and within any other
# (then the context has more lines than this function's), it rings without the gate. There is no current statement where
# the extended protocol's Sync commits; it goes on to the gate then, for NULL is not true.
_GATED = f"""
    GET DIAGNOSTICS context = PG_CONTEXT;
    IF context OPERATOR(pg_catalog.~) E'\\n'
            OR pg_catalog.current_query() OPERATOR(pg_catalog.~*) 'constraints' THEN
        NULL;
    ELSIF NOT pg_catalog.pg_try_advisory_xact_lock({GATE[0]}, {GATE[1]}) THEN
        RETURN NULL;
    END IF;{_NOTIFIES}"""
_BELLS = {"gated": _GATED, "every_commit": _NOTIFIES, "poll": ""}

# Every name is qualified: to set a search_path for it would cost half of what it costs.
_RING = f"""CREATE OR REPLACE FUNCTION {RING}() RETURNS trigger LANGUAGE plpgsql AS $pgsignals$
DECLARE
    context text;
BEGIN{{bell}}
    RETURN NULL;
END $pgsignals$"""

# Deferred, so that the bell comes at the commit; the first row of a transaction alone rings.
_TRIGGER = f"""
CREATE CONSTRAINT TRIGGER {RING} AFTER INSERT ON {LOG} DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.rings) EXECUTE FUNCTION {RING}()"""

# The transaction's id before the row's own: a reader relies on ids that are given after it.
_PUBLISH = f"""CREATE OR REPLACE FUNCTION {PUBLISH}(
    channel text, payload text, key text, context text, delay interval DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pgsignals$
DECLARE
    transaction xid8 := pg_current_xact_id();
    number bigint;
BEGIN
    IF delay > interval '0' THEN
        INSERT INTO {{schema}}.{DELAYED} (due_at, channel, key, context, payload)
            VALUES (clock_timestamp() + delay, channel, key, context, payload);
        RETURN NULL;
    END IF;
    INSERT INTO {{schema}}.{LOG} (xid, at, source, op, key, slot, rings, head, body) VALUES (
        transaction, clock_timestamp(), channel, 'm', key, {slot_of("key")},
        current_setting('{RANG}', true) IS DISTINCT FROM transaction::text,
        '{{{{"v":1' || CASE WHEN context <> '' THEN ',"k":' || context ELSE '' END || '}}}}', payload
    ) RETURNING id INTO number;
    PERFORM set_config('{RANG}', transaction::text, true);
    RETURN number;
END $pgsignals$"""


def ensure(connection: BaseDatabaseWrapper) -> bool:
    """Make what is not there, and renew functions whose text is old. Whether anything was done.

    Takes no lock where all is as it should be.
    """
    wanted = _wanted(connection)
    if _mark(connection) == wanted:
        return False
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        # Two that migrate at once would otherwise fail with "tuple concurrently updated".
        cursor.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s, %s)", LOCK)
        if _mark(connection) == wanted:
            return False
        cursor.execute(_TABLES)
        schema = _schema(connection)
        cursor.execute(_RING.format(bell=_BELLS[conf.get().WAKE_UP]))
        cursor.execute(_PUBLISH.format(schema=schema))
        cursor.execute(
            "SELECT FROM pg_catalog.pg_trigger WHERE tgname = %s AND tgrelid = pg_catalog.to_regclass(%s)", [RING, LOG]
        )
        if cursor.fetchone() is None:
            cursor.execute(_TRIGGER)
        cursor.execute(f"COMMENT ON FUNCTION {RING}() IS '{wanted}'")
    return True


def remove(connection: BaseDatabaseWrapper) -> None:
    """Drop the log. Raises RuntimeError while durable triggers write to it: their writes would fail."""
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(_WRITERS, [r"pgsignals\_%", f"%{LOG}%"])
        if writers := [name for (name,) in cursor.fetchall()]:
            raise RuntimeError(
                f"The log cannot be dropped while durable triggers write to it: {', '.join(writers)}. Migrate the apps "
                "that declare Notify(durable=True) backwards first, or drop these functions."
            )
        for table in reversed(TABLES):
            cursor.execute(f"DROP TABLE IF EXISTS {table}")
        cursor.execute(f"DROP FUNCTION IF EXISTS {PUBLISH}(text, text, text, text, interval)")
        cursor.execute(f"DROP FUNCTION IF EXISTS {RING}()")


_WRITERS = f"""
SELECT p.oid::regproc::text FROM pg_catalog.pg_proc p
WHERE p.proname LIKE %s AND p.prosrc LIKE %s AND p.proname <> '{PUBLISH}' AND p.proname <> '{RING}'
    AND EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid)
"""


def exists(connection: BaseDatabaseWrapper) -> bool:
    """Whether this session's search_path leads to a log."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [LOG])
        return bool(cursor.fetchone()[0])


def _wanted(connection: BaseDatabaseWrapper) -> str:
    texts = (_TABLES, _RING, _BELLS[conf.get().WAKE_UP], _TRIGGER, _PUBLISH)
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _mark(connection: BaseDatabaseWrapper) -> str | None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_catalog.obj_description(pg_catalog.to_regprocedure(%s), 'pg_proc') "
            "FROM pg_catalog.to_regclass(%s) AS log WHERE log IS NOT NULL",
            [f"{RING}()", LOG],
        )
        row = cursor.fetchone()
        return None if row is None else row[0]


def _schema(connection: BaseDatabaseWrapper) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(%s)",
            [LOG],
        )
        return str(cursor.fetchone()[0])


def before_migrate(*, using: str, verbosity: int = 1, **kwargs: Any) -> None:
    """Receiver of pre_migrate: the log stands before anybody's migration writes to it."""
    connection = connections[using]
    if connection.vendor != "postgresql" or not router.allow_migrate(using, "pgsignals", model_name="logentry"):
        return
    if ensure(connection) and verbosity >= 2:
        logger.info("pgsignals: the log's tables and functions are in place in database %r.", using)
