"""What the relay costs and reaches: rates, time from commit to receiver, idle load, memory, beside other listeners.

    python benchmarks/relay.py [--postgres BIN_DIR] [--rows 100000] [--quick] [--check] [--only throughput,latency,idle]
    python benchmarks/relay.py --flood 5000000

Throughput: one transaction writes so many rows; the time is from its COMMIT until the listener has taken the last one.
The floor is psycopg's bare notifies() loop over what a row-level trigger sends, as one would write both by hand.
Latency: single commits a millisecond apart, from each COMMIT until the listener has it. Idle: what `manage.py listen`
occupies beside the same project after django.setup(). With --flood, instead: the memory of a relay whose receiver
sleeps while so many row events arrive.

Every listener and every writer is a process of its own, and only one listener runs at a time. The variants take turns
within one run; a ratio is the median, over all turns, of the ratios to the bare loop in the same turn. Tables are
unlogged, so that no disk hides the listener's part; latency is taken with logged tables too, whose commits wait for the
disk as they do in production, and that is what its bars are about. What does not arrive ends the turn with an error.

The output is Markdown, and ends with the bars that pgsignals sets itself; with --check a failed bar is exit code 1.

For the comparison with them: pip install django-pgpubsub redis, and redis-server. What is missing is left out, aloud.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import multiprocessing
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore")

import django  # noqa: E402
import psycopg  # noqa: E402
from django.apps import AppConfig, apps  # noqa: E402
from django.conf import settings  # noqa: E402
from django.db import connection, models  # noqa: E402

APP = "relaying"

# Autovacuum would hit one turn and spare another; VACUUM runs before each instead.
OPTIONS = (
    "-c autovacuum=off -c fsync=on -c full_page_writes=on "
    "-c shared_buffers=512MB -c max_wal_size=8GB -c checkpoint_timeout=1h"
)

LIMIT = 60.0
"""Seconds after the commit in which all that was written must have arrived."""

WRITING = 600.0
"""Seconds that a writer may take before its commit."""

SPACE = 0.001
"""Seconds between two commits, where latency is measured."""

WARM = 20
"""Commits before these, in each turn."""

FEWEST = 1000
"""Rows, of one transaction, that make sense."""


class Failed(Exception):
    """A turn without a result; the text says why."""


class Late(Failed):
    """A process did not answer in time."""


# Processes.


class Child:
    """A process of its own that answers through a pipe. Leaving it ends the process, by its id."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        # A forked process must not share a session with this one.
        connection.close()
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=work, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def get(self, within: float = LIMIT) -> Any:
        """Its next answer. Raises Late after so many seconds, and Failed where it has ended."""
        if not self.pipe.poll(within):
            raise Late(f"one of its processes did not answer within {within:g} s")
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join(5)
            raise Failed(f"one of its processes ended with {self.process.exitcode}; the error stands above") from None

    def ask(self) -> Any:
        """What it answers to a nudge."""
        self.pipe.send(None)
        return self.get()


@contextmanager
def program(command: list[str], says: str, **environment: str) -> Iterator[int]:
    """A program that runs, and has said that it does. Its process id."""
    # It writes to a file: a pipe that nobody reads would hold it up.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        try:
            deadline = time.monotonic() + LIMIT
            while says not in (text := os.pread(output.fileno(), 1_000_000, 0).decode(errors="replace")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"{' '.join(command)} never said {says!r}:\n{text}")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Tally:
    """In a listener's process: counts what it takes, and says when the last was there. Clock: CLOCK_MONOTONIC, ns."""

    def __init__(self, pipe: Connection, expected: int) -> None:
        self.pipe = pipe
        self.expected = expected
        self.taken = 0
        self._listens = False

    def ready(self) -> None:
        """It listens. What is said again, after a reconnect, counts for nothing: the count tells what was lost."""
        if self._listens:
            return
        self._listens = True
        self.pipe.send("listens")
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        self.pipe.recv()
        self.pipe.send(self.taken)

    def mark(self, event: object = None) -> None:
        """One more is here. This is the receiver that does nothing."""
        self.taken += 1
        if self.taken == self.expected:
            self.end()

    def end(self) -> None:
        self.pipe.send(time.monotonic_ns())

    def drain(self, loop: Iterable[object]) -> None:
        """Take what a loop that ends by itself yields, at no cost but the loop's own."""
        for _ in loop:
            self.taken += 1
        self.end()


