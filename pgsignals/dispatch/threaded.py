"""Synchronous receivers: one worker thread calls them, in the order of events.

A thread cannot be ended from outside. A receiver with a timeout that passes is left behind in its thread, and another
thread goes on with the next call; one without a timeout holds up what comes after it, and is warned of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from django.db import connections

from ..event import PgEvent
from ..receivers import Receiver
from .calling import BRIEF, Argument, Slowness, count, count_brief, refresh, report, tidy
from .feed import Feed, Run

logger = logging.getLogger("pgsignals.dispatch")

_MOST_LEFT_BEHIND = 10
"""Threads that may hang at the same time; then the next hanging receiver is waited for."""

_CLOSED = -1

PAUSE = 0.1
"""Seconds until the next attempt after a failure that is no receiver's."""

Token = list[None]
"""Whoever empties it has what it stands for: a call that ends, or the watch that gives it up; a thread that is idle."""


class Threaded:
    """Works off a feed in a thread."""

    def __init__(self, feed: Feed, slowness: Slowness) -> None:
        self.feed = feed
        self._slowness = slowness
        self._stopping = False
        self._bell = self._ring = _CLOSED
        self._lock = threading.Lock()
        self._idle: Token = []
        """The thread waits for the bell; whoever takes this may hand it an event, or it is woken for the buffer."""
        self._runs: Iterator[Run] | None = None
        self._run: Run | None = None
        """The one of `_runs` that is being worked off; where its thread is left behind, the next one finishes it."""
        self._running: tuple[Receiver, float, Argument, Token | None] | None = None
        self._left_behind: list[threading.Thread] = []
        self._thread = self._new_thread()

    def start(self) -> None:
        """Start the thread."""
        # A pipe wakes a thread in half the time that Python's own queues and locks take.
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        with self._lock:
            if self._ring != _CLOSED:
                try:
                    os.write(self._ring, b"!")
                except BlockingIOError:  # it is full, and so the thread will look
                    pass

    def hand(self, event: PgEvent) -> bool:
        """Give the thread an event that came alone, past the buffer, where it waits for one. Whether it was taken."""
        if not self._idle or self.feed.handed is not None:
            return False
        if (run := self.feed.single(event)) is None or not _take(self._idle):
            return False
        self.feed.hand(run)
        self.wake()
        return True

    async def stop(self, within: float | None) -> None:
        """Let the running receiver finish."""
        self._stopping = True
        self.wake()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, within)
        if self._thread.is_alive():
            logger.warning("A receiver still runs after %s s; it is left behind.", within)

    def watch(self) -> None:
        """See whether a receiver takes its time. Called now and then, in another thread."""
        if self._thread.ident is None:
            self._start_another()
        if (running := self._running) is None:
            return
        receiver, since, argument, token = running
        seconds = time.perf_counter() - since
        timeout = receiver.options.timeout
        if timeout is not None and token is not None and seconds > timeout:
            self._leave_behind(receiver, argument, token, seconds)
        else:
            self._slowness.running(receiver, seconds, self.feed.waiting()[0])

    # In the worker thread.

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._work, name="pgsignals-receivers", daemon=True)

    def _work(self) -> None:
        mine = True
        while mine and not self._stopping:
            try:
                mine = self._work_once()
            except BaseException as error:  # a thread that ended would leave all receivers deaf, and nobody would know
                self._failed(error)
        connections.close_all()
        if mine:
            self._close()

    def _work_once(self) -> bool:
        """Whether this thread is still the one that works."""
        if self._runs is None:
            self._wait()
            self._runs = self.feed.runs()
        if not self._work_off(self._runs):
            return False
        refresh()
        return True

    def _wait(self) -> None:
        """For the bell; where something is being handed over, until it is there."""
        self._idle = [None]
        os.read(self._bell, 65536)
        while not _take(self._idle) and self.feed.handed is None and not self._stopping:
            os.read(self._bell, 65536)

    def _failed(self, error: BaseException) -> None:
        self._runs = self._run = self._running = None
        with suppress(BaseException):  # what failed may be the project's logging
            self.feed.abandon(error)
        time.sleep(PAUSE)

    def _close(self) -> None:
        with self._lock:
            os.close(self._bell)
            os.close(self._ring)
            self._bell = self._ring = _CLOSED

    def _work_off(self, runs: Iterator[Run]) -> bool:
        """Whether this thread is still the one that works."""
        while (run := self._run or next(runs, None)) is not None:
            if self._stopping:
                return True
            self._run = run
            receiver, arguments = run
            if receiver.options.timeout is None and not receiver.options.batch:
                self._call_each(receiver, arguments)
            elif not all(self._call(receiver, argument) for argument in arguments):
                return False
            self._run = None
        self._runs = None
        return True

    def _call_each(self, receiver: Receiver, run: Iterator[Argument]) -> None:
        """The usual case, in which a call should cost little more than the receiver's own time."""
        function, clock = receiver.function, time.perf_counter
        brief, began = 0, clock()
        first = began
        for argument in run:
            self._running = (receiver, began, argument, None)
            try:
                function(argument)
            except BaseException as error:  # SystemExit too: a receiver may end neither the thread nor the relay
                self._ended(receiver, clock() - began, argument, error)
                now = clock()
                first += now - began
            else:
                now = clock()
                if now - began < BRIEF:
                    brief += 1
                else:
                    self._ended(receiver, now - began, argument, None)
                    now = clock()
                    first += now - began
            began = now
            if self._stopping:
                break
        self._running = None
        if brief:
            count_brief(receiver, brief, began - first)

    def _call(self, receiver: Receiver, argument: Argument) -> bool:
        """Whether this thread is still the one that works; another may have been put in its place meanwhile."""
        token: Token | None = None if receiver.options.timeout is None else [None]
        began = time.perf_counter()
        self._running = (receiver, began, argument, token)
        error: BaseException | None = None
        try:
            receiver.function(argument)
        except BaseException as raised:
            error = raised
        if token is not None and not _take(token):
            return False
        self._running = None
        self._ended(receiver, time.perf_counter() - began, argument, error)
        return True

    def _ended(self, receiver: Receiver, seconds: float, argument: Argument, error: BaseException | None) -> None:
        count(receiver, argument, seconds, failed=error is not None)
        if error is not None:
            report(receiver.function, receiver.name, argument, error)
        tidy(receiver)
        self._slowness.ended(receiver, seconds, argument)

    # In the watching thread.

    def _leave_behind(self, receiver: Receiver, argument: Argument, token: Token, seconds: float) -> None:
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= _MOST_LEFT_BEHIND:
            self._slowness.running(receiver, seconds, self.feed.waiting()[0])
            return
        if not _take(token):
            return
        self._running = None
        self._left_behind.append(self._thread)
        self._thread = self._new_thread()
        self._start_another()
        count(receiver, argument, seconds, failed=True)
        text = (
            f"no end after {seconds:.1f} s; it is left behind in its thread, and the next event is handled in another"
        )
        report(receiver.function, receiver.name, argument, TimeoutError(text))

    def _start_another(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            logger.error("The system gives no thread for receivers (%s); they wait. Trying again.", error)


def _take(token: Token) -> bool:
    """Whether the caller is the first; one operation for Python, so that two threads cannot both be."""
    try:
        token.pop()
    except IndexError:
        return False
    return True
