"""Many WebSocket clients on one daphne, and a writer: what the load test and the benchmark of fan-out have in common.

Server, writer and clients are processes of their own. All of them read the same machine's clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from .postgres import main_server
from .servers import ROOT, Process, free_port, running

TOPIC = "live.parcel"
ROWS = 1000
"""Parcels, which the writer goes through again and again."""

_TICK = os.sysconf("SC_CLK_TCK")

_PREPARE = """
from django.contrib.auth.models import User
from django.test import Client
from tests.live.models import Parcel
Parcel.objects.bulk_create([Parcel(name=f"parcel {{number}}") for number in range({rows})])
client = Client()
client.force_login(User.objects.create_superuser("crowd"))
print("SESSION", client.session.session_key)
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A served project."""

    port: int
    session: str
    pid: int
    database: Mapping[str, Any]


@contextmanager
def site(layer: Mapping[str, Any] | None = None, *, listens: bool = False) -> Iterator[Site]:
    """A database, the project of tests.live on one daphne, and its channel layer: in memory, if none is named.

    listens: whether `manage.py listen` feeds the layer, and not a relay beside the pages.
    """
    place = main_server()
    name = f"crowd_{uuid.uuid4().hex[:8]}"
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.live.layers", "PGSIGNALS_TEST_DATABASE": name}
    env |= {"PYTHONUNBUFFERED": "1", **({"PGSIGNALS_TEST_LAYER": json.dumps(layer)} if layer else {})}
    with connect(place) as server, ExitStack() as until_the_end:
        server.execute(f"CREATE DATABASE {name}")
        until_the_end.callback(server.execute, f"DROP DATABASE {name} WITH (FORCE)")
        _manage(env, "migrate", "--run-syncdb", "-v0")
        said = _manage(env, "shell", "-v0", "-c", _PREPARE.format(rows=ROWS))
        if listens:
            listening = until_the_end.enter_context(running([sys.executable, "manage.py", "listen"], env))
            listening.wait_for("Delivery is proven")
        port = free_port()
        application = "tests.live.asgi:application" if listens else "tests.live.asgi:with_relay"
        command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port), application]
        daphne: Process = until_the_end.enter_context(running(command, env))
        daphne.wait_for("Listening on TCP address")
        yield Site(port, said.split()[-1], daphne.process.pid, {**place, "NAME": name})


def connect(place: Mapping[str, Any]) -> psycopg.Connection[Any]:
    return psycopg.connect(
        dbname=place["NAME"],
        host=place["HOST"],
        port=place["PORT"] or None,
        user=place["USER"],
        password=place["PASSWORD"] or None,
        autocommit=True,
    )


def _manage(env: Mapping[str, str], *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=dict(env), capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"manage.py {arguments[0]} failed:\n{done.stderr}")
    return done.stdout


def write(place: Mapping[str, Any], rate: float, seconds: float) -> list[tuple[int, float]]:
    """Update single rows, each in a transaction of its own, so many a second. Their keys, and when each was committed.

    The moment is taken before the commit is asked for, so a latency is never said too low.
    """
    written = []
    with connect(place) as connection:
        keys = [key for (key,) in connection.execute("SELECT id FROM live_parcel ORDER BY id").fetchall()]
        begun = time.monotonic()
        for number in range(int(rate * seconds)):
            if (early := begun + number / rate - time.monotonic()) > 0:
                time.sleep(early)
            key = keys[number % len(keys)]
            moment = time.time()
            connection.execute("UPDATE live_parcel SET weight = weight + 1 WHERE id = %s", [key])
            written.append((key, moment))
    return written


@dataclass(slots=True)
class Client:
    """What one browser has heard."""

    heard: list[tuple[float, list[int]]] = field(default_factory=list)
    """When, and of which rows."""
    refetch: list[float] = field(default_factory=list)
    """When it was told to fetch anew."""

    def is_right(self, last: Mapping[int, float]) -> bool:
        """Whether it has heard of each row after its last write, or was told to fetch everything."""
        latest: dict[int, float] = {}
        for at, keys in self.heard:
            latest.update(dict.fromkeys(keys, at))
        anew = max(self.refetch, default=0.0)
        return all(max(latest.get(key, 0.0), anew) >= moment for key, moment in last.items())


class Crowd:
    """Clients of a site, in this process."""

    def __init__(self, where: Site, count: int) -> None:
        self.site = where
        self.clients = [Client() for _ in range(count)]
        self.closed = 0
        """Connections that the server ended."""
        self._tasks: list[asyncio.Task[None]] = []
        self._subscribed = 0
        self._is_ready = asyncio.Event()
        self._ending = False

    async def arrive(self) -> None:
        """Connect all of them, some at a time, and wait until they have subscribed."""
        gate = asyncio.Semaphore(25)
        self._tasks = [asyncio.create_task(self._listen(client, gate)) for client in self.clients]
        async with asyncio.timeout(120):
            await self._is_ready.wait()

    async def leave(self) -> None:
        self._ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, client: Client, gate: asyncio.Semaphore) -> None:
        from websockets.asyncio.client import connect as open_socket
        from websockets.exceptions import ConnectionClosed

        url = f"ws://127.0.0.1:{self.site.port}/ws/pg/"
        headers = {"Cookie": f"sessionid={self.site.session}"}
        async with gate:
            opening = open_socket(
                url,
                origin=f"http://127.0.0.1:{self.site.port}",
                additional_headers=headers,
                compression=None,
                ping_interval=None,
                open_timeout=60,
            )
            socket = await opening
            await socket.send(json.dumps({"subscribe": [TOPIC]}))
            while msgspec.json.decode(await socket.recv())["type"] != "subscribed":
                pass
        self._subscribed += 1
        if self._subscribed == len(self.clients):
            self._is_ready.set()
        try:
            while True:
                await self._take(client, socket, msgspec.json.decode(await socket.recv()))
        except ConnectionClosed:
            self.closed += 0 if self._ending else 1

    async def _take(self, client: Client, socket: Any, message: dict[str, Any]) -> None:
        if message["type"] == "ack":
            await socket.send(json.dumps({"ack": message["number"]}))
        elif message["type"] == "gap" or message.get("refetch"):
            client.refetch.append(time.time())
        elif message["type"] == "event":
            client.heard.append((time.time(), [event[1] for event in message["events"]]))


@dataclass(frozen=True, slots=True)
class Result:
    """What a run has shown."""

    clients: int
    wrong: int
    """Clients that do not know of something they should know of."""
    closed: int
    refetches: int
    """How often any client was told to fetch anew."""
    written: int
    rate: float
    """Rows a second that were really written."""
    latencies: list[float]
    """Seconds from each commit to each client that heard of the row; sorted."""
    busy: float
    """Share of a core that the server was busy."""
    memory: list[float]
    """Of the server, megabytes: now and then."""

    def percentile(self, part: float) -> float:
        """Milliseconds."""
        return self.latencies[min(int(len(self.latencies) * part), len(self.latencies) - 1)] * 1000


async def run(where: Site, clients: int, rate: float, seconds: float) -> Result:
    """Have so many clients listen while so many rows a second are written."""
    crowd = Crowd(where, clients)
    await crowd.arrive()
    loop = asyncio.get_running_loop()
    memory: list[float] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        await loop.run_in_executor(pool, write, where.database, 10, 1)  # a first second, which counts for nothing
        for client in crowd.clients:
            client.heard.clear()
            client.refetch.clear()
        busy, begun = _busy(where.pid), time.monotonic()
        writing = loop.run_in_executor(pool, write, where.database, rate, seconds)
        while not writing.done():
            await asyncio.wait([writing], timeout=seconds / 10)
            memory.append(resident(where.pid))
        written = await writing
        took = time.monotonic() - begun
        share = (_busy(where.pid) - busy) / took
    last = dict(written)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(client.is_right(last) for client in crowd.clients):
        await asyncio.sleep(0.2)
    await crowd.leave()
    memory.append(resident(where.pid))
    return Result(
        clients,
        sum(not client.is_right(last) for client in crowd.clients),
        crowd.closed,
        sum(len(client.refetch) for client in crowd.clients),
        len(written),
        len(written) / took,
        sorted(_latencies(crowd.clients, written)),
        share,
        memory,
    )


def _latencies(clients: list[Client], written: list[tuple[int, float]]) -> Iterator[float]:
    moments: dict[int, list[float]] = defaultdict(list)
    for key, moment in written:
        moments[key].append(moment)
    for client in clients:
        for at, keys in client.heard:
            for key in keys:
                if before := bisect_right(moments[key], at):
                    yield at - moments[key][before - 1]


def resident(pid: int) -> float:
    """Megabytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"The process {pid} has ended.")


def _busy(pid: int) -> float:
    """Seconds of a processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
