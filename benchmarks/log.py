"""What the log reaches: events handled a second, a backlog, reading among millions, latency, and what writers pay.

    python benchmarks/log.py [--postgres BIN_DIR] [--events 1000000] [--quick] [--check]
                             [--only rate,reading,latency,writers]

Rate: one worker drains a backlog of so many events (the table says of how many where an ORM insert is made for each);
a rate is that of the last nine tenths. The ceiling is a bare reader in Python that fetches by the difference of
snapshots in pieces of 2,000 and commits its position, calling nothing. Once more with a transaction open that has
written an event. Reading: 100 new rows in a log of millions, a long transaction open. Latency: from the moment at which
the writer of a single commit knows that it is on disk until the receiver has it. Writers: log_writers.py.

Beside it stand procrastinate, PgQueuer and django-pgpubsub's stored notifications, as log_peers.py runs them. Variants
take turns, each turn begins with another one, and a ratio is the median, over all turns, of the ratios to the ceiling,
or to no trigger, in the same turn. What fails is said, and left out.

The output is Markdown, and ends with the bars that pgsignals sets itself; with --check a failed bar is exit code 1.
What goes on meanwhile is told on standard error. It takes half an hour, with --quick 5 minutes.

For the comparison: pip install procrastinate pgqueuer asyncpg django-pgpubsub. What is missing is left out, aloud.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.log_peers import Peer, peers, queues  # noqa: E402
from benchmarks.log_writers import Writers  # noqa: E402
from benchmarks.relay import Failed, Figures, rounds_of, say  # noqa: E402

OPTIONS = "-c fsync=on -c full_page_writes=on -c shared_buffers=512MB -c max_wal_size=4GB -c max_connections=100"

WORKER = """
import sys
sys.path.insert(0, {root!r})
from benchmarks import log
log.configure({place!r}, {wake_up!r})
log.work({groups!r}, {kind!r})
"""

PEER = """
import sys
sys.path.insert(0, {root!r})
from benchmarks import log, log_peers
log.configure({place!r}, apps={apps!r})
log_peers.work({key!r}, {kind!r}, {jobs!r}, {place!r})
"""

LIMIT = 120.0
"""Seconds that a peer's worker may run in one turn; a rate takes some ten."""


@dataclass(frozen=True)
class Way:
    """One variant of what is measured."""

    key: str
    title: str
    measure: Callable[[], float]
    backlog: int = 0


