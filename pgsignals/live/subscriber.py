"""One client that listens, whichever way its frames then go: what it may hear of, and what of it waits to be sent.

group's message -> does it concern the client -> may the user still hear of it -> filter -> outbox -> transport
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from channels.db import database_sync_to_async
from django.db import Error as DatabaseError

from . import groups, resume
from .hub import Hub, Shared
from .outbox import Flooded, Frame, Outbox
from .permissions import Permissions, one_line, say_unknown
from .topics import base_of, durable_group, group_of, is_channel, key_of, key_text

logger = logging.getLogger("pgsignals.live")

MAX_TOPICS = 100
"""Topics of one client."""

MAX_TOPIC = 200
"""Characters of a topic."""

MAX_INBOX = 100
"""Messages of groups that wait while permissions are looked up."""

REJOIN_AFTER = 3600.0
"""Seconds after which the layer is told again who listens; channels_redis forgets that after a day."""

_MOST_RELAYS = 64
"""Relays whose numbers are followed, for each topic; of more, those heard of last."""

_KEPT_BACK = "an event that was kept back"


class Subscriber:
    """A client of one channel layer.

    hub: of the layer.
    """

    def __init__(self, permissions: Permissions, hub: Hub) -> None:
        self.topics: dict[str, resume.Token | None] = {}
        """What it listens to, and how far it is in the log with it."""
        self.outbox = Outbox()
        self._permissions = permissions
        self._hub = hub
        self._inbox: deque[Shared] = deque()
        """Messages that cannot be handled at once."""
        self._in_order = asyncio.Lock()
        """Held by who is not to be overtaken by a message."""
        self._reading: asyncio.Task[None] | None = None
        self._heard: dict[str, dict[str, int]] = {}
        """By what is sent to a group: the number of each relay's last message."""
        self._watching: dict[str, groups.Told] = {}
        self._joined = time.monotonic()
        self._foreseeing: asyncio.Task[None] | None = None

    # What the client asks for.

    async def subscribe(self, wanted: Sequence[str], since: Mapping[str, Any] | None = None) -> list[str]:
        """Listen to topics, those that are allowed, and say which. `since`: the ids that the client has of them.

        Raises django.db.Error where permissions cannot be looked up.
        """
        async with self._in_order:
            return await self._subscribe(wanted, since or {})

    async def _subscribe(self, wanted: Sequence[str], since: Mapping[str, Any]) -> list[str]:
        await self.recheck()
        room = max(MAX_TOPICS - len(self.topics), 0)
        new = [topic for topic in wanted if topic not in self.topics][:room]
        # Whoever logged out, or was deactivated, since the connection was opened is nobody that a project is asked of.
        allowed = await self._permissions.allowed(new)
        # At once, so that they are among those that are asked about if permissions are looked up meanwhile.
        self.topics.update(dict.fromkeys(allowed))
        for topic in allowed:
            await self._join(topic)
        missed = await self._begin(allowed, since)
        # Some may have been refused meanwhile.
        granted = [topic for topic in wanted if topic in self.topics]
        refused = [topic for topic in wanted if topic not in self.topics]
        missed = {topic: one for topic, one in missed.items() if topic in self.topics}
        whole = [topic for topic, one in missed.items() if one is not None and resume.kept(topic) == resume.ALL]
        ids = {topic: text for topic in granted if (text := _text(self.topics[topic])) is not None}
        said = {"topics": granted, "refused": refused, "resumed": whole, "ids": ids}
        self.outbox.put(Frame("subscribed", None, said))
        for topic, one in missed.items():
            if one is not None:
                await self._tell_missed(topic, one)
            if topic not in whole:
                self.outbox.put(Frame("gap", topic, {"cause": "away for too long" if one is None else "away"}))
        if self._hub.lost is not None:
            self._tell_all(
                "lost", [topic for topic in granted if topic not in self._watching], {"cause": self._hub.lost}
            )
        return granted

    async def unsubscribe(self, topics: Sequence[str]) -> None:
        """Listen to them no more."""
        await self._leave(*[topic for topic in topics if topic in self.topics])

    async def close(self) -> None:
        """Leave all groups."""
        for task in (self._reading, self._foreseeing):
            if task is not None:
                task.cancel()
        await self._leave(*self.topics)

    async def _begin(self, topics: Sequence[str], since: Mapping[str, Any]) -> dict[str, resume.Missed | None]:
        """How far the client is from here on; and what it missed, of those topics that it has been at before."""
        in_log = [topic for topic in topics if resume.kept(topic) is not None]
        try:
            here = await _start() if in_log else None
            missed = {topic: await _missed(topic, resume.parse(since[topic])) for topic in topics if topic in since}
        except DatabaseError as error:
            logger.warning("What a browser missed cannot be read (%s); it is told to fetch anew.", one_line(error))
            return {topic: None for topic in topics if topic in since}
        for topic in [topic for topic in in_log if topic in self.topics]:
            one = missed.get(topic)
            # Whoever is cut off again before what was missed has arrived must come back with the old id.
            self.topics[topic] = here if one is None else resume.parse(since[topic]) if one.messages else one.token
        return missed

    async def _join(self, topic: str) -> None:
        group = durable_group(topic)
        if group is not None:
            self._watching[topic] = lambda status: self._tell_group(topic, status)
            groups.watch().add(group, self._watching[topic])
        elif base_of(topic) not in self._heard:
            self._heard[base_of(topic)] = {}
            await self._hub.join(group_of(topic), self)

    async def _leave(self, *topics: str) -> None:
        # All at once: nothing is told of one while another is being left.
        for topic in topics:
            del self.topics[topic]
            if topic in self._watching:
                groups.watch().remove(self._watching.pop(topic))
        if bases := [base for base in self._heard if not self._listening(base)]:
            for base in bases:
                del self._heard[base]
            await self._hub.leave([group_of(base) for base in bases], self)

    def _listening(self, base: str) -> list[str]:
        return [topic for topic in self.topics if base_of(topic) == base]

    # What is sent to its groups.

    def take(self, message: Shared) -> None:
        """A group's message, from the hub. At once where nothing has to be looked up; else in its turn."""
        permissions = self._permissions
        if self._inbox or self._in_order.locked() or permissions.are_due() or permissions.has_filter:
            if len(self._inbox) < MAX_INBOX:  # beyond it is missed, and its number says so later
                self._inbox.append(message)
            if self._reading is None:
                self._reading = asyncio.create_task(self._read(), name="pgsignals-reading")
            return
        if self._foreseeing is None and permissions.are_due(early=True):
            self._foreseeing = asyncio.create_task(self._foresee(), name="pgsignals-recheck")
        try:
            if topics := self._heard_in(message):
                self._put_event(message, topics)
        except Flooded as error:
            self.outbox.fail(error)

    def tell(self, kind: str, cause: str) -> None:
        """Of all topics of groups, that nothing comes (`lost`), or that something may have been missed (`gap`)."""
        try:
            self._tell_all(kind, [topic for topic in self.topics if topic not in self._watching], {"cause": cause})
        except Flooded as error:
            self.outbox.fail(error)

    async def _read(self) -> None:
        try:
            async with self._in_order:
                while self._inbox:
                    await self._hear(self._inbox.popleft())
        except Flooded as error:
            self.outbox.fail(error)
        except Exception:
            logger.exception("A client's messages could not be read; it is told to fetch anew.")
            self.tell("gap", "a failure")
        finally:
            self._reading = None

    async def _hear(self, message: Shared) -> None:
        if await self._may_hear(message["type"], message["topic"]) and (topics := self._heard_in(message)):
            await self._tell_event(message, topics)

    def _heard_in(self, message: Mapping[str, Any]) -> list[str]:
        """Take note of a message. The topics with which its events are told; none where it has said all there is."""
        kind, topics = message["type"], self._listening(message["topic"])
        if not topics:
            return []
        if self._follow(message) and kind != "pg.gap":
            self._tell_all("gap", topics, {"cause": "missed"})
        if kind == "pg.event":
            return topics
        self._tell_all(kind.removeprefix("pg."), topics, {"cause": message["cause"]})
        return []

    async def _may_hear(self, kind: str, base: str) -> bool:
        try:
            await self.recheck()
        except DatabaseError as error:
            # A loss or a gap tells nothing of the data. An event does: it is kept back, and because its number is not
            # followed either, the next message will say that something was missed.
            if kind == "pg.event":
                say_unknown(error, f"An event of {base} is kept back; a gap will follow.")
                # Also where it is the first: the next message then comes after one of another relay.
                self._heard.get(base, {}).setdefault(_KEPT_BACK, 0)
                return False
        return True

    def _follow(self, message: Mapping[str, Any]) -> bool:
        """Note the number. Whether one before it did not come: the layer dropped it, or a new relay began."""
        relay, number = message["relay"], message["number"]
        heard = self._heard[message["topic"]]
        missed = bool(heard) and heard.get(relay) != number - 1
        # Several relays may feed one group, each with numbers of its own.
        heard.pop(relay, None)
        heard[relay] = number
        if len(heard) > _MOST_RELAYS:
            del heard[next(iter(heard))]
        return missed

    def _tell_all(self, kind: str, topics: Sequence[str], said: dict[str, Any]) -> None:
        for topic in topics:
            self.outbox.put(Frame(kind, topic, said))

    def _tell_group(self, topic: str, status: dict[str, Any] | None) -> None:
        self.outbox.put(Frame("event", topic, {"status": status}))

    async def _tell_event(self, message: Mapping[str, Any], topics: Sequence[str]) -> None:
        self._put_event(await self._permissions.filtered(message), topics)

    def _put_event(self, message: Mapping[str, Any], topics: Sequence[str]) -> None:
        for topic in topics:
            token = self.topics.get(topic)
            if token is not None and "position" in message:
                if token.is_beyond(message["position"]) and resume.kept(topic) == resume.ALL:
                    continue  # it has all of this already
                token = self.topics[topic] = token.moved(message["position"])
                frame = _frame(message, topic, _text(token))
            else:
                frame = _same_frame(message, topic)
            if frame is not None:
                self.outbox.put(frame)

    async def _tell_missed(self, topic: str, missed: resume.Missed) -> None:
        self.topics[topic] = missed.token
        for message in missed.messages:
            said = _of_topic(await self._permissions.filtered(message), topic)
            if said is not None and topic in self.topics:
                self.outbox.put(Frame("event", topic, said, missed.token.text()))

    # Permissions may be taken away.

    async def _foresee(self) -> None:
        try:
            await self.recheck(early=True)
        except DatabaseError as error:
            logger.debug("Permissions cannot be looked up yet: %s", one_line(error))
        except Exception:
            logger.exception("Permissions could not be looked up early.")
        finally:
            self._foreseeing = None

    async def recheck(self, *, early: bool = False) -> None:
        """Look permissions up, if they are due, and leave what the user may not hear of any more.

        Raises django.db.Error where they cannot be looked up; then the next message tries again.
        """
        refused = await self._permissions.renew(lambda: list(self.topics), early=early)
        left = [topic for topic in refused if topic in self.topics]
        for topic in left:
            self.outbox.forget(topic)
        await self._leave(*left)
        for topic in left:
            self.outbox.put(Frame("refused", topic))
        await self._rejoin()

    async def _rejoin(self) -> None:
        if time.monotonic() - self._joined > REJOIN_AFTER:
            self._joined = time.monotonic()
            for base in list(self._heard):
                if base in self._heard:
                    await self._hub.join(group_of(base), self)

    def is_done(self) -> bool:
        """Whether nothing is left that the user may hear of, and nothing that is yet to be said about that."""
        return not self.topics and self.outbox.is_empty()

    # To the transport.

    async def frames(self, heartbeat: float) -> AsyncIterator[Frame | None]:
        """What the client is told, as it can take it; None after so many seconds of silence.

        Permissions are looked up in silence, too.
        """
        while True:
            frame: Frame | None = None
            try:
                async with asyncio.timeout(heartbeat):
                    frame = await self.outbox.get()
            except TimeoutError:
                try:
                    await self.recheck()
                except DatabaseError as error:
                    say_unknown(error, "Nothing is sent meanwhile.")
            yield frame


