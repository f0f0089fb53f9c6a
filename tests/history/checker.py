"""The promises of docs/durable.md against random histories: `python -m tests.history.checker --seconds 60 --seed 7`.

Writers do random transactions and note, in the same transaction, which events must follow. Workers in several processes
handle these for several groups; meanwhile they are killed, stopped, cut off, kill themselves, and the server crashes.
Then everything is let run out, and what the groups saw is compared with what was committed. The status is 1, and the
history of the key is printed, where a promise was broken:

- nothing committed is missing from any group, and nothing that was rolled back is in one;
- what atomic groups wrote is there exactly once, in the order of each key;
- what default groups saw twice, a fault explains: one that befell who saw it first, or the server, between the first
  time and the second; or a session that was ended before the first time, and the worker says after it that it noticed.
  That a worker is told to end explains nothing;
- in every group the events of a key were seen for the first time in the order of their writes;
- no event was given up, and each event's attempts are at an end: nothing is parked or left unread.

With `--wake-up poll`, writers commit some transactions in two phases, and leave one of them prepared to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import psycopg

from tests.postgres import Server
from tests.servers import ROOT

GROUPS = {"plain": "account", "atomic": "account", "lists": "account", "entries": "entry"}
ATOMIC = {"atomic", "lists"}
WAKE_UPS = ("gated", "every_commit", "poll")
WORKERS = 3
WRITERS = 6
STALLED_AFTER = 60.0
"""Seconds in which nothing more is handled, although there is something left."""
LEASE = 2.0
"""Seconds, as in the settings."""
ENDS_SESSIONS = {"backends_killed", "server_crashed"}
"""Faults that a worker may notice only when it next asks for something: after the piece that it is handling."""
NOTICED = ("with a new connection", "could not give its partitions back")
"""What it says then."""
DIES_WITHIN = 0.5
"""Seconds from when a process says that it will kill itself; its other threads go on until then."""
_WORKER = re.compile(r"The worker [^ :]*:(\d+):(\w+):")


class Writer:
    """One connection that does random transactions until it is stopped."""

    tags = iter(range(1, 10**9))

    def __init__(self, place: dict[str, Any], seed: int, two_phases: bool) -> None:
        self.place = place
        self.dice = random.Random(seed)
        self.two_phases = two_phases
        self.commits = self.rollbacks = self.broken = self.prepared = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(psycopg.Error), self._connect() as connection:
                while not self._stop.is_set():
                    self._transaction(connection)
            self.broken += 1
            self._stop.wait(0.1)

    def _connect(self) -> psycopg.Connection[Any]:
        # Whoever stands before a row of a prepared transaction gives up.
        return psycopg.connect(**self.place, connect_timeout=3, options="-c lock_timeout=2s")

    def _transaction(self, connection: psycopg.Connection[Any]) -> None:
        try:
            for _ in range(self.dice.choice([1, 1, 1, 2, 5])):
                if self.dice.random() < 0.2:
                    self._in_savepoint(connection)
                else:
                    self._write(connection)
            pause = self.dice.choice([0, 0, 0, 0.01, 0.05, 0.3])
            if self.dice.random() < 0.002:
                pause = 5
            self._stop.wait(pause)
            if self.dice.random() < 0.15:
                connection.rollback()
                self.rollbacks += 1
            elif self.two_phases and self.dice.random() < 0.1:
                self._in_two_phases(connection)
            else:
                connection.commit()
                self.commits += 1
        except (psycopg.errors.IntegrityError, psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            connection.rollback()
            self.rollbacks += 1

    def _in_two_phases(self, connection: psycopg.Connection[Any]) -> None:
        """Where the server crashes in between, it stays prepared until the end."""
        name = f"writer {next(self.tags)}"
        connection.execute(f"PREPARE TRANSACTION '{name}'")
        connection.rollback()
        self.prepared += 1
        self._stop.wait(self.dice.choice([0, 0.05, 1]))
        connection.autocommit = True
        try:
            connection.execute(f"{self.dice.choice(['COMMIT', 'COMMIT', 'ROLLBACK'])} PREPARED '{name}'")
        finally:
            connection.autocommit = False

    def _in_savepoint(self, connection: psycopg.Connection[Any]) -> None:
        with suppress(ZeroDivisionError), connection.transaction():
            self._write(connection)
            if self.dice.random() < 0.5:
                raise ZeroDivisionError

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        write = self.dice.choice(
            [self._insert, self._update, self._update, self._bulk, self._move, self._delete, self._entry, self._entry]
        )
        write(connection, next(self.tags))

    def _insert(self, connection: psycopg.Connection[Any], tag: int) -> None:
        count = self.dice.choice([1, 1, 1, 30])
        connection.execute(
            "WITH new AS (INSERT INTO ledger_account (owner, balance, note) "
            "SELECT '', 0, %s FROM generate_series(1, %s) RETURNING id) "
            "INSERT INTO history_journal (op, key, tag) SELECT 'insert', id, %s FROM new",
            [str(tag), count, tag],
        )

    def _update(self, connection: psycopg.Connection[Any], tag: int) -> None:
        self._update_where(connection, tag, "id = (SELECT id FROM ledger_account ORDER BY random() LIMIT 1)")

    def _bulk(self, connection: psycopg.Connection[Any], tag: int) -> None:
        self._update_where(connection, tag, f"id %% 20 = {self.dice.randrange(20)}")

    @staticmethod
    def _update_where(connection: psycopg.Connection[Any], tag: int, where: str) -> None:
        connection.execute(
            f"WITH changed AS (UPDATE ledger_account SET note = %s WHERE {where} RETURNING id) "
            "INSERT INTO history_journal (op, key, tag) SELECT 'update', id, %s FROM changed",
            [str(tag), tag],
        )

    def _move(self, connection: psycopg.Connection[Any], tag: int) -> None:
        row = connection.execute(
            "SELECT id, note FROM ledger_account AS one WHERE NOT EXISTS (SELECT FROM ledger_entry WHERE account_id = "
            "one.id) ORDER BY random() LIMIT 1 FOR UPDATE"
        ).fetchone()
        if row is None:
            return
        new = 1_000_000_000 + tag
        connection.execute("UPDATE ledger_account SET id = %s, note = %s WHERE id = %s", [new, str(tag), row[0]])
        connection.execute(
            "INSERT INTO history_journal (op, key, tag) VALUES ('delete', %s, %s), ('insert', %s, %s)",
            [row[0], int(row[1]), new, tag],
        )

    def _delete(self, connection: psycopg.Connection[Any], tag: int) -> None:
        connection.execute(
            "WITH gone AS (DELETE FROM ledger_account WHERE id = ("
            "SELECT id FROM ledger_account AS one WHERE NOT EXISTS (SELECT FROM ledger_entry WHERE account_id = "
            "one.id) ORDER BY random() LIMIT 1) RETURNING id, note) "
            "INSERT INTO history_journal (op, key, tag) SELECT 'delete', id, note::bigint FROM gone"
        )

    def _entry(self, connection: psycopg.Connection[Any], tag: int) -> None:
        row = connection.execute(
            "SELECT id FROM ledger_account ORDER BY id LIMIT 1 OFFSET %s FOR UPDATE", [self.dice.randrange(20)]
        ).fetchone()
        if row is None:
            return
        connection.execute("INSERT INTO ledger_entry (account_id, amount) VALUES (%s, %s)", [row[0], tag])
        connection.execute("INSERT INTO history_journal (op, key, tag) VALUES ('entry', %s, %s)", [row[0], tag])


class Fault(NamedTuple):
    """What may explain that an event came twice."""

    began: float
    ended: float
    kind: str
    pid: int | None = None
    """Of the process that it befell; None where it befell all."""
    group: str | None = None
    """Of the worker in it; None where it befell all of them."""


class Said(NamedTuple):
    """A line of a worker's."""

    at: float
    pid: int
    group: str
    text: str


