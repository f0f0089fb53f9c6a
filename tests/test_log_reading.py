"""Positions are snapshots: what they miss, and what they cost."""

from __future__ import annotations

import psycopg
import pytest

from pgsignals.durable import reading

from .conftest import connect
from .working import clear_log

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _empty(transactional_db: object) -> None:
    clear_log()


INSERT = "INSERT INTO ledger_account (owner, balance, note) VALUES (%s, 0, '')"


def owners(position: reading.Position) -> tuple[list[str], reading.Position]:
    """What is between a position and now."""
    with reading.connect("default", "pgsignals test") as own:
        position = reading.opened(own, position, reading.horizon(own))
        rows = own.execute(*reading.query(position, 1000)).fetchall()
    return [row[6] for row in rows], position.done()


def now() -> reading.Position:
    with reading.connect("default", "pgsignals test") as own:
        return reading.horizon(own).position()


def test_the_youngest_transaction_that_runs_is_listed_in_no_snapshot_and_is_not_missed() -> None:
    """Its id is not below the snapshot's xmax, and its rows are older than the snapshot."""
    with connect() as slow:
        slow.autocommit = False
        slow.execute(INSERT, ["slow"])
        position = now()
        slow.commit()
    (found,), _ = owners(position)
    assert '"slow"' in found


def test_what_ran_and_what_came_later_is_read_in_the_order_of_ids() -> None:
    with connect() as slow, connect() as fast:
        slow.autocommit = False
        slow.execute(INSERT, ["1"])
        fast.execute(INSERT, ["2"])
        position = now()
        slow.execute(INSERT, ["3"])
        fast.execute(INSERT, ["4"])
        seen, later = owners(position)
        assert [one.split('"')[1] for one in seen] == ["4"]
        slow.commit()
    seen, _ = owners(later)
    assert [one.split('"')[1] for one in seen] == ["1", "3"]


def touched(session: psycopg.Connection) -> int:
    """How many rows of the log this session has looked at."""
    session.execute("SELECT pg_stat_force_next_flush()")
    (count,) = session.execute(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'pgsignals_log'"
    ).fetchone()
    return count


def test_a_plan_made_while_the_log_was_empty_reads_no_more_than_the_window_when_it_has_grown() -> None:
    """Statements are prepared, and nothing has told PostgreSQL since how big the log has become."""
    with reading.connect("default", "pgsignals test") as own, connect() as writer:
        assert own.prepare_threshold is not None
        own.execute("SET plan_cache_mode = force_generic_plan")
        for _ in range(3):
            position = reading.opened(own, now(), reading.horizon(own))
            own.execute(*reading.query(position, 1000)).fetchall()
        writer.execute(
            "INSERT INTO ledger_account (owner, balance, note) SELECT '', 0, '' FROM generate_series(1, 20000)"
        )
        position = now()
        writer.execute(INSERT, ["new"])
        before = touched(own)
        opened = reading.opened(own, position, reading.horizon(own))
        assert len(own.execute(*reading.query(opened, 1000)).fetchall()) == 1
        assert touched(own) - before < 200


def test_no_look_is_compiled_first() -> None:
    """Where PostgreSQL can, it compiles what it takes for costly: each time anew, for longer than the look takes."""
    with reading.connect("default", "pgsignals test") as own:
        plan = [line for (line,) in own.execute(f"EXPLAIN ANALYZE {reading.SNAPSHOT}").fetchall()]
    assert not [line for line in plan if "JIT" in line], plan


@pytest.mark.parametrize(
    ("snapshot", "newest", "settled"),
    [
        ("20:20:", 15, "16:16:"),
        ("20:20:", 19, "20:20:"),
        ("20:20:", 30, "20:20:"),
        ("12:20:12,15,18", 16, "12:17:12,15"),
        ("12:20:12,15,18", 11, "12:12:"),
        ("12:20:12,15,18", 5, "6:6:"),
    ],
)
def test_a_settled_snapshot_knows_nobody_who_is_younger_than_the_newest_event(
    snapshot: str, newest: int, settled: str
) -> None:
    assert reading.settled(snapshot, newest) == settled


def test_from_a_settled_position_nothing_is_read_twice_and_nothing_is_missed() -> None:
    position, newest = now(), 0
    with connect() as early, connect() as late, connect() as other:
        for slow in (early, late):
            slow.autocommit = False
        early.execute("SELECT pg_current_xact_id()")
        other.execute(INSERT, ["1"])
        ((newest,),) = other.execute("SELECT max(xid::text::bigint) FROM pgsignals_log").fetchall()
        late.execute("SELECT pg_current_xact_id()")
        other.execute("SELECT pg_current_xact_id()")
        seen, position = owners(position)
        assert [one.split('"')[1] for one in seen] == ["1"]
        settled = reading.settled(position.since, newest)
        position = reading.Horizon(settled, position.until_ceiling).position()
        assert reading.age(settled) < reading.age(now().since)
        assert owners(position)[0] == []
        early.execute(INSERT, ["2"])
        late.execute(INSERT, ["3"])
        for slow in (early, late):
            slow.commit()
        assert [one.split('"')[1] for one in owners(position)[0]] == ["2", "3"]
