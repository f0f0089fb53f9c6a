"""A relay under test, somebody who writes all the time, and what must be true after each fault."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.postgres import Server
from tests.servers import ROOT, Process, free_port

WITHIN = 30
"""Seconds after which a test gives up waiting."""

MORE_MEMORY = 20
"""Megabytes that a relay may have grown by after a fault; what Python keeps for later is in it."""


@dataclass
class Sent:
    """A message, and between which moments it was committed, by the clock that gaps use too."""

    number: int
    before: float
    after: float


class Writer:
    """Sends a number every 10 ms, straight to the server, whatever happens to it."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.place = place
        self.sent: list[Sent] = []
        self.failed: list[str] = []
        self._next = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        session: psycopg.Connection | None = None
        while not self._stop.wait(0.01):
            try:
                session = session or psycopg.connect(**self.place, autocommit=True, connect_timeout=2)
                self._send(session)
            except psycopg.Error as error:
                # Whether it was committed, nobody knows; it is not counted.
                self.failed.append(str(error))
                session = None if session is None or session.closed or session.broken else session
        if session is not None:
            session.close()

    def _send(self, session: psycopg.Connection) -> None:
        self._next += 1
        number, before = self._next, time.time()
        session.execute("SELECT pg_notify('faults', %s)", [str(number)])
        self.sent.append(Sent(number, before, time.time()))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WITHIN)


class Relay:
    """`manage.py listen` in a process of its own, what it says, and what its receivers tell."""

    def __init__(self, place: dict[str, Any], *arguments: str, bad: str = "", **settings: Any) -> None:
        self.told: list[list[Any]] = []
        reading, writing = os.pipe()
        environment = {
            **os.environ,
            "DATABASE_URL": "",
            "PGHOST": str(place["host"]),
            "PGPORT": str(place["port"]),
            "PGUSER": str(place["user"]),
            "PGPASSWORD": str(place.get("password", "")),
            "PGDATABASE": str(place["dbname"]),
            "PGSIGNALS_TEST_DATABASE": str(place["dbname"]),
            "PGSIGNALS_TEST_PIPE": str(writing),
            "PGSIGNALS_TEST_BAD": bad,
            "PGSIGNALS_TEST_SETTINGS": json.dumps(settings),
            "DJANGO_SETTINGS_MODULE": "tests.settings_faults",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "django", "listen", *arguments]
        self.output = Process(command, environment, pass_fds=(writing,))
        os.close(writing)
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()

    def _read(self, reading: int) -> None:
        with open(reading) as lines:
            for line in lines:
                self.told.append(json.loads(line))

    @property
    def pid(self) -> int:
        return self.output.process.pid

    def wait_until(self, fits: Callable[[list[Any]], bool], what: str) -> list[Any]:
        """The first thing told that fits."""
        looked_at = 0

        def found() -> list[Any] | None:
            nonlocal looked_at
            while looked_at < len(self.told):
                looked_at += 1
                if fits(self.told[looked_at - 1]):
                    return self.told[looked_at - 1]
            return None

        return self.wait(found, what)

    def wait(self, look: Callable[[], Any], what: str) -> Any:
        """What `look` finds, as soon as it is something."""
        end = time.monotonic() + WITHIN
        while not (found := look()):
            assert time.monotonic() < end, f"{what}: not within {WITHIN} s\n{self.output.text}"
            time.sleep(0.005)
        return found

    def hears(self, number: int) -> list[Any]:
        """Wait for a message of the writer's, or a later one."""
        return self.wait_until(lambda one: one[0] == "heard" and one[1] >= number, f"message {number} is heard")

    def heard(self) -> set[int]:
        return {one[1] for one in self.told if one[0] == "heard"}

    def gaps(self) -> list[tuple[float, float, str]]:
        return [tuple(one[1]) for one in self.told if one[0] == "gap"]

    def memory(self) -> float:
        """Resident, in megabytes."""
        with open(f"/proc/{self.pid}/status") as lines:
            return int(re.search(r"VmRSS:\s+(\d+)", lines.read()).group(1)) / 1000  # type: ignore[union-attr]

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@dataclass
class Outcome:
    """A line of the table."""

    fault: str
    recovered: float
    lost: int
    gaps: int
    memory: float


