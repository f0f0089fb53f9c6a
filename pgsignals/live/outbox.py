"""What waits to be sent to one client: bounded, whatever the client does.

A client that reads too slowly is not waited for. What does not fit is dropped, and instead of it the client is told,
for each topic, that it has missed something.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

LIMIT = 64
"""Events that may wait for one client."""

MAX_BYTES = 128_000
"""Bytes of what waits for one client, roughly."""

MAX_ANSWERS = 500
"""Answers that may wait for a client, which asks faster than it reads. By far more than what one answer brings with it:
a gap for each of its topics, and then a loss."""

SLOW = "too slow"
"""The cause of the gap where something was dropped."""


class Frame:
    """Something that a client is told. Kept as the text that is sent: hundreds of clients may be slow at once.

    type: `subscribed`, `event`, `gap`, `lost`, `refused`; on WebSockets also `error`, `pong` and `ack`.
    id: how far the client is with the topic after this: what it says when it comes back.
    """

    __slots__ = ("id", "text", "topic", "type")

    def __init__(
        self,
        type: str,  # noqa: A002 - as clients call it
        topic: str | None = None,
        said: Mapping[str, Any] | None = None,
        id: str | None = None,  # noqa: A002
    ) -> None:
        self.type = type
        self.topic = topic
        self.id = id
        about = {} if topic is None else {"topic": topic}
        known = {} if id is None else {"id": id}
        self.text = json.dumps({"type": type, **about, **(said or {}), **known})
        """As JSON, in one line."""

    def as_dict(self) -> dict[str, Any]:
        """As clients get it."""
        return dict(json.loads(self.text))

    @property
    def said(self) -> dict[str, Any]:
        """What it says besides type, topic and id."""
        return {name: value for name, value in self.as_dict().items() if name not in ("type", "topic", "id")}

    def __repr__(self) -> str:
        return f"<Frame {self.text}>"


class Flooded(Exception):
    """A client asks, and does not read the answers."""


class Outbox:
    """A queue for one client. All of it in one event loop."""

    def __init__(self) -> None:
        self.credit = math.inf
        """How many frames may be taken before the client says that it has read some."""
        self._waiting: deque[tuple[Frame, int]] = deque()
        self._size = 0
        self._missed: dict[str, None] = {}
        self._news = asyncio.Event()
        self._failure: Exception | None = None

    def put(self, frame: Frame) -> None:
        """Have a frame sent. Raises Flooded."""
        if frame.type == "event":
            self._put_event(frame)
        elif frame.type == "gap" and frame.topic in self._missed:
            return
        else:
            if sum(one.type != "event" for one, _ in self._waiting) >= MAX_ANSWERS + len(self._missed):
                raise Flooded
            self._append(frame, 0)
        self._news.set()

    def _put_event(self, frame: Frame) -> None:
        if frame.topic in self._missed:
            return
        size = len(frame.text)
        if len(self._waiting) >= LIMIT or self._size + size > MAX_BYTES:
            self._miss(frame.topic)
            for one in [one for one, _ in self._waiting if one.type == "event"]:
                self._miss(one.topic)
            self._keep(lambda one: one.type != "event")
        else:
            self._append(frame, size)

    def _append(self, frame: Frame, size: int) -> None:
        self._waiting.append((frame, size))
        self._size += size

    def _miss(self, topic: str | None) -> None:
        self._missed[topic or ""] = None

    def forget(self, topic: str) -> None:
        """Drop what waits about a topic that the client may not hear of any more."""
        self._missed.pop(topic, None)
        self._keep(lambda one: one.topic != topic)

    def _keep(self, wanted: Any) -> None:
        self._waiting = deque(item for item in self._waiting if wanted(item[0]))
        self._size = sum(size for _, size in self._waiting)

    async def get(self) -> Frame:
        """The next frame, when there is one and the client can take it. Raises what `fail` was told."""
        while self._failure is None and (self.credit <= 0 or not (self._waiting or self._missed)):
            self._news.clear()
            await self._news.wait()
        if self._failure is not None:
            raise self._failure
        self.credit -= 1
        if self._waiting:
            frame, size = self._waiting.popleft()
            self._size -= size
            return frame
        topic = next(iter(self._missed))
        del self._missed[topic]
        return Frame("gap", topic, {"cause": SLOW})

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self._failure = error
        self._news.set()

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting and not self._missed

    def give(self, credit: float) -> None:
        """The client can take so many frames more."""
        self.credit = credit
        self._news.set()
