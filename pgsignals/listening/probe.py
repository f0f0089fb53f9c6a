"""Proves delivery: a token that a second connection sends must arrive on the one that listens.

Silence is not health. Behind a pooler in transaction mode LISTEN succeeds, `pg_listening_channels()` shows the channel,
and even what the connection sends to itself arrives; what anybody else sends never does. A half-open socket, and a
server that is no longer the one which is written to, look as healthy. Only this tells them apart.

The second connection goes the way that the application's own writes go, and is made anew for each token: one that was
kept would stay with the server of yesterday, as the listening one does.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg
from django.db import connections
from psycopg import sql

from .connection import ListeningConnection, connect, parameters, within

NAME = "pgsignals probe"
"""The application_name of the second connection."""


class NotSent(Exception):
    """The token could not be sent; whether the relay hears is not known."""


class Deaf(Exception):
    """The token was sent, and did not arrive."""


class Probe:
    """Sends tokens to the relay that listens to `channel`, a name that no other relay has.

    database: the alias through which the application writes.
    """

    def __init__(self, database: str) -> None:
        self.database = database
        self.channel = f"pgsignals_probe_{uuid.uuid4().hex[:16]}"
        self._token = b""
        self._arrived = asyncio.Event()

    def heard(self, payload: bytes) -> None:
        """Called with what arrives on the channel."""
        if payload == self._token:
            self._arrived.set()

    async def prove(self, connection: ListeningConnection, send_within: float, arrive_within: float) -> datetime:
        """Prove that everything which was committed before the moment that is returned has arrived.

        PostgreSQL delivers in the order of commits, so the token closes what came before it. Times in seconds. While
        other notifications arrive, the token may take longer: a flood before it is no deafness.

        Raises NotSent or Deaf.
        """
        self._token = uuid.uuid4().hex.encode()
        self._arrived.clear()
        sent = datetime.now(UTC)
        try:
            await self._send(send_within)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise NotSent(" ".join(str(error).split()) or f"no answer in {send_within:g} s") from error
        waits_since = time.monotonic()
        while not self._arrived.is_set():
            seconds = max(waits_since, connection.last_arrival) + arrive_within - time.monotonic()
            if seconds <= 0:
                raise Deaf
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds)
            except TimeoutError:
                # After a standstill of this process the clock has run, and what arrived meanwhile is read only now.
                await asyncio.sleep(0)
        return sent

    async def _send(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        connection = await connect(parameters(connections[self.database], NAME), seconds)
        try:
            await within(max(deadline - time.monotonic(), 0.0), self._notify(connection), connection)
        finally:
            connection.pgconn.finish()
            connection._closed = True

    async def _notify(self, connection: psycopg.AsyncConnection[Any]) -> None:
        # The statement, and not pg_notify(): it needs no right.
        notify = sql.SQL("NOTIFY {}, {}").format(sql.Identifier(self.channel), sql.Literal(self._token.decode()))
        try:
            await connection.execute(notify)
        except psycopg.errors.ProgramLimitExceeded:
            # The queue is full, and stays so for all writers when the session that held it up has gone: PostgreSQL
            # clears away what everybody has read after a NOTIFY that succeeded, or when somebody asks how full it is.
            await connection.execute("SELECT pg_notification_queue_usage()")
            await connection.execute(notify)
