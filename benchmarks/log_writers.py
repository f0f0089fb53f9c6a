"""What writers pay for the log, and for a queue: the part of `benchmarks/log.py` that pgbench does.

pgbench inserts single rows with 1, 8 and 32 clients: into a table without a trigger, and right after that into one with
a durable declaration, under each wake-up policy, while nobody reads, one group or five. That is one turn of a policy;
a figure is the median of its turns' own ratios, so that what else the machine does meanwhile meets both alike.

What NOTIFY costs depends on how long a commit's flush takes, for it lets commits through one at a time. Some policies
are measured once more with a flush that takes longer (PostgreSQL's `commit_delay`), as on a disk that is not as near.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.log_peers import COLUMNS, Peer, queues
from benchmarks.relay import Failed, Figures, rounds_of, say

if TYPE_CHECKING:
    from benchmarks.log import Bench

CLIENTS = (1, 8, 32)

SLOWER = 300
"""Microseconds by which a flush takes longer."""


@dataclass(frozen=True)
class Policy:
    """One way to write: what pgbench runs, and who is at work meanwhile."""

    key: str
    title: str
    statement: str
    wake_up: str = "gated"
    groups: int = 0
    peer: Peer | None = None
    delay: int = 0
    """Microseconds by which a flush takes longer, the floor's too."""


def insert(table: str) -> str:
    return f"INSERT INTO {table} {COLUMNS} VALUES ('x', 1, 'y')"


def policies(found: list[Peer]) -> list[Policy]:
    """All of them."""
    readers = [("gated", 0), ("gated", 1), ("gated", 5)]
    readers += [(wake_up, groups) for wake_up in ("every_commit", "poll") for groups in (0, 1)]
    ours = [
        Policy(f"{wake_up} {groups}", f"{wake_up}, {count(groups)}", insert("ledger_account"), wake_up, groups)
        for wake_up, groups in readers
    ]
    for wake_up, groups in readers[:5]:  # poll does not ring
        title = f"{wake_up}, {count(groups)}, flush {SLOWER / 1000:g} ms longer"
        ours.append(
            Policy(f"{wake_up} {groups} slower", title, insert("ledger_account"), wake_up, groups, delay=SLOWER)
        )
    theirs = [Policy(peer.key, f"{peer.name}, no worker", peer.insert(), peer=peer) for peer in queues(found)]
    return ours + theirs


def count(groups: int) -> str:
    return f"{groups or 'no'} group{'s' * (groups != 1)}"


