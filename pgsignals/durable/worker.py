"""A worker: a thread that handles a group's events from the partitions that it has leased.

It looks what came since its position, handles it in pieces, moves the position, and waits for the bell; before it
sleeps it looks again a few times, because of several writers that commit together one rings. Whatever goes wrong, it
begins anew.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Any

import psycopg
from django.db import Error as DjangoError

from .. import conf
from ..receivers import Options, Registry
from ..receivers import registry as the_registry
from .groups import Fenced
from .holding import Holding
from .line import Line
from .reading import Horizon
from .rhythm import Bell, Rhythm
from .rounds import Rounds

logger = logging.getLogger("pgsignals.durable")

_LONGEST_RECONNECT = 30.0


class Worker:
    """Handles the events of one group in a thread of its own."""

    def __init__(self, database: str, group: str, options: Options, registry: Registry = the_registry) -> None:
        self.database = database
        self.group = group
        self.bell = Bell()
        self.drained = threading.Event()
        """Set when a worker that drains has nothing left to do."""
        self._lease = conf.get().LEASE
        self._stopping = threading.Event()
        self._holding = Holding(database, group, options, self._stopping)
        self._rounds = Rounds(self._holding, registry, atomic=options.atomic)
        self._failed = 0
        """Connections in a row."""
        self._thread = threading.Thread(target=self._run, name=f"pgsignals-group-{group}", daemon=True)

    # For whoever runs it.

    @property
    def name(self) -> str:
        """Where it runs, and which one it is."""
        return self._holding.name

    @property
    def handled(self) -> int:
        """Events of this group, since the start, those that failed included."""
        return self._holding.handled

    def prepare(self, connection: Line) -> None:
        """Make the group where there is none of its name, so that what comes from now on is its."""
        self._holding.prepare(connection)

    def drain(self, until: Horizon) -> None:
        """Handle what is there at a horizon, and say so in `drained`. Called before `start`."""
        self._holding.until = until

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Have it end after the event that it is handling."""
        self._stopping.set()
        self.bell.ring()

    def join(self, seconds: float | None = None) -> bool:
        """Whether it has ended within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def watch(self) -> None:
        """Warn of a receiver that takes its time. Called in another thread."""
        self._rounds.handler.watch()

    def prolong(self, connection: psycopg.Connection[Any]) -> None:
        """Renew the leases. Called in another thread, whatever a receiver does to this one."""
        self._holding.renew(connection)

    # In the thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._holding.connect()
                self._failed = 0
                self._work()
            except Fenced:
                self._say_fenced()
                self._holding.begin_anew()
            except (psycopg.Error, DjangoError, OSError) as error:
                self._failed += 1
                self._wait(error)
            except BaseException:
                logger.exception("The worker %s of the group %r failed, and begins anew.", self.name, self.group)
                self._holding.disconnect()
                self._stopping.wait(1.0)
        self._end()

    def _work(self) -> None:
        rhythm = Rhythm(self.bell)
        while not self._stopping.is_set():
            if self._holding.balance():
                self._rounds.parking.look_at_once()
            rhythm.begin()
            if self._rounds.go():
                rhythm.found(self._rounds.found, more=self._rounds.more)
                continue
            if self._holding.until is not None and self._rounds.is_drained():
                self.drained.set()
            rhythm.found_nothing(self._rounds.nap)

    def _say_fenced(self) -> None:
        logger.warning(
            "The worker %s has lost partitions of the group %r to another: it was away for longer than its lease of "
            "%g s. What it handled meanwhile, the other may handle again.",
            self.name,
            self.group,
            self._lease,
        )

    def _wait(self, error: Exception) -> None:
        """Before it begins with a new connection."""
        wait = random.uniform(0.1, min(_LONGEST_RECONNECT, 0.2 * 2 ** min(self._failed, 10)))  # noqa: S311 - jitter
        logger.warning(
            "The worker %s of the group %r goes on in %.1f s with a new connection: %s",
            self.name,
            self.group,
            wait,
            " ".join(str(error).split()) or type(error).__name__,
        )
        self._holding.disconnect()
        self._stopping.wait(wait)

    def _end(self) -> None:
        try:
            self._holding.give_back()
        except (psycopg.Error, Fenced) as error:
            logger.warning("The worker %s could not give its partitions back: %s", self.name, error)
        self._holding.disconnect()
        self._rounds.handler.close()
        self.drained.set()