def configure(place: dict[str, Any], wake_up: str = "gated", apps: Iterable[str] = (), **more: Any) -> None:
    """Django, with the ledger of the tests."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **place}},
        # Of two apps with a command `listen` the first one's counts.
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "pgsignals", "tests.ledger", *apps],
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

    def __init__(self, args: argparse.Namespace, server: Any, found: list[Peer]) -> None:
        self.args = args
        self.server = server
        self.place = server.django()
        self.peers = found
        self.rounds = 1 if args.quick else 3
        self.of_turns = f"{self.rounds} turn{'s' * (self.rounds > 1)}"
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
        with self.running(code, 600) as process:
            yield process

    @contextmanager
    def peer(self, peer: Peer, kind: str, jobs: int = 0) -> Iterator[subprocess.Popen[str]]:
        code = PEER.format(root=str(ROOT), place=self.place, apps=peer.apps, key=peer.key, kind=kind, jobs=jobs)
        with self.running(code, LIMIT) as process:
            yield process

    @contextmanager
    def running(self, code: str, limit: float) -> Iterator[subprocess.Popen[str]]:
        """A process of its own, killed after so many seconds, so that nobody reads from it for ever."""
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        alarm = threading.Timer(limit, process.kill)
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def said(self, process: subprocess.Popen[str]) -> tuple[int, int]:
        """The next number that a worker says, and the moment that it says, in ns."""
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise Failed("its process ended, or took too long, before it had handled everything")
        number, moment = line.split()
        return int(number), int(moment)

    def wait(self, condition: str, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        with self.connect() as session:
            while not session.execute(f"SELECT {condition}").fetchone()[0]:
                if time.monotonic() > end:
                    raise Failed(f"not within {seconds:g} s: {condition}")
                time.sleep(0.01)

    def leased(self, group: str) -> str:
        return f"count(*) = 8 FROM pgsignals_partition WHERE owner IS NOT NULL AND group_name = '{group}'"

    def tell(self, text: str) -> None:
        """What goes on, for who waits."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def turns(self, ways: list[Way]) -> Figures:
        figures = Figures()
        for way in rounds_of(ways, self.rounds):
            if figures.failed(way.key):
                continue
            try:
                figures.turns[way.key].append(way.measure())
            except Failed as error:
                say(f"**FAILED: {way.title}**: {error}\n")
                figures.turns[way.key].append(math.nan)
            self.tell(f"{way.title}: {figures.turns[way.key][-1]:,.2f}")
        return figures

    # Rates.

    def rate(self, kind: str, events: int) -> float:
        """Events a second of one worker, over the last nine tenths of so many."""
        self.execute("TRUNCATE pgsignals_group, pgsignals_partition, pgsignals_worker, ledger_effect CASCADE")
        with self.worker(["bench"], kind):
            self.wait(f"(SELECT sum(handled) FROM pgsignals_partition) >= {events // 10}")
            first, began = self.handled(), time.monotonic()
            self.wait(f"(SELECT sum(handled) FROM pgsignals_partition) >= {events}")
            return (self.handled() - first) / (time.monotonic() - began)

    def handled(self) -> int:
        return int(self.execute("SELECT sum(handled) FROM pgsignals_partition")[0][0])

    def slowed(self, events: int) -> float:
        """That, while a transaction is open that wrote an event."""
        with self.connect() as slow:
            slow.autocommit = False
            slow.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('slow', 0, '')")
            found = self.rate("nothing", events)
            slow.rollback()
        return found

    def peer_rate(self, peer: Peer, kind: str, jobs: int) -> float:
        """Jobs a second of a peer's worker, over the last nine tenths, until all are acknowledged."""
        peer.clear()
        peer.fill(jobs)
        with self.peer(peer, kind, jobs) as process:
            first, began = self.said(process)
            self.said(process)
            self.wait(f"NOT {peer.left}", 10)
            return (jobs - first) / (time.monotonic_ns() - began) * 1e9

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
        events, few = self.args.events, min(self.args.events, 5_000 if self.args.quick else 20_000)
        self.clear()
        self.fill(events)
        ways = [
            Way("bare", "bare reader by snapshots, pieces of 2,000", self.ceiling, events),
            Way("nothing", "a worker, the receiver does nothing", lambda: self.rate("nothing", events), events),
            Way("slowed", "the same, a transaction open that wrote an event", lambda: self.slowed(events), events),
            Way("atomic", "a worker, atomic group, an ORM insert for each", lambda: self.rate("atomic", few), few),
            *(way for peer in self.peers for way in self.peer_rates(peer)),
        ]
        figures = self.turns(ways)
        say(f"\n### Events a second, of one worker that drains a backlog ({self.of_turns})\n")
        say("| | backlog | events a second | to the ceiling |\n|---|---:|---:|---:|")
        for way in ways:
            ratio = figures.ratio(way.key)
            shown = f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"
            say(f"| {way.title} | {way.backlog:,} | {figures.median(way.key):,.0f} | {shown} |")
        self.bar("one worker's rate, to the bare reader's", figures.ratio("nothing"), ">=", 0.5)
        slowed = figures.ratio("slowed", to="nothing")
        self.bar("its rate with a long transaction open, to that without", slowed, ">=", 0.8)

    def peer_rates(self, peer: Peer) -> Iterator[Way]:
        kinds = (("nothing", "does nothing", peer.jobs), ("insert", "an ORM insert for each", peer.inserts))
        for kind, what, all_jobs in kinds:
            jobs = all_jobs // 5 if self.args.quick else all_jobs
            measure = partial(self.peer_rate, peer, kind, jobs)
            yield Way(f"{peer.key} {kind}", f"{peer.title}, {what}", measure, jobs)

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
        count = 200 if self.args.quick else 300
        halves, waits = Figures(), defaultdict[str, list[float]](list)
        ways = {"ours": "pgsignals", **{peer.key: peer.title for peer in queues(self.peers)}}
        loads = {"idle": 0.02, "load": 0.0}
        for key in rounds_of(list(ways), self.rounds):
            for load, pause in loads.items():
                if halves.failed(f"{key} {load}"):
                    continue
                try:
                    found = self.latencies(key, count, pause)
                except Failed as error:
                    say(f"**FAILED: {ways[key]}, {load}**: {error}\n")
                    found = [math.nan]
                halves.turns[f"{key} {load}"].append(statistics.median(found))
                waits[f"{key} {load}"] += found
                self.tell(f"{ways[key]}, {load}: {statistics.median(found):.2f} ms")
        say(f"\n### Latency, from a single commit that waits for the disk to the receiver, ms ({self.of_turns})\n")
        say(f"Idle: a commit every 20 ms. Under load: {count:,} commits, as fast as one connection can; who is slower")
        say("than that has a queue.\n")
        say("| | idle, p50 | idle, p99 | under load, p50 | under load, p99 |\n|---|---:|---:|---:|---:|")
        for key, title in ways.items():
            cells = (
                f"{halves.median(name):.2f} | {p99(waits[name]):.2f}" for name in (f"{key} {load}" for load in loads)
            )
            say(f"| {title} | " + " | ".join(cells) + " |")
        self.bar("idle, p50 from commit to receiver, ms", halves.median("ours idle"), "<=", 2)

    def latencies(self, key: str, count: int, pause: float) -> list[float]:
        """Milliseconds of so many commits, of ours or of a peer."""
        with ExitStack() as stack:
            if key == "ours":
                self.clear()
                write = self.write_account(stack.enter_context(self.connect()))
                process = stack.enter_context(self.worker(["bench"], "stamp"))
            else:
                (peer,) = (peer for peer in self.peers if peer.key == key)
                peer.clear()
                write = stack.enter_context(peer.writer())
                process = stack.enter_context(self.peer(peer, "stamp"))
            # When this one is there, it listens.
            write([-1])
            self.said(process)
            time.sleep(1)
            committed = []
            for number in range(count):
                write([number])
                committed.append(time.monotonic_ns())
                time.sleep(pause)
            arrived = dict(self.said(process) for _ in range(count))
        return [(arrived[number] - committed[number]) / 1e6 for number in range(count)]

    def write_account(self, session: Any) -> Callable[[list[int]], None]:
        def write(numbers: list[int]) -> None:
            session.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('', 0, %s)", [str(numbers[0])])

        return write

    def writers(self) -> None:
        Writers(self).run()

    # What is found.

    def bar(self, title: str, value: float, relation: str, limit: float) -> None:
        self.bars.append((title, value, relation, limit))


def p99(waits: list[float]) -> float:
    return math.nan if any(map(math.isnan, waits)) else sorted(waits)[int(len(waits) * 0.99)]


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
        found = peers(server.django())
        configure(server.django(), apps=dict.fromkeys(app for peer in found for app in peer.apps))
        from django.core.management import call_command

        call_command("migrate", run_syncdb=True, verbosity=0)
        for peer in queues(found):
            peer.install()
        bench = Bench(args, server, found)
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
