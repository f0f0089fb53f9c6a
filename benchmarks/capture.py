"""What capture costs the writer: the same writes with no trigger, with ours, and with what people write by hand.

    python benchmarks/capture.py [--postgres BIN_DIR ...] [--rows 100000] [--quick] [--no-fsync] [--check]

Each variant has a table of its own, of one shape, and the variants take turns within one run. A figure is the median,
over all turns, of the ratio to the table without a trigger in the same turn. What is timed is the statement and its
commit, because NOTIFY costs at the commit too; commits wait for the disk, as in production, unless --no-fsync says
otherwise. One idle listener drains everything that is sent, as in real life, and has drained it before the next
measurement begins.

It starts servers of its own: those whose programs --postgres names; without it PostgreSQL 15 where that is installed,
what PGSIGNALS_TEST_POSTGRES names, and the embedded one. The output is Markdown, and ends with the bars that pgsignals
sets itself; with --check a failed bar is exit code 1.

For the comparison with them: pip install django-pgpubsub django-pghistory. What is not installed is left out, aloud.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import select
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
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

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
APP = "capturing"
CHANNELS = ("pgsignals", "by_hand", "pgpubsub")
WRITERS = (1, 8, 32)
ROWS_OF_A_WRITER = 20

# Autovacuum would hit one variant and spare another; VACUUM runs between the measurements instead.
OPTIONS = "-c autovacuum=off -c shared_buffers=512MB -c max_wal_size=8GB -c checkpoint_timeout=1h"


# Shapes: the columns, besides the key, that tables of all variants have, and how SQL makes a value of a number i.
# Two of them travel where values do: `status` and `amount`.

_Column = tuple[Callable[[], Any], str]

_NARROW: dict[str, _Column] = {
    "status": (lambda: models.CharField(max_length=20, default="new"), "'new'"),
    "amount": (lambda: models.IntegerField(default=0), "i"),
    "note": (lambda: models.CharField(max_length=100, default=""), "'note ' || i"),
}
_MORE: dict[str, tuple[int, _Column]] = {
    "text": (8, (lambda: models.CharField(max_length=100, default="text of a usual length"), "'some text ' || i")),
    "number": (6, (lambda: models.IntegerField(default=7), "i")),
    "price": (3, (lambda: models.DecimalField(max_digits=12, decimal_places=2, default="19.90"), "i / 100.0")),
    "at": (3, (lambda: models.DateTimeField(null=True), "timestamptz '2024-01-01 00:00Z' + i * interval '1 s'")),
    "flag": (2, (lambda: models.BooleanField(default=False), "i % 2 = 0")),
}
SHAPES: dict[str, dict[str, _Column]] = {
    "narrow": _NARROW,
    "wide": _NARROW | {f"{name}{i}": column for name, (count, column) in _MORE.items() for i in range(count)},
}


# Variants: what is put on a table.


@dataclass
class Variant:
    """One way to capture, or none."""

    key: str
    title: str
    says: str
    declare: Callable[[type[models.Model]], None] = lambda model: None
    """What is done to the model's class."""
    install: Callable[[type[models.Model]], Iterable[str]] = lambda model: ()
    """What is done to the table: statements."""
    constraints: tuple[Any, ...] = ()
    per_row: bool = False
    """Whether it sends a notification for each row."""

    @property
    def ours(self) -> bool:
        return bool(self.constraints)


def ours(key: str, title: str, says: str, **arguments: Any) -> Variant | None:
    """A declaration of ours, or None where this pgsignals cannot do it."""
    from pgsignals import Notify

    try:
        return Variant(key, title, says, constraints=(Notify(name=f"%(class)s_{key}", **arguments),))
    except (NotImplementedError, TypeError) as error:
        say(f"**NOT MEASURED: {title}**: {error}")
        return None