class Writers:
    """Measures them, and says so."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seconds = 1 if bench.args.quick else 3
        self.ratios = Figures()
        self.floors = Figures()

    def run(self) -> None:
        self.bench.execute("DROP TABLE IF EXISTS plain; CREATE TABLE plain (LIKE ledger_account INCLUDING ALL)")
        found = policies(self.bench.peers)
        try:
            for policy in rounds_of(found, self.bench.rounds):
                self.try_turn(policy)
        finally:
            set_policy("gated")
        self.report(found)
        self.judge()

    def try_turn(self, policy: Policy) -> None:
        if any(self.ratios.failed(f"{policy.key} {clients}") for clients in CLIENTS):
            return
        try:
            self.take_turn(policy)
        except Failed as error:
            say(f"**FAILED: {policy.title}**: {error}\n")
            for clients in CLIENTS:
                self.ratios.turns[f"{policy.key} {clients}"].append(math.nan)

    def take_turn(self, policy: Policy) -> None:
        self.bench.execute("TRUNCATE plain RESTART IDENTITY")
        with self.slower(policy.delay):
            self.compare(policy)

    @contextmanager
    def slower(self, delay: int) -> Iterator[None]:
        """A flush takes so many microseconds longer."""
        settings = {"commit_delay": delay, "commit_siblings": 0} if delay else {}
        for name, value in settings.items():
            self.bench.execute(f"ALTER SYSTEM SET {name} = {value}")
        self.bench.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            for name in settings:
                self.bench.execute(f"ALTER SYSTEM RESET {name}")
            self.bench.execute("SELECT pg_reload_conf()")

    def compare(self, policy: Policy) -> None:
        floor = {clients: self.pgbench(insert("plain"), clients) for clients in CLIENTS}
        with self.at_work(policy):
            for clients in CLIENTS:
                ratio = self.pgbench(policy.statement, clients) / floor[clients]
                self.floors.turns[f"{clients} {policy.delay}"].append(floor[clients])
                self.ratios.turns[f"{policy.key} {clients}"].append(ratio)
                self.bench.tell(f"{policy.title} ({clients}): {ratio:.2f} of {floor[clients]:,.0f}")

    @contextmanager
    def at_work(self, policy: Policy) -> Iterator[None]:
        if policy.peer:
            policy.peer.clear()
            yield
            return
        set_policy(policy.wake_up)
        self.bench.clear()
        if not policy.groups:
            yield
            return
        names = [f"g{number}" for number in range(policy.groups)]
        with self.bench.worker(names, "nothing", policy.wake_up):
            for name in names:
                self.bench.wait(self.bench.leased(name), 60)
            yield

    def pgbench(self, statement: str, clients: int) -> float:
        """Transactions a second."""
        place = self.bench.place
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(f"{statement};\n")
            script.flush()
            os.chmod(script.name, 0o644)
            command = [str(self.bench.server.programs / "pgbench"), "-n", "-M", "prepared", "-f", script.name]
            command += ["-c", str(clients), "-j", "2", "-T", str(self.seconds), "-h", place["HOST"]]
            command += ["-p", str(place["PORT"]), "-U", "postgres", "postgres"]
            done = subprocess.run(command, capture_output=True, text=True)
        match = re.search(r"tps = ([\d.]+)", done.stdout)
        if done.returncode or not match:
            raise Failed(f"pgbench ended with {done.returncode}: {done.stderr}")
        return float(match[1])

    def report(self, found: list[Policy]) -> None:
        what = f"single-row inserts, pgbench, {self.seconds} s each, ratio to no trigger"
        say(f"\n### Writers: {what} ({self.bench.of_turns})\n")
        say("| | " + " | ".join(f"{clients} client{'s' * (clients != 1)}" for clients in CLIENTS) + " |")
        say("|---|" + "---:|" * len(CLIENTS))
        for delay in (0, SLOWER):
            floors = (statistics.median(self.floors.turns[f"{clients} {delay}"]) for clients in CLIENTS)
            title = f"no trigger, flush {delay / 1000:g} ms longer, tps" if delay else "no trigger, tps"
            say(f"| {title} | " + " | ".join(f"{floor:,.0f}" for floor in floors) + " |")
        for policy in found:
            ratios = (self.ratios.median(f"{policy.key} {clients}") for clients in CLIENTS)
            say(f"| {policy.title} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")

    def judge(self) -> None:
        for groups in (0, 1, 5):
            title = f"32 writers, gated, {count(groups)}"
            self.bench.bar(f"{title}: to no trigger", self.ratios.median(f"gated {groups} 32"), ">=", 0.45)
        for kind, where in (("", ""), (" slower", f", flush {SLOWER / 1000:g} ms longer")):
            for groups in (0, 1, 5):
                # With five groups `every_commit` is no faster than with one.
                other = min(groups, 1)
                ratio = self.ratios.ratio(f"gated {groups}{kind} 32", to=f"every_commit {other}{kind} 32")
                title = f"32 writers, gated, {count(groups)}: to every_commit, {count(other)}{where}"
                self.bench.bar(title, ratio, ">=", 2.5)


def set_policy(wake_up: str) -> None:
    """Into the database, as `migrate` does."""
    from django.conf import settings
    from django.db import connection

    from pgsignals.durable import schema

    settings.PGSIGNALS = {**settings.PGSIGNALS, "WAKE_UP": wake_up}
    schema.ensure(connection)
