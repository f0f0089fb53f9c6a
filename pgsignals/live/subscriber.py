"""One client that listens, whichever way its frames then go: what it may hear of, and what of it waits to be sent.

group's message -> does it concern the client -> may the user still hear of it -> filter -> outbox -> transport
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from channels.db import database_sync_to_async
from django.db import Error as DatabaseError

from .. import conf
from ..decode import Decoder
from ..event import PgEvent, together
from . import groups, resume
from .access import Access
from .hub import Hub, Shared
from .outbox import Flooded, Frame, Outbox
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

    fresh: gives the user anew, as it is now. hub: of the layer; None for one that is only asked what it may.
    """

    def __init__(self, access: Access, user: Any, fresh: Callable[[], Awaitable[Any]], hub: Hub | None) -> None:
        self.access = access
        self.user = user
        self.topics: dict[str, resume.Token | None] = {}
        """What it listens to, and how far it is in the log with it."""
        self.outbox = Outbox()
        self._fresh = fresh
        self._hub = hub
        self._inbox: deque[Shared] = deque()
        """Messages that cannot be handled at once."""
        self._in_order = asyncio.Lock()
        """Held by who is not to be overtaken by a message."""
        self._reading: asyncio.Task[None] | None = None
        self._heard: dict[str, dict[str, int]] = {}
        """By what is sent to a group: the number of each relay's last message."""
        self._watching: dict[str, groups.Told] = {}
        # Asked once: for each message to each client that would add up.
        self._recheck_after = access.recheck_after
        self._filters = access.filters()
        self._checked = self._joined = time.monotonic()
        self._checking = asyncio.Lock()
        # Before a message has to wait for it; and those who came together are not all looked up together.
        self._early = self._recheck_after * random.uniform(0.4, 0.8)  # noqa: S311 - no secret
        self._foreseeing: asyncio.Task[None] | None = None
        self._decoder: Decoder | None = None

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
        for topic in await self.allowed(self.user, new):
            await self._join(topic)
        granted = [topic for topic in wanted if topic in self.topics]
        refused = [topic for topic in wanted if topic not in self.topics]
        missed = await self._begin([topic for topic in granted if topic in new], since)
        whole = [topic for topic, one in missed.items() if one is not None and resume.kept(topic) == resume.ALL]
        ids = {topic: text for topic in granted if (text := _text(self.topics[topic])) is not None}
        said = {"topics": granted, "refused": refused, "resumed": whole, "ids": ids}
        self.outbox.put(Frame("subscribed", None, said))
        for topic, one in missed.items():
            if one is not None:
                await self._tell_missed(topic, one)
            if topic not in whole:
                self.outbox.put(Frame("gap", topic, {"cause": "away for too long" if one is None else "away"}))
        return granted

    async def unsubscribe(self, topics: Sequence[str]) -> None:
        """Listen to them no more."""
        for topic in topics:
            if topic in self.topics:
                await self._leave(topic)

    async def close(self) -> None:
        """Leave all groups."""
        for topic in list(self.topics):
            await self._leave(topic)
        for task in (self._reading, self._foreseeing):
            if task is not None:
                task.cancel()

    async def _begin(self, topics: Sequence[str], since: Mapping[str, Any]) -> dict[str, resume.Missed | None]:
        """How far the client is from here on; and what it missed, of those topics that it has been at before."""
        in_log = [topic for topic in topics if resume.kept(topic) is not None]
        try:
            here = await _start() if in_log else None
            missed = {topic: await _missed(topic, resume.parse(since[topic])) for topic in topics if topic in since}
        except DatabaseError as error:
            logger.warning("What a browser missed cannot be read (%s); it is told to fetch anew.", one_line(error))
            return {topic: None for topic in topics if topic in since}
        for topic in in_log:
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
            await self._its_hub.join(group_of(topic), self)
        self.topics[topic] = None

    async def _leave(self, topic: str) -> None:
        del self.topics[topic]
        if topic in self._watching:
            groups.watch().remove(self._watching.pop(topic))
        elif not self._listening(base := base_of(topic)):
            del self._heard[base]
            await self._its_hub.leave(group_of(topic), self)

    def _listening(self, base: str) -> list[str]:
        return [topic for topic in self.topics if base_of(topic) == base]

    @property
    def _its_hub(self) -> Hub:
        assert self._hub is not None  # noqa: S101
        return self._hub

    # What is sent to its groups.

    def take(self, message: Shared) -> None:
        """A group's message, from the hub. At once where nothing has to be looked up; else in its turn."""
        if self._inbox or self._in_order.locked() or self._is_due() or self._filters:
            if len(self._inbox) < MAX_INBOX:  # beyond it is missed, and its number says so later
                self._inbox.append(message)
            if self._reading is None:
                self._reading = asyncio.create_task(self._read(), name="pgsignals-reading")
            return
        if self._foreseeing is None and self._is_due(self._early):
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
        self._put_event(await self._filtered(message), topics)

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
            if (said := _of_topic(await self._filtered(message), topic)) is not None:
                self.outbox.put(Frame("event", topic, said, missed.token.text()))

    async def _filtered(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of it the user may hear of."""
        name = "payloads" if is_channel(message["topic"]) else "events"
        if message["refetch"] or not message[name] or not self._filters:
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

    # Permissions are taken away, and sessions end, while a page stays open.

    async def _foresee(self) -> None:
        try:
            await self.recheck(self._early)
        except DatabaseError as error:
            logger.debug("Permissions cannot be looked up yet: %s", one_line(error))
        except Exception:
            logger.exception("Permissions could not be looked up early.")
        finally:
            self._foreseeing = None

    async def recheck(self, after: float | None = None) -> None:
        """Raises django.db.Error where they cannot be looked up; then the next message tries again.

        after: seconds for which they are believed; as the access says, if not given.
        """
        if not self._is_due(after):
            return
        async with self._checking:
            if not self._is_due(after):
                return  # somebody else has asked meanwhile
            user = await self._fresh()
            allowed = await self.allowed(user, list(self.topics))
            self.user = user
            self._checked = time.monotonic()
            for topic in [topic for topic in self.topics if topic not in allowed]:
                await self._leave(topic)
                self.outbox.forget(topic)
                self.outbox.put(Frame("refused", topic))
            await self._rejoin()

    def _is_due(self, after: float | None = None) -> bool:
        return time.monotonic() - self._checked >= (self._recheck_after if after is None else after)

    async def _rejoin(self) -> None:
        if time.monotonic() - self._joined > REJOIN_AFTER:
            self._joined = time.monotonic()
            for base in self._heard:
                await self._its_hub.join(group_of(base), self)

    def is_done(self) -> bool:
        """Whether nothing is left that the user may hear of, and nothing that is yet to be said about that."""
        return not self.topics and self.outbox.is_empty()

    @database_sync_to_async
    def allowed(self, user: Any, topics: Sequence[str]) -> list[str]:
        """Which of these topics a user may hear of now."""
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


def say_unknown(error: Exception, what_follows: str) -> None:
    """That permissions cannot be looked up."""
    logger.warning("Permissions cannot be looked up (%s). %s", one_line(error), what_follows)


def one_line(error: Exception) -> str:
    """What it says."""
    return " ".join(str(error).split())
