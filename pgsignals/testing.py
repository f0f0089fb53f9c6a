"""For the tests of projects that use pgsignals: the events of a block, where nothing ever commits.

A TestCase, and pytest-django's `db`, roll everything back, so no NOTIFY ever leaves. But the triggers run, and
their functions, the same as in production, also write what they send into a temporary table when the session asks
them to. `publish()` does so too.
"""

from __future__ import annotations

from datetime import datetime
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections
from django.db.utils import NotSupportedError

from . import conf, publishing, wire
from .decode import Decoder
from .event import PgEvent
from .receivers import Receiver, registry
from .signals import pg_event
from .tables import LOG
from .triggers.function import CAPTURED

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

MAX_ROUNDS = 100
"""Times that receivers may cause events which are given to receivers again."""


class CaptureError(Exception):
    """The events of a block cannot be told; the message says why, and what helps."""


class capture_events:
    """Collect the events of a block: `with capture_events() as events:`, or `async with`.

    using: alias of the database; PGSIGNALS["DATABASE"] by default. Writes through other connections, such as those of
        other threads, are not seen.
    run: afterwards call the receivers (`@on_pg_event` and `pg_event`) for each event, in the test's own thread and
        transaction, and for the events that these cause. What a receiver raises is raised.

    The list is filled at the end of the block, in the order in which the events would arrive. It has what the block
    did by the ORM, by bulk operations and raw SQL, and what it published; what was rolled back to a savepoint is not
    in it. With `run`, the events that receivers caused follow. Blocks can be nested: the outer one has the events of
    the inner one, too. NOTIFY itself is sent as in production.

    Raises NotSupportedError on another vendor's database, CaptureError where the block left its transaction broken
    or closed the connection, where an event is about no model of this project, or where receivers cause events
    without end. An exception of the block itself is never hidden by these.
    """

    def __init__(self, using: str | None = None, *, run: bool = False) -> None:
        self.using = using or conf.get().DATABASE
        self.run = run
        self.events: list[PgEvent] = []

    def __enter__(self) -> list[PgEvent]:
        connection = self._connection
        self.events = []
        self._decoder = Decoder(self.using)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.to_regclass(%s) IS NULL", [_TABLE])
            self._outermost: bool = cursor.fetchone()[0]
            if self._outermost:
                cursor.execute(_CREATE)
            cursor.execute(f"SELECT coalesce(max(place), 0) FROM {_TABLE}")
            self._seen: int = cursor.fetchone()[0]
            cursor.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [LOG])
            self._has_log: bool = cursor.fetchone()[0]
            self._last_id = 0
            if self._has_log:
                cursor.execute(f"SELECT coalesce(max(id), 0) FROM {LOG}")
                self._last_id = cursor.fetchone()[0]
            cursor.execute("SELECT pg_catalog.set_config('pgsignals.capture', 'on', false)")
        self._session = connection.connection
        publishing.captured.add(connection)
        return self.events

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        problem = self._problem()
        try:
            if problem is None:
                self._collect(error)
            elif error is None:
                raise CaptureError(problem)
        finally:
            self._end()

    async def __aenter__(self) -> list[PgEvent]:
        # In the thread in which Django runs the queries of asynchronous code.
        return await sync_to_async(self.__enter__)()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await sync_to_async(self.__exit__)(kind, error, traceback)

    @property
    def _connection(self) -> BaseDatabaseWrapper:
        connection = connections[self.using]
        if connection.vendor != "postgresql":
            raise NotSupportedError(
                f"capture_events() needs PostgreSQL, and the database {self.using!r} is {connection.display_name}."
            )
        return connection

    def _problem(self) -> str | None:
        """Why the events cannot be read, if so."""
        connection = self._connection
        if connection.connection is not self._session:
            return (
                f"The connection to the database {self.using!r} was closed in the block, and the events are lost with "
                "it. Close it outside of the block."
            )
        if (connection.in_atomic_block and connection.needs_rollback) or not connection.is_usable():
            return (
                "The block left its transaction broken, so its events cannot be read. Put what is expected to fail "
                "into transaction.atomic(), inside the block."
            )
        return None

    def _collect(self, error: BaseException | None) -> None:
        try:
            self.events += self._new_events()
        except CaptureError:
            if error is None:
                raise
        if self.run and error is None:
            self._run()

    def _new_events(self) -> list[PgEvent]:
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"SELECT at, place, channel, payload FROM {_TABLE} WHERE place > %s ORDER BY place",
                [self._seen],
            )
            rows = cursor.fetchall()
        if rows:
            self._seen = rows[-1][1]
        sent = [(at, event) for at, _, channel, payload in rows for event in self._decode(channel, payload)]
        # Both by the clock of the one session that wrote them; sorting keeps the order of equals.
        return [event for _, event in sorted([*sent, *self._new_in_the_log()], key=itemgetter(0))]

    def _new_in_the_log(self) -> list[tuple[datetime, PgEvent]]:
        """What this transaction has appended; in autocommit, what anybody has."""
        if not self._has_log:
            return []
        with self._connection.cursor() as cursor:
            cursor.execute(_LOGGED, [self._last_id, self._connection.in_atomic_block])
            rows = cursor.fetchall()
        if rows:
            self._last_id = rows[-1][0]
        try:
            return [(row[2], self._decoder.logged(row)) for row in rows]
        except wire.WireError as error:
            raise CaptureError(f"An event of the block that is in the log cannot be read: {error}.") from error

    def _decode(self, channel: str, payload: str) -> list[PgEvent]:
        try:
            return self._decoder.decode(channel, payload)
        except wire.WireError as error:
            raise CaptureError(
                f"A notification of the block cannot be read: {error}. In production it would be left out. "
                f"Its channel is {channel!r}, and it says {payload[:200]!r}."
            ) from error

    def _run(self) -> None:
        waiting = list(self.events)
        last = ""
        for _ in range(MAX_ROUNDS):
            for event in waiting:
                last = _deliver(event) or last
            waiting = self._new_events()
            if not waiting:
                return
            self.events += waiting
        raise CaptureError(
            f"Receivers go on causing events after {MAX_ROUNDS} rounds; the last one called was {last}. "
            "In production this would never end."
        )

    def _end(self) -> None:
        connection = self._connection
        if self._outermost:
            publishing.captured.discard(connection)
        # A broken transaction, or a closed connection, takes table and setting with it.
        if self._outermost and self._problem() is None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_catalog.set_config('pgsignals.capture', '', false)")
                cursor.execute(f"DROP TABLE IF EXISTS {_TABLE}")


_TABLE = f"pg_temp.{CAPTURED}"
# `unit` tells transactions apart where messages are folded.
_CREATE = f"""
CREATE TEMPORARY TABLE {CAPTURED} (
    place bigint GENERATED ALWAYS AS IDENTITY, unit text, channel text NOT NULL, payload text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""
_LOGGED = f"""
SELECT id, xid::text, at, source, key, head, body FROM {LOG}
WHERE id > %s AND (NOT %s OR xid = pg_current_xact_id_if_assigned()) ORDER BY id
"""


def _deliver(event: PgEvent) -> str:
    """Call all who wait for an event. Returns the name of the last."""
    if pg_event.receivers:
        pg_event.send(sender=pg_event.sender(event.model or event.channel), event=event)
    receivers = registry.matching(event)
    for receiver in receivers:
        _call(receiver, event)
    return f"{receivers[-1].name} for {event!r}" if receivers else ""


def _call(receiver: Receiver, event: PgEvent) -> None:
    call: Any = async_to_sync(receiver.function) if receiver.is_async else receiver.function
    call(event)