class Watch(Tally):
    """Notes when each was there."""

    def __init__(self, pipe: Connection, expected: int) -> None:
        super().__init__(pipe, expected)
        self.times: list[int] = []

    def mark(self, event: object = None) -> None:
        self.times.append(time.monotonic_ns())
        super().mark()

    def end(self) -> None:
        self.pipe.send(self.times)

    def drain(self, loop: Iterable[object]) -> None:
        for _ in loop:
            self.mark()


Listen = Callable[[Tally], None]
Write = Callable[[int], Any]


def run_listener(pipe: Connection, listen: Listen, kind: type[Tally], expected: int) -> None:
    # The collector's first full run in a forked process copies every page of its memory. No process in production is
    # forked so, and this is not to happen while time is taken.
    gc.collect()
    listen(kind(pipe, expected))


def run_writer(pipe: Connection, write: Write, count: int) -> None:
    pipe.send(write(count))


def take_turn(listen: Listen, kind: type[Tally], write: Write, count: int) -> tuple[Any, Any]:
    """What a writer says of its commits, and what a listener says of what it took."""
    with Child(run_listener, listen, kind, count) as listener:
        listener.get()
        with Child(run_writer, write, count) as writer:
            written = writer.get(WRITING)
            try:
                return written, listener.get()
            except Late:
                raise Failed(f"{listener.ask():,} of {count:,} arrived within {LIMIT:g} s after the commit") from None


# Who writes.


class Table:
    """Writes to a model's table. Moments are taken right before each COMMIT."""

    def __init__(self, name: str) -> None:
        self.name = model(name)._meta.db_table

    def fill(self, rows: int) -> None:
        with connect() as session:
            session.execute(
                f"INSERT INTO {self.name} (status, amount, note) "
                f"SELECT 'new', i, 'note ' || i FROM generate_series(1, {rows}) AS i"
            )

    def at_once(self, rows: int) -> int:
        """One UPDATE."""
        return self._commit(self.update(rows))

    def one_by_one(self, rows: int) -> int:
        """An UPDATE for each row, in one transaction."""
        one = f"UPDATE {self.name} SET amount = amount + 1 WHERE id = i;"
        return self._commit(f"DO $$ BEGIN FOR i IN 1..{rows} LOOP {one} END LOOP; END $$")

    def update(self, rows: int) -> str:
        return f"UPDATE {self.name} SET amount = amount + 1 WHERE id <= {rows}"

    def _commit(self, statement: str) -> int:
        with connect() as session:
            session.execute(f"VACUUM {self.name}")
            session.execute("BEGIN")
            session.execute(statement)
            began = time.monotonic_ns()
            session.execute("COMMIT")
        return began

    def spaced(self, count: int) -> list[int]:
        """Single commits, one after the other."""
        began = []
        with connect() as session:
            for place in range(1, count + 1):
                session.execute("BEGIN")
                session.execute(f"UPDATE {self.name} SET amount = amount + 1 WHERE id = %s", [place])
                began.append(time.monotonic_ns())
                session.execute("COMMIT")
                time.sleep(SPACE)
        return began


