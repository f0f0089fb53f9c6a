"""Random faults for as long as one likes: `python -m tests.faults.soak --minutes 10`.

A relay hears a writer through a proxy. Every few seconds something happens to the server, to the line, or to the
process. In the end each message that was not delivered must have been committed inside of an announced gap, and
memory and open files must be what they were. The status is 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.postgres import Server

from .proxy import BOTH, TO_CLIENT, TO_SERVER, Proxy
from .staging import Staged, execute, own_server, place_of, staged


class Soak:
    """The things that can happen."""

    def __init__(self, server: Server, proxy: Proxy, dice: random.Random, relay: int) -> None:
        self.server = server
        self.proxy = proxy
        self.dice = dice
        self.relay = relay
        self.place = place_of(server)

    def backend_killed(self) -> None:
        execute(
            self.place,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals%'",
        )

    def everybody_killed(self) -> None:
        execute(
            self.place,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datid > 0",
        )

    def server_restarted(self) -> None:
        self.server.stop(self.dice.choice(["fast", "immediate"]))
        self._pass(3)
        self.server.start()

    def black_hole(self) -> None:
        self.proxy.swallow(self.dice.choice([TO_SERVER, TO_CLIENT, BOTH]))
        self._pass(8)
        self.proxy.heal()

    def old_connections_swallowed(self) -> None:
        self.proxy.swallow(self.dice.choice([TO_SERVER, TO_CLIENT, BOTH]), only_old=True)
        self._pass(8)
        self.proxy.heal()

    def slow_line(self) -> None:
        self.proxy.slow(self.dice.uniform(0.0005, 0.01))
        self._pass(5)
        self.proxy.slow(0)

    def standstill(self) -> None:
        os.kill(self.relay, signal.SIGSTOP)
        self._pass(6)
        os.kill(self.relay, signal.SIGCONT)

    def logins_refused(self) -> None:
        execute(self.place, "ALTER ROLE relay NOLOGIN")
        self._pass(2)
        if self.dice.random() < 0.5:
            self.backend_killed()
        self._pass(3)
        execute(self.place, "ALTER ROLE relay LOGIN")

    def flood(self) -> None:
        execute(
            self.place,
            "SELECT count(pg_notify('faults', (-n)::text)) FROM generate_series(1, 20000) n",
        )

    def all(self) -> list[Callable[[], None]]:
        return [
            self.backend_killed,
            self.everybody_killed,
            self.server_restarted,
            self.black_hole,
            self.old_connections_swallowed,
            self.slow_line,
            self.standstill,
            self.logins_refused,
            self.flood,
        ]

    def _pass(self, most: float) -> None:
        time.sleep(self.dice.uniform(0, most))


@contextmanager
def stage() -> Iterator[tuple[Server, Proxy, Staged]]:
    server = own_server().start()
    proxy = Proxy(server.port)
    try:
        execute(place_of(server), "CREATE ROLE relay LOGIN")
        through: dict[str, Any] = place_of(server, proxy.port, user="relay")
        with staged("soak", through, place_of(server)) as fault:
            yield server, proxy, fault
    finally:
        proxy.close()
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="the same faults in the same order again")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}, {given.minutes:g} minutes", flush=True)
    happened: Counter[str] = Counter()
    with stage() as (server, proxy, fault):
        soak = Soak(server, proxy, random.Random(seed), fault.relay.pid)
        end = time.monotonic() + given.minutes * 60
        while time.monotonic() < end:
            time.sleep(soak.dice.uniform(0, 6))
            one = soak.dice.choice(soak.all())
            try:
                one()
            except psycopg.Error as error:  # a fault may hit the one that stages the next
                print(f"{one.__name__} was not staged: {error}", flush=True)
            else:
                happened[one.__name__] += 1
        fault.is_over()
        try:
            outcome = fault.check()
        except AssertionError as error:
            print(f"FAILED, seed {seed}: {error}\n{fault.relay.output.text}")
            return 1
        gaps = fault.relay.gaps()
        print(", ".join(f"{name} {count}" for name, count in sorted(happened.items())))
        print(
            f"written {len(fault.writer.sent)}, lost {outcome.lost}, all of them inside {outcome.gaps} announced gaps "
            f"({sum(until - since for since, until, _ in gaps):.0f} s together); heard again {outcome.recovered:.2f} s "
            f"after the last fault; {outcome.memory:+.1f} MB."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
