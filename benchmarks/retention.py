"""Whether the log stays as big, and as fast, as it is: events are written, handled and deleted for a long time.

    python benchmarks/retention.py [--postgres BIN_DIR] [--events 1000000] [--keep 10] [--check]

One writer inserts rows into a declared table, a thousand in a transaction, and waits where the group is more than
50,000 events behind; one worker handles them with a receiver that does nothing; its process deletes what is older than
`--keep` seconds. The run is told in twenty slices, each with its rate, and with the log's size (table, indexes and
TOAST) and rows at its end. Flat means: from the second quarter to the last the size grows by a quarter at most, and the
rate falls by a quarter at most. Ten million events (`--events 10000000`) take about a quarter of an hour.

The output is Markdown, and ends with the bars; with --check a failed bar is exit code 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.log import OPTIONS, configure, say  # noqa: E402

SLICES = 20
AT_ONCE = 1000
MOST_BEHIND = 50_000
WORKER = """
import sys
sys.path.insert(0, {root!r})
from benchmarks import log
log.configure({place!r}, LOG_KEEP={keep!r})
log.work(["bench"], "nothing")
"""


class Slice(NamedTuple):
    """A twentieth of the run."""

    rate: float
    """Events handled a second."""
    megabytes: float
    rows: int


class Run:
    """A writer, a worker, and a log that is cleaned."""

    def __init__(self, place: dict[str, Any], events: int, keep: float) -> None:
        import psycopg

        self.place = place
        self.events = events
        self.keep = keep
        given = {"host": place["HOST"], "port": place["PORT"], "user": "postgres", "dbname": "postgres"}
        self.session = psycopg.connect(**given, autocommit=True)
        self.written = 0

    def ask(self, query: str) -> Any:
        return self.session.execute(query).fetchone()[0]

    @contextmanager
    def worker(self) -> Iterator[None]:
        code = WORKER.format(root=str(ROOT), place=self.place, keep=self.keep)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            while not self.ask("SELECT count(*) = 8 FROM pgsignals_partition WHERE owner IS NOT NULL"):
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait()

    def handled(self) -> int:
        return int(self.ask("SELECT coalesce(sum(handled), 0) FROM pgsignals_partition"))

    def slice(self, count: int) -> Slice:
        began, before = time.monotonic(), self.handled()
        for _ in range(count // AT_ONCE):
            self.session.execute(
                "INSERT INTO ledger_account (owner, balance, note) SELECT 'x', 1, 'y' FROM generate_series(1, %s)",
                [AT_ONCE],
            )
            self.written += AT_ONCE
            while self.written - self.handled() > MOST_BEHIND:
                time.sleep(0.02)
        rate = (self.handled() - before) / (time.monotonic() - began)
        # The writer's own table is not what is looked at.
        self.session.execute("TRUNCATE ledger_account CASCADE")
        size = self.ask("SELECT pg_total_relation_size('pgsignals_log')")
        return Slice(rate, size / 2**20, int(self.ask("SELECT count(*) FROM pgsignals_log")))

    def slices(self) -> list[Slice]:
        say("| events | events/s | log, MB | rows in it |\n|---:|---:|---:|---:|")
        found = []
        with self.worker():
            for number in range(1, SLICES + 1):
                one = self.slice(self.events // SLICES)
                found.append(one)
                say(f"| {number * self.events // SLICES:,} | {one.rate:,.0f} | {one.megabytes:,.0f} | {one.rows:,} |")
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="BIN_DIR", help="the server's programs; the embedded one by default")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keep", type=float, default=10.0, help="seconds for which an event stays")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a bar fails")
    args = parser.parse_args()
    if args.postgres:
        os.environ["PGSIGNALS_TEST_POSTGRES"] = args.postgres
    from tests.postgres import Server

    server = Server(options=OPTIONS).start()
    try:
        configure(server.django())
        from django.core.management import call_command

        call_command("migrate", run_syncdb=True, verbosity=0)
        run = Run(server.django(), args.events, args.keep)
        say(
            f"## PostgreSQL {run.ask('SHOW server_version').split()[0]}, {args.events:,} events, kept {args.keep:g} s\n"
        )
        return report(run.slices()) and int(args.check)
    finally:
        server.close()


def report(slices: list[Slice]) -> int:
    """1 where a bar failed."""
    early, late = slices[SLICES // 4 : SLICES // 2], slices[-SLICES // 4 :]
    size = max(one.megabytes for one in late) / max(one.megabytes for one in early)
    rate = statistics.median(one.rate for one in late) / statistics.median(one.rate for one in early)
    say("\n| last quarter to second | value | must be | |\n|---|---:|---:|---|")
    say(f"| size | {size:.2f} | <= 1.25 | {'PASS' if size <= 1.25 else '**FAIL**'} |")
    say(f"| rate | {rate:.2f} | >= 0.75 | {'PASS' if rate >= 0.75 else '**FAIL**'} |")
    return int(size > 1.25 or rate < 0.75)


if __name__ == "__main__":
    sys.exit(main())
