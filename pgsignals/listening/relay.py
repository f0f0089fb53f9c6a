"""The relay: connection -> notification -> event -> sinks, and the supervision that keeps it going for ever.

It connects, listens, proves that it hears, announces the gap that was, and waits; when the connection is lost it says
so and does the same again, after a wait that grows and is jittered, so that many relays do not come back in step.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist
from psycopg import sql

from .. import conf, wire
from ..event import PgEvent
from ..sink import START, Beginning, Companion, Gap, Sink
from ..tables import LOG
from ..triggers import sync
from .connection import ListeningConnection, Session, listening_parameters
from .intake import Intake
from .leadership import TRY_EVERY, Leadership
from .probe import Deaf, NotSent, Probe
from .refusal import RelayRefused, one_line, refuse

__all__ = ["Relay", "RelayRefused"]

logger = logging.getLogger("pgsignals.relay")

CONNECTING = "connecting"
PROVING = "proving"
HEALTHY = "healthy"
DEAF = "deaf"
STATES = (CONNECTING, PROVING, HEALTHY, DEAF)

_FIRST_WAIT = 0.1
"""Seconds before the first attempt to reconnect."""

_SETTLED = 10.0
"""Seconds after which a connection counts as one that works, so that the next loss begins with a short wait."""

_PROVE_AGAIN = 5.0
"""Seconds, at most, until the next attempt where the token could not be sent."""

_CLOCK_WAS_SET = timedelta(seconds=1)
"""By less than this two clocks differ anyway."""

_MOST_CHANNELS = 100
"""Channels that are found in the database, where whoever may create a function may write more."""

_DEAF = (
    "The listening connection to %s is deaf: what a second connection sent did not arrive in %g s. The usual causes: a "
    "pooler in transaction mode stands between (name a direct connection in PGSIGNALS['LISTEN']), the two connections "
    "lead to different servers or databases (a standby that was promoted, an old primary), or the line is dead"
)


_BEGINNING = sql.SQL("SELECT pg_current_snapshot()::text, clock_timestamp()")


@dataclass(frozen=True, slots=True)
class Moment:
    """By this machine's clock, and by one that nobody sets."""

    at: datetime
    clock: float

    @classmethod
    def now(cls) -> Moment:
        """This one."""
        return cls(datetime.now(UTC), time.monotonic())

    @property
    def seconds(self) -> float:
        """How long ago it was."""
        return time.monotonic() - self.clock

    def before(self, now: datetime) -> datetime:
        """Seen from `now`, the earlier of what both clocks say: a gap may be too long, and not too short."""
        said = now - timedelta(seconds=self.seconds)
        return self.at if abs(said - self.at) < _CLOCK_WAS_SET else min(said, self.at)


