"""What can go wrong on one machine, each for real: a relay goes on, and says what it missed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.postgres import Server
from tests.servers import pgbouncer

from .proxy import BOTH, TO_CLIENT, TO_SERVER, Proxy
from .staging import MORE_MEMORY, WITHIN, Relay, Writer, execute, own_server, place_of, staged, warmed_up

pytestmark = pytest.mark.faults

KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals listen%'"


# The server.


def test_its_backend_is_killed(place: dict[str, Any]) -> None:
    with staged("backend killed", place, place) as fault:
        execute(place, KILL)
        fault.is_over()
        fault.relay.wait_until(lambda one: one[0] == "gap", "a gap is announced")
        assert fault.check().recovered < 5


def test_its_backend_is_killed_again_and_again(place: dict[str, Any]) -> None:
    with staged("backend killed ten times", place, place) as fault:
        for count in range(1, 11):
            execute(place, KILL)
            fault.relay.output.wait_for("Connected again", count, within=WITHIN)
        fault.is_over()
        assert fault.check().gaps == 10


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_server_is_stopped_and_started(mode: str) -> None:
    server = own_server().start()
    try:
        with staged(f"server stopped ({mode}) and started", place_of(server), place_of(server)) as fault:
            server.stop(mode)
            fault.relay.output.wait_for("No connection to the database", 3, within=WITHIN)
            server.start()
            fault.is_over()
            assert fault.check().gaps >= 1
    finally:
        server.close()


def test_the_server_is_down_at_the_start() -> None:
    server = own_server()
    relay = Relay(place_of(server))
    try:
        relay.output.wait_for("No connection to the database", 2, within=WITHIN)
        server.start()
        began = time.time()
        relay.output.wait_for("Listening to", within=WITHIN)
        writer = Writer(place_of(server))
        try:
            fault = warmed_up("server down at the start", relay, writer)
            fault.over = began
            assert fault.check().lost == 0
        finally:
            writer.stop()
    finally:
        relay.output.end(signal.SIGTERM)
        server.close()


def test_a_standby_is_promoted(proxy: Proxy) -> None:
    """The old primary vanishes, and the name of the database leads to the new one."""
    primary = own_server("-c wal_level=replica -c max_wal_senders=4").start()
    standby = own_server()
    switch = Proxy(primary.port)
    try:
        become_standby(standby, primary)
        # While it follows, it can be read, and can neither LISTEN nor NOTIFY.
        refused = Relay(place_of(standby))
        assert refused.output.process.wait(WITHIN) == 1
        refused.output.close()
        assert "it is a standby, which can neither LISTEN nor NOTIFY" in refused.output.text
        there = place_of(primary, switch.port)
        with staged("standby promoted", there, there) as fault:
            switch.swallow(BOTH)
            primary.stop("immediate")
            switch.target = standby.port
            execute(place_of(standby), "SELECT pg_promote(true, 20)")
            switch.swallow(BOTH, only_old=True)
            fault.is_over()
            fault.check()
    finally:
        switch.close()
        standby.close()
        primary.close()


def become_standby(standby: Server, primary: Server) -> None:
    shutil.rmtree(standby.data)
    command = [str(primary.programs / "pg_basebackup"), "-D", str(standby.data), "-R", "-X", "stream", "-c", "fast"]
    place = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
    subprocess.run([*command, *place], user=primary.user, cwd="/tmp", check=True)
    standby.start()


# The way there.


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT, BOTH])
def test_the_line_swallows_everything(place: dict[str, Any], proxy: Proxy, direction: str) -> None:
    """Half-open: every socket stays open, and nobody says that anything is wrong."""
    there = {**place, "port": proxy.port}
    with staged(f"black hole {direction}", there, place) as fault:
        proxy.swallow(direction)
        fault.relay.output.wait_for("No connection to the database", 1, within=WITHIN)
        fault.relay.output.wait_for("No connection to the database", 2, within=WITHIN)
        proxy.heal()
        fault.is_over()
        assert fault.check().gaps >= 1


def test_only_the_listening_line_is_dead(place: dict[str, Any], proxy: Proxy) -> None:
    """New connections work, so the token is sent, and never arrives: deaf."""
    with staged("deaf: only the listening line is dead", {**place, "port": proxy.port}, place) as fault:
        proxy.swallow(TO_CLIENT, only_old=True)
        fault.is_over()
        fault.relay.output.wait_for("is deaf: what a second connection sent did not arrive", within=WITHIN)
        assert fault.check().gaps >= 1


def test_a_slow_line_is_no_dead_one(place: dict[str, Any], proxy: Proxy) -> None:
    with staged("slow line", {**place, "port": proxy.port}, place, PROBE_WITHIN=10, CONNECT_TIMEOUT=10) as fault:
        proxy.slow(0.002)
        fault.relay.hears(fault.writer.sent[-1].number + 50)
        fault.is_over()
        proxy.slow(0)
        outcome = fault.check()
        assert (outcome.lost, outcome.gaps) == (0, 0)


def test_a_flood_over_a_slow_line_is_only_late(place: dict[str, Any], proxy: Proxy) -> None:
    """The token comes behind the flood, later than it may come otherwise."""
    with staged("flood over a slow line", {**place, "port": proxy.port}, place, CONNECT_TIMEOUT=10) as fault:
        proxy.slow(0.001)
        execute(place, "SELECT count(pg_notify('faults', (-n)::text)) FROM generate_series(1, 5000) AS n")
        fault.relay.wait_until(lambda one: one[:2] == ["heard", -5000], "the end of the flood is heard")
        proxy.slow(0)
        fault.is_over()
        outcome = fault.check()
        assert (outcome.lost, outcome.gaps) == (0, 0)


def test_pgbouncer_in_transaction_mode_is_refused_with_the_remedy(
    shared: Server, place: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """LISTEN succeeds there, and nothing ever arrives."""
    with pgbouncer(shared, "transaction", Path(tmp_path_factory.mktemp("pgb"))) as port:
        refused = Relay({**place, "port": port})
        assert refused.output.process.wait(WITHIN) == 1
        refused.output.close()
        assert "a pooler in transaction mode stands between" in refused.output.text
        assert "PGSIGNALS['LISTEN']" in refused.output.text
        # The remedy: listening goes straight there, and the token the way of the writers.
        direct = f"host=127.0.0.1 port={shared.port} user=postgres dbname=postgres"
        there = {**place, "port": port}
        with staged("PgBouncer, transaction mode, with LISTEN", there, there, LISTEN=direct) as fault:
            fault.is_over()
            assert fault.check().lost == 0


def test_pgbouncer_in_session_mode_works(
    shared: Server, place: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pgbouncer(shared, "session", Path(tmp_path_factory.mktemp("pgb"))) as port:
        there = {**place, "port": port}
        with staged("PgBouncer, session mode", there, place) as fault:
            execute(place, KILL)
            fault.is_over()
            fault.check()


# Rights.


@pytest.fixture
def role(shared: Server) -> Iterator[dict[str, Any]]:
    """A role that logs in with a password."""
    admin = place_of(shared)
    hba = shared.data / "pg_hba.conf"
    before = hba.read_text()
    execute(admin, "CREATE ROLE app LOGIN PASSWORD 'first'")
    hba.write_text(f"host all app 127.0.0.1/32 scram-sha-256\n{before}")
    execute(admin, "SELECT pg_reload_conf()")
    yield {**admin, "user": "app", "password": "first"}
    hba.write_text(before)
    execute(admin, "SELECT pg_reload_conf()", "DROP ROLE app")


def test_the_password_is_changed(place: dict[str, Any], role: dict[str, Any]) -> None:
    """The connection that works is kept. When it is lost too, the relay tries until the password fits again."""
    with staged("password changed", role, place) as fault:
        execute(place, "ALTER ROLE app PASSWORD 'second'")
        fault.relay.output.wait_for("cannot be proven, because the probe's own connection failed", within=WITHIN)
        fault.relay.hears(fault.writer.sent[-1].number + 20)
        execute(place, KILL)
        fault.relay.output.wait_for("password authentication failed", 3, within=WITHIN)
        execute(place, "ALTER ROLE app PASSWORD 'first'")
        fault.is_over()
        fault.check()


def test_a_role_without_rights_is_refused(place: dict[str, Any], role: dict[str, Any]) -> None:
    execute(place, "CREATE DATABASE closed", "REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    try:
        refused = Relay({**role, "dbname": "closed"})
        assert refused.output.process.wait(WITHIN) == 1
        refused.output.close()
        assert 'permission denied for database "closed"' in refused.output.text
    finally:
        execute(place, "DROP DATABASE closed")


# The process.


def test_the_process_stands_still_for_a_while(place: dict[str, Any]) -> None:
    """SIGSTOP, SIGCONT: longer than a probe may take. Nothing is lost, so nothing is announced."""
    with staged("process stopped for 3 s", place, place) as fault:
        os.kill(fault.relay.pid, signal.SIGSTOP)
        stopped = time.time()
        while time.time() < stopped + 3:
            execute(place, "SELECT pg_sleep(0.2)")
        os.kill(fault.relay.pid, signal.SIGCONT)
        fault.is_over()
        outcome = fault.check()
        assert (outcome.lost, outcome.gaps) == (0, 0)
        assert "deaf" not in fault.relay.output.text


def test_a_running_receiver_may_finish_after_sigterm(place: dict[str, Any]) -> None:
    with staged("SIGTERM while a receiver runs", place, place, bad="takes two seconds") as fault:
        execute(place, "NOTIFY bad, '7'")
        fault.relay.wait_until(lambda one: one == ["began", 7, one[2]], "the receiver runs")
        os.kill(fault.relay.pid, signal.SIGTERM)
        assert fault.relay.output.process.wait(WITHIN) == 0
        assert [one[0] for one in fault.relay.told if one[0] in ("began", "ended")] == ["began", "ended"]
        assert "Stopping; a running receiver may finish" in fault.relay.output.text
        # Whoever looks after it starts it again.
        ended, again = time.time(), Relay(place)
        try:
            again.output.wait_for("Listening to", within=WITHIN)
            anew = warmed_up(fault.fault, again, fault.writer)
            anew.over = ended
            assert anew.check().lost == 0
        finally:
            again.output.end(signal.SIGTERM)


# What arrives.


def test_100_000_payloads_of_strangers(place: dict[str, Any]) -> None:
    """Malformed, foreign, with huge numbers, nested deeply, of another version: and the rows among them arrive."""
    good = {"v": 1, "d": "d", "s": "public", "x": 1, "t": 0, "m": "shop.customer", "o": "i", "n": 1, "r": [[7]]}
    strange = [
        "rubbish",
        json.dumps({**good, "m": "other.thing"}),
        json.dumps({**good, "x": 0}).replace('"x": 0', f'"x": {"9" * 3000}'),
        "[" * 3900 + "]" * 3900,
        json.dumps({**good, "v": 2}),
        json.dumps({**good, "r": [["key", "x" * 5000]]}),
        json.dumps({**good, "c": [[]]}),
        "\ud7ff" * 2000,
    ]
    with staged("100,000 payloads of strangers", place, place) as fault:
        with psycopg.connect(**place, autocommit=True) as stranger, stranger.transaction():
            stranger.execute(
                "SELECT count(pg_notify('pgsignals', (%s::text[])[1 + n %% %s] || repeat(' ', n %% 97)))"
                " FROM generate_series(1, 100000) AS n",
                [strange, len(strange)],
            )
        (row,) = execute(place, "INSERT INTO shop_customer (name) VALUES ('after the flood') RETURNING id")
        fault.relay.wait_until(lambda one: one[0] == "row" and one[1] == row[0], "the row after the flood arrives")
        fault.is_over()
        outcome = fault.check()
        assert outcome.lost == 0
        assert any(cause == "an event of an unknown version" for _, _, cause in fault.relay.gaps())
        assert len(fault.relay.output.lines) < 200


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("bad", ["raises", "exits", "closes its connection", "leaves a transaction open", "hangs"])
def test_a_receiver_misbehaves(place: dict[str, Any], bad: str, kind: str) -> None:
    """The next one of the same event, the next event, and everybody else go on as ever."""
    named = "a receiver" if kind == "sync" else "an async receiver"
    staging = staged(f"{named} {bad}", place, place, bad=bad if kind == "sync" else f"async {bad}")
    with staging as fault:
        for number in range(1, 4):
            execute(place, f"NOTIFY bad, '{number}'")
            fault.relay.wait_until(lambda one, n=number: one[:2] == ["behaved", n], f"the other receiver gets {number}")
        fault.is_over()
        outcome = fault.check()
        assert (outcome.lost, outcome.gaps) == (0, 0)
        sign = {"leaves a transaction open": "left a transaction open", "hangs": "raised TimeoutError"}
        if bad != "closes its connection":
            fault.relay.output.wait_for(sign.get(bad, "raised"), within=WITHIN)


def test_receivers_hang_in_threads(place: dict[str, Any]) -> None:
    """In as many as asyncio has: it looks up the names of hosts there, and the relay must connect again."""
    there = {**place, "host": "localhost"}
    with staged("12 receivers hang in asyncio's threads", there, place, bad="async hangs in a thread") as fault:
        for number in range(12):
            execute(place, f"NOTIFY bad, '{number}'")
        fault.relay.wait(lambda: sum(one[0] == "behaved" for one in fault.relay.told) == 12, "all of them are called")
        execute(place, KILL)
        fault.is_over()
        fault.relay.wait_until(lambda one: one[0] == "gap", "a gap is announced")
        fault.check()


def test_a_receiver_sleeps_while_500_000_rows_arrive(place: dict[str, Any]) -> None:
    """All at once, after a standstill. The socket is drained, what waits is bounded, and what gave way is a gap."""
    with staged("a receiver sleeps while 500,000 rows arrive", place, place, bad="sleeps", BUFFER=4) as fault:
        os.kill(fault.relay.pid, signal.SIGSTOP)
        execute(place, "INSERT INTO shop_customer (name) SELECT 'sleepy' FROM generate_series(1, 500000)")
        os.kill(fault.relay.pid, signal.SIGCONT)
        fault.relay.hears(fault.writer.sent[-1].number)
        assert fault.relay.memory() - fault.memory < MORE_MEMORY
        execute(place, "NOTIFY wake")
        fault.relay.wait_until(
            lambda one: one[0] == "gap" and one[1][2].startswith("overflow"), "the overflow is a gap"
        )
        fault.is_over()
        fault.check()


@pytest.fixture
def tight() -> Iterator[dict[str, Any]]:
    """A server whose queue of notifications is soon full."""
    server = own_server()
    programs = subprocess.run([str(server.programs / "postgres"), "--version"], capture_output=True, text=True)
    if int(programs.stdout.split()[-1].split(".")[0]) < 17:
        server.close()
        pytest.skip("NOT RUN: a full queue of notifications; before PostgreSQL 17 it has 8 GB. Run with a newer one.")
    server.options += " -c max_notify_queue_pages=64"
    server.start()
    yield place_of(server)
    server.close()


def test_another_listener_that_sits_in_a_transaction_fills_the_servers_queue(tight: dict[str, Any]) -> None:
    """Writers' commits fail then, and so does the probe: it says why, and goes on when the queue is free again."""
    with staged("queue full: a listener in a transaction", tight, tight) as fault:
        with psycopg.connect(**tight) as sleeper:
            sleeper.execute("LISTEN faults")
            sleeper.commit()
            sleeper.execute("SELECT 1")  # in a transaction: it receives nothing, and keeps everything
            fill(tight)
            fault.relay.output.wait_for("too many notifications in the NOTIFY queue", within=WITHIN)
        fault.is_over()
        assert fault.check().lost == 0


