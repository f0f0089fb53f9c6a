"""Calling a group's receivers for events, one or many, and saying which of them failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from .. import conf
from ..dispatch.calling import BRIEF, Slowness, count, count_brief, refresh, report, tidy
from ..event import PgEvent, Source, together
from ..receivers import MAX_ATTEMPTS, Receiver, Registry
from .failures import Discard, Retry

logger = logging.getLogger("pgsignals.durable")

_LOOK = 64
"""Events of the usual case, each handled in no time, after which is looked whether the worker may go on."""


class Handler:
    """Calls the receivers of one group, in one thread."""

    def __init__(self, group: str, registry: Registry) -> None:
        self.group = group
        self._registry = registry
        self._slowness = Slowness()
        self._running: tuple[Receiver, float] | None = None
        self._loop: asyncio.Runner | None = None
        self._known: dict[Source, list[Receiver]] = {}
        self._known_for = -1

    def receivers(self, event: PgEvent) -> list[Receiver]:
        """The group's receivers for an event."""
        if self._known_for != self._registry.version:
            self._known, self._known_for = {}, self._registry.version
        found = self._known.get(event._source)
        if found is None:
            found = [one for one in self._registry.matching(event) if one.options.group == self.group]
            if not self._registry.depends_on_more(event):
                self._known[event._source] = found
        return found

    def max_attempts(self, event: PgEvent) -> int:
        """Of the receiver that is to be tried most often: they succeed or fail together."""
        return max((one.options.max_attempts for one in self.receivers(event)), default=MAX_ATTEMPTS)

    @property
    def has_batches(self) -> bool:
        """Whether any of the group's receivers wants lists."""
        return any(one.options.batch for one in self._registry if one.options.group == self.group)

    def call_each(self, event: PgEvent, lists: bool = True) -> BaseException | None:
        """Call all receivers for one event. The first error, or None.

        lists: call those that want lists too, with a list of one.
        """
        for receiver in self.receivers(event):
            if receiver.options.batch:
                if not lists:
                    continue
                error = self.call(receiver, together([event]))
            else:
                error = self.call(receiver, event)
            if error is not None:
                return error
        return None

    def call_lists(
        self, events: Sequence[PgEvent], may_go_on: Callable[[], None], key: Callable[[PgEvent], Hashable]
    ) -> list[tuple[PgEvent, BaseException | None]]:
        """Call the receivers that want lists; one that fails gets the events one by one.

        The events that failed; and, without an error, those that were not tried because one of their key had failed.
        """
        failed: dict[int, tuple[PgEvent, BaseException | None]] = {}
        keys: set[Hashable] = set()
        for receiver, its in self.lists(events).items():
            limit = conf.get().BATCH
            for start in range(0, len(its), limit):
                free: list[PgEvent] = []
                for event in its[start : start + limit]:
                    if key(event) in keys:
                        failed.setdefault(id(event), (event, None))
                    else:
                        free.append(event)
                if free:
                    may_go_on()
                    failed |= self._call_list(receiver, free, may_go_on, key, keys)
        return list(failed.values())

    def _call_list(
        self,
        receiver: Receiver,
        events: list[PgEvent],
        may_go_on: Callable[[], None],
        key: Callable[[PgEvent], Hashable],
        keys: set[Hashable],
    ) -> dict[int, tuple[PgEvent, BaseException | None]]:
        error = self.call(receiver, together(events))
        if error is None:
            return {}
        failed: dict[int, tuple[PgEvent, BaseException | None]] = {}
        for event in events:
            if key(event) in keys:
                failed[id(event)] = (event, None)
                continue
            if len(events) > 1:
                may_go_on()
                error = self.call(receiver, together([event]))
            if error is not None:
                failed[id(event)] = (event, error)
                keys.add(key(event))
        return failed

    def lists(self, events: Sequence[PgEvent]) -> dict[Receiver, list[PgEvent]]:
        """The receivers that want lists, with the events of each."""
        wanted: dict[Receiver, list[PgEvent]] = {}
        for event in events:
            for receiver in self.receivers(event):
                if receiver.options.batch:
                    wanted.setdefault(receiver, []).append(event)
        return wanted

    def run(
        self, wanted: Sequence[tuple[Any, PgEvent]], start: int, may_go_on: Callable[[], bool]
    ) -> tuple[int, BaseException | None]:
        """Call the receiver of events from a place on: the usual case, in which that should cost little more than the
        receiver's own time. As long as they have the same one, and no other; it is synchronous and wants no lists.

        How many were handled so; and the error of the one after these, where it was called.
        """
        receivers = self.receivers(wanted[start][1])
        if len(receivers) != 1 or receivers[0].is_async or receivers[0].options.batch:
            return 0, None
        receiver, clock, look = receivers[0], time.perf_counter, True
        function, place, brief, total = receiver.function, start, 0, 0.0
        error: BaseException | None = None
        began = clock()
        for place in range(start, len(wanted)):
            event = wanted[place][1]
            if self.receivers(event) is not receivers or ((look or not place % _LOOK) and not may_go_on()):
                break
            self._running = (receiver, began)
            try:
                function(event)
            except BaseException as raised:  # SystemExit too: a receiver ends no worker
                look, error = True, self._ended(receiver, event, clock() - began, raised)
                if error is not None:
                    break
            else:
                seconds = clock() - began
                look = seconds > BRIEF
                if look:
                    self._ended(receiver, event, seconds, None)
                else:
                    brief, total = brief + 1, total + seconds
            began = clock()
        else:
            place += 1
        self._running = None
        if brief:
            count_brief(receiver, brief, total)
        return place - start, error

    def call(self, receiver: Receiver, argument: Any, *, keep_transaction: bool = False) -> BaseException | None:
        """Call one receiver. What it raised, or None; also for what it asked to discard."""
        began = time.perf_counter()
        self._running = (receiver, began)
        error: BaseException | None = None
        try:
            if receiver.is_async:
                self._run(receiver, argument)
            else:
                receiver.function(argument)
        except BaseException as raised:  # SystemExit too: a receiver ends no worker
            error = raised
        return self._ended(receiver, argument, time.perf_counter() - began, error, keep_transaction)

    def _ended(
        self,
        receiver: Receiver,
        argument: Any,
        seconds: float,
        error: BaseException | None,
        keep_transaction: bool = False,
    ) -> BaseException | None:
        """Count, report and tidy. The error, unless it was to say that the event is given up."""
        self._running = None
        if isinstance(error, Discard):
            logger.info("The receiver %s discarded %r: %s", receiver.name, argument, error)
            error = None
        count(receiver, argument, seconds, failed=error is not None)
        if error is not None and not isinstance(error, Retry):
            report(receiver.function, receiver.name, argument, error)
        if seconds > BRIEF and not keep_transaction:
            tidy(receiver)
        self._slowness.ended(receiver, seconds, argument)
        return error

    def watch(self) -> None:
        """Warn of a receiver that takes its time. Called in another thread."""
        if (running := self._running) is not None:
            receiver, began = running
            self._slowness.running(receiver, time.perf_counter() - began, 0)

    def _run(self, receiver: Receiver, argument: Any) -> None:
        if self._loop is None:
            self._loop = asyncio.Runner()
        self._loop.run(self._awaited(receiver, argument))

    async def _awaited(self, receiver: Receiver, argument: Any) -> None:
        try:
            async with asyncio.timeout(receiver.options.timeout):
                await receiver.function(argument)
        except BaseException:
            # A connection that died is not handed to the next event.
            await sync_to_async(tidy)(receiver)
            raise

    def refresh(self) -> None:
        """Between pieces: connections of Django's that died, or are too old, are closed."""
        refresh()
        if self._loop is not None:
            self._loop.run(sync_to_async(refresh)())

    def close(self) -> None:
        """End the event loop."""
        if self._loop is not None:
            # Django runs the queries of asynchronous code in a thread of its own.
            self._loop.run(sync_to_async(connections.close_all)())
            self._loop.close()
            self._loop = None
