"""What the log lives through for real: a dump that is restored elsewhere, an upgrade, a standby, a pooler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.postgres import Server
from tests.servers import ROOT, Process, pgbouncer, running

from .proxy import BOTH, Proxy
from .staging import WITHIN, execute, migrate, own_server, place_of

pytestmark = pytest.mark.faults

RECEIVERS = """
import os, sys
import django
django.setup()
from django.core.management import call_command
from pgsignals import on_pg_event
from tests.ledger.models import Account, Effect

@on_pg_event(Account, "insert", group="billing", start="beginning")
def bill(event):
    print("handled", event.new["owner"], flush=True)

@on_pg_event(Account, "insert", group="mirror", start="beginning", atomic=True)
def mirror(event):
    Effect.objects.create(group="mirror", event_id=event.id, said=event.new["owner"])

call_command("listen", *sys.argv[1:])
"""


def environment(place: dict[str, Any], **settings: Any) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": "",
        "PGHOST": str(place["host"]),
        "PGPORT": str(place["port"]),
        "PGUSER": str(place["user"]),
        "PGPASSWORD": "",
        "PGDATABASE": str(place["dbname"]),
        "PGSIGNALS_TEST_DATABASE": str(place["dbname"]),
        "PGSIGNALS_TEST_SETTINGS": json.dumps(settings),
        "DJANGO_SETTINGS_MODULE": "tests.settings_faults",
        "PYTHONUNBUFFERED": "1",
    }


def drain(place: dict[str, Any]) -> tuple[list[str], str]:
    """What the group `billing` handled, and all that was said."""
    command = [sys.executable, "-c", RECEIVERS, "--drain"]
    done = subprocess.run(command, cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("handled")], done.stderr


def write(place: dict[str, Any], *owners: str) -> None:
    for owner in owners:
        execute(place, f"INSERT INTO ledger_account (owner, balance, note) VALUES ('{owner}', 0, '')")


def count_transactions(place: dict[str, Any], count: int) -> None:
    """The cluster's counter is further on."""
    with psycopg.connect(**place, autocommit=True) as session:
        for _ in range(count):
            session.execute("SELECT pg_current_xact_id()")


def effects(place: dict[str, Any]) -> list[str]:
    return [said for (said,) in execute(place, "SELECT said FROM ledger_effect ORDER BY id")]


def lived_in(place: dict[str, Any]) -> None:
    """A log of which something was handled; something committed late, and something later, were not."""
    write(place, "handled")
    with psycopg.connect(**place) as slow:
        slow.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('late', 0, '')")
        write(place, "too")
        assert drain(place)[0] == ["handled", "too"]
        slow.commit()
    write(place, "waits")


def goes_on(place: dict[str, Any]) -> str:
    """Nothing is lost, and what comes next is handled once. What was said."""
    write(place, "new")
    handled, said = drain(place)
    assert {"late", "waits", "new"} <= set(handled)
    assert {"handled", "too", "late", "waits", "new"} <= set(effects(place))
    assert drain(place)[0] == []
    write(place, "newer")
    assert drain(place)[0] == ["newer"]
    return said


@pytest.fixture
def servers() -> Iterator[Any]:
    """Makes servers, which end with the test."""
    made: list[Server] = []

    def make(options: str = "") -> Server:
        made.append(own_server(options=options))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.mark.parametrize("further", ["where it was dumped", "where it is restored"])
def test_a_dump_is_restored_into_another_cluster(servers: Any, further: str, tmp_path: Path) -> None:
    old, new = servers().start(), servers().start()
    migrate(place_of(old))
    count_transactions(place_of(old if further == "where it was dumped" else new), 5000)
    lived_in(place_of(old))
    programs, address = old.programs, ["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"]
    file = str(tmp_path / "dump")
    subprocess.run([programs / "pg_dump", *address, "-p", str(old.port), "-Fc", "-f", file], check=True)
    subprocess.run([programs / "pg_restore", *address, "-p", str(new.port), "--exit-on-error", file], check=True)
    said = goes_on(place_of(new))
    assert "The log came from another cluster" in said
    assert "Nothing is lost" in said


def test_a_dump_is_restored_into_another_database_of_its_cluster(servers: Any, tmp_path: Path) -> None:
    """Transaction ids are the cluster's: they mean there what they meant."""
    server = servers().start()
    here = place_of(server)
    migrate(here)
    lived_in(here)
    address, file = ["-h", "127.0.0.1", "-U", "postgres", "-p", str(server.port)], str(tmp_path / "dump")
    subprocess.run([server.programs / "pg_dump", *address, "-d", "postgres", "-Fc", "-f", file], check=True)
    execute(here, "CREATE DATABASE copy")
    subprocess.run([server.programs / "pg_restore", *address, "-d", "copy", "--exit-on-error", file], check=True)
    write(here, "elsewhere")
    assert "another cluster" not in goes_on({**here, "dbname": "copy"})


def test_an_upgraded_cluster_goes_on(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old_programs = Path("/usr/lib/postgresql/15/bin")
    monkeypatch.delenv("PGSIGNALS_TEST_POSTGRES", raising=False)
    if not (old_programs / "initdb").exists():
        pytest.skip(f"NOT RUN: pg_upgrade from PostgreSQL 15. There is none in {old_programs}.")
    new = servers()
    monkeypatch.setenv("PGSIGNALS_TEST_POSTGRES", str(old_programs))
    old = servers().start()
    migrate(place_of(old))
    lived_in(place_of(old))
    old.stop()
    # PostgreSQL 15 has no checksums unless asked for, and the two must agree.
    shutil.rmtree(new.data)
    options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "-N", "--no-data-checksums"]
    new._run("initdb", "-D", str(new.data), *options)
    subprocess.run(
        [
            *(new.programs / "pg_upgrade", "-U", "postgres", "-s", str(new.folder)),
            *("-b", old.programs, "-B", new.programs, "-d", str(old.data), "-D", str(new.data)),
        ],
        check=True,
        user=new.user,
        cwd=new.folder,
        stdout=subprocess.DEVNULL,
    )
    new.start()
    assert "The log came from another cluster" in goes_on(place_of(new))