class Redis:
    """Publishes to a Redis server as much as a row trigger sends."""

    channel = "by_hand"
    payload = '{"table" : "relaying_byhand", "op" : "update", "pk" : %d, "at" : "2026-01-02T03:04:05.678901+00:00"}'
    # A script is what a transaction is here: nothing is delivered before its end.
    script = (
        "for i = 1, tonumber(ARGV[1]) do redis.call('PUBLISH', '"
        + channel
        + "', string.format(ARGV[2], i)) end return redis.status_reply('OK')"
    )

    def __init__(self, port: int) -> None:
        self.port = port

    def client(self) -> Any:
        import redis

        return redis.Redis(host="127.0.0.1", port=self.port)

    def at_once(self, count: int) -> int:
        with closing(self.client()) as client:
            client.ping()
            began = time.monotonic_ns()
            client.eval(self.script, 0, count, self.payload)
        return began

    def spaced(self, count: int) -> list[int]:
        began = []
        with closing(self.client()) as client:
            client.ping()
            for place in range(count):
                message = self.payload % place
                began.append(time.monotonic_ns())
                client.publish(self.channel, message)
                time.sleep(SPACE)
        return began

    def listen(self, tally: Tally) -> None:
        subscription = self.client().pubsub()
        subscription.subscribe(self.channel)
        messages = subscription.listen()
        next(messages)  # that it is subscribed
        tally.ready()
        for _ in messages:
            tally.mark()


@contextmanager
def redis_server() -> Iterator[Redis | None]:
    """One on loopback, or None, said aloud."""
    path = shutil.which("redis-server")
    if not (installed("redis") and path):
        if not path:
            say("**NOT MEASURED: redis-py pub/sub**: there is no redis-server: apt-get install redis-server\n")
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    # As it comes, it drops a subscriber who is 32 MB behind.
    command += ["--client-output-buffer-limit", "pubsub 0 0 0"]
    with program(command, "Ready to accept connections"):
        yield Redis(port)


# Who listens.


def bare_loop(tally: Tally) -> None:
    """psycopg's loop, and nothing in it. It has no timeout: with one it is slower by a third."""
    with connect() as session:
        session.execute("LISTEN by_hand")
        tally.ready()
        tally.drain(session.notifies(stop_after=tally.expected))


def classic(tally: Tally) -> None:
    """The script of every demonstration: LISTEN, json.loads, print."""
    with connect() as session, open(os.devnull, "w") as null:
        session.execute("LISTEN by_hand")
        tally.ready()
        for one in session.notifies():
            print(json.loads(one.payload), file=null)
            tally.mark()


def ours(is_async: bool) -> Listen:
    """A relay with one receiver."""

    def listen(tally: Tally) -> None:
        from pgsignals.dispatch import ReceiversSink
        from pgsignals.listening.relay import Relay
        from pgsignals.listening.running import spare_the_collector
        from pgsignals.receivers import Condition, Registry

        async def receiver(event: object) -> None:
            tally.mark()

        registry = Registry()
        registry.add(receiver if is_async else tally.mark, Condition(model("Ours"), None, ("update",)))
        relay = Relay("default", [ReceiversSink("default", registry)])
        relay.on_listening = tally.ready
        spare_the_collector()  # as `manage.py listen` does
        asyncio.run(relay.run())

    return listen


def pgpubsub(tally: Tally) -> None:
    """django-pgpubsub's own loop, but for the moment at which it listens."""
    from pgpubsub.listen import listen_to_channels, process_notifications

    pgpubsub_channel().register(lambda old, new: tally.mark())
    wrapper = listen_to_channels()
    tally.ready()
    while True:
        select.select([wrapper.connection], [], [], 1)
        process_notifications(wrapper)


def pgpubsub_channel() -> Any:
    """The channel of the trigger on Peer; made once."""
    from pgpubsub.channel import TriggerChannel

    module = sys.modules[f"{APP}.models"]
    if not hasattr(module, "Changes"):
        module.Changes = type("Changes", (TriggerChannel,), {"__module__": module.__name__, "model": model("Peer")})
    return module.Changes


@dataclass
class Way:
    """One way from a write to a listener."""

    key: str
    title: str
    listen: Listen
    at_once: Write
    """Writes so many rows in one transaction."""
    spaced: Write | None = None
    """Commits so many rows one by one; None where latency is not asked for."""
    part: int = 1
    """A slow one gets this part of the rows only."""


