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


class Interrupted(Exception):
    """The worker is to stop, or may not go on; the events before this one were handled."""


class Handler:
    """Calls the receivers of one group, in the thread that made it."""

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
        for receiver, its in self._wanted(events).items():
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

    def _wanted(self, events: Sequence[PgEvent]) -> dict[Receiver, list[PgEvent]]:
        """The receivers that want lists, with the events of each."""
        wanted: dict[Receiver, list[PgEvent]] = {}
        for event in events:
            for receiver in self.receivers(event):
                if receiver.options.batch:
                    wanted.setdefault(receiver, []).append(event)
        return wanted

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
        except Discard as discarded:
            logger.info("The receiver %s discarded %r: %s", receiver.name, argument, discarded)
        except BaseException as raised:  # SystemExit too: a receiver ends no worker
            error = raised
        seconds = time.perf_counter() - began
        self._running = None
        if error is None and seconds < BRIEF and not receiver.options.batch:
            # Nothing else can have happened in so short a time.
            count_brief(receiver, 1, seconds)
            return None
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