def by_hand(changed: bool, values: bool) -> Callable[[type[models.Model]], list[str]]:
    """A row-level trigger as a good engineer writes it: columns named, unchanged rows kept out by WHEN."""

    def install(model: type[models.Model]) -> list[str]:
        table = model._meta.db_table
        fields = [field for field in model._meta.concrete_fields if not field.primary_key]

        def values_of(row: str) -> str:
            return f"json_build_object('status', {row}.status, 'amount', {row}.amount)"

        def announce(operation: str, row: str) -> str:
            parts = [f"'op', '{operation}'", f"'pk', {row}.id"]
            if changed:
                parts.insert(0, "'table', TG_TABLE_NAME")
                if operation == "update":
                    tests = (
                        f"CASE WHEN OLD.{one.column} IS DISTINCT FROM NEW.{one.column} THEN '{one.name}' END"
                        for one in fields
                    )
                    parts.append(f"'changed', array_remove(ARRAY[{', '.join(tests)}], NULL)")
            if values and operation != "insert":
                parts.append(f"'old', {values_of('OLD')}")
            if values and operation != "delete":
                parts.append(f"'new', {values_of('NEW')}")
            return f"PERFORM pg_notify('by_hand', json_build_object({', '.join(parts)})::text);"

        return [
            f"""CREATE FUNCTION {table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF TG_OP = 'INSERT' THEN {announce("insert", "NEW")}
                ELSIF TG_OP = 'UPDATE' THEN {announce("update", "NEW")}
                ELSE {announce("delete", "OLD")}
                END IF;
                RETURN NULL;
            END $$""",
            f"CREATE TRIGGER one AFTER INSERT OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}()",
            f"CREATE TRIGGER two AFTER UPDATE ON {table} FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) "
            f"EXECUTE FUNCTION {table}()",
        ]

    return install


def pgpubsub_variant() -> Variant | None:
    """django-pgpubsub's Notify, which sends all old and all new values."""
    if (found := installed("django-pgpubsub")) is None:
        return None

    def install(model: type[models.Model]) -> list[str]:
        import pgtrigger
        from pgpubsub.triggers import Notify

        for operation in (pgtrigger.Insert, pgtrigger.Update, pgtrigger.Delete):
            name = f"pgpubsub_{operation}".lower()
            trigger = Notify(name=name, when=pgtrigger.After, operation=operation)
            # The trigger's name is its channel.
            trigger.get_func = types.MethodType(
                lambda self, of: Notify.get_func(self, of).replace(f"'{self.name}'", "'pgpubsub'"), trigger
            )
            trigger.install(model)
        return []

    return Variant("pgpubsub", f"django-pgpubsub {found}", "row level; all values, old and new", install=install)


def pghistory_variant() -> Variant | None:
    """django-pghistory's event tracking, which stores rows and sends nothing."""
    if (found := installed("django-pghistory")) is None:
        return None

    def declare(model: type[models.Model]) -> None:
        import pghistory

        pghistory.track(pghistory.InsertEvent(), pghistory.UpdateEvent(), pghistory.DeleteEvent())(model)

    def install(model: type[models.Model]) -> list[str]:
        import pgtrigger

        for of, trigger in pgtrigger.registered():
            if of is model:
                trigger.install(model)
        return []

    says = "stores a row for each change, which is persistent and another promise; sends nothing"
    return Variant("pghistory", f"django-pghistory {found} (persistent)", says, declare=declare, install=install)


def installed(package: str) -> str | None:
    """Its version, or None, said aloud."""
    try:
        return version(package)
    except PackageNotFoundError:
        say(f"**NOT MEASURED: {package}** is not installed: pip install {package}")
        return None


def variants() -> list[Variant]:
    """All of them; the first is the measure of the others."""
    found = [
        Variant("none", "no trigger", "the measure"),
        ours("pk", "ours, pk only", "operation, key, names of changed fields"),
        ours(
            "fields", "ours, two fields", "the same, and old and new values of two fields", fields=["status", "amount"]
        ),
        ours("watch", "ours, watch", "as pk only; the watched field changes in every update", watch=["status"]),
        ours(
            "unwatched", "ours, watch, unchanged", "the watched field never changes: no update is sent", watch=["note"]
        ),
        Variant(
            "row_bare", "row trigger, bare", "operation and key, no more", install=by_hand(False, False), per_row=True
        ),
        Variant(
            "row_pk", "row trigger, pk", "says what ours, pk only says", install=by_hand(True, False), per_row=True
        ),
        Variant(
            "row_fields",
            "row trigger, fields",
            "says what ours, two fields says",
            install=by_hand(True, True),
            per_row=True,
        ),
        pgpubsub_variant(),
        pghistory_variant(),
    ]
    return [variant for variant in found if variant]


