"""The log's events for those who have no group: plain receivers, `pg_event`, Channels, `listen --print`.

Every relay reads the log from the moment on at which it listens, with a position in memory: at most once, as for fast
events. A connection that is lost meanwhile loses nothing, for the position is kept, in a form that outlives a crash of
the server (see `reading.settled`). Where nobody takes events it only looks whether there are any, and keeps the bells
down all the same (see gate).
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence

import psycopg
from django.core.exceptions import ImproperlyConfigured

from .. import conf, wire
from ..decode import Decoder, UnknownLabel
from ..event import PgEvent
from ..sink import Beginning, Companion, Deliver
from ..tables import LOG
from . import identity, reading
from .gate import MANY, Gate
from .line import Line
from .reading import Horizon, Position
from .rhythm import Bell, Rhythm

logger = logging.getLogger("pgsignals.durable")

_AT_ONCE = 1000
_LOOK_FOR_LOG = 60.0
"""Seconds after which is looked again whether there is a log that anybody writes to."""


class Tail(Companion):
    """Reads the log in a thread of its own.

    is_wanted: whether anybody takes events now.
    """

    _deliver: Deliver
    _beginning: Beginning | None
    """Until the log has been looked at."""
    _position: Position
    _newest: int
    """The id of the youngest transaction of which an event was read."""

    def __init__(self, database: str, is_wanted: Callable[[], bool] = lambda: True) -> None:
        self.database = database
        self._is_wanted = is_wanted
        self.bell = Bell()
        self._decoder = Decoder(database)
        self._seen = ""
        """The snapshot up to which this connection has read."""
        self._connection: Line | None = None
        self._stopping = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="pgsignals-log", daemon=True)

    def start(self, deliver: Deliver, beginning: Beginning) -> None:
        """Start the thread."""
        self._deliver, self._beginning = deliver, beginning
        self._position = Horizon(beginning.snapshot, 0).position()
        self._thread.start()

    def ring(self) -> None:
        """There is something new."""
        self.bell.ring()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self.bell.ring()
        self._thread.join(5)

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                connected = self._connect()
                attempt = 0
                if connected is None:
                    self.bell.wait(_LOOK_FOR_LOG)
                else:
                    self._follow(connected)
            except (psycopg.Error, OSError, ImproperlyConfigured) as error:
                attempt += 1
                self._say(" ".join(str(error).split()))
                self._close()
                self._stopping.wait(random.uniform(0.1, min(30.0, 0.2 * 2 ** min(attempt, 10))))  # noqa: S311
            except Exception:
                logger.exception("Reading the log failed, and begins anew where it was.")
                self._close()
                self._stopping.wait(1.0)
        self._close()

    def _say(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            logger.warning(
                "The log of the database %r cannot be read for receivers without a group: %s. Trying again; this is "
                "said once. Nothing is lost: reading goes on where it was.",
                self.database,
                reason,
            )

    def _connect(self) -> Line | None:
        """A connection, where there is a log that was ever written to."""
        if self._connection is None:
            self._connection = reading.connect(self.database, "pgsignals log")
            self._seen = ""
        connection = self._connection
        if reading.one(connection.execute("SELECT pg_catalog.to_regclass(%s)", [LOG]))[0] is None:
            self._close()
            return None
        if self._beginning is not None:
            identity.recognise(connection)
            if identity.stamped_since(connection, self._beginning.at):
                self._position = reading.horizon(connection).position()
            # After the position, so that what was over then is among them.
            self._newest = int(reading.one(connection.execute(reading.NEWEST))[0])
            self._beginning = None
        if reading.one(connection.execute(reading.LAST))[0] == 0:
            self._close()
            return None
        if self._said:
            self._said = ""
            logger.warning("The log is read again.")
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _follow(self, connection: Line) -> None:
        rhythm, poll = Rhythm(self.bell), conf.get().LOG_POLL
        gate = Gate(connection)
        while not self._stopping.is_set():
            rhythm.begin()
            found, more, events = self._look(connection)
            gate.open()
            if events:
                self._deliver(*events)
            if found >= MANY:
                # Not before: the event loop may take its time.
                gate.shut()
            if found:
                rhythm.found(found, more=more)
            else:
                rhythm.found_nothing(lambda: poll)
        gate.open()

    def _look(self, connection: Line) -> tuple[int, bool, tuple[list[PgEvent], int] | None]:
        """How many rows it found, whether there may be more, and their events with their size."""
        position = self._position
        # Before the question whether anybody takes events: whoever begins to misses none from then on.
        horizon = reading.horizon(connection) if position.is_done else None
        wanted = self._is_wanted()
        if horizon is not None:
            if horizon.snapshot == self._seen:
                return 0, False, None
            position = reading.opened(connection, position, horizon)
        query, given = reading.query(position, _AT_ONCE if wanted else MANY)
        rows = connection.execute(query, given).fetchall()
        if not wanted:
            # Nobody reads what is in them; nor will he who takes events from now on.
            self._position, self._seen = position.done(), position.until
            self._newest = max(self._newest, reading.age(position.until)[0] - 1)
            return len(rows), False, None
        more = len(rows) == _AT_ONCE
        self._newest = max([self._newest, *(int(row[1]) for row in rows)])
        if more:
            self._position = position.at(rows[-1][0])
        else:
            settled = reading.settled(position.until, self._newest)
            self._position, self._seen = Horizon(settled, position.until_ceiling).position(), position.until
        events = self._decoded(rows, (position.since, position.until))
        size = sum(len(row[5]) + len(row[6]) for row in rows)
        return len(rows), more, (events, size) if events else None

    def _decoded(self, rows: Sequence[reading.Row], window: tuple[str, str]) -> list[PgEvent]:
        events: list[PgEvent] = []
        for row in rows:
            try:
                events.append(self._decoder.logged(reading.as_log_row(row), window=window))
            except UnknownLabel:
                continue
            except wire.WireError as error:
                logger.error("The log's row %d is left out for receivers without a group: %s", row[0], error)
        return events
