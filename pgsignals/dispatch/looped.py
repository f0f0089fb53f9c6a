"""Asynchronous receivers: a bounded number of them at a time, in the relay's event loop.

Some tasks take calls from one feed, each the next. A receiver that never waits for anything is called by one of them
after the other, without a task for each event; one that waits leaves the feed to the rest.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from asgiref.sync import sync_to_async

from .. import conf
from ..event import PgEvent
from ..receivers import Receiver
from ..sink import Gap
from .calling import BRIEF, Argument, Slowness, count, count_brief, refresh, renew, report, tidy
from .feed import Feed, Run
from .threaded import PAUSE

logger = logging.getLogger("pgsignals.dispatch")

_LOOK_WITHIN = 1.0
"""Seconds that receivers wait until Django's connections have been looked after."""

_IN_A_ROW = 200
"""Calls after which others may use the event loop, although no receiver waited for anything."""


class Looped:
    """Works off a feed in an event loop."""

    def __init__(self, feed: Feed, slowness: Slowness) -> None:
        self.feed = feed
        self._slowness = slowness
        self._stopping = False
        self._runs: Iterator[Run] | None = None
        self._run: Run | None = None
        self._idle: list[asyncio.Future[None]] = []
        self._running: dict[int, tuple[Receiver, float]] = {}
        """By the number of the task."""
        self._helper_is_coming = False
        self._tasks: list[asyncio.Task[None]] = []
        self._most = conf.get().CONCURRENCY
        self._last_used: Receiver | None = None
        """A receiver that took long enough to have used the database, since connections were looked after."""
        self._to_look_after: Receiver | None = None
        self._looking: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is something to do."""
        if self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
        elif len(self._tasks) < self._most:
            work = self._work(len(self._tasks))
            self._tasks.append(asyncio.create_task(work, name="pgsignals-receivers"))

    def hand(self, event: PgEvent) -> bool:
        """Give a task an event that came alone, past the buffer, where all wait for one. Whether it was taken."""
        if self._runs is not None or not self._idle or self.feed.handed is not None:
            return False
        if (run := self.feed.single(event)) is None:
            return False
        self.feed.hand(run)
        self.wake()
        return True

    async def stop(self, within: float | None) -> None:
        """Let the running receivers finish, and end those that do not."""
        self._stopping = True
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        if not self._tasks:
            return
        tasks = [*self._tasks, *([self._looking] if self._looking is not None else [])]
        _, late = await asyncio.wait(tasks, timeout=within)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def watch(self) -> None:
        """See whether a receiver takes its time. Called now and then."""
        now = time.perf_counter()
        for receiver, since in list(self._running.values()):
            self._slowness.running(receiver, now - since, self.feed.waiting()[0])

    async def _work(self, number: int) -> None:
        while not self._stopping:
            try:
                await self._work_once(number)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                self._failed(number, error)
                await asyncio.sleep(PAUSE)

    async def _work_once(self, number: int) -> None:
        if (run := self._next_run()) is not None:
            if not self.feed.is_alone and (self._idle or len(self._tasks) < self._most):
                self._more()
            await self._work_off(number, *run)
        elif self._last_used is not None and not self._running:
            # Once for all that waited: it costs a way to another thread and back.
            used, self._last_used = self._last_used, None
            await self._look_after(used)
        else:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    def _failed(self, number: int, error: BaseException) -> None:
        self._runs = self._run = None
        self._running.pop(number, None)
        with suppress(BaseException):  # what failed may be the project's logging
            self.feed.abandon(error)

    def _next_run(self) -> Run | None:
        """The run from which another task takes already, or the next one."""
        if self._run is not None and operator.length_hint(self._run[1]):
            return self._run
        self._run = None if self._runs is None else next(self._runs, None)
        if self._run is None and self.feed.has_more:
            self._runs = self.feed.runs()
            self._run = next(self._runs, None)
        if self._run is None:
            self._runs = None
        return self._run

    def _more(self) -> None:
        """Another task takes the next call, should this one's receiver wait for something."""
        if not self._helper_is_coming:
            self._helper_is_coming = True
            asyncio.get_running_loop().call_soon(self._help)

    def _help(self) -> None:
        self._helper_is_coming = False
        if self._runs is not None or self.feed.has_more:
            self.wake()

    async def _work_off(self, number: int, receiver: Receiver, run: Iterator[Argument]) -> None:
        """Make the calls of a run, side by side with other tasks that take from it too."""
        function, timeout, clock = receiver.function, receiver.options.timeout, time.perf_counter
        plain = timeout is None and not receiver.options.batch
        brief, spent = 0, 0.0
        for in_a_row, argument in enumerate(run, start=1):
            if argument.__class__ is Gap:
                await self._renew(argument)
            began = clock()
            self._running[number] = (receiver, began)
            error: BaseException | None = None
            try:
                if timeout is None:
                    await function(argument)
                else:
                    async with asyncio.timeout(timeout):
                        await function(argument)
            except BaseException as raised:
                # A receiver that raises CancelledError itself has failed; a task that is cancelled from outside ends.
                if isinstance(raised, asyncio.CancelledError) and _is_cancelled():
                    raise
                error = raised
            seconds = clock() - began
            if plain and error is None and seconds < BRIEF:
                brief, spent = brief + 1, spent + seconds
            else:
                del self._running[number]
                await self._ended(receiver, argument, seconds, error)
            if self._stopping:
                break
            if in_a_row % _IN_A_ROW == 0:
                await asyncio.sleep(0)
        self._running.pop(number, None)
        if brief:
            count_brief(receiver, brief, spent)

    async def _ended(self, receiver: Receiver, argument: Argument, seconds: float, error: BaseException | None) -> None:
        count(receiver, argument, seconds, failed=error is not None)
        self._last_used = receiver
        self._slowness.ended(receiver, seconds, argument)
        if error is not None:
            report(receiver.function, receiver.name, argument, error)
            await self._look_after(receiver)

    async def _look_after(self, receiver: Receiver) -> None:
        """Have connections looked after in the thread that Django uses, when it comes to it.

        A query that hangs there holds up whoever needs the database next, but not those who do not.
        """
        self._to_look_after = receiver
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="pgsignals-connections")
        await asyncio.wait([self._looking], timeout=_LOOK_WITHIN)

    async def _renew(self, gap: Any) -> None:
        await asyncio.wait([asyncio.ensure_future(sync_to_async(renew)(gap))], timeout=_LOOK_WITHIN)

    async def _look(self) -> None:
        while (receiver := self._to_look_after) is not None:
            self._to_look_after = None
            try:
                await sync_to_async(_look_after_connections)(receiver)
            except Exception:
                logger.exception("Connections could not be looked after when the receiver %s had ended.", receiver.name)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _look_after_connections(receiver: Receiver) -> None:
    """In the thread in which Django runs the queries of asynchronous code."""
    tidy(receiver)
    refresh()
