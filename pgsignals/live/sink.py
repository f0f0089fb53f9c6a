"""Forwards events to groups of Django Channels, as hints: which rows, not what is in them.

A group gets at most ten messages a second, the first at once; what happens in between is put together. Beyond two
hundred rows a message says "refetch". Messages are numbered for each group, so that a consumer sees when the layer
dropped one (the in-memory layer drops over its capacity of 100 without a word).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from channels.layers import get_channel_layer
from django.apps import apps
from django.conf import settings

from .. import conf
from ..event import MESSAGE, TRUNCATE, PgEvent
from ..receivers import registry
from ..sink import Gap
from ..triggers.declaration import declarations
from .topics import channel_topic, group_of, model_topic, topic_of

logger = logging.getLogger("pgsignals.live")

INTERVAL = 0.1
"""Seconds between two messages to one group."""

MAX_KEYS = 200
"""Rows, or messages of an application channel, in one message; beyond it says "refetch"."""

MAX_PAYLOADS = 32_000
"""Bytes of the payloads in one message; beyond it says "refetch"."""

_SEND_WITHIN = 5.0
"""Seconds that the layer may take for one message."""

_RETRY_AFTER = 1.0
"""Seconds between attempts to tell of the gap that a failing layer left."""


@dataclass(slots=True)
class _Pending:
    """What a topic's next messages will say."""

    rows: dict[str, tuple[str, Any, set[str]]] = field(default_factory=dict)
    payloads: list[Any] = field(default_factory=list)
    payload_bytes: int = 0
    refetch: bool = False
    touched: bool = False
    lost: str | None = None
    gap: str | None = None

    def add(self, event: PgEvent, size: int) -> None:
        self.touched = True
        if self.refetch:
            return
        if event.op == MESSAGE:
            self._add_payload(event.payload, size)
        elif event.op == TRUNCATE or event.raw_pk is None:
            self._give_up()
        else:
            self._add_row(event)

    def _add_row(self, event: PgEvent) -> None:
        key = repr(event.raw_pk)
        before = self.rows.get(key)
        changed = set(event.changed) | (before[2] if before else set())
        self.rows[key] = (event.op, event.raw_pk, changed)
        if len(self.rows) > MAX_KEYS:
            self._give_up()

    def _add_payload(self, payload: Any, size: int) -> None:
        self.payloads.append(payload)
        self.payload_bytes += size
        if len(self.payloads) > MAX_KEYS or self.payload_bytes > MAX_PAYLOADS:
            self._give_up()

    def _give_up(self) -> None:
        self.refetch = True
        self.rows.clear()
        self.payloads.clear()

    def messages(self, topic: str) -> Iterable[dict[str, Any]]:
        if self.lost is not None:
            yield {"type": "pg.lost", "topic": topic, "cause": self.lost}
        if self.gap is not None:
            yield {"type": "pg.gap", "topic": topic, "cause": self.gap}
        if self.touched:
            message: dict[str, Any] = {"type": "pg.event", "topic": topic, "refetch": self.refetch}
            if topic.startswith("channel:"):
                message["payloads"] = self.payloads
            else:
                message["events"] = [
                    [operation, key, sorted(changed)] for operation, key, changed in self.rows.values()
                ]
            yield message


class ChannelsSink:
    """Sends hints about events to the groups of one channel layer.

    alias: of settings.CHANNEL_LAYERS. channels: application channels whose groups are told of gaps, besides all
    declared models.
    """

    def __init__(self, alias: str = "default", channels: Collection[str] = ()) -> None:
        self.alias = alias
        self.run_id = uuid.uuid4().hex[:12]
        self._known = {*declared_topics(), *map(channel_topic, channels)}
        self._pending: dict[str, _Pending] = {}
        self._numbers: dict[str, int] = {}
        self._down = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task that sends."""
        self._task = asyncio.create_task(self._work(), name="pgsignals-channels")

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        """Note what happened, for the next message."""
        share = size // max(len(events), 1)
        for event in events:
            self._of(topic_of(event)).add(event, share)
        self._wake.set()

    def lost(self, cause: str) -> None:
        """Tell every group: what it shows may be old."""
        for topic in self._topics():
            self._of(topic).lost = cause
        self._wake.set()

    def gap(self, gap: Gap) -> None:
        """Tell every group to fetch anew."""
        for topic in self._topics():
            self._of(topic).gap = gap.cause
        self._wake.set()

    async def stop(self) -> None:
        """Send what waits, once, and end."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_SEND_WITHIN)
            self._task.cancel()

    def _topics(self) -> set[str]:
        return self._known | self._numbers.keys()

    def _of(self, topic: str) -> _Pending:
        return self._pending.setdefault(topic, _Pending())

    async def _work(self) -> None:
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, {}
            await asyncio.gather(*(self._send(topic, one) for topic, one in pending.items()))
            if not self._stopping:
                await asyncio.sleep(_RETRY_AFTER if self._down else INTERVAL)

    async def _send(self, topic: str, pending: _Pending) -> None:
        layer: Any = get_channel_layer(self.alias)
        for message in pending.messages(topic):
            # It counts also where it does not arrive: that is how a consumer notices.
            number = self._numbers[topic] = self._numbers.get(topic, 0) + 1
            try:
                async with asyncio.timeout(_SEND_WITHIN):
                    await layer.group_send(group_of(topic), {**message, "relay": self.run_id, "number": number})
            except Exception as error:
                self._failed(topic, error)
                return
        if self._down:
            self._down = False
            logger.warning("The channel layer %r works again; browsers are told to fetch anew.", self.alias)

    def _failed(self, topic: str, error: Exception) -> None:
        if not self._down:
            logger.error(
                "The channel layer %r takes no message (%s: %s); browsers do not hear of changes. Trying again every "
                "%.0f s.",
                self.alias,
                type(error).__name__,
                error,
                _RETRY_AFTER,
            )
        self._down = True
        self._of(topic).gap = "the channel layer was out of reach"
        self._wake.set()


def declared_topics() -> set[str]:
    """The topics of all models that announce their changes."""
    return {model_topic(model._meta.label_lower) for model in apps.get_models() if declarations(model)}


def configured_sink(channels: Collection[str] = ()) -> ChannelsSink | None:
    """The sink for the layer that PGSIGNALS["CHANNEL_LAYER"] names, or None where the project has no such layer."""
    said = conf.get()
    if said.CHANNEL_LAYER is None or said.CHANNEL_LAYER not in getattr(settings, "CHANNEL_LAYERS", {}):
        return None
    return ChannelsSink(said.CHANNEL_LAYER, {*channels, *said.CHANNELS, *registry.channels()})