# The database.


def configure(place: dict[str, Any]) -> None:
    """Django, with one app that has no files."""
    module = types.ModuleType(APP)
    # django-pghistory puts its models where it expects those of an app.
    sys.modules[APP] = sys.modules[f"{APP}.models"] = module
    app = type("Capturing", (AppConfig,), {"path": str(ROOT / "benchmarks"), "name": APP})(APP, module)
    others = [name for name in ("pgtrigger", "pgpubsub", "pghistory") if has(f"django-{name}")]
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **place}},
        INSTALLED_APPS=["django.contrib.contenttypes", *others, "pgsignals", app],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="of no use",
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()


def has(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def declare(shape: str, variant: Variant) -> type[models.Model]:
    """The model of one variant."""
    meta = type("Meta", (), {"app_label": APP, "constraints": list(variant.constraints)})
    name = f"{shape}_{variant.key}".title().replace("_", "")
    fields = {name: make() for name, (make, _) in SHAPES[shape].items()}
    model: type[models.Model] = type(name, (models.Model,), {"__module__": f"{APP}.models", "Meta": meta, **fields})
    setattr(sys.modules[APP], name, model)
    variant.declare(model)
    return model


def connect(**options: Any) -> psycopg.Connection:
    """A session of its own, in autocommit."""
    place = connection.settings_dict
    return psycopg.connect(
        host=place["HOST"], port=place["PORT"], user=place["USER"], dbname=place["NAME"], autocommit=True, **options
    )


class Listener:
    """A process that listens to everything, counts, and throws away."""

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=self._run, args=(theirs,), daemon=True)
        self.process.start()
        self.pipe.recv()
        self.writer = connect()

    def drained(self) -> Counter[str]:
        """Wait until all that was sent has been taken. How many notifications came on each channel."""
        self.writer.execute("NOTIFY drained")
        counts: Counter[str] = self.pipe.recv()
        return counts

    def close(self) -> None:
        self.writer.close()
        self.process.terminate()
        self.process.join()

    @staticmethod
    def _run(pipe: Connection) -> None:
        with connect() as session:
            for channel in (*CHANNELS, "drained"):
                session.execute(f"LISTEN {channel}")
            pipe.send(None)
            counts: Counter[bytes] = Counter()
            while True:
                select.select([session.fileno()], [], [])
                session.pgconn.consume_input()
                while found := session.pgconn.notifies():
                    if found.relname == b"drained":
                        pipe.send(Counter({name.decode(): count for name, count in counts.items()}))
                        counts.clear()
                    else:
                        counts[found.relname] += 1


class Nobody(Listener):
    """Nobody listens."""

    def __init__(self) -> None:
        pass

    def drained(self) -> Counter[str]:
        return Counter()

    def close(self) -> None:
        pass


