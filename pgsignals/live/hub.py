"""One subscription of this process to each group, however many clients listen here.

A layer hands a message to each channel of a group, one after the other: to 500 of them, in memory, in a tenth of a
second, and as copies. So the clients of a process share one channel, and what comes there is handed on to those whose
group it is. channels_redis, too, then sends a message once to a process and not once to each browser.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .topics import group_of

logger = logging.getLogger("pgsignals.live")

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a layer that failed is tried again: doubled each time, until it has given a message."""


class Member(Protocol):
    """Who listens. Neither method may block, or raise."""

    def take(self, message: Shared) -> None:
        """A group's message."""

    def tell(self, kind: str, cause: str) -> None:
        """That the layer is out of reach (`lost`), or was (`gap`)."""


class Shared(dict[str, Any]):
    """A group's message, the same for all members, who may keep with it what they make of it."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.made: dict[Any, Any] = {}


class Hub:
    """The subscriptions of one event loop to one layer."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._members: dict[str, dict[Member, None]] = {}
        self._changing = asyncio.Lock()
        self._channel = ""
        self._receiving: asyncio.Task[None] | None = None
        self._failures = 0
        """Of the layer, in a row."""
        self._last: dict[str, tuple[str, int]] = {}
        """Of each topic, which message of which relay came last."""
        self._lost: dict[str, str] = {}
        """Relays that have no connection, and why, as far as anybody here was told."""

    @property
    def lost(self) -> str | None:
        """Why nothing comes now, for those who were not there when it was said."""
        return next(iter(self._lost.values()), None)

    async def join(self, group: str, member: Member) -> None:
        """Hand a group's messages on to a member. A second time tells the layer again, which may have forgotten."""
        async with self._changing:
            if self._receiving is None:
                self._channel = await self._layer.new_channel()
                self._receiving = asyncio.create_task(self._receive(), name="pgsignals-hub")
            await self._layer.group_add(group, self._channel)
            self._members.setdefault(group, {})[member] = None

    async def leave(self, groups: Collection[str], member: Member) -> None:
        """No longer, from the call on; also where whoever calls is cancelled while the layer is told."""
        for group in groups:
            self._members.get(group, {}).pop(member, None)
        async with self._changing:
            for group in [group for group, members in self._members.items() if not members]:
                del self._members[group]
                await self._discard(group)
            if not self._members and self._receiving is not None:
                self._lost.clear()
                self._last.clear()
                receiving, self._receiving = self._receiving, None
                receiving.cancel()
                await asyncio.wait([receiving])

    async def _discard(self, group: str) -> None:
        try:
            await self._layer.group_discard(group, self._channel)
        except Exception as error:  # the layer's own, of whatever kind
            logger.warning("The channel layer still sends what nobody listens to (%r): %s", group, error)

    async def _receive(self) -> None:
        while True:
            try:
                self._hand_on(Shared(await self._layer.receive(self._channel)))
                self._failures = 0
            except Exception as error:  # the layer's own, of whatever kind
                await self._reach_again(error)

    def _hand_on(self, message: Shared) -> None:
        topic, which = message["topic"], (message["relay"], message["number"])
        if self._last.get(topic) == which:
            return  # channels_postgres may deliver twice
        self._last[topic] = which
        if message["type"] == "pg.lost":
            self._lost[message["relay"]] = message["cause"]
        else:
            self._lost.pop(message["relay"], None)
        for member in list(self._members.get(group_of(topic), ())):
            member.take(message)

    async def _reach_again(self, error: Exception) -> None:
        logger.error("The channel layer fails (%s: %s); browsers hear nothing.", type(error).__name__, error)
        self._tell_all("lost", "the channel layer is out of reach")
        while True:
            wait = min(FIRST_WAIT * 2 ** min(self._failures, 10), LONGEST_WAIT)
            self._failures += 1
            await asyncio.sleep(wait)
            try:
                # A layer that was started anew knows of nobody.
                for group in list(self._members):
                    await self._layer.group_add(group, self._channel)
                break
            except Exception as again:
                logger.debug("The channel layer still fails: %s", again)
        logger.warning("The channel layer is tried again. Browsers are told to fetch anew.")
        self._tell_all("gap", "the channel layer was out of reach")

    def _tell_all(self, kind: str, cause: str) -> None:
        for member in {member for members in self._members.values() for member in members}:
            member.tell(kind, cause)


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, Hub]] = WeakKeyDictionary()


def hub_of(layer: Any) -> Hub:
    """The hub of a layer, in the running event loop."""
    hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
    hub = hubs.get(id(layer))
    if hub is None or hub._layer is not layer:
        hub = hubs[id(layer)] = Hub(layer)
    return hub