def test_another_relay_that_is_stopped_fills_the_servers_queue(tight: dict[str, Any]) -> None:
    """It hears all of it when it goes on; nothing was lost to it, so it announces nothing."""
    other = Relay(tight, "nobody")
    try:
        other.output.wait_for("Listening to", within=WITHIN)
        with staged("queue full: another relay stopped", tight, tight) as fault:
            other.hears(fault.writer.sent[-1].number)
            os.kill(other.pid, signal.SIGSTOP)
            fill(tight)
            fault.relay.output.wait_for("too many notifications in the NOTIFY queue", within=WITHIN)
            os.kill(other.pid, signal.SIGCONT)
            fault.is_over()
            assert fault.check().lost == 0
            other.hears(fault.writer.sent[-1].number)
            assert other.gaps() == []
    finally:
        os.kill(other.pid, signal.SIGCONT)
        other.output.end(signal.SIGTERM)


def fill(place: dict[str, Any]) -> None:
    with psycopg.connect(**place, autocommit=True) as writer:
        for _ in range(10_000):
            try:
                writer.execute("SELECT count(pg_notify('nobody', rpad(n::text, 7000))) FROM generate_series(1, 20) n")
            except psycopg.errors.ProgramLimitExceeded:  # too many notifications in the NOTIFY queue
                return
    pytest.fail("the queue is not full")
