"""What it takes to tell many browsers: from a commit to 10, 100 and 500 WebSocket clients, by channel layer.

    python benchmarks/fanout.py [--clients 10,100,500] [--rate 50] [--seconds 10] [--rounds 3] [--quick] [--check]

One daphne serves all clients. The relay runs beside it (`with_relay`), and feeds Channels' in-memory layer,
channels_redis or channels_postgres; once more `manage.py listen` feeds channels_redis from a process of its own. A
writer updates so many single rows a second, each in a transaction of its own; the time is from each COMMIT until a
client has read the frame that names the row. Hints of one topic leave at most ten times a second, so some tenths of a
second are no fault of any layer. Server, writer and clients are processes of their own, on the same machine and by the
same clock.

The variants take turns; a ratio is the median, over all turns, of the ratio to the in-memory layer in the same turn. A
client that misses a row, or is thrown out, ends the turn with an error. The output is Markdown; with --check a failed
bar is exit code 1.

For the comparison: pip install channels_postgres, and redis-server. What is missing is left out, aloud.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import platform
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MEMORY = "in-memory layer, relay beside it"
REDIS = "channels_redis, relay beside it"
LISTEN = "channels_redis, fed by `listen`"
POSTGRES = "channels_postgres, relay beside it"

Layers = dict[str, tuple[dict[str, Any] | None, bool]]
"""By name: the layer's settings, and whether `listen` feeds it."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="10,100,500")
    parser.add_argument("--rate", type=float, default=50, help="rows a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant")
    parser.add_argument("--quick", action="store_true", help="one short turn of each")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is not met")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds = 3, 1
    return given


def main() -> int:
    given = parse()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    counts = [int(count) for count in given.clients.split(",")]
    print(f"Python {platform.python_version()}, Django {django.__version__}, {os.cpu_count()} cores\n")
    found: dict[tuple[str, int], list[Any]] = defaultdict(list)
    with layers() as variants:
        for turn in range(given.rounds):
            for count in counts:
                for name, variant in variants.items():
                    found[name, count].append(measure(name, variant, count, given))
                print(f"turn {turn + 1}, {count} clients", file=sys.stderr)
    return report(found, counts, list(variants), given)


@contextmanager
def layers() -> Iterator[Layers]:
    """What there is to compare on this machine."""
    found: Layers = {MEMORY: (None, False)}
    with ExitStack() as until_the_end:
        if shutil.which("redis-server") and importlib.util.find_spec("channels_redis"):
            from tests.servers import redis_server

            url = until_the_end.enter_context(redis_server())
            layer = {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [url]}}
            found[REDIS] = (layer, False)
            found[LISTEN] = (layer, True)
        else:
            print("NOT MEASURED: channels_redis. It needs redis-server (apt-get install redis-server).\n")
        if importlib.util.find_spec("channels_postgres"):
            found[POSTGRES] = ({"BACKEND": "channels_postgres.core.PostgresChannelLayer"}, False)
        else:
            print("NOT MEASURED: channels_postgres. Install it: pip install channels_postgres.\n")
        yield found


def measure(name: str, variant: tuple[dict[str, Any] | None, bool], count: int, given: argparse.Namespace) -> Any:
    from tests.crowd import run, site

    layer, listens = variant
    with site(layer, listens=listens) as where:
        result = asyncio.run(run(where, count, given.rate, given.seconds))
    if result.wrong or result.closed or not result.latencies:
        print(f"FAULT: {name}, {count} clients: {result.wrong} do not know of everything, {result.closed} were closed.")
        return None
    return result


def report(
    found: dict[tuple[str, int], list[Any]], counts: list[int], names: list[str], given: argparse.Namespace
) -> int:
    print(f"{given.rate:.0f} rows a second, {given.seconds:.0f} s a turn, {given.rounds} turns\n")
    print("| clients | layer | p50, ms | p95, ms | ratio of p50 | server, share of a core | refetches a client |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for count in counts:
        for name in names:
            print(f"| {count} | {name} | {row(found[name, count], found[MEMORY, count])} |")
    print()
    return bars(found, counts, given.check)


def row(results: list[Any], base: list[Any]) -> str:
    good = [one for one in results if one is not None]
    if not good:
        return "failed | | | |"
    pairs = [(one, usual) for one, usual in zip(results, base, strict=True) if one is not None and usual is not None]
    ratio = statistics.median(one.percentile(0.5) / usual.percentile(0.5) for one, usual in pairs) if pairs else 0
    p50, p95 = (statistics.median(one.percentile(part) for one in good) for part in (0.5, 0.95))
    busy = statistics.median(one.busy for one in good)
    anew = statistics.median(one.refetches / one.clients for one in good)
    return f"{p50:.0f} | {p95:.0f} | {ratio:.2f} | {busy:.2f} | {anew:.1f}"


def bars(found: dict[tuple[str, int], list[Any]], counts: list[int], check: bool) -> int:
    """What pgsignals asks of itself."""
    failed = 0
    for count in counts:
        good = [one for one in found[MEMORY, count] if one is not None]
        most = 300 if count <= 100 else 1000
        p95 = statistics.median(one.percentile(0.95) for one in good) if good else float("inf")
        met = p95 <= most and not any(one.refetches for one in good)
        failed += not met
        verdict = "met" if met else "FAILED"
        print(f"- {count} clients, in memory: p95 {p95:.0f} ms (bar: {most} ms, and nobody refetches): {verdict}")
    return 1 if failed and check else 0


if __name__ == "__main__":
    sys.exit(main())
