"""The queues that `benchmarks/log.py` compares the log with: each as its own documentation shows it.

procrastinate: an app with a PsycopgConnector, jobs deferred in bulk; a worker as it comes, which does one job after the
other, and one that does ten at a time. PgQueuer: with asyncpg, which it recommends, where that is installed, otherwise
with psycopg; in uvloop, as its command line runs it; batches of 10, its default, and of 100, because it says to raise
that for short jobs. django-pgpubsub: a channel with `lock_notifications` on an insert trigger, and its `listen` with
`recover`, which begins with the stored notifications.

A worker is a process of its own. What it calls for each job does nothing but count, or inserts a row with Django's ORM.
What the asynchronous queues call are coroutines, but for the insert, which goes to a thread. Writers insert the same
row as the log's, and a job for it by the same statement.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import psycopg

from benchmarks.relay import has, installed, say

Receive = Callable[[int], None]
AT_ONCE = 1000
COLUMNS = "(owner, balance, note)"


def receiver(kind: str, jobs: int) -> Receive:
    """What is called for each job. Says a number and the moment (CLOCK_MONOTONIC, ns): at a tenth and at all of so many
    jobs, or, for the kind `stamp`, for each."""
    from tests.ledger.models import Effect

    taken = itertools.count(1)

    def tell(number: int) -> None:
        print(number, time.monotonic_ns(), flush=True)

    def nothing(number: int) -> None:
        if (count := next(taken)) in (jobs // 10, jobs):
            tell(count)

    def insert(number: int) -> None:
        Effect.objects.create(group="peer", event_id=number)
        nothing(number)

    return {"nothing": nothing, "insert": insert, "stamp": tell}[kind]


class Peer:
    """One of them."""

    key: str
    name: str
    """With its version."""
    title: str
    """And how its worker runs."""
    jobs: int
    """Of the backlog: what takes some ten seconds."""
    inserts: int
    """The same, where an insert is made for each."""
    tables: str
    """What it keeps jobs in."""
    left: str
    """SQL: whether a job waits, or is not acknowledged."""
    apps: tuple[str, ...] = ()
    """Of its own in INSTALLED_APPS."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.given = {"host": place["HOST"], "port": place["PORT"], "user": place["USER"], "dbname": place["NAME"]}

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(**self.given, autocommit=True)

    def clear(self) -> None:
        with self.connect() as session:
            session.execute(f"TRUNCATE {self.tables}, ledger_effect RESTART IDENTITY CASCADE; CHECKPOINT")

    def install(self) -> None:
        """Its tables."""
        raise NotImplementedError

    def fill(self, jobs: int) -> None:
        """A backlog."""
        with self.writer() as write:
            for start in range(0, jobs, AT_ONCE):
                write(list(range(start, min(start + AT_ONCE, jobs))))
        with self.connect() as session:
            session.execute(f"VACUUM ANALYZE {self.tables}")

    def writer(self) -> Any:
        """A context whose value commits a job for each of some numbers, in one transaction."""
        raise NotImplementedError

    def insert(self) -> str:
        """One statement that inserts a row like those of the ledger, and has a job for it."""
        raise NotImplementedError

    def work(self, receive: Receive, kind: str) -> None:
        """Its worker; until the process ends."""
        raise NotImplementedError