class Relay:
    """Relays what a database announces to sinks, until it is stopped.

    database: an alias of settings.DATABASES.
    channels: application channels to listen to, besides the one of row events.
    companions: who is woken when the log has something new.
    """

    def __init__(
        self,
        database: str,
        sinks: Sequence[Sink],
        channels: Collection[str] = (),
        companions: Sequence[Companion] = (),
    ) -> None:
        self.database = database
        self.sinks = sinks
        self.companions = companions
        self.channels = tuple(dict.fromkeys((wire.CHANNEL, *channels)))
        self.server = ""
        self.state = CONNECTING
        """One of STATES."""
        self.proven: datetime | None = None
        """What was committed before, and after the last gap, has arrived. None until the first proof."""
        self.proofs = self.reconnects = self.gaps = 0
        """How often delivery was proven, a lost connection replaced, and a gap announced, but for that of the start."""
        self.on_listening: Callable[[], None] | None = None
        """Called each time when it listens; for who must know the moment."""
        self.on_proven: Callable[[], None] | None = None
        """Called each time when delivery was proven."""
        self.leadership = Leadership()
        self._probe = Probe(database)
        aside = {self._probe.channel.encode(): self._probe.heard, LOG.encode(): lambda payload: self._ring()}
        self.intake = Intake(database, self._put, self._announce, aside)
        self._heard = Moment.now()
        """Of the last proof, or the start."""
        self._looked = self._heard
        """When the database was last asked for channels of triggers."""
        self._connection: ListeningConnection | None = None
        self._last_session: Session | None = None
        self._listens_since: float | None = None
        self._cause = START
        self._unproven_said = ""
        self._cannot_lead_said = False
        self._started_companions: list[Companion] = []
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """End `run()`. May be called from any thread, and more than once."""
        if self._loop is None or self._loop.is_closed():
            self._stop.set()
        else:
            self._loop.call_soon_threadsafe(self._stop.set)

    def fileno(self) -> int | None:
        """The listening connection's socket, while there is one."""
        connection = self._connection
        return None if connection is None else connection.fileno()

    @property
    def seconds_since_proof(self) -> float:
        """Infinite before the first."""
        return float("inf") if self.proven is None else self._heard.seconds

    def waiting(self) -> tuple[int, float]:
        """How many events wait in all sinks, and for how many seconds the oldest of them has."""
        found = [sink.waiting() for sink in self.sinks]
        return sum(count for count, _ in found), max((seconds for _, seconds in found), default=0.0)

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
            self.intake.close()
            # Side by side: one that takes its time leaves the others theirs.
            stops = [asyncio.to_thread(companion.stop) for companion in self._started_companions]
            stops += [sink.stop() for sink in self.sinks]
            for error in await asyncio.gather(*stops, return_exceptions=True):
                if isinstance(error, Exception):
                    logger.error("A sink could not be stopped in order.", exc_info=error)

    async def _supervise(self) -> None:
        attempt, clock = 0, asyncio.get_running_loop().time
        while not self._stop.is_set():
            self.state, self._listens_since = CONNECTING, None
            try:
                reason = await self._serve()
            except RelayRefused:
                raise
            except (psycopg.Error, OSError, TimeoutError, ImproperlyConfigured, ConnectionDoesNotExist) as error:
                if self._cause == START:
                    refuse(self.database, error)
                reason = one_line(error)
            except Exception as error:
                logger.exception("The relay failed, and goes on with a new connection.")
                reason = one_line(error)
            if self._stop.is_set():
                return
            # A server that takes connections and drops them at once is not asked ten times a second.
            settled = self._listens_since is not None and clock() - self._listens_since > _SETTLED
            attempt = 1 if settled else attempt + 1
            await self._wait(attempt, reason)

    # One connection's life.

    async def _serve(self) -> str:
        """Connect, and relay until the connection is lost. Why it was."""
        connection = await self._unless_stopped(self._connect())
        if connection is None:
            return "stopped"
        self._connection, self._last_session = connection, connection.session
        self.state, self.server = PROVING, connection.server
        proving = asyncio.create_task(self._keep_proving(connection), name="pgsignals-probe")
        leading = asyncio.create_task(self._keep_leading(connection), name="pgsignals-leadership")
        stop = asyncio.create_task(self._stop.wait())
        reason = "stopped"
        try:
            waited: list[asyncio.Future[Any]] = [connection.lost, proving, leading, stop]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if connection.lost.done():
                reason = connection.lost.result()
            elif not stop.done():
                reason = proving.result() if proving.done() else leading.result()
            return reason
        except Exception as error:
            reason = one_line(error)
            raise
        finally:
            # Before the connection is closed beneath what they ask of it.
            for task in (proving, leading, stop):
                task.cancel()
            await asyncio.gather(proving, leading, stop, return_exceptions=True)
            connection.close()
            self._connection = None
            self._ended(reason)

    def _ended(self, reason: str) -> None:
        if self._listens_since is not None and not self._stop.is_set():
            self._cause = reason
            self._to_sinks(lambda sink: sink.lost(reason))
        self.leadership.resign()
        self._to_sinks(lambda sink: sink.lead(self.leadership.held))

    async def _connect(self) -> ListeningConnection:
        wrapper = connections[self.database]
        if wrapper.vendor != "postgresql":
            raise RelayRefused(
                f"The database {self.database!r} is {wrapper.display_name}; only PostgreSQL can be listened to. "
                "Name another alias with --database, or in settings.PGSIGNALS['DATABASE']."
            )
        return await ListeningConnection.open(
            listening_parameters(self.database),
            [*self.channels, *([LOG] if self.companions else []), self._probe.channel],
            self.intake.take,
            conf.get().CONNECT_TIMEOUT,
            self._declared,
            self._last_session,
        )

    async def _declared(self, connection: psycopg.AsyncConnection[Any]) -> list[str]:
        """The channels on which installed triggers speak, also those of declarations that stand in migrations."""
        self._looked = Moment.now()
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

    async def _keep_proving(self, connection: ListeningConnection) -> str:
        """Prove delivery now and then. Ends with the reason for which the connection is to be given up."""
        heard = self._heard
        while True:
            said = conf.get()
            try:
                proven = await self._prove(connection)
            except Deaf:
                return self._is_deaf(connection)
            if proven is not None:
                self._is_proven(proven)
            if self._listens_since is None:
                # A relay that does not listen yet, or is deaf, must not keep others from what it cannot do.
                await self._lead(connection)
                await self._begin(connection)
                self._listens(connection, heard)
            else:
                await self._listen_further(connection)
            count, seconds = self.waiting()
            await connection.say(f"{self.state} {count} {seconds:.1f}s", said.PROBE_WITHIN)
            await asyncio.sleep(said.PROBE_EVERY if proven else min(said.PROBE_EVERY, _PROVE_AGAIN))

    async def _prove(self, connection: ListeningConnection) -> datetime | None:
        """The moment up to which delivery is proven; None where the token could not be sent. Raises Deaf."""
        said = conf.get()
        try:
            return await self._probe.prove(connection, said.CONNECT_TIMEOUT, said.PROBE_WITHIN)
        except NotSent as error:
            if self._cause == START and self._listens_since is None and error.__cause__ is not None:
                refuse(self.database, error.__cause__)
            # That alone is no reason to give up a connection which works: it might not come back. Does it?
            await connection.alive(said.PROBE_WITHIN)
            self._is_unproven(str(error))
            return None

    def _is_proven(self, moment: datetime) -> None:
        if self._unproven_said:
            logger.warning("Delivery is proven again.")
        self.state, self._unproven_said = HEALTHY, ""
        ago = (datetime.now(UTC) - moment).total_seconds()
        self.proven, self._heard = moment, Moment(moment, time.monotonic() - max(ago, 0.0))
        self.proofs += 1
        if self.on_proven is not None:
            self.on_proven()

    def _is_unproven(self, reason: str) -> None:
        self.state = PROVING
        if reason != self._unproven_said:
            self._unproven_said = reason
            logger.warning(
                "Delivery from the database %r cannot be proven, because the probe's own connection failed: %s. The "
                "listening connection answers, and is kept. Trying again; this is said once.",
                self.database,
                reason,
            )

    def _is_deaf(self, connection: ListeningConnection) -> str:
        self.state = DEAF
        text = _DEAF % (connection.server, conf.get().PROBE_WITHIN)
        if self._cause == START and self._listens_since is None:
            raise RelayRefused(f"{text}.")
        logger.error("%s. It is replaced.", text)
        return "deaf: the probe's token did not arrive"

    async def _begin(self, connection: ListeningConnection) -> None:
        """Start the companions: not before the first connection has shown that the set-up will do, and before anybody
        is told that the relay listens, for what is written from then on is theirs."""
        waiting = self.companions[len(self._started_companions) :]
        if not waiting:
            return
        ((snapshot, at),) = await connection.ask(_BEGINNING, conf.get().PROBE_WITHIN)
        for companion in waiting:
            companion.start(self._deliver, Beginning(snapshot, at))
            self._started_companions.append(companion)

    def _listens(self, connection: ListeningConnection, heard: Moment) -> None:
        now = datetime.now(UTC)
        again = self._cause != START
        gap = Gap(self.database, heard.before(now) if again else now, now, self._cause)
        channels = ", ".join(channel for channel in connection.channels if channel not in (self._probe.channel, LOG))
        proof = "Delivery is proven" if self.state == HEALTHY else "Delivery is not proven"
        logger.info("Listening to %s in %s. %s.", channels, connection.server, proof)
        if again:
            self.reconnects += 1
            seconds = (gap.until - gap.since).total_seconds()
            logger.warning("Connected again. Fast events of the last %.1f s may be lost (%s).", seconds, self._cause)
        self._listens_since = asyncio.get_running_loop().time()
        self._announce(gap)
        self._ring()
        if self.on_listening is not None:
            self.on_listening()

    async def _listen_further(self, connection: ListeningConnection) -> None:
        """A migration may have made triggers that speak on channels of their own."""
        before = self._looked
        if not (channels := await connection.listen_further(self._declared, conf.get().PROBE_WITHIN)):
            return
        now, names = datetime.now(UTC), ", ".join(channels)
        logger.warning("Triggers speak on channels that are new here: %s. From now on they are listened to.", names)
        cause = f"triggers speak on channels that are new here: {names}"
        self._announce(Gap(self.database, before.before(now), now, cause, connected=False))

    async def _keep_leading(self, connection: ListeningConnection) -> str:
        """Take what another relay leaves. Ends only with the connection."""
        while True:
            await asyncio.sleep(TRY_EVERY)
            if self._listens_since is not None:
                await self._lead(connection)

    async def _lead(self, connection: ListeningConnection) -> None:
        duties = {duty for sink in self.sinks for duty in sink.duties()}
        if gained := await self._campaign(duties, connection):
            logger.info("This relay alone has now: %s.", ", ".join(sorted(gained)))
            self._to_sinks(lambda sink: sink.lead(self.leadership.held))

    async def _campaign(self, duties: Collection[str], connection: ListeningConnection) -> frozenset[str]:
        try:
            return await self.leadership.campaign(duties, connection, conf.get().PROBE_WITHIN)
        except psycopg.Error as error:
            if connection.lost.done():
                raise
            if not self._cannot_lead_said:
                self._cannot_lead_said = True
                logger.error(
                    "What only one relay may do (%s) is not done by this one: the server refuses the lock: %s.",
                    ", ".join(sorted(duties)),
                    one_line(error),
                )
            return frozenset()

    # Around it.

    async def _unless_stopped(self, work: Coroutine[Any, Any, ListeningConnection]) -> ListeningConnection | None:
        task = asyncio.ensure_future(work)
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

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

    # What arrives, and who is told.

    def _put(self, events: Sequence[PgEvent], size: int) -> None:
        # As `_to_sinks` has it, without a function to call: this is what an event waits for.
        for sink in self.sinks:
            try:
                sink.put(events, size)
            except Exception:
                self._failed(sink)

    def _deliver(self, events: Sequence[PgEvent], size: int) -> None:
        """From a companion's thread, which waits: what it reads must not pile up while the event loop is held up."""
        loop, done = self._loop, threading.Event()
        if loop is None or loop.is_closed():
            return

        def put() -> None:
            self._put(events, size)
            done.set()

        loop.call_soon_threadsafe(put)
        while not done.wait(1.0) and not loop.is_closed():
            pass

    def _ring(self) -> None:
        for companion in self.companions:
            companion.ring()

    def _announce(self, gap: Gap) -> None:
        self.gaps += gap.cause != START
        self._to_sinks(lambda sink: sink.gap(gap))

    def _to_sinks(self, tell: Callable[[Sink], None]) -> None:
        """Tell every sink; one that fails keeps nothing from the others."""
        for sink in self.sinks:
            try:
                tell(sink)
            except Exception:
                self._failed(sink)

    def _failed(self, sink: Sink) -> None:
        logger.exception("The sink %s failed, and has missed something.", type(sink).__name__)
