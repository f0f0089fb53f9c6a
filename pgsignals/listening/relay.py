"""The relay: connection -> notification -> event -> sinks, and the supervision that keeps it going for ever.

It connects, listens, announces the gap that was, and waits; when the connection is lost it says so and does the same
again, after a wait that grows and is jittered, so that many relays do not come back in step.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Collection, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from .. import conf, wire
from ..decode import Decoder, UnknownLabel
from ..event import PgEvent
from ..sink import START, Gap, Sink
from ..triggers import sync
from .connection import ListeningConnection, Notification

logger = logging.getLogger("pgsignals.relay")

_FIRST_WAIT = 0.1
"""Seconds before the first attempt to reconnect."""

_SETTLED = 10.0
"""Seconds after which a connection counts as one that works, so that the next loss begins with a short wait."""

_GAP_EVERY = 1.0
"""Seconds between two gaps for events of an unknown version."""

_SAID_AT_FIRST = 5
_SAY_EVERY = 60.0
"""Notifications that cannot be read are said one by one at first, and then counted, once in so many seconds."""

# What will not pass by waiting. Libpq gives no SQLSTATE for a login that is refused, only the server's text, which may
# be in any language: whatever is not known here is tried again.
_FINAL = re.compile(
    r"password authentication failed|no pg_hba\.conf entry|(role|database) \S+ does not exist|"
    r"permission denied for database|is not permitted to log in|"
    # What libpq itself says, without asking a server.
    r"no password supplied|invalid \S+ value|invalid port number|invalid integer value|definition of service|"
    r"certificate file|does not support SSL"
)

# Of LISTEN itself: no right, no such thing (42), a standby (25006).
_FINAL_STATES = ("42", "25006")

_MOST_LABELS = 100
"""Unknown labels that are told apart."""

_OTHERS = ""

_MOST_CHANNELS = 100
"""Channels that are found in the database, where whoever may create a function may write more."""


class RelayRefused(Exception):
    """A set-up that will not do, told at the start: not PostgreSQL, no such alias, a login that is refused."""


class Relay:
    """Relays what a database announces to sinks, until it is stopped.

    database: an alias of settings.DATABASES.
    channels: application channels to listen to, besides the one of row events.
    """

    def __init__(self, database: str, sinks: Sequence[Sink], channels: Collection[str] = ()) -> None:
        self.database = database
        self.sinks = sinks
        self.channels = tuple(dict.fromkeys((wire.CHANNEL, *channels)))
        self.server = ""
        self.on_listening: Callable[[], None] | None = None
        """Called each time when it listens; for who must know the moment."""
        self._decoder = Decoder(database)
        self._unknown: dict[str, int] = {}
        self._newer_version_said = False
        self._newer_waits = False
        self._newer_timer: asyncio.TimerHandle | None = None
        self._unreadable = 0
        self._unreadable_said = datetime.now(UTC)
        self._alive = datetime.now(UTC)
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """End `run()`. May be called from any thread, and more than once."""
        if self._loop is None or self._loop.is_closed():
            self._stop.set()
        else:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def run(self) -> None:
        """Relay until `stop()`.

        Raises RelayRefused where the first connection shows a set-up that will not do. Later nothing ends it.
        """
        self._loop = asyncio.get_running_loop()
        for sink in self.sinks:
            await sink.start()
        try:
            await self._supervise()
        finally:
            if self._newer_timer is not None:
                self._newer_timer.cancel()
            # Side by side: one that takes its time leaves the others theirs.
            for error in await asyncio.gather(*(sink.stop() for sink in self.sinks), return_exceptions=True):
                if isinstance(error, Exception):
                    logger.error("A sink could not be stopped in order.", exc_info=error)

    async def _supervise(self) -> None:
        cause, attempt, connected_before = START, 0, False
        while not self._stop.is_set():
            try:
                connection = await self._unless_stopped(self._connect())
            except (psycopg.Error, OSError, TimeoutError, ImproperlyConfigured, ConnectionDoesNotExist) as error:
                if not connected_before:
                    _refuse(self.database, error)
                attempt += 1
                await self._wait(attempt, _one_line(error))
                continue
            if connection is None:
                return
            began = asyncio.get_running_loop().time()
            try:
                self._listens(connection, cause)
                connected_before = True
                cause = await self._until_lost(connection)
            finally:
                connection.close()
            if not self._stop.is_set():
                self._to_sinks(lambda sink, cause=cause: sink.lost(cause))  # type: ignore[misc]
                # A server that takes connections and drops them at once is not asked ten times a second.
                attempt = 1 if asyncio.get_running_loop().time() - began > _SETTLED else attempt + 1
                await self._wait(attempt, cause)

    async def _unless_stopped(self, connecting: Coroutine[Any, Any, ListeningConnection]) -> ListeningConnection | None:
        task = asyncio.ensure_future(connecting)
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _to_sinks(self, tell: Callable[[Sink], None]) -> None:
        """Tell every sink; one that fails keeps nothing from the others."""
        for sink in self.sinks:
            try:
                tell(sink)
            except Exception:
                logger.exception("The sink %s failed, and has missed something.", type(sink).__name__)

    async def _connect(self) -> ListeningConnection:
        wrapper = connections[self.database]
        if wrapper.vendor != "postgresql":
            raise RelayRefused(
                f"The database {self.database!r} is {wrapper.display_name}; only PostgreSQL can be listened to. "
                "Name another alias with --database, or in settings.PGSIGNALS['DATABASE']."
            )
        timeout = conf.get().CONNECT_TIMEOUT
        return await ListeningConnection.open(wrapper, self.channels, self._receive, timeout, self._declared)

    async def _declared(self, connection: psycopg.AsyncConnection[Any]) -> list[str]:
        """The channels on which installed triggers speak, also those of declarations that stand in migrations."""
        comments = await (await connection.execute(sync.CHANNELS)).fetchall()
        named = {sync.channel_of(comment) for (comment,) in comments} - {None, *self.channels}
        found = sorted(filter(None, named))
        if len(found) > _MOST_CHANNELS:
            logger.warning(
                "Installed triggers speak on %d channels that nothing here names; %d of them are listened to.",
                len(found),
                _MOST_CHANNELS,
            )
        return found[:_MOST_CHANNELS]

    def _listens(self, connection: ListeningConnection, cause: str) -> None:
        now = datetime.now(UTC)
        gap = Gap(self.database, now if cause == START else self._alive, now, cause)
        self.server = connection.server
        logger.info("Listening to %s in %s.", ", ".join(connection.channels), connection.server)
        if cause != START:
            seconds = (gap.until - gap.since).total_seconds()
            logger.warning("Connected again. Fast events of the last %.1f s may be lost (%s).", seconds, cause)
        self._alive = now
        self._to_sinks(lambda sink: sink.gap(gap))
        if self.on_listening is not None:
            self.on_listening()

    async def _until_lost(self, connection: ListeningConnection) -> str:
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        lost: asyncio.Future[Any] = connection.lost
        try:
            await asyncio.wait([lost, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        return connection.lost.result() if connection.lost.done() else "stopped"

    async def _wait(self, attempt: int, reason: str) -> None:
        longest = min(conf.get().RECONNECT_MAX, _FIRST_WAIT * 2.0 ** min(attempt, 30))
        seconds = random.uniform(longest / 2, longest)  # noqa: S311 - jitter, no secret
        logger.warning(
            "No connection to the database %r: %s. Connecting again in %.1f s; fast events until then are lost.",
            self.database,
            reason,
            seconds,
        )
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            pass

    # What arrives.

    def _receive(self, notifications: list[Notification]) -> None:
        self._alive = datetime.now(UTC)
        events: list[PgEvent] = []
        size = 0
        for channel, payload, pid in notifications:
            size += len(payload)
            try:
                events += self._decoder.decode(channel, payload)
            except wire.WireError as error:
                self._leave_out(channel, payload, pid, error)
        if events:
            self._to_sinks(lambda sink: sink.put(events, size))

    def _leave_out(self, channel: str, payload: str, pid: int, error: wire.WireError) -> None:
        if isinstance(error, UnknownLabel):
            self._count_unknown(error)
        elif isinstance(error, wire.UnknownVersion):
            self._newer(error)
        else:
            self._say_unreadable(channel, payload, pid, error)

    def _say_unreadable(self, channel: str, payload: str, pid: int, error: wire.WireError) -> None:
        # Any role can send as many as it likes: they must not fill the log.
        self._unreadable += 1
        now = datetime.now(UTC)
        if self._unreadable > _SAID_AT_FIRST and (now - self._unreadable_said).total_seconds() < _SAY_EVERY:
            return
        self._unreadable_said = now
        later = (
            "" if self._unreadable < _SAID_AT_FIRST else f"; later ones are counted, and said every {_SAY_EVERY:.0f} s"
        )
        logger.warning(
            "A notification on %r from process %d was left out: %s. It began %.80r. It is number %d since the start%s.",
            channel,
            pid,
            error,
            payload,
            self._unreadable,
            "" if self._unreadable < _SAID_AT_FIRST else later,
        )

    def _count_unknown(self, error: UnknownLabel) -> None:
        # Said and counted under as many names as a forger likes, they would fill the log and the memory.
        full = error.label not in self._unknown and len(self._unknown) >= _MOST_LABELS
        label = _OTHERS if full else error.label
        self._unknown[label] = self._unknown.get(label, 0) + 1
        if self._unknown[label] == 1:
            what = "Further labels are counted together, and not said" if full else "It is counted, and not said again"
            logger.warning("An event was left out: %s. %s.", error, what)

    def _newer(self, error: wire.UnknownVersion) -> None:
        if not self._newer_version_said:
            self._newer_version_said = True
            logger.error("Events are lost: %s.", error)
        # The first at once, and then one a second for all that came meanwhile.
        if self._newer_timer is None:
            self._newer_gap()
        else:
            self._newer_waits = True

    def _newer_gap(self) -> None:
        now = datetime.now(UTC)
        gap = Gap(self.database, now, now, "an event of an unknown version", connected=False)
        self._to_sinks(lambda sink: sink.gap(gap))
        self._newer_waits = False
        self._newer_timer = asyncio.get_running_loop().call_later(_GAP_EVERY, self._newer_later)

    def _newer_later(self) -> None:
        self._newer_timer = None
        if self._newer_waits:
            self._newer_gap()


def _refuse(database: str, error: Exception) -> None:
    """Raise RelayRefused for what waiting will not mend."""
    text = _one_line(error)
    if isinstance(error, ConnectionDoesNotExist):
        known = ", ".join(connections)
        raise RelayRefused(f"There is no database {database!r} in settings.DATABASES; there are: {known}.") from error
    refused_login = isinstance(error, psycopg.OperationalError) and _FINAL.search(text)
    refused_listen = isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_FINAL_STATES)
    wrong_settings = isinstance(error, ImproperlyConfigured | psycopg.ProgrammingError)
    if refused_login or refused_listen or wrong_settings:
        raise RelayRefused(f"The database {database!r} refuses to be listened to: {text}") from error


def _one_line(error: BaseException) -> str:
    said: Any = " ".join(str(error).split())
    return said or type(error).__name__
