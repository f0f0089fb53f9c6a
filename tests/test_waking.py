"""Who rings when events were appended to the log: of writers that commit together one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from django.db import connection, transaction

from pgsignals import publish
from pgsignals.durable.schema import GATE
from pgsignals.models import LogEntry

from .conftest import Listener, connect
from .ledger.models import Account
from .working import bell, clear_log

pytestmark = pytest.mark.django_db(transaction=True)

__all__ = ["bell"]

INSERT = "INSERT INTO ledger_account (owner, balance, note) VALUES ('x', 1, '')"


@pytest.fixture
def taken(transactional_db: object) -> Iterator[psycopg.Connection]:
    """Another writer, that is about to commit."""
    with connect() as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", GATE)
        yield other


def is_taken(session: psycopg.Connection) -> bool:
    """Whether the session holds the gate."""
    (count,) = session.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s "
        "AND pid = pg_backend_pid() AND granted",
        GATE,
    ).fetchone()
    return bool(count)


def simply() -> None:
    with connect() as session:
        session.execute(INSERT)


def by_the_extended_protocol() -> None:
    with connect() as session:
        session.execute(INSERT.replace("1", "%s"), [1])


def prepared() -> None:
    with connect() as session:
        for _ in range(2):
            session.execute(INSERT, prepare=True)


def in_a_transaction() -> None:
    with connect() as session, session.transaction():
        session.execute(INSERT)
        session.execute(INSERT)


def by_the_orm() -> None:
    Account.objects.create()


def by_the_orm_in_a_transaction() -> None:
    with transaction.atomic():
        Account.objects.create()


def in_a_savepoint() -> None:
    with transaction.atomic(), transaction.atomic():
        Account.objects.create()


def in_a_function() -> None:
    with connect() as session:
        session.execute(f"DO $$ BEGIN {INSERT}; END $$")


def a_message() -> None:
    publish("app_events", {"n": 1}, durable=True)


WAYS = [
    simply,
    by_the_extended_protocol,
    prepared,
    in_a_transaction,
    by_the_orm,
    by_the_orm_in_a_transaction,
    in_a_savepoint,
    in_a_function,
    a_message,
]


@pytest.mark.parametrize("write", WAYS)
def test_whoever_commits_while_another_is_about_to_ring_does_not_ring(
    bell: Listener, taken: psycopg.Connection, write: Callable[[], None]
) -> None:
    write()
    assert bell.notifications() == []
    taken.execute("SELECT pg_advisory_unlock_all()")
    write()
    assert bell.notifications()


def test_one_row_of_a_transaction_rings() -> None:
    """However many statements and rows it had."""
    clear_log()
    with transaction.atomic():
        for _ in range(3):
            Account.objects.create()
            Account.objects.bulk_create([Account(), Account()])
            Account.objects.update(balance=2)
        publish("app_events", {"n": 1}, durable=True)
    assert sum(LogEntry.objects.values_list("rings", flat=True)) == 1


def test_constraints_that_are_made_immediate_leave_the_gate_open_for_others(bell: Listener) -> None:
    """Before the first write or after it, by a statement of its own or within another."""
    say = "SET CONSTRAINTS ALL IMMEDIATE"
    orders = [
        (say, INSERT),
        (INSERT, say),
        (INSERT, f"DO $$ BEGIN {say}; END $$"),
        (f"DO $$ BEGIN {say}; END $$", INSERT),
    ]
    orders += [(say, "SELECT pgsignals_publish('app_events', '{}', '1', '')"), (f"{say}; {INSERT}", "SELECT 1")]
    for order in orders:
        with connect() as session, connect() as other:
            with session.transaction():
                for statement in order:
                    session.execute(statement)
                assert not is_taken(session), order
                other.execute(INSERT)
                assert bell.notifications(), order
            # Its own events came only now.
            assert bell.notifications(), order


def test_djangos_check_of_constraints_keeps_nobody_silent(bell: Listener) -> None:
    with transaction.atomic():
        Account.objects.create()
        connection.check_constraints()
        by_the_extended_protocol()
        assert bell.notifications()
    assert bell.notifications()


def test_a_statement_that_writes_nothing_gets_no_transaction_id(bell: Listener) -> None:
    with connect() as session, session.transaction():
        session.execute("UPDATE ledger_account SET balance = 5 WHERE false")
        assert session.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)
    assert bell.notifications() == []
