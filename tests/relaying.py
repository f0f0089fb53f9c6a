"""A relay in a thread of the test's own, and receivers whose calls a test can wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pgsignals import PgEvent
from pgsignals.dispatch import ReceiversSink
from pgsignals.listening.relay import Relay
from pgsignals.receivers import Registry, registry
from pgsignals.sink import Companion, Gap, Sink

from .conftest import connect

WITHIN = 60
"""Seconds after which a test gives up waiting; nothing here takes as long, even where others need the machine too."""


class Box:
    """Collects what arrives, from any thread, and lets a test wait for it."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._news = threading.Condition()

    def put(self, item: Any) -> None:
        with self._news:
            self.items.append(item)
            self._news.notify_all()

    def wait(self, count: int = 1) -> list[Any]:
        """The first `count` items, when they are there."""
        with self._news:
            arrived = self._news.wait_for(lambda: len(self.items) >= count, WITHIN)
            assert arrived, f"waited {WITHIN} s for {count} items, and there are: {self.items}"
            return self.items[:count]

    def wait_for(self, fits: Callable[[Any], bool]) -> Any:
        """The first item that fits, when it is there."""

        def found() -> list[Any]:
            return [item for item in self.items if fits(item)]

        with self._news:
            assert self._news.wait_for(found, WITHIN), f"waited {WITHIN} s, and there are only: {self.items}"
            return found()[0]


class Tap(Sink):
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.events = Box()
        self.gaps = Box()
        self.losses = Box()

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        for event in events:
            self.events.put(event)

    def lost(self, cause: str) -> None:
        self.losses.put(cause)

    def gap(self, gap: Gap) -> None:
        self.gaps.put(gap)


class Running:
    """A relay, the tap that sees all it relays, and how it ended."""

    def __init__(self, relay: Relay, tap: Tap) -> None:
        self.relay = relay
        self.tap = tap
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            asyncio.run(self.relay.run())
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Stop it, and wait until it has."""
        self.relay.stop()
        self._thread.join(WITHIN)
        assert not self._thread.is_alive(), "the relay does not stop"

    def pid(self) -> int:
        """The process id of the server's process behind the listening connection."""
        # The newest: that of a connection which was closed may still be ending.
        query = (
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pgsignals listen%' "
            "AND datname = current_database() ORDER BY backend_start DESC LIMIT 1"
        )
        with connect() as other:
            ((pid,),) = other.execute(query).fetchall()
        return int(pid)

    def cut(self) -> None:
        """End its connection from the server's side."""
        pid = self.pid()
        with connect() as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])


@contextmanager
def relaying(
    database: str = "default",
    sinks: Sequence[Sink] = (),
    channels: Sequence[str] = (),
    receivers: bool = True,
    companions: Sequence[Companion] = (),
) -> Iterator[Running]:
    """A relay that listens already, with the registered receivers unless they are not wanted."""
    tap = Tap()
    own: list[Any] = [ReceiversSink(database, registry)] if receivers else []
    running = Running(Relay(database, [*own, *sinks, tap], [*channels, *registry.channels()], companions), tap)
    try:
        tap.gaps.wait()
        yield running
    finally:
        running.stop()
    assert running.error is None


@contextmanager
def only_receivers_of_this_test() -> Iterator[Registry]:
    """The registry is empty, and afterwards as it was."""
    kept = [(one.function, condition, one.options) for one in registry for condition in one.conditions]
    registry.clear()
    try:
        yield registry
    finally:
        registry.clear()
        for function, condition, options in kept:
            registry.add(function, condition, options)