_start = database_sync_to_async(resume.start)
_missed = database_sync_to_async(resume.missed)


def _text(token: resume.Token | None) -> str | None:
    return None if token is None else token.text()


def _same_frame(message: Mapping[str, Any], topic: str) -> Frame | None:
    """The frame of a message, made once for all clients that share it."""
    if not isinstance(message, Shared):
        return _frame(message, topic, None)
    if topic not in message.made:
        message.made[topic] = _frame(message, topic, None)
    frame: Frame | None = message.made[topic]
    return frame


def _frame(message: Mapping[str, Any], topic: str, id: str | None) -> Frame | None:  # noqa: A002
    said = _of_topic(message, topic)
    return None if said is None else Frame("event", topic, said, id)


def _of_topic(message: Mapping[str, Any], topic: str) -> dict[str, Any] | None:
    """What a topic's own client hears of a group's message; None where nothing in it concerns it."""
    said: dict[str, Any] = {"number": message["number"]} if "number" in message else {}
    if message.get("resumed"):
        said["resumed"] = True
    said["refetch"] = message["refetch"]
    if message.get("empty"):
        return None
    if is_channel(topic):
        return {**said, "payloads": message["payloads"]}
    key = key_of(topic)
    events = [one[:3] for one in message["events"] if key is None or key_text(one[1]) == key]
    return {**said, "events": events} if message["refetch"] or events or key is None else None
