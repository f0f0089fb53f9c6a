"""What `pgsignals.context()` costs the writer: single-row writes with no courier, with one, and with a context.

    python benchmarks/context.py [--postgres BIN_DIR] [--rounds 400]

The variants take turns, statement by statement. A figure is the median time of a write, in microseconds, and the
median over all turns of the ratio to the write without a courier in the same turn. The server is on this machine, so
a round trip costs little here; over a network each adds its own time: one in a transaction, three in autocommit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", help="the folder of PostgreSQL's programs; the embedded server by default")
    parser.add_argument("--rounds", type=int, default=400, help="turns of each variant")
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.postgres:
        os.environ["PGSIGNALS_TEST_POSTGRES"] = given.postgres
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", run_syncdb=True, verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        (version,) = cursor.fetchone()
    print(
        f"PostgreSQL {version}, Django {django.__version__}, Python {sys.version.split()[0]}, {given.rounds} rounds\n"
    )
    print("| write | variant | median µs | ratio |")
    print("|---|---|---|---|")
    for name, write in writes().items():
        times = measure(write, given.rounds)
        base = times["no courier"]
        for variant, found in times.items():
            ratio = statistics.median(one / usual for one, usual in zip(found, base, strict=True))
            print(f"| {name} | {variant} | {statistics.median(found) * 1e6:.0f} | {ratio:.2f} |")


def writes() -> dict[str, Callable[[], Any]]:
    from django.db import transaction

    from tests.shop.models import Customer, Silent

    def in_a_transaction(count: int) -> None:
        with transaction.atomic():
            for _ in range(count):
                Customer.objects.create(name="Ada")

    return {
        "create, autocommit, no trigger": lambda: Silent.objects.create(name="Ada"),
        "create, autocommit": lambda: Customer.objects.create(name="Ada"),
        "one create in a transaction": lambda: in_a_transaction(1),
        "ten creates in a transaction": lambda: in_a_transaction(10),
    }


def measure(write: Callable[[], Any], rounds: int) -> dict[str, list[float]]:
    from django.db import connection

    import pgsignals

    connection.ensure_connection()
    couriers = list(connection.execute_wrappers)
    variants: dict[str, tuple[list[Any], Callable[[], AbstractContextManager[Any]]]] = {
        "no courier": ([], nullcontext),
        "no context": (couriers, nullcontext),
        "context": (couriers, lambda: pgsignals.context(actor=7, request_id="0123456789abcdef")),
    }
    times: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 20):
        for variant, (wrappers, block) in variants.items():
            connection.execute_wrappers[:] = wrappers
            begun = time.perf_counter()
            with block():
                write()
            if turn >= 20:
                times[variant].append(time.perf_counter() - begun)
    connection.execute_wrappers[:] = couriers
    return times


if __name__ == "__main__":
    main()