TABLE: list[Outcome] = []


@dataclass
class Staged:
    """A relay that hears a writer; after the fault everything is checked."""

    fault: str
    relay: Relay
    writer: Writer
    memory: float
    files: int
    over: float = 0.0
    first_after: int = 0

    def is_over(self) -> None:
        """From here on it must recover."""
        self.over = time.time()

    def check(self) -> Outcome:
        """What is promised after each fault."""
        over = self.over or time.time()
        written = self.relay.wait(
            lambda: next((one.number for one in list(self.writer.sent) if one.before >= over), None),
            "something is written after the fault",
        )
        first = self.relay.hears(written)
        recovered = max(first[2] - over, 0.0)
        self.writer.stop()
        last = self.writer.sent[-1]
        self.relay.hears(last.number)
        self.relay.wait(lambda: not self._silent(), "every loss lies in a gap")
        lost, gaps = self._lost(), self.relay.gaps()
        # The probe, or whoever reads the log, may just be connecting.
        self.relay.wait(
            lambda: self.relay.files() <= self.files + 1, f"no more than {self.files} open files, as before"
        )
        grown = self.relay.memory() - self.memory
        assert grown < MORE_MEMORY, f"{self.memory:.0f} MB before, {grown:.0f} MB more after"
        outcome = Outcome(self.fault, recovered, len(lost), len(gaps), grown)
        TABLE.append(outcome)
        return outcome

    def _lost(self) -> list[Sent]:
        heard = self.relay.heard()
        return [one for one in self.writer.sent if one.number not in heard and one.number > self.first_after]

    def _silent(self) -> list[Sent]:
        """What was lost, and is in no gap. Events may arrive before the gap is announced, which waits for a proof."""
        gaps = self.relay.gaps()
        return [
            one
            for one in self._lost()
            if not any(since <= one.after and one.before <= until for since, until, _ in gaps)
        ]


@contextmanager
def staged(fault: str, relay_to: dict[str, Any], write_to: dict[str, Any], **options: Any) -> Iterator[Staged]:
    """A relay that has heard the writer already, and is as big as it will be."""
    relay = Relay(relay_to, **options)
    try:
        relay.output.wait_for("Listening to", within=WITHIN)
        writer = Writer(write_to)
        try:
            yield warmed_up(fault, relay, writer)
        finally:
            writer.stop()
    finally:
        if relay.output.process.poll() is None:
            relay.output.process.kill()
            relay.output.process.wait()
        relay.output.close()


def warmed_up(fault: str, relay: Relay, writer: Writer) -> Staged:
    first = relay.hears(1)
    relay.hears(first[1] + 20)
    return Staged(fault, relay, writer, relay.memory(), relay.files(), first_after=first[1] - 1)


def own_server(options: str = "") -> Server:
    """A server on loopback that the test may stop."""
    return Server(port=free_port(), loopback=True, options=options)


def place_of(server: Server, port: int | None = None, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port or server.port, "user": "postgres", "dbname": "postgres", **more}


def execute(place: dict[str, Any], *statements: str) -> list[tuple[Any, ...]]:
    """Rows of the last statement."""
    with psycopg.connect(**place, autocommit=True) as session:
        for statement in statements:
            cursor = session.execute(statement)
        return cursor.fetchall() if cursor.description else []


def migrate(place: dict[str, Any]) -> None:
    """The models' tables and triggers, for row events."""
    environment = {
        **os.environ,
        "DATABASE_URL": "",
        "PGHOST": place["host"],
        "PGPORT": str(place["port"]),
        "PGUSER": place["user"],
        "PGDATABASE": place["dbname"],
        "PGSIGNALS_TEST_DATABASE": place["dbname"],
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "-v", "0"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
