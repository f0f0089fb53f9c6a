"""One connection that listens, and the only user of psycopg's notifications.

Notifications are taken straight from libpq's queue when the socket has something to read: psycopg's own `notifies()`
generator reads half as many a second, and loses the rest of a batch where it is left early. The socket is always
drained, whatever the receivers do, because a listener that does not read fills the server's queue for everybody.

Every call has a deadline of this side. Where it passes, the socket is cut: psycopg would ask the server to cancel, and
wait for its answer, which on a line that is dead may be for ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict

from .. import conf

logger = logging.getLogger("pgsignals.relay")

Notification = pq.PGnotify
"""`relname` (the channel), `be_pid` (the sender's process id in the server), `extra` (the payload); bytes."""

Take = Callable[[list[Notification]], None]
"""What is called with the notifications that came together."""

Further = Callable[[psycopg.AsyncConnection[Any]], Awaitable[Collection[str]]]
"""What asks the database for further channels."""

Session = tuple[int, datetime]
"""Which session of the server: its process id, and when it began."""

Result = TypeVar("Result")

PREFIX = "pgsignals listen"
"""How the application_name of a listening connection begins."""

_LONGEST_NAME = 63
"""Bytes that PostgreSQL keeps of an application_name (NAMEDATALEN - 1)."""

_LONGEST_HOST = 20

_STANDSTILL = 0.1
"""Seconds by which a wait may be too long in a process that runs."""

_SLICE = 1000
"""Notifications that are taken before the event loop may do something else."""

# Without these a connection whose other end vanished is noticed after two hours; on our side by libpq,
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

# and on the server's, which keeps the session's locks until then. (No TCP, as on a local socket: they do nothing.)
# To listen is to be idle, whatever the server thinks of idle sessions.
_SESSION = """
    SET idle_session_timeout = 0;
    SET tcp_keepalives_idle = 10;
    SET tcp_keepalives_interval = 5;
    SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 30000;
"""

_WHO = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"

# A line that died may leave it behind, with its locks. Another user's session cannot be ours.
_BURY = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = %s AND backend_start = %s AND usename = current_user AND application_name LIKE 'pgsignals listen%%'
"""


def parameters(wrapper: BaseDatabaseWrapper, name: str = PREFIX) -> dict[str, Any]:
    """What psycopg needs to connect to where Django's alias points, without what is the ORM's own.

    Raises ImproperlyConfigured, as Django does, where the alias does not say where to connect.
    """
    given: dict[str, Any] = dict(wrapper.get_connection_params())
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        given.pop(ours, None)
    return _with_name(given, name)


def listening_parameters(database: str) -> dict[str, Any]:
    """What psycopg needs to listen to what is written through the alias: its own place, or PGSIGNALS["LISTEN"].

    Raises ImproperlyConfigured where LISTEN is neither an alias nor a connection string.
    """
    said = conf.get()
    if said.LISTEN is None or database != said.DATABASE:
        return parameters(connections[database])
    if said.LISTEN in connections.settings:
        wrapper = connections[said.LISTEN]
        if wrapper.vendor != "postgresql":
            raise ImproperlyConfigured(
                f"settings.PGSIGNALS['LISTEN'] is {said.LISTEN!r}, and that database is {wrapper.display_name}; only "
                "PostgreSQL can be listened to."
            )
        return parameters(wrapper)
    try:
        if "=" not in said.LISTEN and "://" not in said.LISTEN:
            raise psycopg.ProgrammingError("it has no '='")
        return _with_name(dict(conninfo_to_dict(said.LISTEN)), PREFIX)
    except psycopg.Error as error:
        # Not the value: a connection string may hold a password.
        raise ImproperlyConfigured(
            "settings.PGSIGNALS['LISTEN'] is neither an alias of settings.DATABASES "
            f"({', '.join(connections.settings)}) nor a connection string such as 'host=db dbname=app' "
            f"({' '.join(str(error).split())})."
        ) from None


def _with_name(given: dict[str, Any], name: str) -> dict[str, Any]:
    own = given.get("application_name")
    # A user's own name stays readable behind ours.
    # And whatever PGCLIENTENCODING or a connection string says: payloads are read as UTF-8.
    return {
        **_KEEPALIVE,
        **given,
        "application_name": f"{name} {own}" if own else name,
        "client_encoding": "UTF8",
    }


async def connect(parameters: dict[str, Any], seconds: float) -> psycopg.AsyncConnection[Any]:
    """A connection in autocommit. Raises psycopg.Error, or TimeoutError where there is none in so many seconds."""
    # What was raised in the middle of it holds the socket, open, as long as anything refers to it: it ends here.
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await psycopg.AsyncConnection.connect(**parameters, autocommit=True)
    raise TimeoutError(f"no connection within {seconds:g} s")


async def within(
    seconds: float,
    work: Coroutine[Any, Any, Result],
    connection: psycopg.AsyncConnection[Any],
    heard: Callable[[], float] | None = None,
) -> Result:
    """The result of work on a connection, which is cut where it takes longer, or is cancelled.

    heard: when the server was last heard of, by the monotonic clock; the time counts from there on.
    Raises TimeoutError, or what the work raises.
    """
    task = asyncio.ensure_future(work)
    since = time.monotonic()
    try:
        while not task.done():
            now = time.monotonic()
            left = max(since, heard() if heard is not None else since) + seconds - now
            if left <= 0:
                raise TimeoutError(f"no answer in {seconds:g} s")
            await asyncio.wait([task], timeout=left)
            if time.monotonic() - now > left + _STANDSTILL:
                # Then the clock has run, and the answer that came meanwhile is read only now.
                since = time.monotonic()
        return task.result()
    finally:
        if not task.done():
            cut(connection)
        # Also where it failed in the very moment of a cancellation: nobody else asks what became of it.
        await asyncio.gather(task, return_exceptions=True)


def cut(connection: psycopg.AsyncConnection[Any]) -> None:
    """End the socket's traffic in both directions: whoever waits for it is woken with an error."""
    if connection.pgconn.status != pq.ConnStatus.OK:
        return
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other end was faster
            pass


class ListeningConnection:
    """Listens to channels until it is closed or lost."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], take: Take) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._socket = connection.fileno()
        self._last_notice = ""
        self._closed = False
        self._asking = asyncio.Lock()
        self._own_name = ""
        self.session: Session | None = None
        """Which session of the server it is; None where a pooler hides it."""
        self.channels: list[str] = []
        """What it listens to."""
        self.last_arrival = time.monotonic()
        """When something was last read, by the monotonic clock."""
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done with the reason when the connection is gone."""

    @classmethod
    async def open(
        cls,
        parameters: dict[str, Any],
        channels: Collection[str],
        take: Take,
        timeout: float,
        further: Further | None = None,
        previous: Session | None = None,
    ) -> ListeningConnection:
        """Connect and listen, within `timeout` seconds, to channels and to those that the database names further.

        What is left of the previous session is ended. From the first LISTEN on no notification is missed: those that
        come while the next LISTEN runs are taken too.
        Raises psycopg.Error for what the server or libpq refuses, and TimeoutError.
        """
        deadline = time.monotonic() + timeout
        connection = await connect(parameters, timeout)
        listening = cls(connection, take)
        listening._own_name = parameters["application_name"].removeprefix(PREFIX)
        try:
            # psycopg hands us what it reads off the socket while it waits for a command's result.
            connection.pgconn.notify_handler = listening._hand_over
            connection.add_notice_handler(listening._notice)
            await within(
                max(deadline - time.monotonic(), 0.0), listening._prepare(channels, further, previous), connection
            )
        except BaseException:
            listening.close()
            raise
        listening._start()
        return listening

    @property
    def server(self) -> str:
        """Where it is connected: host, port and database."""
        info = self._connection.info
        return f"{info.dbname} at {info.host or 'the local socket'}:{info.port}"

    def fileno(self) -> int:
        """The socket."""
        return self._socket

    def close(self) -> None:
        """Close the socket at once, whatever the server thinks of it. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._pgconn.finish()
        # psycopg warns of a connection that is collected open; it is not told of finish().
        self._connection._closed = True

    async def ask(self, query: sql.SQL | sql.Composed, seconds: float) -> list[tuple[Any, ...]]:
        """The rows of a query on this connection, which goes on listening meanwhile.

        While notifications arrive, the answer may take longer: it comes behind them.
        Raises psycopg.Error for what the server refuses. Where it does not answer, or is gone, the connection is lost,
        and that is raised as TimeoutError or psycopg.OperationalError.
        """
        return await self._alone(lambda: self._rows(query), seconds)

    async def listen_further(self, further: Further, seconds: float) -> list[str]:
        """Listen to what the database names now, too. The channels that are new. Raises as `ask` does."""
        before = len(self.channels)
        await self._alone(lambda: self._listen_further(further), seconds)
        return self.channels[before:]

    async def _alone(self, work: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        async with self._asking:
            if self._closed:
                raise psycopg.OperationalError("the connection is closed")
            # psycopg waits with a reader of its own, and an event loop has one for each socket.
            self._loop.remove_reader(self._socket)
            try:
                return await within(seconds, work(), self._connection, lambda: self.last_arrival)
            except (TimeoutError, psycopg.OperationalError) as error:
                self._lose(self._last_notice or str(error))
                raise
            except asyncio.CancelledError:
                # It was cut in the middle of its answer.
                self.close()
                raise
            finally:
                if not self._closed:
                    self._start()

    async def alive(self, seconds: float) -> None:
        """Whether the server answers in so many seconds. Raises as `ask` does."""
        await self.ask(sql.SQL("SELECT 1"), seconds)

    async def say(self, text: str, seconds: float) -> None:
        """Show in pg_stat_activity, as the application's name, which process this is and how it fares."""
        end = f" {socket.gethostname()[:_LONGEST_HOST]}:{os.getpid()} {text}"
        own = self._own_name.encode("ascii", "replace").decode()[: _LONGEST_NAME - len(PREFIX) - len(end)]
        await self.ask(sql.SQL("SET application_name = {}").format(sql.Literal(f"{PREFIX}{own}{end}")), seconds)

    async def _rows(self, query: sql.SQL | sql.Composed) -> list[tuple[Any, ...]]:
        cursor = await self._connection.execute(query)
        return [] if cursor.description is None else await cursor.fetchall()

    async def _prepare(self, channels: Collection[str], further: Further | None, previous: Session | None) -> None:
        await self._connection.execute(_SESSION)
        await self._listen(channels)
        if further is not None:
            await self._listen_further(further)
        self.session = await (await self._connection.execute(_WHO)).fetchone()
        if previous is not None:
            await self._bury(previous)

    async def _bury(self, previous: Session) -> None:
        try:
            await self._connection.execute(_BURY, previous)
        except psycopg.errors.InsufficientPrivilege as error:
            logger.warning(
                "What may be left of the lost connection is not ended: %s. Until the server notices, it keeps "
                "what only one relay may do.",
                error.diag.message_primary,
            )

    async def _listen_further(self, further: Further) -> None:
        await self._listen([name for name in await further(self._connection) if name not in self.channels])

    async def _listen(self, channels: Collection[str]) -> None:
        for channel in channels:
            await self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            self.channels.append(channel)

    def _start(self) -> None:
        self._loop.add_reader(self._socket, self._readable)
        self._drain()

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            # What arrived before the end still counts, and the server's last words say why it ended.
            self._drain(limit=None)
            self._lose(self._last_notice or str(error).strip())
            return
        self._drain()

    def _drain(self, limit: int | None = _SLICE) -> None:
        if self._closed:
            return
        notifies = self._pgconn.notifies
        batch: list[Notification] = []
        if (one := notifies()) is not None:
            batch.append(one)
            # Mostly it came alone.
            if (another := notifies()) is not None:
                batch += (another, *islice(iter(notifies, None), limit and limit - 2))
        if len(batch) == limit:
            # Let others run, and go on although the socket itself has nothing new.
            self._loop.call_soon(self._drain)
        if batch:
            self.last_arrival = time.monotonic()
            try:
                self._take(batch)
            except Exception:
                # An event loop would log it and go on, as if nothing had been lost.
                logger.exception("What arrived could not be handled. The connection is replaced.")
                self._lose("what arrived could not be handled")
        if not self._closed and self._pgconn.status == pq.ConnStatus.BAD:
            self._lose(self._last_notice or "the server closed the connection")

    def _hand_over(self, one: pq.PGnotify) -> None:
        self.last_arrival = time.monotonic()
        self._take([one])

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        self._last_notice = notice.message_primary or ""

    def _lose(self, reason: str) -> None:
        self.close()
        if not self.lost.done():
            self.lost.set_result(" ".join(reason.split()))
