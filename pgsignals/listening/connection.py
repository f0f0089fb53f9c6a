"""One connection that listens, and the only user of psycopg's notifications.

Notifications are taken straight from libpq's queue when the socket has something to read: psycopg's own `notifies()`
generator reads half as many a second, and loses the rest of a batch where it is left early. The socket is always
drained, whatever the receivers do, because a listener that does not read fills the server's queue for everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import pq, sql

Notification = tuple[str, str, int]
"""Channel, payload, the sender's process id in the server."""

Take = Callable[[list[Notification]], None]
"""What is called with the notifications that came together."""

Further = Callable[[psycopg.AsyncConnection[Any]], Awaitable[Collection[str]]]
"""What asks the database for further channels."""

_SLICE = 1000
"""Notifications that are taken before the event loop may do something else."""

# Without these a connection whose other end vanished is noticed after two hours.
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def parameters(wrapper: BaseDatabaseWrapper) -> dict[str, Any]:
    """What psycopg needs to connect to where Django's alias points, without what is the ORM's own.

    Raises ImproperlyConfigured, as Django does, where the alias does not say where to connect.
    """
    given: dict[str, Any] = dict(wrapper.get_connection_params())
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        given.pop(ours, None)
    name = given.get("application_name")
    # A user's own name stays readable behind ours.
    given["application_name"] = f"pgsignals listen {name}" if name else "pgsignals listen"
    return {**_KEEPALIVE, **given}


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
        self.channels: list[str] = []
        """What it listens to."""
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done with the reason when the connection is gone."""

    @classmethod
    async def open(
        cls,
        wrapper: BaseDatabaseWrapper,
        channels: Collection[str],
        take: Take,
        timeout: float,
        further: Further | None = None,
    ) -> ListeningConnection:
        """Connect and listen, within `timeout` seconds, to channels and to those that the database names further.

        From the first LISTEN on no notification is missed: those that come while the next LISTEN runs are taken too.
        Raises psycopg.Error for what the server or libpq refuses, and TimeoutError.
        """
        async with asyncio.timeout(timeout):
            connection = await psycopg.AsyncConnection.connect(**parameters(wrapper), autocommit=True)
            listening = cls(connection, take)
            try:
                # psycopg hands us what it reads off the socket while it waits for a command's result.
                connection.pgconn.notify_handler = listening._hand_over
                connection.add_notice_handler(listening._notice)
                # To listen is to be idle, whatever the server thinks of idle sessions.
                await connection.execute("SET idle_session_timeout = 0")
                await listening._listen(channels)
                if further is not None:
                    await listening._listen(await further(connection))
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

    def close(self) -> None:
        """Close the socket at once, whatever the server thinks of it. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._pgconn.finish()
        # psycopg warns of a connection that is collected open; it is not told of finish().
        self._connection._closed = True

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
        while (limit is None or len(batch) < limit) and (one := notifies()) is not None:
            batch.append((one.relname.decode(), one.extra.decode(errors="replace"), one.be_pid))
        if len(batch) == limit:
            # Let others run, and go on although the socket itself has nothing new.
            self._loop.call_soon(self._drain)
        if batch:
            self._take(batch)
        if self._pgconn.status == pq.ConnStatus.BAD:
            self._lose(self._last_notice or "the server closed the connection")

    def _hand_over(self, one: pq.PGnotify) -> None:
        self._take([(one.relname.decode(), one.extra.decode(errors="replace"), one.be_pid)])

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        self._last_notice = notice.message_primary or ""

    def _lose(self, reason: str) -> None:
        self.close()
        if not self.lost.done():
            self.lost.set_result(" ".join(reason.split()))
