"""Row events a second: a receiver that does nothing, beside psycopg's bare notifies() loop.

    python benchmarks/relay.py [--rows 100000]

The floor is what a hand-written row-level trigger and psycopg's loop reach: one notification for each row. Ours is a
bulk UPDATE of as many rows through trigger, NOTIFY, relay and dispatch to one receiver. Both are timed from the
commit to the last row. Ratios, from one run, side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import threading
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.simplefilter("ignore")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

import django  # noqa: E402

django.setup()

import psycopg  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from pgsignals.dispatch import ReceiversSink  # noqa: E402
from pgsignals.listening.relay import Relay  # noqa: E402
from pgsignals.receivers import Condition, Registry  # noqa: E402
from tests.shop.models import Customer  # noqa: E402


def connect() -> psycopg.Connection:
    place = connection.settings_dict
    return psycopg.connect(
        host=place["HOST"], port=place["PORT"], user=place["USER"], dbname=place["NAME"], autocommit=True
    )


def bare_loop(rows: int) -> float:
    """Seconds from the commit of as many notifications of 100 bytes until psycopg's loop has taken the last."""
    with connect() as listener, connect() as writer:
        listener.execute("LISTEN bare")
        writer.execute("BEGIN")
        writer.execute("SELECT count(pg_notify('bare', rpad(i::text, 100))) FROM generate_series(1, %s) AS i", [rows])
        began = time.perf_counter()
        writer.execute("COMMIT")
        taken = sum(1 for _ in listener.notifies(timeout=60, stop_after=rows))
        seconds = time.perf_counter() - began
    assert taken >= rows, f"{taken} of {rows}"
    return seconds


def ours(rows: int, update: str, expected: int) -> float:
    """Seconds from the commit of a bulk update until the receiver has been called for each row."""
    registry, done = Registry(), threading.Event()
    count = 0

    def receiver(event: object) -> None:
        nonlocal count
        count += 1
        if count == expected:
            done.set()

    registry.add(receiver, Condition(Customer, None, ("update",)))

    async def run() -> float:
        relay = Relay("default", [ReceiversSink("default", registry)])
        listens = asyncio.Event()
        relay.on_listening = listens.set
        task = asyncio.create_task(relay.run())
        await listens.wait()
        seconds = await asyncio.to_thread(measure)
        relay.stop()
        await task
        return seconds

    def measure() -> float:
        with connect() as writer:
            writer.execute("BEGIN")
            writer.execute(update)
            began = time.perf_counter()
            writer.execute("COMMIT")
            assert done.wait(60), f"{count} of {expected}"
            return time.perf_counter() - began

    return asyncio.run(run())


def single_rows(rows: int) -> float:
    """The same for one notification each: as many updates of one row, in one transaction."""
    statement = (
        "DO $$ BEGIN FOR i IN 1.." + str(rows) + " LOOP UPDATE shop_customer SET name = i::text "
        "WHERE id = (SELECT min(id) FROM shop_customer); END LOOP; END $$"
    )
    return ours(rows, statement, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    call_command("migrate", run_syncdb=True, verbosity=0)
    Customer.objects.all().delete()
    with connect() as writer:
        writer.execute("INSERT INTO shop_customer (name) SELECT i::text FROM generate_series(1, %s) AS i", [args.rows])
    connection.close()
    single = args.rows // 5
    rounds = []
    for run in range(args.runs):
        floor = args.rows / bare_loop(args.rows)
        bulk = args.rows / ours(args.rows, f"UPDATE shop_customer SET name = name || '{run}'", args.rows)
        alone = single / single_rows(single)
        rounds.append((floor, bulk, alone))
        print(
            f"bare notifies() loop {floor:>9,.0f}/s   ours, bulk rows {bulk:>9,.0f}/s ({bulk / floor:.2f})   "
            f"ours, single rows {alone:>9,.0f}/s ({alone / floor:.2f})"
        )
    print(
        f"median ratio to the bare loop: bulk rows {statistics.median(b / f for f, b, _ in rounds):.2f}, "
        f"single rows {statistics.median(a / f for f, _, a in rounds):.2f}"
    )


if __name__ == "__main__":
    main()
