"""A worker: a thread that handles a group's events from the partitions that it has leased.

It looks what came since its position, handles it in pieces, moves the position, and waits for the bell; before it
sleeps it looks again a few times, because of several writers that commit together one rings. What it has leased it
shares with the other workers of its group, whichever process they are in.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import psycopg
from django.db import Error as DjangoError
from django.db import connections, transaction

from .. import conf, wire
from ..decode import Decoder, UnknownLabel
from ..event import PgEvent, together
from ..receivers import Options, Registry
from ..receivers import registry as the_registry
from ..signals import event_dead
from . import failures, groups, identity, reading
from .failures import Died, Failure, Parked, Retry, backoff
from .groups import Fenced, Lease
from .handling import Handler, Interrupted
from .line import Line
from .reading import Horizon, Position, Row
from .rhythm import Bell, Rhythm

logger = logging.getLogger("pgsignals.durable")

_ALL_FAIL = 10
"""Events that fail one after the other, before any other was handled, and mean that not the events are at fault. After
each pause that they led to twice as many are tried, up to all that were read: a few bad ones do not stop the rest."""

_MOST_PAUSES = 20
"""Pauses in a row, of some hours together, after which the events are at fault nevertheless."""

_MOST_DUE = 100
"""Parked events that are tried again at once."""

_LOOK_AGAIN = 1.0
"""Seconds after which a worker looks again which keys are blocked, and whether its group is paused."""

_LOOK_AT_UNREADABLE = 60.0
"""Seconds after which an event that waits, and that this code cannot read, is looked at again."""

_LONGEST_RECONNECT = 30.0


class Worker:
    """Handles the events of one group in a thread of its own."""

    def __init__(self, database: str, group: str, options: Options, registry: Registry = the_registry) -> None:
        self.database = database
        self.group = group
        self.name = reading.unique_name(group)
        self.bell = Bell()
        self.handled = 0
        """Events of this group, since the start, those that failed included."""
        self.leases: dict[int, Lease] = {}
        """By the partition's id."""
        self._atomic = options.atomic
        self._start = options.start
        self._settings = conf.get()
        self._registry = registry
        self._decoder = Decoder(database)
        self._handler: Handler | None = None
        self._connection: Line | None = None
        self._partitions = 0
        self._held_until = 0.0
        """By the monotonic clock: until then nobody else can have taken a partition."""
        self._blocked: set[tuple[str, str]] = set()
        self._looked = self._stored = 0.0
        self._balanced = -1e9
        self._paused = False
        self._waits: dict[int, float] = {}
        """Partitions that are left alone until then, by the monotonic clock."""
        self._dirty: set[int] = set()
        """Partitions of which events have been begun, or handled, that are not acknowledged yet."""
        self._unsaid = 0
        """How many these are."""
        self._found = 0
        """How many events the last round has read."""
        self._more = False
        """Whether the last round has left something that is known to be there."""
        self._stopping = threading.Event()
        self._draining: Horizon | None = None
        self.drained = threading.Event()
        """Set when a worker that drains has nothing left to do."""
        self._said: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name=f"pgsignals-group-{group}", daemon=True)

    # For whoever runs it.

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
        if self._handler is not None:
            self._handler.watch()

    def prolong(self, connection: psycopg.Connection[Any]) -> None:
        """Renew the leases. Called in another thread, whatever a receiver does to this one."""
        leases = list(self.leases.values())
        began = time.monotonic()
        connection.execute(*groups.presence(self.name))
        if not leases:
            return
        still = groups.renew(connection, leases, self._settings.LEASE)
        if all(lease.id in still for lease in leases):
            self._held_until = began + self._settings.LEASE

    # In the thread.

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                self._connect()
                attempt = 0
                self._work()
            except Fenced:
                logger.warning(
                    "The worker %s has lost partitions of the group %r to another: it was away for longer than its "
                    "lease of %g s. What it handled meanwhile, the other may handle again.",
                    self.name,
                    self.group,
                    self._settings.LEASE,
                )
                self._begin_anew()
            except (psycopg.Error, DjangoError, OSError) as error:
                attempt += 1
                wait = random.uniform(0.1, min(_LONGEST_RECONNECT, 0.2 * 2 ** min(attempt, 10)))  # noqa: S311
                logger.warning(
                    "The worker %s of the group %r goes on in %.1f s with a new connection: %s",
                    self.name,
                    self.group,
                    wait,
                    " ".join(str(error).split()) or type(error).__name__,
                )
                self._disconnect()
                self._stopping.wait(wait)
            except BaseException:
                logger.exception("The worker %s of the group %r failed, and begins anew.", self.name, self.group)
                self._disconnect()
                self._stopping.wait(1.0)
        self._end()

    def _connect(self) -> None:
        if self._connection is None:
            self._connection = reading.connect(self.database, f"pgsignals group {self.group}")
            identity.recognise(self._connection)
            # After a lost connection nobody needs to wait for the leases of before.
            groups.abandon(self._connection, self.name)
            self._register(self._connection)
        if self._handler is None:
            self._handler = Handler(self.group, self._registry)
        self._balanced = -1e9

    def _begin_anew(self) -> None:
        """Give back what is still this worker's, and see what it gets. The group may have been deleted meanwhile."""
        try:
            groups.abandon(self._own, self.name)
            self._register(self._own)
        except psycopg.Error:
            self._disconnect()
        self._forget()
        self._balanced = -1e9

    def _register(self, connection: psycopg.Connection[Any]) -> None:
        self._partitions = groups.register(connection, self.group, self._settings.PARTITIONS, self._atomic, self._start)

    def _forget(self) -> None:
        self.leases = {}
        self._waits = {}
        self._dirty = set()
        self._unsaid = 0

    def _disconnect(self) -> None:
        self._forget()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        connections.close_all()

    def _end(self) -> None:
        try:
            if self._connection is not None:
                self._flush()
                groups.release(self._connection, list(self.leases.values()))
                groups.leave(self._connection, self.name)
        except (psycopg.Error, Fenced) as error:
            logger.warning("The worker %s could not give its partitions back: %s", self.name, error)
        self._disconnect()
        if self._handler is not None:
            self._handler.close()
        self.drained.set()

    def _work(self) -> None:
        rhythm = Rhythm(self.bell)
        while not self._stopping.is_set():
            self._balance()
            rhythm.begin()
            if self._round():
                rhythm.found(self._found, more=self._more)
                continue
            if self._draining is not None and self._is_drained():
                self.drained.set()
            rhythm.found_nothing(self._nap)

    def _nap(self) -> float:
        """Seconds until there may be something to do although nobody rings."""
        nap, now = self._settings.LOG_POLL, time.monotonic()
        if self._paused or not self.leases:
            return nap
        numbers = self._numbers(self.leases.values())
        if (due := failures.next_due(self._own, self.group, self._partitions, numbers)) is not None:
            nap = min(nap, max(due, 0.005))
            if not self._blocked:
                # Somebody else has parked it.
                self._looked = 0.0
        return min([nap, *(max(until - now, 0.005) for until in self._waits.values())])

    @property
    def _own(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            raise psycopg.OperationalError("there is no connection")
        return self._connection

    # Which partitions.

    def _balance(self) -> None:
        """Now and then: see who else works for the group, and have a fair share."""
        now = time.monotonic()
        if now - self._balanced < self._settings.LEASE / 4:
            return
        self._balanced = now
        workers = groups.report(self._own, self.name, self.group, self._settings.LEASE)
        share = -(-self._partitions // workers)
        if len(self.leases) > share:
            self._flush()
            surplus = list(self.leases.values())[share:]
            groups.release(self._own, surplus)
            for lease in surplus:
                del self.leases[lease.id]
        elif len(self.leases) < share:
            began = time.monotonic()
            most = share - len(self.leases)
            new = groups.acquire(self._own, self.name, self.group, most, self._settings.LEASE)
            if new:
                if not self.leases:
                    self._held_until = began + self._settings.LEASE
                self.leases.update((lease.id, lease) for lease in new)
                self._looked = 0.0
        self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN:
            return
        self._looked = now
        self._paused = groups.is_paused(self._own, self.group)
        self._blocked = failures.blocked(self._own, self.group, self._partitions, self._numbers(self.leases.values()))

    @staticmethod
    def _numbers(leases: Any) -> list[int]:
        return [lease.number for lease in leases]

    def _may_go_on(self) -> None:
        """Raises Interrupted where the next event is not to be handled."""
        if self._stopping.is_set():
            raise Interrupted
        self._may_end()

    def _may_end(self) -> None:
        """Raises Interrupted where even what was begun is not to be continued: another may have taken it over."""
        if time.monotonic() > self._held_until:
            raise Interrupted

    # What is handled.

    def _round(self) -> bool:
        """Whether there was anything to do."""
        self._look()
        if not self.leases or self._paused:
            return False
        if time.monotonic() > self._held_until:
            # Nothing renewed the leases in time: this process stood still. Are they still ours?
            self.prolong(self._own)
            if time.monotonic() > self._held_until:
                raise Fenced
        assert self._handler is not None  # noqa: S101 - _connect made it
        self._handler.refresh()
        did = self._more = False
        self._found = 0
        horizon = self._draining or reading.horizon(self._own)
        now = time.monotonic()
        self._waits = {number: until for number, until in self._waits.items() if until > now}
        for leases in self._alike():
            ready = [lease for lease in leases if lease.id not in self._waits]
            if ready:
                did |= self._piece(ready, horizon)
        did |= self._retry()
        return did

    def _piece(self, leases: list[Lease], horizon: Horizon) -> bool:
        """Read the next rows of partitions that are at one position, and handle them."""
        position, careful = leases[0].position, leases[0].careful_id
        if position.is_done:
            careful = None
            position = reading.opened(self._own, position, horizon)
            if position.is_done:
                self._acknowledge(leases, position)
                return False
        is_careful = careful is not None and position.last_id < careful
        limit = 1 if is_careful else self._settings.LOG_BATCH
        rows = self._read(position, limit, leases)
        if not rows or (is_careful and careful is not None and rows[0][0] > careful):
            is_careful = False
            if rows:
                limit = self._settings.LOG_BATCH
                rows = self._read(position, limit, leases)
        self._found += len(rows)
        self._more |= len(rows) == limit
        after = position.at(rows[-1][0]) if len(rows) == limit else position.done()
        events, unknown = self._decoded(rows)
        if unknown is not None:
            rows = rows[:unknown]
            after = position.at(rows[-1][0]) if rows else position
        wanted = [(row, event) for row, event in zip(rows, events, strict=False) if event is not None]
        if not wanted:
            if unknown is not None:
                self._wait(leases, self._settings.LOG_POLL)
            self._acknowledge(leases, after, careful if is_careful else None, lazily=not rows)
            return bool(rows)
        if is_careful:
            self._handle_carefully(leases, position, after, wanted[0], careful)
        elif self._atomic:
            self._handle_atomically(leases, position, after, wanted)
        else:
            self._handle_all(leases, position, after, wanted)
        return True

    def _read(self, position: Position, limit: int, leases: Sequence[Lease]) -> list[Row]:
        query, given = reading.query(position, limit, self._partitions, self._numbers(leases))
        return self._own.execute(query, given).fetchall()

    def _decoded(self, rows: Sequence[Row]) -> tuple[list[PgEvent | None], int | None]:
        """The events, None where no receiver wants one; and the place of the first of an unknown format."""
        assert self._handler is not None  # noqa: S101
        events: list[PgEvent | None] = []
        for place, row in enumerate(rows):
            try:
                event = self._decoder.logged(row[:7], self.group)
            except UnknownLabel:
                events.append(None)
                continue
            except wire.UnknownVersion as error:
                self._say_once("The group %r waits at event %d: %s.", self.group, row[0], error)
                return events, place
            except wire.WireError as error:
                logger.error(
                    "The log's row %d cannot be read, and is left out for group %r: %s", row[0], self.group, error
                )
                events.append(None)
                continue
            events.append(event if self._handler.receivers(event) else None)
        return events, None

    def _say_once(self, text: str, *arguments: object) -> None:
        said = text % arguments
        now = time.monotonic()
        if now - self._said.get(said, -1e9) > 60:
            self._said = {said: now}
            logger.error(said)

    def _set(self, leases: Sequence[Lease], position: Position, careful: int | None = None) -> None:
        """In memory alone."""
        for lease in leases:
            self.leases[lease.id] = Lease(lease.id, lease.number, lease.epoch, position, careful, None, 0, 0)

    def _move(
        self, connection: Any, leases: list[Lease], position: Position, safely: bool = False, **said: Any
    ) -> None:
        """Write a position. Raises Fenced."""
        said["handled"] = said.get("handled", 0) + self._unsaid
        given = groups.movement(leases, position, **said)
        # Django's cursor where the position is to commit with what receivers wrote.
        cursor = connection if safely else connection.cursor()
        cursor.execute(groups.SAFELY if safely else groups.LAZILY, given)
        if cursor.rowcount != len(leases):
            raise Fenced
        for lease in groups.moved(leases, given, position):
            self.leases[lease.id] = lease
        self._unsaid = 0
        self._stored = time.monotonic()
        moved = {lease.id for lease in leases}
        self._dirty = self._dirty | moved if said.get("claimed") else self._dirty - moved

    def _acknowledge(
        self, leases: list[Lease], position: Position, careful: int | None = None, lazily: bool = True
    ) -> None:
        """Write the position where events were handled up to it, and now and then where there were none."""
        self._set(leases, position, careful)
        old = time.monotonic() - self._stored > self._settings.LEASE / 2
        if old or not lazily or self._draining or self._is_dirty(leases):
            self._move(self._own, leases, position, careful=careful)

    def _flush(self) -> None:
        """Acknowledge what has been handled and not been written yet."""
        for leases in self._alike():
            if self._is_dirty(leases):
                self._move(self._own, leases, leases[0].position, careful=leases[0].careful_id)

    def _is_dirty(self, leases: Sequence[Lease]) -> bool:
        return any(lease.id in self._dirty for lease in leases)

    def _alike(self) -> list[list[Lease]]:
        """The leases that move on together: those of partitions at one position, in one state."""
        together: dict[tuple[Position, int | None, int | None, int, int], list[Lease]] = {}
        for lease in self.leases.values():
            alike = (lease.position, lease.careful_id, lease.claimed_id, lease.claims, lease.failures)
            together.setdefault(alike, []).append(lease)
        return list(together.values())

    def _wait(self, leases: Sequence[Lease], seconds: float) -> None:
        for lease in leases:
            self._waits[lease.id] = time.monotonic() + seconds

    # Of a group whose receivers run outside of any transaction.

    def _handle_all(
        self, leases: list[Lease], position: Position, after: Position, wanted: list[tuple[Row, PgEvent]]
    ) -> None:
        handler = self._handler
        assert handler is not None  # noqa: S101
        failed_before = leases[0].failures
        # What was handled before is acknowledged with this, and what comes now is begun.
        self._move(self._own, leases, position, claimed=wanted[-1][0][0], claims=1, careful=leases[0].careful_id)
        leases = [self.leases[lease.id] for lease in leases]
        failed: dict[int, Failure] = {}
        good: list[tuple[Row, PgEvent]] = []
        done = 0
        try:
            for row, event in wanted:
                self._may_go_on()
                key = (row[3], row[4])
                if key in self._blocked:
                    failed[row[0]] = Failure(row, None)
                elif (error := handler.call_each(event, lists=False)) is not None:
                    self._blocked.add(key)
                    failed[row[0]] = Failure(row, error, 1, handler.max_attempts(event))
                else:
                    good.append((row, event))
                done += 1
                if not good and _everything_fails(failed.values(), len(wanted), failed_before):
                    self._pause(leases, position, failed_before + 1, failed.values())
                    return
        except Interrupted:
            after = position.at(wanted[done - 1][0][0]) if done else position
        if handler.has_batches and good and not self._handle_lists(good, failed):
            done, failed, after = 0, {}, position
        self.handled += done
        if failed:
            parked = [failed[number] for number in sorted(failed)]
            with self._own.transaction():
                failures.park(self._own, self.group, parked)
                self._move(self._own, leases, after, handled=done)
            self._tell_of_the_dead(parked)
            self._looked = min(self._looked, time.monotonic() - _LOOK_AGAIN + 0.1)
        else:
            self._set(leases, after)
            self._unsaid += done
            if self._stopping.is_set() or after is position or after.is_done:
                self._move(self._own, leases, after)

    def _handle_lists(self, good: list[tuple[Row, PgEvent]], failed: dict[int, Failure]) -> bool:
        """Whether they were gone through; not where another may have taken them over meanwhile.

        A worker that is told to end finishes the lists: receivers that want no lists have had these events already.
        """
        handler = self._handler
        assert handler is not None  # noqa: S101
        rows = {id(event): row for row, event in good}

        def key(event: PgEvent) -> tuple[str, str]:
            row = rows[id(event)]
            return row[3], row[4]

        try:
            found = handler.call_lists([event for _, event in good], self._may_end, key)
        except Interrupted:
            return False
        for event, error in found:
            row = rows[id(event)]
            self._blocked.add(key(event))
            failed[row[0]] = Failure(row, error, int(error is not None), handler.max_attempts(event))
        return True

    def _pause(self, leases: list[Lease], position: Position, pauses: int, failed: Collection[Failure]) -> None:
        """Everything fails: a database or a service is away, and parking it all would help nobody."""
        wait = backoff(pauses)
        self._blocked = set()
        self._looked = 0.0
        self._move(self._own, leases, position, failures=pauses, wait=wait)
        self._wait(leases, wait)
        logger.error(
            "The first %d events of the group %r failed, all of them; the group pauses for %.1f s, and nothing is "
            "counted against the events (%s).",
            len(failed),
            self.group,
            wait,
            next(one.summary for one in failed if one.error is not None),
        )

    def _handle_carefully(
        self,
        leases: list[Lease],
        position: Position,
        after: Position,
        wanted: tuple[Row, PgEvent],
        careful: int | None,
    ) -> None:
        """An event among those that a worker began and did not end: it may be what ended it."""
        handler = self._handler
        assert handler is not None  # noqa: S101
        row, event = wanted
        begun = leases[0].claims if leases[0].claimed_id == row[0] else 0
        if begun >= handler.max_attempts(event):
            text = f"the process ended {begun} times while it handled this event"
            dead = Failure(row, Died(text), begun, begun)
            with self._own.transaction():
                failures.park(self._own, self.group, [dead])
                self._move(self._own, leases, after, careful=careful)
            self._tell_of_the_dead([dead])
            return
        self._move(self._own, leases, position, claimed=row[0], claims=begun + 1, careful=careful)
        leases = [self.leases[lease.id] for lease in leases]
        if self._atomic:
            self._handle_atomically(leases, position, after, [wanted], careful=careful, attempts=begun + 1)
            return
        failure = None
        if (row[3], row[4]) in self._blocked:
            failure = Failure(row, None)
        elif (error := handler.call_each(event)) is not None:
            failure = Failure(row, error, begun + 1, handler.max_attempts(event))
        self.handled += 1
        with self._own.transaction():
            if failure is not None:
                self._blocked.add((row[3], row[4]))
                failures.park(self._own, self.group, [failure])
            self._move(self._own, leases, after, careful=careful, handled=1)
        self._tell_of_the_dead([failure] if failure else [])

    # Of an atomic group.

    def _handle_atomically(
        self,
        leases: list[Lease],
        position: Position,
        after: Position,
        wanted: list[tuple[Row, PgEvent]],
        *,
        careful: int | None = None,
        attempts: int = 0,
    ) -> None:
        """All in one transaction; where one fails, each in its own, so that it alone is parked.

        attempts: of the one event that is handled with care, and was claimed for itself.
        """
        failed_before = leases[0].failures
        if not attempts:
            self._move(self._own, leases, position, claimed=wanted[-1][0][0], claims=1, careful=careful)
            leases = [self.leases[lease.id] for lease in leases]
        if len(wanted) > 1:
            try:
                if self._try_together(leases, after, wanted, careful) is None:
                    self.handled += len(wanted)
                    return
            except Interrupted:
                self._move(self._own, leases, position, careful=careful)
                return
        self._handle_each_atomically(leases, position, after, wanted, careful, max(attempts, 1), failed_before)

    def _handle_each_atomically(
        self,
        leases: list[Lease],
        position: Position,
        after: Position,
        wanted: list[tuple[Row, PgEvent]],
        careful: int | None,
        attempts: int,
        failed_before: int,
    ) -> None:
        """What fails is parked together with the next that does not, or at the end: before that it was not tried."""
        handler = self._handler
        assert handler is not None  # noqa: S101
        stands, failed, any_good = position, list[Failure](), False
        for one in wanted:
            row, event = one
            then = after if one is wanted[-1] else position.at(row[0])
            if (row[3], row[4]) in self._blocked:
                failed.append(Failure(row, None))
            else:
                try:
                    self._may_go_on()
                    error = self._try_together(leases, then, [one], careful, failed)
                except Interrupted:
                    self._looked = 0.0
                    self._move(self._own, leases, stands, careful=careful)
                    return
                if error is None:
                    self._tell_of_the_dead(failed)
                    stands, failed, any_good = then, [], True
                    continue
                self._blocked.add((row[3], row[4]))
                failed.append(Failure(row, error, attempts, handler.max_attempts(event)))
            if not any_good and _everything_fails(failed, len(wanted), failed_before):
                self._pause(leases, position, failed_before + 1, failed)
                return
        self.handled += len(wanted)
        if failed:
            with self._own.transaction():
                failures.park(self._own, self.group, failed)
                self._move(self._own, leases, after, careful=careful, handled=len(failed))
            self._tell_of_the_dead(failed)

    def _try_together(
        self,
        leases: list[Lease],
        after: Position,
        wanted: list[tuple[Row, PgEvent]],
        careful: int | None,
        failed: Sequence[Failure] = (),
    ) -> BaseException | None:
        """What receivers wrote and the position, or nothing. The error that was in the way, or None.

        failed: events before these, which are parked in the same transaction.
        """
        handler = self._handler
        assert handler is not None  # noqa: S101
        connection = connections[self.database]
        parked = [*failed, *(Failure(row, None) for row, _ in wanted if (row[3], row[4]) in self._blocked)]
        free = [event for row, event in wanted if (row[3], row[4]) not in self._blocked]
        before = (dict(self.leases), self._dirty, self._unsaid)
        try:
            with transaction.atomic(using=self.database):
                for event in free:
                    self._may_go_on()
                    for receiver in handler.receivers(event):
                        if not receiver.options.batch:
                            self._call_in_transaction(receiver, event, connection)
                if handler.has_batches:
                    self._call_lists_in_transaction(free, connection)
                with connection.cursor() as cursor:
                    failures.park(cursor, self.group, parked)
                    count = len(failed) + len(wanted)
                    self._move(cursor, leases, after, safely=True, careful=careful, handled=count)
        except (Fenced, Interrupted):
            self.leases, self._dirty, self._unsaid = before
            raise
        except Exception as error:
            self.leases, self._dirty, self._unsaid = before
            if not connection.is_usable():
                connections[self.database].close()
                raise psycopg.OperationalError(f"the transaction of an atomic group was lost: {error}") from error
            return error
        return None

    def _call_in_transaction(self, receiver: Any, argument: Any, connection: Any) -> None:
        assert self._handler is not None  # noqa: S101
        error = self._handler.call(receiver, argument, keep_transaction=True)
        if error is not None:
            raise error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        if connection.needs_rollback or not connection.in_atomic_block:
            raise RuntimeError(f"{receiver.name} left the group's transaction broken, or ended it")

    def _call_lists_in_transaction(self, events: list[PgEvent], connection: Any) -> None:
        assert self._handler is not None  # noqa: S101
        wanted: dict[Any, list[PgEvent]] = {}
        for event in events:
            for receiver in self._handler.receivers(event):
                if receiver.options.batch:
                    wanted.setdefault(receiver, []).append(event)
        for receiver, its in wanted.items():
            self._call_in_transaction(receiver, together(its), connection)

    # What had failed.

    def _retry(self) -> bool:
        """Try parked events again whose time has come. Whether there were any."""
        if not self._blocked:
            return False
        leases = {lease.number: lease for lease in self.leases.values()}
        found = failures.due(self._own, self.group, self._partitions, list(leases), _MOST_DUE)
        failed: set[tuple[str, str]] = set()
        for one in found:
            try:
                self._may_go_on()
            except Interrupted:
                break
            key = (one.row[3], one.row[4])
            if key not in failed and not self._retry_one(one, leases[one.row[7] % self._partitions]):
                failed.add(key)
        if found:
            self._looked = 0.0
            self._look()
        return bool(found)

    def _retry_one(self, one: Parked, lease: Lease) -> bool:
        """Whether it is parked no more, so that the next of its key may be tried."""
        handler = self._handler
        assert handler is not None  # noqa: S101
        try:
            event = self._decoder.logged(one.row[:7], self.group)
        except wire.WireError as error:
            self._say_once("Event %d, which waits in the group %r, cannot be read: %s.", one.row[0], self.group, error)
            later = Retry(str(error), after=_LOOK_AT_UNREADABLE)
            failures.postpone(self._own, one, lease, self.group, Failure(one.row, later, 1, 2))
            return False
        limit = handler.max_attempts(event)
        if one.attempts >= limit:
            text = f"the process ended while it handled this event, at attempt {one.attempts}"
            self._put_off(one, lease, Failure(one.row, Died(text), one.attempts, limit))
            return True
        failures.begin(self._own, one, lease)
        self.handled += 1
        if self._atomic:
            raised = self._retry_atomically(one, lease, event)
        else:
            raised = handler.call_each(event)
            if raised is None:
                failures.forget(self._own.cursor(), one, lease)
        if raised is None:
            return True
        failure = Failure(one.row, raised, one.attempts + 1, limit)
        self._put_off(one, lease, failure)
        return failure.is_final

    def _retry_atomically(self, one: Parked, lease: Lease, event: PgEvent) -> BaseException | None:
        handler = self._handler
        assert handler is not None  # noqa: S101
        connection = connections[self.database]
        try:
            with transaction.atomic(using=self.database):
                for receiver in handler.receivers(event):
                    argument = together([event]) if receiver.options.batch else event
                    self._call_in_transaction(receiver, argument, connection)
                with connection.cursor() as cursor:
                    failures.forget(cursor, one, lease)
        except Fenced:
            raise
        except Exception as error:
            if not connection.is_usable():
                connection.close()
            return error
        return None

    def _put_off(self, one: Parked, lease: Lease, failure: Failure) -> None:
        failures.postpone(self._own, one, lease, self.group, failure)
        self._tell_of_the_dead([failure])

    def _tell_of_the_dead(self, parked: Sequence[Failure]) -> None:
        for one in parked:
            if not one.is_final:
                continue
            logger.error(
                "The group %r gives event %d up after %d attempts (%s). It is kept as a dead letter.",
                self.group,
                one.row[0],
                one.attempts,
                one.summary,
            )
            try:
                event = self._decoder.logged(one.row[:7], self.group)
            except wire.WireError:
                event = None
            event_dead.send_robust(sender=self.group, group=self.group, event=event, exception=one.error)

    # To drain.

    def prepare(self, connection: Line) -> None:
        """Make the group where there is none of its name, so that what comes from now on is its."""
        identity.recognise(connection)
        self._register(connection)

    def drain(self, until: Horizon) -> None:
        """Handle what is there at a horizon, and say so in `drained`. Called before `start`."""
        self._draining = until

    def _is_drained(self) -> bool:
        """Also where there is more, and nobody may, or can, handle it now; that was said in the log."""
        if self._paused or self._waits:
            return True
        if self._draining is None or not groups.has_reached(self._own, self.group, self._draining):
            return False
        return not failures.has_due(self._own, self.group)


def _everything_fails(failed: Collection[Failure], read: int, pauses: int) -> bool:
    """Whether what failed, before anything was handled, says that not the events are at fault but what they need.

    A receiver that raises Retry speaks of its event, and not of a service that is away.
    """
    if read < _ALL_FAIL or pauses >= _MOST_PAUSES:
        return False
    errors = sum(1 for one in failed if one.error is not None and not isinstance(one.error, Retry))
    # Those behind one of their key count with it where nothing else was read.
    return errors >= (_ALL_FAIL if len(failed) == read else _ALL_FAIL << pauses)