class Procrastinate(Peer):
    jobs = inserts = 1_000
    tables = "procrastinate_jobs, procrastinate_workers"
    left = "EXISTS (SELECT FROM procrastinate_jobs WHERE status <> 'succeeded')"

    def __init__(self, place: dict[str, Any], concurrency: int) -> None:
        super().__init__(place)
        self.concurrency = concurrency
        self.key = f"procrastinate_{concurrency}"
        self.name = f"procrastinate {version('procrastinate')}"
        self.title = f"{self.name}, concurrency {concurrency}"

    def app(self, connector: str) -> Any:
        import procrastinate

        return procrastinate.App(connector=getattr(procrastinate, connector)(kwargs=self.given))

    def install(self) -> None:
        with self.app("SyncPsycopgConnector").open() as app:
            app.schema_manager.apply_schema()

    @contextmanager
    def writer(self) -> Iterator[Callable[[list[int]], None]]:
        with self.app("SyncPsycopgConnector").open() as app:
            task = app.configure_task("work")

            def write(numbers: list[int]) -> None:
                if len(numbers) == 1:
                    task.defer(number=numbers[0])
                else:
                    task.batch_defer(*({"number": number} for number in numbers))

            yield write

    def insert(self) -> str:
        job = "ROW('default', 'work', 0, NULL, NULL, jsonb_build_object('number', id), NULL)"
        return (
            f"WITH inserted AS (INSERT INTO plain {COLUMNS} VALUES ('x', 1, 'y') RETURNING id) "
            f"SELECT procrastinate_defer_jobs_v1(ARRAY[{job}]::procrastinate_job_to_defer_v1[]) FROM inserted"
        )

    def work(self, receive: Receive, kind: str) -> None:
        async def receive_in_loop(number: int) -> None:
            receive(number)

        def receive_in_thread(number: int) -> None:
            receive(number)

        async def run() -> None:
            app = self.app("PsycopgConnector")
            app.task(receive_in_thread if kind == "insert" else receive_in_loop, name="work")
            async with app.open_async():
                await app.run_worker_async(concurrency=self.concurrency)

        asyncio.run(run())


class PgQueuer(Peer):
    jobs, inserts = 20_000, 2_000
    tables = "pgqueuer, pgqueuer_log, pgqueuer_statistics"
    left = "EXISTS (SELECT FROM pgqueuer)"

    def __init__(self, place: dict[str, Any], batch: int) -> None:
        super().__init__(place)
        self.batch = batch
        self.key = f"pgqueuer_{batch}"
        self.driver = "asyncpg" if has("asyncpg") else "psycopg"
        self.name = f"PgQueuer {version('pgqueuer')}"
        self.title = f"{self.name} with {self.driver}, batches of {batch}"

    def install(self) -> None:
        from pgqueuer.db import PsycopgDriver
        from pgqueuer.queries import Queries

        async def run() -> None:
            async with await psycopg.AsyncConnection.connect(**self.given, autocommit=True) as connection:
                await Queries(PsycopgDriver(connection)).install()

        asyncio.run(run())

    @contextmanager
    def writer(self) -> Iterator[Callable[[list[int]], None]]:
        from pgqueuer.db import SyncPsycopgDriver
        from pgqueuer.queries import SyncQueries

        with self.connect() as session:
            queries = SyncQueries(SyncPsycopgDriver(session))

            def write(numbers: list[int]) -> None:
                payloads = [str(number).encode() for number in numbers]
                queries.enqueue(["work"] * len(numbers), payloads, [0] * len(numbers))

            yield write

    def insert(self) -> str:
        from pgqueuer.adapters.persistence.qb import QueryQueueBuilder

        query = " ".join(line for line in QueryQueueBuilder().build_enqueue_query().splitlines() if "--" not in line)
        for place, value in enumerate(("{0}", "{work}", "{1}", "{00:00}", "{NULL}", "{NULL}"), 1):
            query = query.replace(f"${place}", f"'{value}'")
        row = f"WITH plain_row AS (INSERT INTO plain {COLUMNS} VALUES ('x', 1, 'y')), input AS"
        return " ".join(query.replace("WITH input AS", row, 1).split())

    async def connected(self) -> Any:
        from pgqueuer.db import AsyncpgDriver, PsycopgDriver

        if self.driver == "psycopg":
            return PsycopgDriver(await psycopg.AsyncConnection.connect(**self.given, autocommit=True))
        import asyncpg

        given = {"database" if name == "dbname" else name: value for name, value in self.given.items()}
        return AsyncpgDriver(await asyncpg.connect(**given))

    def work(self, receive: Receive, kind: str) -> None:
        import uvloop
        from asgiref.sync import sync_to_async
        from pgqueuer import PgQueuer as Manager

        async def receive_in_loop(job: Any) -> None:
            receive(int(job.payload))

        async def receive_in_thread(job: Any) -> None:
            await sync_to_async(receive)(int(job.payload))

        async def run() -> None:
            manager = Manager(await self.connected())
            manager.entrypoint("work")(receive_in_thread if kind == "insert" else receive_in_loop)
            await manager.run(batch_size=self.batch)

        uvloop.run(run())