def ways(redis: Redis | None) -> list[Way]:
    """All of them; the first is the floor."""
    by_hand, own = Table("ByHand"), Table("Ours")
    found = [
        Way("bare", "bare notifies() loop", bare_loop, by_hand.at_once, by_hand.spaced),
        Way("classic", "LISTEN, json.loads, print", classic, by_hand.at_once),
    ]
    if number := installed("django-pgpubsub"):
        peer = Table("Peer")
        found.append(Way("pgpubsub", f"django-pgpubsub {number}", pgpubsub, peer.at_once, peer.spaced, part=10))
    if redis:
        parser = f" with hiredis {version('hiredis')}" if has("hiredis") else ""
        title = f"redis-py {version('redis')} pub/sub{parser}"
        found.append(Way("redis", title, redis.listen, redis.at_once, redis.spaced))
    return [
        *found,
        Way("sync", "ours, sync receiver, single rows", ours(False), own.one_by_one, own.spaced),
        Way("async", "ours, async receiver, single rows", ours(True), own.one_by_one, own.spaced),
        Way("bulk_sync", "ours, sync receiver, rows of a bulk UPDATE", ours(False), own.at_once),
        Way("bulk_async", "ours, async receiver, rows of a bulk UPDATE", ours(True), own.at_once),
    ]


# The database.


def configure(place: dict[str, Any]) -> None:
    """Django, with one app that has no files."""
    module = types.ModuleType(APP)
    sys.modules[APP] = sys.modules[f"{APP}.models"] = module
    app = type("Relaying", (AppConfig,), {"path": str(ROOT / "benchmarks"), "name": APP})(APP, module)
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **place}},
        INSTALLED_APPS=[*(["pgtrigger", "pgpubsub"] if has("django-pgpubsub") else []), "pgsignals", app],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="of no use",
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()


def set_tables(kind: str) -> None:
    """LOGGED, or UNLOGGED."""
    with connect() as session:
        for name in NAMES:
            session.execute(f"ALTER TABLE {Table(name).name} SET {kind}")


def create_tables(rows: int) -> None:
    """Three tables of one shape, each with its trigger, and so many rows."""
    from django.core.management import call_command

    from pgsignals import Notify

    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        for name in NAMES:
            editor.create_model(declare(name, [Notify(name="ours_events")] if name == "Ours" else []))
    with connection.cursor() as cursor:
        for statement in HAND_WRITTEN:
            cursor.execute(statement)
    # Otherwise COMMIT writes the rest of the UPDATE's log first, which takes from 5 to 50 ms.
    set_tables("UNLOGGED")
    if has("django-pgpubsub"):
        import pgtrigger
        from pgpubsub.triggers import Notify as Theirs

        name = pgpubsub_channel().listen_safe_name()
        Theirs(name=name, when=pgtrigger.After, operation=pgtrigger.Update).install(model("Peer"))
    for name in NAMES:
        Table(name).fill(rows)
    connection.close()


NAMES = ("ByHand", "Ours", "Peer")

HAND_WRITTEN = (
    """CREATE FUNCTION by_hand() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_notify('by_hand', json_build_object(
            'table', TG_TABLE_NAME, 'op', lower(TG_OP), 'pk', NEW.id, 'at', clock_timestamp())::text);
        RETURN NULL;
    END $$""",
    f"CREATE TRIGGER by_hand AFTER UPDATE ON {APP}_byhand FOR EACH ROW EXECUTE FUNCTION by_hand()",
)


def declare(name: str, constraints: list[Any]) -> type[models.Model]:
    fields = {
        "status": models.CharField(max_length=20, default="new"),
        "amount": models.IntegerField(default=0),
        "note": models.CharField(max_length=100, default=""),
    }
    meta = type("Meta", (), {"app_label": APP, "constraints": constraints})
    return type(name, (models.Model,), {"__module__": f"{APP}.models", "Meta": meta, **fields})


