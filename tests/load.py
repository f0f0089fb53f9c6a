"""A crowd in front of one server: 500 browsers listen on one daphne while 200 rows a second are written.

    python -m tests.load [--clients 500] [--rate 200] [--seconds 60]

It prints the latency from commit to client and the server's memory, and ends with 1 where a client does not know of the
last write of every row, where one was thrown out, or where memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from .crowd import Result, run, site

GROWTH = 15.0
"""Megabytes by which the server may be bigger at the end than at a third of the way."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rate", type=float, default=200, help="rows a second, each in a transaction of its own")
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    with site() as where:
        result = asyncio.run(run(where, given.clients, given.rate, given.seconds))
    print(describe(result))
    return 1 if faults(result) else 0


def describe(result: Result) -> str:
    """In a few lines."""
    lines = [
        f"{result.clients} clients, {result.written} rows at {result.rate:.0f} a second",
        f"commit to client: p50 {result.percentile(0.5):.0f} ms, p95 {result.percentile(0.95):.0f} ms, "
        f"p99 {result.percentile(0.99):.0f} ms, longest {result.percentile(1):.0f} ms",
        f"server: {result.busy:.0%} of a core, {result.memory[0]:.0f} MB, then {result.memory[-1]:.0f} MB",
        f"told to fetch anew: {result.refetches} times",
        *(faults(result) or ["Every client is in the right state."]),
    ]
    return "\n".join(lines)


def faults(result: Result) -> list[str]:
    """What must not be."""
    grown = result.memory[-1] - result.memory[len(result.memory) // 3]
    found = [
        (result.wrong, f"FAULT: {result.wrong} clients do not know of everything."),
        (result.closed, f"FAULT: {result.closed} clients were thrown out."),
        (grown > GROWTH, f"FAULT: the server has grown by {grown:.0f} MB."),
    ]
    return [text for wrong, text in found if wrong]


if __name__ == "__main__":
    sys.exit(main())