class Bench:
    """The tables of one shape, and what is done to them."""

    def __init__(
        self, shape: str, found: list[Variant], tables: dict[tuple[str, str], type[models.Model]], listener: Listener
    ) -> None:
        self.shape = shape
        self.variants = found
        self.models = {variant.key: tables[shape, variant.key] for variant in found}
        self.listener = listener
        self.admin = connect()
        self.source = f"source_{shape}"
        self.columns = ", ".join(SHAPES[shape])
        self.selected = ", ".join(f"{value} AS {name}" for name, (_, value) in SHAPES[shape].items())
        self.sent: dict[tuple[str, str], int] = {}

    def fill_source(self, rows: int) -> None:
        self.admin.execute(f"DROP TABLE IF EXISTS {self.source}")
        first = self.models["none"]._meta.db_table
        self.admin.execute(f"CREATE UNLOGGED TABLE {self.source} (LIKE {first} INCLUDING DEFAULTS)")
        self.admin.execute(f"ALTER TABLE {self.source} DROP COLUMN id")
        self.admin.execute(
            f"INSERT INTO {self.source} ({self.columns}) SELECT {self.selected} FROM generate_series(1, {rows}) AS i"
        )
        self.admin.execute(f"VACUUM (ANALYZE) {self.source}")

    def statement(self, operation: str, variant: Variant) -> str:
        table = self.table(variant)
        return {
            "insert": f"INSERT INTO {table} ({self.columns}) SELECT {self.columns} FROM {self.source}",
            "update": f"UPDATE {table} SET status = 'changed', amount = amount + 1",
            "delete": f"DELETE FROM {table}",
        }[operation]

    def table(self, variant: Variant) -> str:
        return self.models[variant.key]._meta.db_table

    def empty(self, variant: Variant, rows: int = 0) -> None:
        """The state that every variant begins with: new files, and so many rows."""
        with self.admin.transaction():
            self.admin.execute("SET LOCAL session_replication_role = replica")
            tables = [self.table(variant)]
            if variant.key == "pghistory":
                tables.append(f"{tables[0]}event")
            self.admin.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY")
            if rows:
                self.admin.execute(f"{self.statement('insert', variant)} LIMIT {rows}")
        self.tidy(variant)

    def tidy(self, variant: Variant) -> None:
        self.admin.execute(f"VACUUM (ANALYZE) {self.table(variant)}")
        self.admin.execute("CHECKPOINT")

    def bulk(self, rounds: int, rows: int) -> dict[str, Times]:
        """INSERT ... SELECT, UPDATE and DELETE of many rows, each in a session of its own."""
        self.fill_source(rows)
        times: dict[str, Times] = {name: Times() for name in ("insert", "update", "delete")}
        for variant in turns(self.variants, rounds):
            self.empty(variant)
            for operation in times:
                with connect() as session:
                    session.execute("SELECT 1")
                    times[operation].add(variant, seconds(session, self.statement(operation, variant)))
                self.note_sent(operation, variant, rows)
                self.tidy(variant)
        return times

    def note_sent(self, operation: str, variant: Variant, rows: int) -> None:
        sent = sum(self.listener.drained().values())
        self.sent[operation, variant.key] = sent
        silent = variant.key in ("none", "pghistory") or (variant.key == "unwatched" and operation == "update")
        assert (sent == 0) if silent else (sent == rows) if variant.per_row else sent > 0, (variant, operation, sent)

    def orm_bulk(self, rounds: int, rows: int) -> dict[str, Times]:
        """bulk_create, and update of a queryset."""
        self.fill_source(rows)
        create, update = Times(), Times()
        for variant in turns(self.variants, rounds):
            model = self.models[variant.key]
            self.empty(variant)
            objects = [model(amount=place, note=f"note {place}") for place in range(rows)]
            began = time.perf_counter()
            model.objects.bulk_create(objects)
            create.add(variant, time.perf_counter() - began)
            self.listener.drained()
            self.tidy(variant)
            began = time.perf_counter()
            model.objects.update(status="changed", amount=models.F("amount") + 1)
            update.add(variant, time.perf_counter() - began)
            self.listener.drained()
        connection.close()
        return {"bulk_create": create, "update": update}

    def unheard(self, rounds: int, scale: int) -> dict[tuple[str, int], Times]:
        """create() and save() of one row by one writer, while nobody listens: what the writer's own session pays.

        Otherwise writer, server and listener share the cores of a small machine.
        """
        self.listener.close()
        self.listener = Nobody()
        times = self.single(rounds, scale, (1,))
        self.listener = Listener()
        return times

    def single(self, rounds: int, scale: int, many: tuple[int, ...] = WRITERS) -> dict[tuple[str, int], Times]:
        """create() and save() of one row, by several writers at once."""
        self.fill_source(max(WRITERS) * ROWS_OF_A_WRITER)
        for variant in self.variants:
            self.empty(variant, max(WRITERS) * ROWS_OF_A_WRITER)
        times: dict[tuple[str, int], Times] = {}
        for writers in many:
            pool = [Writer(place) for place in range(writers)]
            count = max(scale * 3 // (writers + 2), 2)
            for operation in ("create", "save"):
                found = times[operation, writers] = Times()
                # The first turn warms up sessions, and reads the rows to be saved.
                for turn, variant in enumerate(turns(self.variants, rounds + 1)):
                    spent = Writer.together(pool, self.models[variant.key], operation, count)
                    if turn >= len(self.variants):
                        found.add(variant, spent / (count * writers))
                    self.listener.drained()
                for variant in self.variants:
                    self.tidy(variant)
            for writer in pool:
                writer.close()
        return times

    def trap(self, rounds: int, rows: int, limit: float) -> dict[tuple[str, str], float]:
        """Many rows in a session that wrote single rows before, as a ratio to a session that did not."""
        self.fill_source(rows)
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        declared = [variant for variant in self.variants if variant.ours]
        for turn in range(rounds):
            for variant in declared:
                for operation in ("insert", "update", "delete"):
                    both = {}
                    for used in (True, False) if turn % 2 else (False, True):
                        self.empty(variant, 0 if operation == "insert" else rows)
                        with connect() as session, connect() as other:
                            # The table is in the same state either way.
                            self.single_writes(session if used else other, variant)
                            session.execute(f"SET statement_timeout = {int(limit * 1000)}")
                            try:
                                both[used] = seconds(session, self.statement(operation, variant))
                            except psycopg.errors.QueryCanceled:
                                both[used] = math.inf
                        self.listener.drained()
                    found[operation, variant.key].append(both[True] / both[False])
        return {key: statistics.median(ratios) for key, ratios in found.items()}

    def single_writes(self, session: psycopg.Connection, variant: Variant) -> None:
        table = self.table(variant)
        for _ in range(20):
            session.execute(f"INSERT INTO {table} ({self.columns}) SELECT {self.selected} FROM (SELECT 1 AS i) AS one")
            one = f"(SELECT max(id) FROM {table})"
            session.execute(f"UPDATE {table} SET status = status || '.' WHERE id = {one}")
            session.execute(f"DELETE FROM {table} WHERE id = {one}")


class Writer:
    """A process that writes single rows through the ORM."""

    def __init__(self, place: int) -> None:
        self.place = place
        connection.close()
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=self._run, args=(theirs,), daemon=True)
        self.process.start()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()

    @staticmethod
    def together(pool: list[Writer], model: type[models.Model], operation: str, count: int) -> float:
        """Seconds from the first writer's first row to the last writer's last."""
        for writer in pool:
            writer.pipe.send((model, operation, count))
        for writer in pool:
            writer.pipe.recv()
        for writer in pool:
            writer.pipe.send("go")
        spans = [writer.pipe.recv() for writer in pool]
        return float(max(end for _, end in spans) - min(begin for begin, _ in spans))

    def _run(self, pipe: Connection) -> None:
        rows: dict[type[models.Model], list[models.Model]] = {}
        while task := pipe.recv():
            model, operation, count = task
            if model not in rows:
                first = self.place * ROWS_OF_A_WRITER
                rows[model] = list(model.objects.filter(pk__gt=first, pk__lte=first + ROWS_OF_A_WRITER))
                assert len(rows[model]) == ROWS_OF_A_WRITER
            pipe.send("ready")
            pipe.recv()
            began = time.monotonic()
            getattr(self, operation)(model, rows[model], count)
            pipe.send((began, time.monotonic()))
        connection.close()

    def create(self, model: type[models.Model], rows: list[models.Model], count: int) -> None:
        for place in range(count):
            model.objects.create(amount=place, note="a note")

    def save(self, model: type[models.Model], rows: list[models.Model], count: int) -> None:
        for place in range(count):
            row: Any = rows[place % ROWS_OF_A_WRITER]
            row.status = "b" if row.status == "a" else "a"
            row.amount += 1
            row.save()