class PgPubSub(Peer):
    key = "pgpubsub"
    jobs = inserts = 1_000
    tables = "ledger_peered, pgpubsub_notification"
    left = "EXISTS (SELECT FROM pgpubsub_notification)"
    apps = ("pgtrigger", "pgpubsub")

    def __init__(self, place: dict[str, Any]) -> None:
        super().__init__(place)
        self.name = self.title = f"django-pgpubsub {version('django-pgpubsub')}, stored notifications"

    def channel(self) -> Any:
        """Of the trigger on a model like the ledger's Account."""
        from django.db import models
        from pgpubsub.channel import TriggerChannel

        fields = {
            "owner": models.CharField(max_length=100, default=""),
            "balance": models.IntegerField(default=0),
            "note": models.TextField(default=""),
            "Meta": type("Meta", (), {"app_label": "ledger"}),
        }
        model = type("Peered", (models.Model,), {"__module__": __name__, **fields})
        own = {"__module__": __name__, "model": model, "lock_notifications": True}
        return type("Inserted", (TriggerChannel,), own)

    def install(self) -> None:
        import pgtrigger
        from django.db import connection
        from pgpubsub.triggers import LockableNotify

        channel = self.channel()
        with connection.schema_editor() as editor:
            editor.create_model(channel.model)
        name = channel.listen_safe_name()
        LockableNotify(name=name, when=pgtrigger.After, operation=pgtrigger.Insert).install(channel.model)

    @contextmanager
    def writer(self) -> Iterator[Callable[[list[int]], None]]:
        with self.connect() as session:

            def write(numbers: list[int]) -> None:
                session.execute(f"INSERT INTO ledger_peered {COLUMNS} SELECT '', 0, unnest(%s::int[])::text", [numbers])

            yield write

    def insert(self) -> str:
        return f"INSERT INTO ledger_peered {COLUMNS} VALUES ('x', 1, 'y')"

    def work(self, receive: Receive, kind: str) -> None:
        os.environ["PGPUBSUB_USE_PSYCOPG_V3"] = "True"
        from pgpubsub.listen import listen

        self.channel().register(lambda old, new: receive(int(new.note)))
        listen(recover=True, autorestart_on_failure=False)


def known(place: dict[str, Any]) -> list[Peer]:
    """Those that are installed."""
    found: list[Peer] = []
    if has("procrastinate"):
        found += [Procrastinate(place, concurrency=1), Procrastinate(place, concurrency=10)]
    if has("pgqueuer"):
        found += [PgQueuer(place, batch=10), PgQueuer(place, batch=100)]
    if has("django-pgpubsub"):
        found.append(PgPubSub(place))
    return found


def peers(place: dict[str, Any]) -> list[Peer]:
    """Those that are installed. The others are named aloud."""
    for package in ("procrastinate", "pgqueuer", "django-pgpubsub"):
        installed(package)
    if has("pgqueuer") and not has("asyncpg"):
        say("**PgQueuer runs with psycopg**: asyncpg, with which it is faster, is not installed: pip install asyncpg\n")
    return known(place)


def queues(found: list[Peer]) -> list[Peer]:
    """Each of them once, where it is not the worker that matters."""
    return list(reversed({peer.tables: peer for peer in reversed(found)}.values()))


def work(key: str, kind: str, jobs: int, place: dict[str, Any]) -> None:
    """In a process of its own: the worker of one of them."""
    (peer,) = (peer for peer in known(place) if peer.key == key)
    peer.work(receiver(kind, jobs), kind)
