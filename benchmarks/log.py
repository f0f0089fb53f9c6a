"""What the log reaches: events handled a second, a backlog, reading among millions, latency, and what writers pay.

    python benchmarks/log.py [--postgres BIN_DIR] [--events 1000000] [--quick] [--check]
                             [--only rate,reading,latency,writers]

Rate: one worker handles a backlog of so many events; the ceiling is a bare reader in Python that fetches by the
difference of snapshots in pieces of 2,000 and commits its position, calling nothing. Once more with a transaction open
that has written an event. Reading: 100 new rows in a log of millions, a long transaction open. Latency: from a single
commit until the receiver has it; the disk is waited for. Writers: pgbench inserts single rows, with no trigger and with
a durable declaration, for each wake-up policy, with nobody, one group and five groups at work.

The output is Markdown, and ends with the bars that pgsignals sets itself; with --check a failed bar is exit code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

OPTIONS = "-c fsync=on -c full_page_writes=on -c shared_buffers=512MB -c max_wal_size=4GB -c max_connections=100"

WORKER = """
import sys, time
sys.path.insert(0, {root!r})
from benchmarks import log
log.configure({place!r}, {wake_up!r})
log.work({groups!r}, {kind!r})
"""


def configure(place: dict[str, Any], wake_up: str = "gated", **more: Any) -> None:
    """Django, with the ledger of the tests."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **place}},
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "pgsignals", "tests.ledger"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="of no use",
        USE_TZ=True,
        LOGGING_CONFIG=None,
        PGSIGNALS={"WAKE_UP": wake_up, "LOG_BATCH": 2000, **more},
    )
    django.setup()


def work(groups: list[str], kind: str) -> None:
    """In a process of its own: `listen` for groups whose receiver does what its kind says."""
    from django.core.management import call_command

    from pgsignals import PgEvent, on_pg_event
    from tests.ledger.models import Account, Effect

    def nothing(event: PgEvent) -> None: ...

    def insert(event: PgEvent) -> None:
        Effect.objects.create(group="bench", event_id=event.id)

    def stamp(event: PgEvent) -> None:
        print(f"{event.new['note']} {time.clock_gettime_ns(time.CLOCK_MONOTONIC)}", flush=True)

    for group in groups:
        function = {"nothing": nothing, "atomic": insert, "insert": insert, "stamp": stamp}[kind]
        on_pg_event(Account, "insert", group=group, atomic=kind == "atomic", start="beginning")(
            lambda event, function=function: function(event)
        )
    call_command("listen", "--no-channels", verbosity=0)