def model(name: str) -> type[models.Model]:
    return apps.get_model(APP, name)


def connect() -> psycopg.Connection:
    """A session of its own, in autocommit."""
    place = connection.settings_dict
    return psycopg.connect(
        host=place["HOST"], port=place["PORT"], user=place["USER"], dbname=place["NAME"], autocommit=True
    )


def installed(package: str) -> str | None:
    """Its version, or None, said aloud."""
    if has(package):
        return version(package)
    say(f"**NOT MEASURED: {package}** is not installed: pip install {package}\n")
    return None


def has(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


# What is measured.


class Figures:
    """By way, one figure for each turn; NaN for a turn that failed, after which the way has no more of them."""

    def __init__(self) -> None:
        self.turns: dict[str, list[float]] = defaultdict(list)

    def failed(self, key: str) -> bool:
        return any(map(math.isnan, self.turns[key]))

    def median(self, key: str) -> float:
        return median(self.turns[key])

    def ratio(self, key: str, to: str = "bare") -> float:
        """To the bare loop in the same turn."""
        return median([a / b for a, b in zip(self.turns[key], self.turns[to], strict=False)])


def median(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)


def rounds_of(found: list[Way], rounds: int) -> Iterable[Way]:
    """Round robin; each round begins with another way, so that none has the best place."""
    for turn in range(rounds):
        place = turn % len(found)
        yield from found[place:] + found[:place]


def throughput(found: list[Way], rounds: int, rows: int) -> Figures:
    """Rows a second, from the commit of one transaction until the last row is there."""
    rates = Figures()
    for way in rounds_of(found, rounds):
        if rates.failed(way.key):
            continue
        count = rows // way.part
        try:
            began, ended = take_turn(way.listen, Tally, way.at_once, count)
            rates.turns[way.key].append(count / (ended - began) * 1e9)
        except Failed as error:
            say(f"**FAILED: {way.title}**: {error}\n")
            rates.turns[way.key].append(math.nan)
    return rates


def latency(found: list[Way], rounds: int, count: int) -> tuple[Figures, dict[str, float]]:
    """Microseconds from a commit until it is with the listener: medians by turn, and the 99th percentile of all."""
    halves = Figures()
    all_waits: dict[str, list[float]] = defaultdict(list)
    for way in rounds_of(found, rounds):
        assert way.spaced is not None
        if halves.failed(way.key):
            continue
        try:
            waits = one_by_one(way.listen, way.spaced, count)
        except Failed as error:
            say(f"**FAILED: {way.title}, latency**: {error}\n")
            waits = [math.nan, math.nan]
        halves.turns[way.key].append(median(waits))
        all_waits[way.key] += waits
    return halves, {key: statistics.quantiles(waits, n=100)[98] for key, waits in all_waits.items()}


def one_by_one(listen: Listen, write: Write, count: int) -> list[float]:
    began, taken = take_turn(listen, Watch, write, count + WARM)
    # They arrive in the order of their commits, so the place tells which is which.
    waits = [(there - then) / 1000 for then, there in zip(began, taken, strict=True)][WARM:]
    if min(waits) <= 0:
        raise Failed("something arrived before its commit began: they are not in order")
    return waits


@dataclass
class Occupied:
    """What a process occupies: its memory in megabytes, and how much of a core it used, in percent."""

    resident: float
    own: float
    core: float


PG_VARIABLES = {"HOST": "HOST", "PORT": "PORT", "USER": "USER", "DATABASE": "NAME"}


def idle(seconds: float) -> dict[str, tuple[Occupied, Occupied]]:
    """By project: after django.setup() alone, and `manage.py listen`, while nothing happens."""
    place = connection.settings_dict
    server = {f"PG{key}": place[name] for key, name in PG_VARIABLES.items()}
    only_setup = "import django, time; django.setup(); print('is set up', flush=True); time.sleep(3600)"
    with ExitStack() as stack:
        pids = {}
        for project in ("tests.settings", "demo_project.settings"):
            environment = {**server, "DATABASE_URL": "", "DJANGO_SETTINGS_MODULE": project, "PYTHONPATH": str(ROOT)}
            for command, says in (["-c", only_setup], "is set up"), (["manage.py", "listen"], "Listening to"):
                running = program([sys.executable, *command], says, **environment)
                pids[project, command[0]] = stack.enter_context(running)
        # What a start leaves behind is no idling.
        time.sleep(3)
        before = {key: core_seconds(pid) for key, pid in pids.items()}
        time.sleep(seconds)
        found = {
            key: Occupied(
                memory(pid, "Rss"),
                memory(pid, "Private_Clean") + memory(pid, "Private_Dirty"),
                (core_seconds(pid) - before[key]) / seconds * 100,
            )
            for key, pid in pids.items()
        }
    return {project: (found[project, "-c"], found[project, "manage.py"]) for project, _ in found}


def core_seconds(pid: int) -> float:
    """What a process has used so far, as user and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, what: str, file: str = "smaps_rollup") -> float:
    """Megabytes."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(what)


# The flood.


def run_sleeper(pipe: Connection, is_async: bool, expected: int) -> None:
    """A relay whose receiver sleeps at its first event, until told otherwise. It says when all has arrived."""
    from pgsignals.dispatch import ReceiversSink
    from pgsignals.listening.relay import Relay
    from pgsignals.receivers import Condition, Registry
    from pgsignals.signals import relay_gap
    from pgsignals.sink import Sink

    awake = threading.Event()
    seen = {"update": 0, "insert": 0}
    gaps: list[str] = []

    class Arrived(Sink):
        count = 0

        def put(self, events: Any, size: int) -> None:
            before, self.count = self.count, self.count + len(events)
            if before < expected <= self.count:
                pipe.send("all are here")

    def note(op: str) -> None:
        seen[op] += 1
        if op == "insert":
            # Calls that run beside this one may still finish.
            threading.Timer(0.5, lambda: pipe.send((seen["update"], gaps))).start()

    def receiver(event: Any) -> None:
        while not awake.is_set():
            time.sleep(0.05)
        note(event.op)

    async def async_receiver(event: Any) -> None:
        while not awake.is_set():
            await asyncio.sleep(0.05)
        note(event.op)

    def heard_of_gap(cause: str, **_: Any) -> None:
        gaps.append(cause)

    def wake_up() -> None:
        pipe.recv()
        awake.set()

    relay_gap.connect(heard_of_gap)
    registry = Registry()
    registry.add(async_receiver if is_async else receiver, Condition(model("Ours"), None, ("update", "insert")))
    relay = Relay("default", [ReceiversSink("default", registry), Arrived()])
    relay.on_listening = lambda: pipe.send("listens")
    threading.Thread(target=wake_up, daemon=True).start()
    asyncio.run(relay.run())


def run_flooder(pipe: Connection, rows: int, at_a_time: int) -> None:
    own = Table("Ours")
    with connect() as session:
        for place in range(rows // at_a_time):
            if place % 10 == 0:
                session.execute(f"VACUUM {own.name}")
            session.execute(own.update(at_a_time))
    pipe.send("written")


@dataclass
class Flooded:
    """Megabytes of a relay before, at the most, and when all had been handed out; what its receiver saw."""

    before: float
    peak: float
    after: float
    seen: int
    gaps: list[str]


def flood(is_async: bool, rows: int, at_a_time: int) -> Flooded:
    """A receiver sleeps while so many row events arrive, and then takes what was kept."""
    with Child(run_sleeper, is_async, rows) as relay:
        relay.get()
        before = memory(relay.pid, "VmRSS", "status")
        with Child(run_flooder, rows, at_a_time) as writer:
            writer.get(max(WRITING, rows / 10_000))
        try:
            relay.get()
        except Late:
            raise Failed(f"not all of {rows:,} events came to the relay within {LIMIT:g} s after the commit") from None
        relay.pipe.send("wake up")
        Table("Ours").fill(1)
        try:
            seen, gaps = relay.get()
        except Late:
            raise Failed(f"the receiver has not come to the last event within {LIMIT:g} s of waking up") from None
        after, peak = (memory(relay.pid, what, "status") for what in ("VmRSS", "VmHWM"))
    return Flooded(before, peak, after, seen, gaps)


# What is printed.


def say(text: str = "") -> None:
    print(text, flush=True)


@dataclass
class Bar:
    """What must hold."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        # Of NaN, which stands for what failed, neither is true.
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def throughput_bars(args: argparse.Namespace, found: list[Way]) -> list[Bar]:
    rates = throughput(found, args.rounds or (2 if args.quick else 7), args.rows)
    say("### Throughput: from the commit of one transaction to the last row\n")
    say("| | rows | rows a second | to the bare loop |")
    say("|---|---:|---:|---:|")
    for way in found:
        count = args.rows // way.part
        say(f"| {way.title} | {count:,} | {rates.median(way.key):,.0f} | {rates.ratio(way.key):.2f} |")
    say()
    limits = {"sync": 0.6, "async": 0.2, "bulk_sync": 2.5, "bulk_async": 1.0}
    titles = {way.key: way.title for way in found}
    return [
        Bar(f"{titles[key]}: rate, to the bare loop's", rates.ratio(key), limit, at_least=True)
        for key, limit in limits.items()
    ]


def latency_bars(args: argparse.Namespace, found: list[Way]) -> list[Bar]:
    print_latency(args, found, "and no disk is waited for")
    set_tables("LOGGED")
    try:
        halves = print_latency(args, found, "which waits for the disk")
    finally:
        set_tables("UNLOGGED")
    return [
        Bar(f"{key} receiver: p50 from commit to receiver, to the bare loop's", halves.ratio(key), 1.3)
        for key in ("sync", "async")
    ]


def print_latency(args: argparse.Namespace, found: list[Way], how: str) -> Figures:
    found = [way for way in found if way.spaced]
    halves, worst = latency(found, args.rounds or (5 if args.quick else 30), 200)
    say(f"### Latency: from a single commit, {how}, to the listener\n")
    say("| | p50, µs | p99, µs | p50 to the bare loop |")
    say("|---|---:|---:|---:|")
    for way in found:
        title = way.title.removesuffix(", single rows")
        say(f"| {title} | {halves.median(way.key):.0f} | {worst[way.key]:.0f} | {halves.ratio(way.key):.2f} |")
    say()
    return halves


def idle_bars(args: argparse.Namespace) -> list[Bar]:
    seconds = 10 if args.quick else 30
    found = idle(seconds)
    say(f"### Idle, for {seconds} s\n")
    say("| project | | resident, MB | of these its own, MB | of a core |")
    say("|---|---|---:|---:|---:|")
    bars = []
    for project, (only_setup, relay) in found.items():
        for what, one in ("django.setup()", only_setup), ("manage.py listen", relay):
            say(f"| {project} | {what} | {one.resident:.1f} | {one.own:.1f} | {one.core:.2f} % |")
        bars.append(Bar(f"idle, {project}: percent of a core", relay.core, 1))
        bars.append(Bar(f"idle, {project}: MB above django.setup()", relay.resident - only_setup.resident, 25))
    say()
    return bars


def flood_bars(args: argparse.Namespace) -> list[Bar]:
    from pgsignals import conf

    floods = {title: flood(is_async, args.flood, args.rows) for title, is_async in (("sync", False), ("async", True))}
    say(f"### {args.flood:,} row events while the receiver sleeps\n")
    say("| receiver | RSS before, MB | at the peak | after | events seen | gaps announced |")
    say("|---|---:|---:|---:|---:|---|")
    # What waits in the buffer, and what was taken out of it and is being handed out.
    limit = 2 * conf.get().BUFFER
    bars = []
    for title, found in floods.items():
        gaps = "; ".join(found.gaps) or "**none**"
        say(f"| {title} | {found.before:.0f} | {found.peak:.0f} | {found.after:.0f} | {found.seen:,} | {gaps} |")
        bars.append(Bar(f"flood, {title}: MB at the peak, above before", found.peak - found.before, limit))
        if found.seen < args.flood:
            bars.append(Bar(f"flood, {title}: gaps announced", len(found.gaps), 1, at_least=True))
    say()
    return bars


def introduce(args: argparse.Namespace) -> None:
    with connect() as session:
        number = session.execute("SHOW server_version").fetchone()[0].split()[0]  # type: ignore[index]
    reader = f", msgspec {version('msgspec')}" if has("msgspec") else ""
    say(f"## PostgreSQL {number}\n")
    say(
        f"Python {sys.version.split()[0]}, Django {django.__version__}, psycopg {psycopg.__version__} "
        f"({psycopg.pq.__impl__}){reader}, {os.cpu_count()} cores; autovacuum off.\n"
    )
    if not args.flood:
        say(f"Bytes of payload for one row: {', '.join(payloads())}.\n")


def payloads() -> Iterator[str]:
    """For a row of an UPDATE."""
    for title, channel, table, rows in (
        ("by the trigger for each row", Redis.channel, "ByHand", 1),
        ("ours, a single row", "pgsignals", "Ours", 1),
        ("ours, a row of many", "pgsignals", "Ours", FEWEST),
    ):
        with connect() as session:
            session.execute(f"LISTEN {channel}")
            session.execute(Table(table).update(rows))
            size = sum(len(one.payload) for one in session.notifies(timeout=1))
        yield f"{title} {size / rows:.0f}"


def report(args: argparse.Namespace) -> int:
    create_tables(args.rows)
    introduce(args)
    with ExitStack() as stack:
        if args.flood:
            bars = flood_bars(args)
        else:
            parts = args.only.split(",")
            found = ways(stack.enter_context(redis_server())) if {"throughput", "latency"} & set(parts) else []
            bars = [
                *(throughput_bars(args, found) if "throughput" in parts else []),
                *(latency_bars(args, found) if "latency" in parts else []),
                *(idle_bars(args) if "idle" in parts else []),
            ]
    say("| bar | value | must be | |")
    say("|---|---:|---:|---|")
    for bar in bars:
        must = f"{'≥' if bar.at_least else '≤'} {bar.limit:g}"
        say(f"| {bar.what} | {bar.value:.3g} | {must} | {'PASS' if bar.holds else '**FAIL**'} |")
    failed = sum(not bar.holds for bar in bars)
    say(f"\n**{len(bars) - failed} bars hold, {failed} do not.**\n")
    if args.quick or args.rows != 100_000:
        few = ", few turns" * args.quick
        say(f"(The bars are meant for 100,000 rows and many turns; these were {args.rows:,}{few}.)")
    return 1 if failed and args.check else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="BIN_DIR", help="the server's programs; the embedded one by default")
    parser.add_argument("--rows", type=int, default=100_000, help="of one transaction (100000)")
    parser.add_argument("--rounds", type=int, help="turns of each variant (throughput 7, latency 30; quick 2 and 5)")
    parser.add_argument("--quick", action="store_true", help="few turns, for a look")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a bar fails")
    parser.add_argument("--only", default="throughput,latency,idle", help="throughput,latency,idle")
    parser.add_argument("--flood", type=int, metavar="ROWS", help="memory under so many row events, and nothing else")
    args = parser.parse_args()
    if args.rows < FEWEST:
        parser.error(f"--rows {args.rows}: at least {FEWEST}")
    if args.postgres:
        os.environ["PGSIGNALS_TEST_POSTGRES"] = args.postgres
    from tests.postgres import Server

    server = Server(options=OPTIONS).start()
    try:
        configure(server.django())
        return report(args)
    except Failed as error:
        say(f"**FAILED**: {error}")
        return 1
    finally:
        connection.close()
        server.close()


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    sys.exit(main())