class Times:
    """Seconds by variant, one for each turn."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def add(self, variant: Variant, seconds: float) -> None:
        self.seconds[variant.key].append(seconds)

    def ratio(self, key: str, to: str = "none") -> float:
        return statistics.median(a / b for a, b in zip(self.seconds[key], self.seconds[to], strict=True))

    def milliseconds(self, key: str = "none") -> float:
        return statistics.median(self.seconds[key]) * 1000

    def added(self, key: str, to: str) -> float:
        """Our added time, as a part of what another adds."""
        none = self.milliseconds()
        return (self.milliseconds(key) - none) / (self.milliseconds(to) - none)


def turns(found: list[Variant], rounds: int) -> Iterable[Variant]:
    """Round robin; each round begins with another variant, so that none has the best place."""
    for turn in range(rounds):
        yield from found[turn % len(found) :] + found[: turn % len(found)]


def seconds(session: psycopg.Connection, statement: str) -> float:
    """Of one statement and its commit."""
    began = time.perf_counter()
    session.execute(statement)
    return time.perf_counter() - began


# What is printed.


def say(text: str = "") -> None:
    print(text, flush=True)


def table(found: list[Variant], rows: list[tuple[str, Times]]) -> None:
    """Ratios to no trigger; the first column is the time that they are ratios to."""
    say(f"| | {' | '.join(['no trigger, ms', *(variant.title for variant in found[1:])])} |")
    say(f"|---|{'---:|' * len(found)}")
    for title, times in rows:
        ratios = [f"{times.ratio(variant.key):.2f}" for variant in found[1:]]
        say(f"| {title} | {' | '.join([f'{times.milliseconds():.3g}', *ratios])} |")
    say()


@dataclass
class Bar:
    """What must hold."""

    what: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


def bars_of(
    shape: str,
    found: list[Variant],
    unheard: dict[tuple[str, int], Times],
    orm: dict[str, Times],
    bulk: dict[str, Times],
    sent: dict[tuple[str, str], int],
    trapped: dict[tuple[str, str], float],
) -> list[Bar]:
    """Every bar for one shape of table."""
    bars = []
    for variant in (variant for variant in found if variant.ours):
        key, who = variant.key, f"{shape}, {variant.title}"
        for operation in ("create", "save"):
            bars.append(Bar(f"{who}: ORM {operation}, nobody listening", unheard[operation, 1].ratio(key), 1.20))
        bars.append(Bar(f"{who}: bulk_create", orm["bulk_create"].ratio(key), 1.10))
        values = key == "fields"
        if not values:
            bars.append(Bar(f"{who}: INSERT ... SELECT", bulk["insert"].ratio(key), 1.35))
        bars.append(Bar(f"{who}: UPDATE", bulk["update"].ratio(key), 2.5 if values else 2.0))
        rival = "row_fields" if values else "row_pk"
        for operation in bulk:
            if key != "unwatched":
                limit = 0.9 if values and operation == "update" else 0.7
                what = f"{who}: {operation}, added time to the row trigger's that says the same"
                bars.append(Bar(what, bulk[operation].added(key, rival), limit))
            what = f"{who}: {operation} after 20 writes of single rows, to a fresh session"
            bars.append(Bar(what, trapped[operation, key], 1.25))
            if not values:
                bars.append(Bar(f"{who}: {operation}, notifications", sent[operation, key], 299))
    return bars


# One server.


def measure(args: argparse.Namespace) -> int:
    """All measurements on the server that the environment names."""
    from tests.postgres import Server

    # Later options win: the tests' server does not wait for its disk.
    fsync = "" if args.no_fsync else "-c fsync=on -c full_page_writes=on"
    server = Server(options=f"{OPTIONS} {fsync}").start()
    try:
        configure(server.django())
        return report(args)
    finally:
        connection.close()
        server.close()


def report(args: argparse.Namespace) -> int:
    from django.core.management import call_command

    number = connection.cursor().execute("SHOW server_version").fetchone()[0].split()[0]
    say(f"## PostgreSQL {number}\n")
    found = [variant for variant in variants() if not args.only or variant.key in ("none", *args.only.split(","))]
    shapes = args.shapes.split(",")
    # What the other packages keep in the database.
    call_command("migrate", verbosity=0)
    tables = {(shape, variant.key): declare(shape, variant) for shape in shapes for variant in found}
    with connection.schema_editor() as editor:
        for model in apps.get_app_config(APP).get_models():
            editor.create_model(model)
    for (_, key), model in tables.items():
        for statement in next(variant for variant in found if variant.key == key).install(model):
            connection.cursor().execute(statement)
    connection.close()
    listener = Listener()

    few = args.quick
    rows, middle = args.rows, max(args.rows // 10, 100)
    say(
        f"Python {sys.version.split()[0]}, Django {django.__version__}, psycopg {psycopg.__version__}, "
        f"{os.cpu_count()} cores; fsync {'off' if args.no_fsync else 'on'}, autovacuum off, one idle listener draining."
        " Ratios to no trigger, of statement and commit; the first column is what they are ratios to.\n"
    )
    for variant in found[1:]:
        say(f"- *{variant.title}*: {variant.says}")
    say()
    bars: list[Bar] = []
    for shape in shapes:
        bench = Bench(shape, found, tables, listener)
        columns = len(bench.models["none"]._meta.concrete_fields)
        single = bench.single(*((4, 60) if few else (15, 60)))
        unheard = bench.unheard(*((8, 60) if few else (30, 60)))
        orm = bench.orm_bulk(3 if few else 11, middle)
        bulk = bench.bulk(2 if few else 7, rows)
        say(f"### {shape.title()} table ({columns} columns)\n")
        lines = [(f"{operation}(), nobody listening", times) for (operation, _), times in sorted(unheard.items())]
        lines += [
            (f"{operation}(), {writers} writer{'s' * (writers > 1)}", times)
            for (operation, writers), times in sorted(single.items())
        ]
        lines += [
            (f"bulk_create, {middle:,} rows", orm["bulk_create"]),
            (f"queryset.update, {middle:,}", orm["update"]),
        ]
        titles = {"insert": "INSERT ... SELECT", "update": "UPDATE", "delete": "DELETE"}
        lines += [(f"{titles[operation]}, {rows:,}", times) for operation, times in bulk.items()]
        table(found, lines)
        trapped = bench.trap(1 if few else 3, rows, limit=60)
        bars += bars_of(shape, found, unheard, orm, bulk, bench.sent, trapped) if not args.only else []
        listener = bench.listener
    listener.close()
    say("| bar | value | at most | |")
    say("|---|---:|---:|---|")
    for bar in bars:
        say(f"| {bar.what} | {bar.value:.4g} | {bar.limit:g} | {'PASS' if bar.holds else '**FAIL**'} |")
    failed = sum(not bar.holds for bar in bars)
    say(f"\n**PostgreSQL {number}: {len(bars) - failed} bars hold, {failed} do not.**\n")
    if few or rows != 100_000:
        say(
            f"(The bars are meant for 100,000 rows and many turns; these were {rows:,} rows{' and few turns' * few}.)\n"
        )
    return 1 if failed and args.check else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", action="append", metavar="BIN_DIR", help="a server's programs; several times")
    parser.add_argument("--rows", type=int, default=100_000, help="of the big statements (100000)")
    parser.add_argument("--quick", action="store_true", help="few turns, for a look")
    parser.add_argument("--no-fsync", action="store_true", help="commits do not wait for the disk")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a bar fails")
    parser.add_argument("--shapes", default="narrow,wide", help="narrow,wide")
    parser.add_argument("--only", default="", help="these variants alone, by key (pk,fields,row_pk...); no bars")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return measure(args)
    places = [Path(place) for place in args.postgres or ()]
    if not places:
        if named := os.environ.get("PGSIGNALS_TEST_POSTGRES"):
            places.append(Path(named))
        if POSTGRES_15 not in places:
            places.append(POSTGRES_15)
    worst = 0
    for place in [*places, *([] if args.postgres else [None])]:
        if place is not None and not (place / "initdb").exists():
            say(f"## NOT MEASURED: there is no PostgreSQL in {place}\n")
            # Of what was asked for, nothing may be missing.
            worst = max(worst, 1 if args.postgres else 0)
            continue
        # A process for each server: Django and the tests' server know one.
        environment = {name: value for name, value in os.environ.items() if name != "PGSIGNALS_TEST_POSTGRES"}
        if place:
            environment["PGSIGNALS_TEST_POSTGRES"] = str(place)
        worst = max(
            worst, subprocess.run([sys.executable, __file__, *sys.argv[1:], "--inside"], env=environment).returncode
        )
    return worst


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    sys.exit(main())