def test_a_promoted_standby_just_goes_on(servers: Any) -> None:
    primary, standby = servers(), servers()
    primary.start()
    migrate(place_of(primary))
    lived_in(place_of(primary))
    shutil.rmtree(standby.data)
    address = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
    standby._run("pg_basebackup", *address, "-D", str(standby.data), "-R")
    standby.start()
    write(place_of(primary), "streamed")
    until(place_of(standby), "EXISTS (SELECT FROM ledger_account WHERE owner = 'streamed')")
    primary.stop("immediate")
    standby._run("pg_ctl", "-D", str(standby.data), "-w", "promote")
    assert "another cluster" not in goes_on(place_of(standby))
    assert effects(place_of(standby)).count("streamed") == 1


PLAIN = """
import django
django.setup()
from django.core.management import call_command
from pgsignals import on_pg_event
from tests.ledger.models import Account

@on_pg_event(Account, "insert")
def hear(event):
    print("heard", event.new["owner"], flush=True)

call_command("listen", "--no-channels")
"""


def test_transaction_ids_that_a_crash_gives_out_again_hide_no_event(servers: Any) -> None:
    """Of transactions whose commits waited for no disk; a relay that lives on has seen them as over."""
    server = servers("-c wal_writer_delay=10s -c wal_writer_flush_after=64MB").start()
    place = place_of(server)
    migrate(place)
    with running([sys.executable, "-c", PLAIN], environment(place, LOG_POLL=0.05)) as relay:
        relay.wait_for("Listening to")
        write(place, "first")
        relay.wait_for("heard first")
        with psycopg.connect(**place, autocommit=True) as session:
            session.execute("SET synchronous_commit = off")
            session.execute("CREATE TEMPORARY TABLE forgotten (id xid8)")
            for _ in range(500):
                session.execute("INSERT INTO forgotten VALUES (pg_current_xact_id())")
            ((forgotten, now),) = session.execute("SELECT max(id::text::bigint), clock_timestamp() FROM forgotten")
        reader = "SELECT FROM pg_stat_activity WHERE application_name = 'pgsignals log'"
        for _ in range(2):
            # The look that runs at the moment may have begun before.
            until(place, f"EXISTS ({reader} AND query_start > '{now}')")
            ((now,),) = execute(place, "SELECT clock_timestamp()")
        server.stop("immediate")
        server.start()
        relay.wait_for("Connected again")
        ((following,),) = execute(place, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        assert following < forgotten, "the crash has forgotten nothing"
        write(place, "again")
        relay.wait_for("heard again")


def until(place: dict[str, Any], condition: str) -> None:
    end = time.monotonic() + WITHIN
    while not execute(place, f"SELECT 1 WHERE {condition}"):
        assert time.monotonic() < end, f"waited for {condition}"
        time.sleep(0.02)


@contextmanager
def working(place: dict[str, Any], *arguments: str, **settings: Any) -> Iterator[Process]:
    with running([sys.executable, "-c", RECEIVERS, *arguments], environment(place, **settings)) as process:
        yield process


def test_writers_and_workers_go_through_a_pooler_in_transaction_mode(servers: Any, tmp_path: Path) -> None:
    server = servers().start()
    tmp_path.chmod(0o755)
    with pgbouncer(server, "transaction", tmp_path, pool=3) as port:
        through = {**place_of(server), "port": port}
        command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "-v", "0"]
        subprocess.run(command, env=environment(through, WAKE_UP="poll"), cwd=ROOT, check=True)
        with working(through, "--no-relay", WAKE_UP="poll", LOG_POLL=0.05, LEASE=2.0) as worker:
            worker.wait_for("Groups: billing, mirror")
            with psycopg.connect(**through, autocommit=True, prepare_threshold=None) as writer:
                for number in range(50):
                    with writer.transaction():
                        writer.execute("INSERT INTO ledger_account (owner, balance, note) VALUES (%s, 0, '')", [number])
            until(place_of(server), "(SELECT count(*) FROM ledger_effect) = 50")
            worker.wait_for("handled", 50)
            handled = [line.split()[1] for line in worker.lines if line.startswith("handled")]
            assert sorted(handled, key=int) == [str(number) for number in range(50)]
            assert worker.end() == 0
        assert not execute(through, "SELECT 1 FROM pgsignals_partition WHERE owner IS NOT NULL")
    assert sorted(effects(place_of(server)), key=int) == [str(number) for number in range(50)]


def test_a_worker_whose_line_has_died_without_a_word_comes_back(servers: Any) -> None:
    """Nobody closes the socket, and what is asked is never answered."""
    server = servers().start()
    migrate(place_of(server))
    proxy = Proxy(server.port)
    try:
        there = {**place_of(server), "port": proxy.port}
        with working(there, "--no-relay", LOG_POLL=0.05, LEASE=0.5, CONNECT_TIMEOUT=2) as worker:
            worker.wait_for("Groups: billing, mirror")
            write(place_of(server), "before")
            worker.wait_for("handled before", within=WITHIN)
            proxy.swallow(BOTH, only_old=True)
            write(place_of(server), "after")
            worker.wait_for("handled after", within=WITHIN)
    finally:
        proxy.close()
