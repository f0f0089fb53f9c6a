"""What a `listen` process does for groups: their workers, and the pulse that keeps leases."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Collection
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured

from .. import conf
from ..receivers import Options, Registry
from ..receivers import registry as the_registry
from ..sink import Beginning, Companion, Deliver
from . import reading
from .housekeeping import Housekeeping
from .worker import Worker

logger = logging.getLogger("pgsignals.durable")

_LOOK = 0.5
"""Seconds after which is looked again whether a receiver takes its time."""
_CLEAN_WITHIN = 30.0
"""Seconds that deleting old events takes after a drain, at most."""


class Workers(Companion):
    """The workers of several groups.

    groups: by name, with the options of their receivers.
    count: workers for each group, each a thread.
    """

    def __init__(
        self, database: str, groups: dict[str, Options], count: int = 1, registry: Registry = the_registry
    ) -> None:
        self.database = database
        self.workers = [
            Worker(database, name, options, registry) for name, options in groups.items() for _ in range(count)
        ]
        self._stopping = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self._pulse = threading.Thread(target=self._run, name="pgsignals-pulse", daemon=True)

    def start(self, deliver: Deliver | None = None, beginning: Beginning | None = None) -> None:
        """Start the threads."""
        for worker in self.workers:
            worker.start()
        self._pulse.start()

    def ring(self) -> None:
        """The log has something new."""
        for worker in self.workers:
            worker.bell.ring()

    def stop(self) -> None:
        """Let the running receivers finish, and give the partitions back."""
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.join()
        self._stopping.set()
        if self._pulse.is_alive():
            self._pulse.join(5)

    def drain(self) -> None:
        """Handle what is there now, delayed messages that are due too, delete what is old, and end.

        Raises psycopg.Error where there is no connection.
        """
        housekeeping = Housekeeping(self.database)
        with reading.connect(self.database, "pgsignals housekeeping") as connection:
            while housekeeping.append_due(connection):
                pass
            for worker in self.workers:
                worker.prepare(connection)
            # One for all: each waits until the partitions of the others have got there, too.
            now = reading.horizon(connection)
        for worker in self.workers:
            worker.drain(now)
        self.start()
        try:
            for worker in self.workers:
                worker.drained.wait()
        finally:
            self.stop()
        # Where nothing but this runs now and then, nobody else does it.
        end = time.monotonic() + _CLEAN_WITHIN
        with reading.connect(self.database, "pgsignals housekeeping") as connection:
            while housekeeping.delete(connection) and time.monotonic() < end:
                pass

    @property
    def handled(self) -> int:
        """Events that the workers have handled since the start."""
        return sum(worker.handled for worker in self.workers)

    # The pulse: in a thread and with a connection of its own, whatever a receiver does to the workers'.

    def _run(self) -> None:
        while not self._stopping.is_set():
            lease = conf.get().LEASE
            try:
                if self._connection is None:
                    self._connection = reading.connect(self.database, "pgsignals pulse")
                next_pulse = time.monotonic() + lease / 4
                for worker in self.workers:
                    worker.prolong(self._connection)
                while (left := next_pulse - time.monotonic()) > 0 and not self._stopping.is_set():
                    for worker in self.workers:
                        worker.watch()
                    self._stopping.wait(min(left, _LOOK))
            except (psycopg.Error, OSError, ImproperlyConfigured) as error:
                logger.warning("Leases cannot be renewed: %s. Trying again.", " ".join(str(error).split()))
                self._close()
                self._stopping.wait(random.uniform(0.1, lease / 5))  # noqa: S311 - jitter
            except Exception:
                logger.exception("Renewing leases failed. Trying again.")
                self._close()
                self._stopping.wait(lease / 5)
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def chosen_groups(names: Collection[str], registry: Registry = the_registry) -> dict[str, Options]:
    """The groups of these names; all there are where none is named. Raises LookupError for one that no receiver has."""
    known = registry.groups()
    if not names:
        return known
    if unknown := [name for name in names if name not in known]:
        raise LookupError(f"No receiver is of a group {unknown[0]!r}. There are: {', '.join(sorted(known)) or 'none'}.")
    return {name: known[name] for name in names}
