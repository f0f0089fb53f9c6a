"""What a worker holds: a connection of its own, and the partitions that it has leased.

It shares them with the other workers of its group, whichever process they are in: each looks now and then how many
there are, gives back what is more than its share, and takes what nobody has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg
from django.db import connections

from .. import conf
from ..receivers import Options
from . import groups, identity, reading
from .groups import Fenced, Lease
from .line import Line
from .positions import Positions
from .reading import Horizon, Position

_LONG_AGO = -1e9


class Interrupted(Exception):
    """The worker is to stop, or may not go on; the events before this one were handled."""


class Holding:
    """Of one worker, in its thread; `renew` is called in another.

    stopping: set when the worker is to end.
    """

    def __init__(self, database: str, group: str, options: Options, stopping: threading.Event) -> None:
        self.database = database
        self.group = group
        self.name = reading.unique_name(group)
        self.positions = Positions()
        self.partitions = 0
        """Of the group, whoever has them."""
        self.handled = 0
        """Events of this group, since the start, those that failed included."""
        self.until: Horizon | None = None
        """Up to where a worker that drains is to read."""
        self.stopping = stopping
        self._options = options
        self._settings = conf.get()
        self._line: Line | None = None
        self._held_until = 0.0
        """By the monotonic clock: until then nobody else can have taken a partition."""
        self._balanced = _LONG_AGO
        self._waits: dict[int, float] = {}
        """Partitions that are left alone until then, by the monotonic clock."""

    # Its connection.

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """In autocommit. Raises psycopg.OperationalError where there is none."""
        if self._line is None:
            raise psycopg.OperationalError("there is no connection")
        return self._line

    def connect(self) -> None:
        """Have a connection, and a group. Raises psycopg.Error."""
        if self._line is None:
            self._line = reading.connect(self.database, f"pgsignals group {self.group}")
            identity.recognise(self._line)
            # After a lost connection nobody needs to wait for the leases of before.
            groups.abandon(self._line, self.name)
            self._register(self._line)
        self._balanced = _LONG_AGO

    def prepare(self, connection: Line) -> None:
        """Make the group where there is none of its name, so that what comes from now on is its."""
        identity.recognise(connection)
        self._register(connection)

    def begin_anew(self) -> None:
        """Give back what is still this worker's, and see what it gets. The group may have been deleted meanwhile."""
        try:
            groups.abandon(self.connection, self.name)
            self._register(self.connection)
        except psycopg.Error:
            self.disconnect()
        self._forget()
        self._balanced = _LONG_AGO

    def give_back(self) -> None:
        """Acknowledge what has been handled, and leave the partitions to others. Raises psycopg.Error, Fenced."""
        if self._line is not None:
            self._flush()
            groups.release(self._line, list(self.leases.values()))
            groups.leave(self._line, self.name)

    def disconnect(self) -> None:
        """Have nothing any more; Django's connections of this thread are closed, too."""
        self._forget()
        if self._line is not None:
            self._line.close()
            self._line = None
        connections.close_all()

    def _register(self, connection: psycopg.Connection[Any]) -> None:
        partitions, atomic, start = self._settings.PARTITIONS, self._options.atomic, self._options.start
        self.partitions = groups.register(connection, self.group, partitions, atomic, start)

    def _forget(self) -> None:
        self.positions.forget()
        self._waits = {}

    # Which partitions.

    @property
    def leases(self) -> dict[int, Lease]:
        """By the partition's id."""
        return self.positions.leases

    def balance(self) -> bool:
        """Now and then: see who else works for the group, and have a fair share. Whether that brought partitions."""
        now = time.monotonic()
        if now - self._balanced < self._settings.LEASE / 4:
            return False
        self._balanced = now
        workers = groups.report(self.connection, self.name, self.group, self._settings.LEASE)
        share = -(-self.partitions // workers)
        if len(self.leases) > share:
            self._release(list(self.leases.values())[share:])
        return len(self.leases) < share and self._acquire(share - len(self.leases))

    def _release(self, surplus: list[Lease]) -> None:
        self._flush()
        groups.release(self.connection, surplus)
        for lease in surplus:
            del self.leases[lease.id]

    def _acquire(self, most: int) -> bool:
        began = time.monotonic()
        new = groups.acquire(self.connection, self.name, self.group, most, self._settings.LEASE)
        if new and not self.leases:
            self._held_until = began + self._settings.LEASE
        self.leases.update((lease.id, lease) for lease in new)
        return bool(new)

    def renew(self, connection: psycopg.Connection[Any]) -> None:
        """Prolong the leases. Called in another thread, whatever a receiver does to the worker's."""
        leases = list(self.leases.values())
        began = time.monotonic()
        connection.execute(*groups.presence(self.name))
        if not leases:
            return
        still = groups.renew(connection, leases, self._settings.LEASE)
        if all(lease.id in still for lease in leases):
            self._held_until = began + self._settings.LEASE

    def confirm(self) -> None:
        """Raises Fenced where the leases are another's now."""
        if time.monotonic() > self._held_until:
            # Nothing renewed them in time: this process stood still.
            self.renew(self.connection)
            if time.monotonic() > self._held_until:
                raise Fenced

    def may_go_on(self) -> None:
        """Raises Interrupted where the next event is not to be handled."""
        if self.stopping.is_set():
            raise Interrupted
        self.may_end()

    def may_end(self) -> None:
        """Raises Interrupted where even what was begun is not to be continued: another may have taken it over."""
        if time.monotonic() > self._held_until:
            raise Interrupted

    def ready(self) -> list[list[Lease]]:
        """Those that are not left alone now; together those that move on together."""
        now = time.monotonic()
        self._waits = {number: until for number, until in self._waits.items() if until > now}
        ready = ([lease for lease in leases if lease.id not in self._waits] for leases in self.positions.alike())
        return [leases for leases in ready if leases]

    def wait(self, leases: Sequence[Lease], seconds: float) -> None:
        """Leave them alone for a while."""
        for lease in leases:
            self._waits[lease.id] = time.monotonic() + seconds

    @property
    def waits(self) -> list[float]:
        """When those that are left alone no longer are, by the monotonic clock."""
        return list(self._waits.values())

    # How far they are read.

    def horizon(self) -> Horizon:
        """Up to where is to be read now."""
        return self.until or reading.horizon(self.connection)

    def has_reached(self) -> bool:
        """Whether the whole group, whoever works for it, has got where this worker is to drain it to."""
        return self.until is not None and groups.has_reached(self.connection, self.group, self.until)

    def move(self, leases: Sequence[Lease], position: Position, **said: Any) -> list[Lease]:
        """Write a position. Returns the leases as they are then. Raises Fenced."""
        return self.positions.move(self.connection.cursor(), leases, position, **said)

    def acknowledge(
        self, leases: Sequence[Lease], position: Position, careful: int | None = None, lazily: bool = True
    ) -> None:
        """Write the position where events were handled up to it, and now and then where there were none."""
        self.positions.set(leases, position, careful)
        old = self.positions.is_older(self._settings.LEASE / 2)
        if old or not lazily or self.until is not None or self.positions.is_dirty(leases):
            self.move(leases, position, careful=careful)

    def _flush(self) -> None:
        """Acknowledge what has been handled and not been written yet."""
        for leases in self.positions.alike():
            if self.positions.is_dirty(leases):
                self.move(leases, leases[0].position, careful=leases[0].careful_id)
