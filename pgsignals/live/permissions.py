"""What a client's user may hear of: asked of the project's access class, and asked again while a page stays open.

Permissions are taken away, and sessions end, without a word to whoever listens.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from channels.db import database_sync_to_async
from django.db import Error as DatabaseError

from .. import conf
from ..decode import Decoder
from ..event import PgEvent, together
from .access import Access
from .topics import is_channel

logger = logging.getLogger("pgsignals.live")


class Permissions:
    """Of one client.

    fresh: gives the user anew, as it is now.
    """

    def __init__(self, access: Access, user: Any, fresh: Callable[[], Awaitable[Any]]) -> None:
        self.user = user
        self.access = access
        # Asked once: for each message to each client that would add up.
        self.has_filter = access.filters()
        """Whether the project decides event by event."""
        self._good_for = access.recheck_after
        self._fresh = fresh
        self._asked = time.monotonic()
        self._asking = asyncio.Lock()
        # Those who came together are not all looked up together.
        self._early = self._good_for * random.uniform(0.4, 0.8)  # noqa: S311 - no secret
        self._decoder: Decoder | None = None

    def are_due(self, *, early: bool = False) -> bool:
        """Whether they are to be looked up again. `early`: before a message would have to wait for that."""
        return time.monotonic() - self._asked >= (self._early if early else self._good_for)

    async def renew(self, topics: Callable[[], Sequence[str]], *, early: bool = False) -> list[str]:
        """Look them up, if they are due. Which of these topics the user may not hear of any more.

        Raises django.db.Error where they cannot be looked up; they are due then as before.
        """
        if not self.are_due(early=early):
            return []
        async with self._asking:
            if not self.are_due(early=early):
                return []  # somebody else has asked meanwhile
            user = await self._fresh()
            asked_for: list[str] = []
            allowed: list[str] = []
            # Others may come meanwhile, which the user of before was allowed.
            while further := [topic for topic in topics() if topic not in asked_for]:
                allowed += await self._allowed(user, further)
                asked_for += further
            self.user, self._asked = user, time.monotonic()
            return [topic for topic in asked_for if topic not in allowed]

    async def allowed(self, topics: Sequence[str]) -> list[str]:
        """Which of these topics the user may hear of now. Raises django.db.Error."""
        while True:
            user = self.user
            allowed = await self._allowed(user, topics)
            if user is self.user:
                return allowed

    @database_sync_to_async
    def _allowed(self, user: Any, topics: Sequence[str]) -> list[str]:
        if not topics or not self.access.admits_safely(user):
            return []
        return [topic for topic in topics if self._may(user, topic)]

    def _may(self, user: Any, topic: str) -> bool:
        try:
            return bool(self.access.can_subscribe(user, topic))
        except DatabaseError:
            raise
        except Exception:  # the project's own code, and the browser chose what it was asked
            logger.exception("can_subscribe() failed for the topic %.80r, which is refused.", topic)
            return False

    async def filtered(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of a group's message the user may hear of."""
        name = "payloads" if is_channel(message["topic"]) else "events"
        if message["refetch"] or not message[name] or not self.has_filter:
            return message
        try:
            kept = await self._choose(message["topic"], message[name])
        except DatabaseError as error:
            say_unknown(error, f"An event of {message['topic']} becomes a gap.")
            return {**message, name: [], "refetch": True}
        left = [one for place, one in enumerate(message[name]) if place in kept]
        return {**message, name: left, "empty": not left}

    @database_sync_to_async
    def _choose(self, base: str, items: Sequence[Any]) -> set[int]:
        try:
            events = together(self._as_event(base, item) for item in items)
            kept = {id(one) for one in self.access.filter_events(self.user, events)}
        except DatabaseError:
            raise
        except Exception:  # the project's own code
            logger.exception("filter_events() failed for events of %.80r, which are withheld.", base)
            return set()
        return {place for place, event in enumerate(events) if id(event) in kept}

    def _as_event(self, base: str, item: Any) -> PgEvent:
        if self._decoder is None:
            self._decoder = Decoder(conf.get().DATABASE)
        if is_channel(base):
            return self._decoder.hinted_message(base.partition(":")[2], item)
        op, pk, changed, *values = item
        old, new = values or (None, None)
        return self._decoder.hinted(base, op, pk, changed, conf.get().LIVE_FIELDS.get(base, ()), old, new)


def say_unknown(error: Exception, what_follows: str) -> None:
    """That permissions cannot be looked up."""
    logger.warning("Permissions cannot be looked up (%s). %s", one_line(error), what_follows)


def one_line(error: Exception) -> str:
    """What it says."""
    return " ".join(str(error).split())