class Bench:
    """A server, and what is asked of it."""

    def __init__(self, args: argparse.Namespace, server: Any) -> None:
        self.args = args
        self.server = server
        self.place = server.django()
        self.bars: list[tuple[str, float, str, float]] = []

    def connect(self) -> Any:
        import psycopg

        given = {"host": self.place["HOST"], "port": self.place["PORT"], "user": "postgres", "dbname": "postgres"}
        return psycopg.connect(**given, autocommit=True)

    def execute(self, query: str) -> Any:
        with self.connect() as session:
            cursor = session.execute(query)
            return cursor.fetchall() if cursor.description else []

    def clear(self) -> None:
        tables = "log, pgsignals_group, pgsignals_partition, pgsignals_worker, pgsignals_parked, pgsignals_dead"
        self.execute(f"TRUNCATE pgsignals_{tables}, ledger_account, ledger_effect CASCADE; CHECKPOINT")

    def fill(self, events: int) -> None:
        """A backlog, by transactions of a thousand."""
        with self.connect() as session:
            for start in range(0, events, 1000):
                session.execute(
                    "INSERT INTO ledger_account (owner, balance, note) SELECT '', 0, '' FROM generate_series(1, %s)",
                    [min(1000, events - start)],
                )
            session.execute("VACUUM ANALYZE pgsignals_log")

    @contextmanager
    def worker(self, groups: list[str], kind: str, wake_up: str = "gated") -> Iterator[subprocess.Popen[str]]:
        code = WORKER.format(root=str(ROOT), place=self.place, groups=groups, kind=kind, wake_up=wake_up)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.terminate()
            process.communicate()

    def wait(self, condition: str, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        with self.connect() as session:
            while not session.execute(f"SELECT {condition}").fetchone()[0]:
                if time.monotonic() > end:
                    raise RuntimeError(f"not within {seconds} s: {condition}")
                time.sleep(0.01)

    def leased(self, group: str) -> str:
        return f"count(*) = 8 FROM pgsignals_partition WHERE owner IS NOT NULL AND group_name = '{group}'"

    def median(self, measure: Callable[[], float], rounds: int) -> float:
        return statistics.median(measure() for _ in range(rounds))

    # Rates.

    def rate(self, kind: str) -> float:
        """Events a second of one worker, from its first piece to its last."""
        self.execute("TRUNCATE pgsignals_group, pgsignals_partition, pgsignals_worker, ledger_effect CASCADE")
        with self.worker(["bench"], kind):
            self.wait(f"(SELECT sum(handled) FROM pgsignals_partition) >= {self.args.events // 10}")
            began, first = time.monotonic(), self.handled()
            self.wait(f"(SELECT sum(handled) FROM pgsignals_partition) >= {self.args.events}")
            return (self.args.events - first) / (time.monotonic() - began)

    def handled(self) -> int:
        return int(self.execute("SELECT sum(handled) FROM pgsignals_partition")[0][0])

    def ceiling(self) -> float:
        """A bare reader."""
        from pgsignals.durable import reading

        with self.connect() as session:
            session.execute(
                "CREATE TABLE IF NOT EXISTS bare (position text); TRUNCATE bare; INSERT INTO bare VALUES ('')"
            )
            position = reading.beginning(reading.horizon(session))
            began, count = time.monotonic(), 0
            while True:
                rows = session.execute(*reading.query(position, 2000)).fetchall()
                count += len(rows)
                session.execute("UPDATE bare SET position = %s", [str(rows[-1][0]) if rows else "done"])
                if len(rows) < 2000:
                    return count / (time.monotonic() - began)
                position = position.at(rows[-1][0])

    def rates(self) -> None:
        say(f"\n### Events a second, a backlog of {self.args.events:,}\n")
        self.clear()
        self.fill(self.args.events)
        rounds = 1 if self.args.quick else 3
        ceiling = self.median(self.ceiling, rounds)
        say("| | events a second | to the ceiling |\n|---|---:|---:|")
        say(f"| bare reader by snapshots, pieces of 2,000 | {ceiling:,.0f} | 1.00 |")
        found = {}
        for kind, title in (
            ("nothing", "a worker, the receiver does nothing"),
            ("atomic", "a worker, atomic group, an ORM insert for each"),
        ):
            found[kind] = self.median(lambda kind=kind: self.rate(kind), rounds)
            say(f"| {title} | {found[kind]:,.0f} | {found[kind] / ceiling:.2f} |")
        with self.connect() as slow:
            slow.autocommit = False
            slow.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('slow', 0, '')")
            slowed = self.median(lambda: self.rate("nothing"), rounds)
            slow.rollback()
        say(f"| the first, while a transaction is open that wrote an event | {slowed:,.0f} | {slowed / ceiling:.2f} |")
        self.bar("one worker's rate, to the bare reader's", found["nothing"] / ceiling, ">=", 0.5)
        self.bar("its rate with a long transaction open, to that without", slowed / found["nothing"], ">=", 0.8)

    # Reading.

    def reading(self) -> None:
        from pgsignals.durable import reading

        rows = 1_000_000 if self.args.quick else 10_000_000
        say(f"\n### 100 new rows in a log of {rows:,}, a long transaction open\n")
        self.clear()
        self.execute(
            "INSERT INTO pgsignals_log (xid, at, source, op, key, slot, rings, head, body) "
            "SELECT pg_current_xact_id(), now(), 'ledger.account', 'i', n::text, n % 1024, false, "
            """'{"v":1,"m":"ledger.account","s":"public","o":"i"}', '[' || n || ']' """
            f"FROM generate_series(1, {rows}) AS n"
        )
        self.execute("VACUUM ANALYZE pgsignals_log")
        with self.connect() as slow, self.connect() as session:
            slow.autocommit = False
            slow.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('slow', 0, '')")
            times = []
            for _ in range(20):
                position = reading.horizon(session).position()
                for _ in range(100):
                    session.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('', 0, '')")
                began = time.monotonic()
                opened = reading.opened(session, position, reading.horizon(session))
                found = session.execute(*reading.query(opened, 2000)).fetchall()
                times.append((time.monotonic() - began) * 1000)
                assert len(found) == 100, len(found)
            slow.rollback()
        say(f"{statistics.median(times):.2f} ms (median of 20; the longest {max(times):.2f} ms).")
        self.bar("reading 100 new rows, ms", statistics.median(times), "<=", 5)

    # Latency.

    def latency(self) -> None:
        say("\n### Latency, from a single commit that waits for the disk to the receiver\n")
        say("| | p50, ms | p99, ms |\n|---|---:|---:|")
        count = 200 if self.args.quick else 1000
        for title, pause in (("idle: a commit every 20 ms", 0.02), ("under load: as fast as one connection can", 0.0)):
            waits = self.latencies(count, pause)
            p50, p99 = statistics.median(waits), sorted(waits)[int(len(waits) * 0.99)]
            say(f"| {title} | {p50:.2f} | {p99:.2f} |")
            if pause:
                self.bar("idle, p50 from commit to receiver, ms", p50, "<=", 2)

    def latencies(self, count: int, pause: float) -> list[float]:
        self.clear()
        with self.worker(["bench"], "stamp") as process, self.connect() as session:
            self.wait(self.leased("bench"), 60)
            time.sleep(1)
            committed = []
            for number in range(count):
                session.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('', 0, %s)", [str(number)])
                committed.append(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
                time.sleep(pause)
            assert process.stdout is not None
            arrived = dict(map(int, process.stdout.readline().split()) for _ in range(count))
        return [(arrived[number] - committed[number]) / 1e6 for number in range(count)]

    # Writers.

    def writers(self) -> None:
        seconds = 4 if self.args.quick else 10
        say(f"\n### Writers: single-row inserts, pgbench, {seconds} s each, ratio to no trigger\n")
        counts = (1, 8, 32)
        say("| | " + " | ".join(f"{count} clients" for count in counts) + " |\n|---|" + "---:|" * len(counts))
        self.execute("DROP TABLE IF EXISTS plain; CREATE TABLE plain (LIKE ledger_account INCLUDING ALL)")
        floor = {count: self.pgbench("plain", count, seconds) for count in counts}
        say("| no trigger, tps | " + " | ".join(f"{floor[count]:,.0f}" for count in counts) + " |")
        found: dict[tuple[str, int], float] = {}
        for policy in ("gated", "every_commit", "poll"):
            self.set_policy(policy)
            for groups in (0, 1, 5) if policy == "gated" else (1,):
                self.clear()
                with ExitStack() as stack:
                    if groups:
                        names = [f"g{number}" for number in range(groups)]
                        stack.enter_context(self.worker(names, "nothing", policy))
                        self.wait(self.leased(names[-1]), 60)
                    line = []
                    for count in counts:
                        tps = self.pgbench("ledger_account", count, seconds) / floor[count]
                        line.append(f"{tps:.2f}")
                        found[f"{policy} {groups}", count] = tps
                say(f"| {policy}, {groups} groups | " + " | ".join(line) + " |")
        self.set_policy("gated")
        for groups in (0, 1, 5):
            self.bar(f"32 writers, gated, {groups} groups: to no trigger", found[f"gated {groups}", 32], ">=", 0.45)
        self.bar(
            "32 writers, gated to every_commit, 1 group",
            found["gated 1", 32] / found["every_commit 1", 32],
            ">=",
            2.5,
        )

    def set_policy(self, policy: str) -> None:
        from django.conf import settings
        from django.db import connection

        from pgsignals.durable import schema

        settings.PGSIGNALS = {**settings.PGSIGNALS, "WAKE_UP": policy}
        schema.ensure(connection)

    def pgbench(self, table: str, clients: int, seconds: int) -> float:
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(f"INSERT INTO {table} (owner, balance, note) VALUES ('x', 1, 'y');\n")
            script.flush()
            os.chmod(script.name, 0o644)
            command = [str(self.server.programs / "pgbench"), "-n", "-M", "prepared", "-f", script.name]
            command += ["-c", str(clients), "-j", "2", "-T", str(seconds), "-h", self.place["HOST"]]
            command += ["-p", str(self.place["PORT"]), "-U", "postgres", "postgres"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        match = re.search(r"tps = ([\d.]+)", done.stdout)
        assert match, done.stdout
        return float(match[1])

    def bar(self, title: str, value: float, relation: str, limit: float) -> None:
        self.bars.append((title, value, relation, limit))


def say(text: str = "") -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="BIN_DIR", help="the server's programs; the embedded one by default")
    parser.add_argument("--events", type=int, default=1_000_000, help="of the backlog (1000000; quick 100000)")
    parser.add_argument("--quick", action="store_true", help="small numbers, for a look")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a bar fails")
    parser.add_argument("--only", default="rate,reading,latency,writers")
    args = parser.parse_args()
    if args.quick:
        args.events = min(args.events, 100_000)
    if args.postgres:
        os.environ["PGSIGNALS_TEST_POSTGRES"] = args.postgres
    from tests.postgres import Server

    server = Server(options=OPTIONS).start()
    try:
        configure(server.django())
        from django.core.management import call_command

        call_command("migrate", run_syncdb=True, verbosity=0)
        bench = Bench(args, server)
        say(f"## PostgreSQL {bench.execute('SHOW server_version')[0][0].split()[0]}")
        parts = {"rate": bench.rates, "reading": bench.reading, "latency": bench.latency, "writers": bench.writers}
        for name in args.only.split(","):
            parts[name]()
        failed = 0
        say("\n| bar | value | must be | |\n|---|---:|---:|---|")
        for title, value, relation, limit in bench.bars:
            holds = value >= limit if relation == ">=" else value <= limit
            failed += not holds
            say(f"| {title} | {value:.3g} | {relation} {limit} | {'PASS' if holds else '**FAIL**'} |")
        return int(bool(failed and args.check))
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