class History:
    """A server, writers, workers, and what is done to them."""

    def __init__(self, seed: int, wake_up: str) -> None:
        self.dice = random.Random(seed)
        options = "-c deadlock_timeout=200ms -c max_prepared_transactions=50"
        self.server = Server(options=options).start()
        self.place = {
            "host": str(self.server.folder),
            "port": self.server.port,
            "user": "postgres",
            "dbname": "postgres",
        }
        self.settings = {"WAKE_UP": wake_up}
        self.faults: list[Fault] = []
        self.two_phases = wake_up == "poll"
        self.workers: list[subprocess.Popen[bytes] | None] = [None] * WORKERS
        self.bad = True
        self.deaths = 0
        self.log = open(self.server.folder / "workers.log", "wb")  # noqa: SIM115 - closed in close()

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DATABASE_URL": "",
            "PGHOST": str(self.place["host"]),
            "PGPORT": str(self.place["port"]),
            "PGUSER": "postgres",
            "PGPASSWORD": "",
            "PGDATABASE": "postgres",
            "PGSIGNALS_TEST_DATABASE": "postgres",
            "PGSIGNALS_TEST_SETTINGS": json.dumps(self.settings),
            "PGSIGNALS_TEST_BAD": "1" if self.bad else "0",
            "DJANGO_SETTINGS_MODULE": "tests.history.settings",
            "PYTHONUNBUFFERED": "1",
        }

    def prepare(self) -> None:
        command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"]
        subprocess.run(command, check=True, cwd=ROOT, env=self.environment())
        self.execute("CREATE DATABASE elsewhere")
        # A transaction that somebody forgot, and one that is open all the time, in another database of the cluster:
        # both hold up whoever waits for the oldest.
        with psycopg.connect(**{**self.place, "dbname": "elsewhere"}, autocommit=True) as other:
            other.execute("CREATE TABLE x (y int)")
            other.execute("BEGIN")
            other.execute("INSERT INTO x VALUES (1)")
            other.execute("PREPARE TRANSACTION 'forgotten'")

    @contextmanager
    def long_transaction(self) -> Iterator[None]:
        with psycopg.connect(**{**self.place, "dbname": "elsewhere"}) as other:
            other.execute("INSERT INTO x VALUES (2)")
            try:
                yield
            finally:
                with suppress(psycopg.Error):
                    other.rollback()

    def execute(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(**self.place, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(query, arguments or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def start(self, place: int) -> None:
        command = [sys.executable, "-m", "django", "listen", "--no-channels"]
        self.workers[place] = subprocess.Popen(
            command, cwd=ROOT, env=self.environment(), stdout=self.log, stderr=self.log
        )

    def supervise(self) -> None:
        """Start what has ended, as systemd would."""
        for place, process in enumerate(self.workers):
            if process is None or process.poll() is not None:
                self.deaths += process is not None
                self.start(place)

    # What happens to them.

    def worker_killed(self) -> int:
        process = self._any_worker()
        process.kill()
        return process.pid

    def worker_stopped(self) -> int:
        """Most often for longer than its lease, so that another takes over while it still believes to have it."""
        process = self._any_worker()
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.dice.uniform(0.5, 2.5) * LEASE)
        process.send_signal(signal.SIGCONT)
        return process.pid

    def backends_killed(self) -> None:
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres' "
            "AND pid <> pg_backend_pid() AND random() < 0.5"
        )

    def server_crashed(self) -> None:
        self.server.stop("immediate")
        self.server.start()

    def worker_ended(self) -> int:
        process = self._any_worker()
        process.terminate()
        return process.pid

    def _any_worker(self) -> subprocess.Popen[bytes]:
        return self.dice.choice([one for one in self.workers if one is not None])

    def fault(self) -> None:
        kinds: list[Callable[[], int | None]] = [
            *(self.worker_killed, self.worker_killed, self.worker_stopped, self.worker_stopped),
            *(self.backends_killed, self.worker_ended, self.server_crashed),
        ]
        happen = self.dice.choice(kinds)
        began, pid = time.time(), None
        with suppress(psycopg.Error):
            pid = happen()
        self.faults.append(Fault(began, time.time(), happen.__name__, pid))

    def finish_prepared(self) -> int:
        """Commit what is still prepared in this database, since a crash perhaps. How many transactions."""
        left = self.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
        for (name,) in left:
            self.execute(f"COMMIT PREPARED '{name}'")
        return len(left)

    def finish(self) -> bool:
        """Let everything that was written be handled; whether it was."""
        self.bad = False
        for process in self.workers:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.workers:
            if process is not None:
                process.wait(30)
        self.workers = [None] * WORKERS
        self.supervise()
        seen, end = -1, time.monotonic() + STALLED_AFTER
        while time.monotonic() < end:
            self.supervise()
            with suppress(psycopg.Error):
                if self.is_idle():
                    return True
                ((count,),) = self.execute("SELECT count(*) FROM history_seen")
                if count != seen:
                    seen, end = count, time.monotonic() + STALLED_AFTER
            time.sleep(0.2)
        return False

    def is_idle(self) -> bool:
        ((left,),) = self.execute(
            "SELECT (SELECT count(*) FROM pgsignals_parked) + (SELECT count(*) FROM pgsignals_partition AS p, LATERAL ("
            "SELECT FROM pgsignals_log WHERE NOT pg_visible_in_snapshot(xid, p.since) AND slot % 8 = p.number LIMIT 1"
            ") AS unread)"
        )
        ((groups,),) = self.execute("SELECT count(*) FROM pgsignals_group")
        return left == 0 and groups == len(GROUPS)

    def said(self) -> Iterator[Said]:
        """What the workers told, in the order in which they did."""
        with open(self.log.name, errors="replace") as log:
            for line in log:
                if who := _WORKER.search(line):
                    moment = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
                    yield Said(moment, int(who[1]), who[2], line)

    def takeovers(self) -> Iterator[Fault]:
        """When a worker found that another had taken over what it was working on."""
        for said in self.said():
            if "has lost partitions" in said.text:
                yield Fault(said.at - 3 * LEASE, said.at, "takeover", said.pid, said.group)

    def noticed(self) -> Iterator[Fault]:
        """From when sessions were ended until a worker noticed, who may have handled a whole piece meanwhile."""
        for said in self.said():
            ended = [one for one in self.faults if one.kind in ENDS_SESSIONS and one.began <= said.at]
            if ended and any(text in said.text for text in NOTICED):
                yield Fault(ended[-1].began, said.at, "noticed", said.pid, said.group)

    def close(self) -> None:
        for process in self.workers:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(30)
        self.log.close()
        self.server.close()


Event = tuple[str, int, int]
"""Operation, key, tag."""


class Verdict:
    """What was seen, against what was committed."""

    def __init__(self, history: History) -> None:
        journal = history.execute("SELECT op, key, tag FROM history_journal ORDER BY id")
        self.truth: dict[str, list[Event]] = {
            "account": [row for row in journal if row[0] != "entry"],
            "entry": [("insert", key, tag) for op, key, tag in journal if op == "entry"],
        }
        seen = history.execute(
            'SELECT "group", event_id, op, key, tag, pid, extract(epoch FROM at)::float8 FROM history_seen ORDER BY id'
        )
        # On a machine that is too slow leases run out by themselves; whoever lost one says so.
        self.takeovers = list(history.takeovers())
        own = [Fault(row[6], row[6] + DIES_WITHIN, "in a receiver", row[5]) for row in seen if row[0] == "fault"]
        told = [one for one in history.faults if one.kind != "worker_ended"]
        self.faults = [*told, *own, *self.takeovers, *history.noticed()]
        self.said = list(history.said())
        self.in_receivers = len(own)
        self.seen: dict[str, list[Any]] = {name: [row for row in seen if row[0] == name] for name in GROUPS}
        dead = history.execute("SELECT group_name, event_id, error FROM pgsignals_dead")
        self.broken: list[str] = [f"{group}: event {number} is a dead letter: {error}" for group, number, error in dead]
        self.duplicates: Counter[str] = Counter()

    def check(self) -> list[str]:
        """Sentences about broken promises."""
        for group, about in GROUPS.items():
            self._check_sets(group, self.truth[about])
            self._check_duplicates(group)
            self._check_order(group, self.truth[about])
        return self.broken

    def _check_sets(self, group: str, truth: list[Event]) -> None:
        # A bulk statement gives several rows the same tag, never a row the same one twice.
        wanted, found = set(truth), {(row[2], row[3], row[4]) for row in self.seen[group]}
        for one in sorted(wanted - found)[:5]:
            self._break(group, f"{one} was committed and never seen", one[1])
        for one in sorted(found - wanted)[:5]:
            self._break(group, f"{one} was seen and never committed", one[1])

    def _check_duplicates(self, group: str) -> None:
        times: dict[int, list[Any]] = defaultdict(list)
        for row in self.seen[group]:
            times[row[1]].append(row)
        for what, count in Counter(rows[0][2:5] for rows in times.values()).items():
            if count > 1:
                self.broken.append(f"{group}: {what} was written once and is in the log {count} times")
        for number, rows in times.items():
            for one, other in pairwise(rows):
                self.duplicates[group] += 1
                if group in ATOMIC:
                    self.broken.append(f"{group}: event {number} was done twice")
                elif not self._is_explained(group, one, other):
                    self.broken.append(
                        f"{group}: event {number} came twice, to {one[5]} at {one[6]:.2f} and to {other[5]} at "
                        f"{other[6]:.2f}, and no fault explains it{self._around(one, other)}"
                    )

    def _is_explained(self, group: str, one: Any, other: Any) -> bool:
        """By what befell the server, or a worker that had it."""
        return any(
            fault.began <= other[6]
            and fault.ended >= one[6]
            and fault.pid in (None, one[5], other[5])
            and fault.group in (None, group)
            for fault in self.faults
        )

    def _around(self, one: Any, other: Any) -> str:
        """What happened, and what the workers that had it said, from a while before the first time on."""
        began, ended = one[6] - 10, other[6] + 1
        faults = [fault for fault in self.faults if fault.ended >= began and fault.began <= ended]
        said = [said.text for said in self.said if began <= said.at <= ended and said.pid in (one[5], other[5])]
        return "\n  ".join(["", *map(str, faults), *map(str.rstrip, said)])

    def _check_order(self, group: str, truth: list[Event]) -> None:
        place = {one: number for number, one in enumerate(truth)}
        first: dict[int, Any] = {}
        for row in self.seen[group]:
            first.setdefault(row[1], row)
        by_key: dict[int, list[Any]] = defaultdict(list)
        for row in first.values():
            by_key[row[3]].append(row)
        for key, rows in by_key.items():
            for earlier, later in pairwise(rows):
                before, after = (place.get((row[2], row[3], row[4]), -1) for row in (earlier, later))
                if before > after >= 0:
                    self._break(group, f"event {later[1]} came after {earlier[1]}", key)

    def _break(self, group: str, text: str, key: int) -> None:
        history = [one for one in self.truth[GROUPS[group]] if one[1] == key]
        seen = [row[1:6] for row in self.seen[group] if row[3] == key]
        self.broken.append(f"{group}: {text}\n  committed: {history}\n  seen: {seen}")


def run(seconds: float, seed: int, wake_up: str) -> int:
    """One history. The number of broken promises."""
    print(f"seed {seed}, {seconds:g} s, wake-up {wake_up}", flush=True)
    history = History(seed, wake_up)
    try:
        history.prepare()
        history.supervise()
        writers = [Writer(history.place, seed + number, history.two_phases) for number in range(WRITERS)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(psycopg.Error), history.long_transaction():
                for _ in range(3):
                    time.sleep(history.dice.uniform(0.5, 3.0))
                    history.fault()
                    history.supervise()
        for writer in writers:
            writer.stop()
        prepared = history.finish_prepared()
        done = history.finish()
        verdict = Verdict(history)
        broken = verdict.check()
        if not done:
            broken.append(f"something is left, and nothing was handled for {STALLED_AFTER:g} s")
        kinds = Counter(fault.kind for fault in history.faults)
        commits, rollbacks, in_two = (
            sum(getattr(writer, what) for writer in writers) for what in ("commits", "rollbacks", "prepared")
        )
        print(
            f"committed {commits} transactions, rolled back {rollbacks}, in two phases {in_two} "
            f"and {prepared} of them at the end; events {sum(map(len, verdict.truth.values()))}; seen "
            f"{ {name: len(rows) for name, rows in verdict.seen.items()} }; "
            f"duplicates {dict(verdict.duplicates)}; faults {dict(kinds)}, "
            f"{verdict.in_receivers} in receivers and around the position's commit, "
            f"{len(verdict.takeovers)} takeovers; "
            f"{history.deaths} processes replaced",
            flush=True,
        )
        for one in broken[:20]:
            print(f"BROKEN: {one}", flush=True)
        if broken:
            with open(history.log.name, errors="replace") as log:
                print("".join(log.readlines()[-40:]), flush=True)
        return len(broken)
    finally:
        history.close()


def main() -> None:
    """Run histories until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of each history, without what it takes to run out")
    parser.add_argument("--histories", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--wake-up", choices=[*WAKE_UPS, "any"], default="any")
    given = parser.parse_args()
    # Its server and its workers do not outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    broken = 0
    for seed in range(given.seed, given.seed + given.histories):
        broken += run(given.seconds, seed, WAKE_UPS[seed % 3] if given.wake_up == "any" else given.wake_up)
    print("every promise was kept" if not broken else f"{broken} promises were broken", flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
