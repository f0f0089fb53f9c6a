"""How durable groups get on, for those who watch: looked up once a second while anybody does, for all at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async
from django.db import Error as DatabaseError

from .. import conf
from ..durable import control

logger = logging.getLogger("pgsignals.live")

EVERY = 1.0
"""Seconds between two looks."""

Told = Callable[[dict[str, Any] | None], None]
"""Is called with what control.GroupStatus says; with None where the log knows no such group."""

_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, GroupWatch] = WeakKeyDictionary()


class GroupWatch:
    """One for each event loop; see `watch`."""

    def __init__(self) -> None:
        self._watchers: dict[Told, tuple[str, Any]] = {}
        """Who watches which group, and what was said last."""
        self._task: asyncio.Task[None] | None = None
        self._failed = False

    def add(self, group: str, told: Told) -> None:
        """Have somebody told how a group is, now and whenever it changes."""
        self._watchers[told] = (group, ...)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="pgsignals-groups")

    def remove(self, told: Told) -> None:
        """Not any more."""
        self._watchers.pop(told, None)

    async def _look(self) -> None:
        while self._watchers:
            try:
                status = {one.name: asdict(one) for one in await _status(conf.get().DATABASE)}
            except DatabaseError as error:
                if not self._failed:
                    logger.warning(
                        "How groups get on cannot be looked up (%s); trying on.", " ".join(str(error).split())
                    )
                self._failed = True
            else:
                self._failed = False
                self._tell(status)
            await asyncio.sleep(EVERY)

    def _tell(self, status: dict[str, dict[str, Any]]) -> None:
        for told, (group, last) in list(self._watchers.items()):
            said = status.get(group)
            if said is not None:
                said = {**said, "seconds": round(said["seconds"], 1)}
            if said != last:
                self._watchers[told] = (group, said)
                told(said)


_status = database_sync_to_async(control.status)


def watch() -> GroupWatch:
    """The watch of the running event loop."""
    return _watches.setdefault(asyncio.get_running_loop(), GroupWatch())
