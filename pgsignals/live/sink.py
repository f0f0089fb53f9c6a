"""Forwards events to groups of Django Channels, as hints: which rows, not what is in them.

A group gets at most ten messages a second, the first at once; what happens in between is put together (see hints).
Messages are numbered for each group, so that a consumer sees when the layer dropped one: the in-memory layer drops over
its capacity of 100 without a word.

Each topic that has something to say has a task of its own, so a layer that hangs on one group holds up no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from channels.layers import InMemoryChannelLayer, get_channel_layer
from django.conf import settings
from django.utils.module_loading import import_string

from .. import conf
from ..event import PgEvent
from ..receivers import registry
from ..sink import Gap, Sink
from .declared import declared_topics
from .hints import Hints
from .topics import channel_topic, group_of, model_topic, topic_of

logger = logging.getLogger("pgsignals.live")

INTERVAL = 0.1
"""Seconds between two messages to one group."""

_SEND_WITHIN = 5.0
"""Seconds that the layer may take for one message."""

_RETRY_AFTER = 1.0
"""Seconds between attempts to tell of the gap that a failing layer left."""

_STOP_WITHIN = 1.0
"""Seconds that the layer may take for the last messages."""


class ChannelsSink(Sink):
    """Sends hints about events to the groups of one channel layer.

    alias: of settings.CHANNEL_LAYERS. channels: application channels whose groups are told of gaps, besides all
    declared models.
    """

    def __init__(self, alias: str = "default", channels: Collection[str] = ()) -> None:
        self.alias = alias
        self.run_id = uuid.uuid4().hex[:12]
        self.duty = duty_of(alias)
        """What only one of the relays that feed this layer may do; None where no other relay can."""
        self._leads = self.duty is None
        self.failures = 0
        """Messages that the layer did not take."""
        self._known = {*declared_topics(), *map(channel_topic, channels)}
        self._fields = {model_topic(label): fields for label, fields in conf.get().LIVE_FIELDS.items()}
        self._database = conf.get().DATABASE
        self._hints: dict[str, Hints] = {}
        self._numbers: dict[str, int] = {}
        self._senders: dict[str, asyncio.Task[None]] = {}
        self._failing: set[str] = set()
        self._lost: str | None = None
        self._stopped = asyncio.Event()

    def duties(self) -> Collection[str]:
        """To feed this layer, where other processes reach it too. A layer in memory is each process's own."""
        return () if self.duty is None else (self.duty,)

    def lead(self, held: frozenset[str]) -> None:
        """Whoever takes the duty over does not know what the one before has still said."""
        before, self._leads = self._leads, self.duty is None or self.duty in held
        if self._leads and not before:
            for topic in self._topics():
                self._of(topic).gap = "another relay feeds the layer from here on"

    def takes(self) -> bool:
        """Whether this relay feeds the layer."""
        return self._leads

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        """Note what happened, for the next message."""
        if not self._leads:
            return
        for event in events:
            self._of(topic_of(event)).add(event)

    def lost(self, cause: str) -> None:
        """Tell every group: what it shows may be old."""
        if not self._leads:
            return
        self._lost = cause
        for topic in self._topics():
            self._of(topic).lost = True

    def gap(self, gap: Gap) -> None:
        """Tell every group to fetch anew."""
        if gap.connected:
            self._lost = None
        if not self._leads:
            return
        for topic in self._topics():
            self._of(topic).gap = gap.cause

    async def stop(self) -> None:
        """Send what waits, once, and end."""
        self._stopped.set()
        if senders := list(self._senders.values()):
            _, late = await asyncio.wait(senders, timeout=_STOP_WITHIN)
            for sender in late:
                sender.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _topics(self) -> set[str]:
        return self._known | self._numbers.keys()

    def _of(self, topic: str) -> Hints:
        """The topic's hints, which will be sent."""
        hints = self._hints.get(topic)
        if hints is None:
            hints = self._hints[topic] = Hints(self._fields.get(topic, ()), self._database)
        if topic not in self._senders:
            self._senders[topic] = asyncio.create_task(self._send_all(topic), name=f"pgsignals-channels {topic}")
        return hints

    # One task for each topic that has something to say.

    async def _send_all(self, topic: str) -> None:
        try:
            while (hints := self._hints.pop(topic, None)) is not None:
                await self._send_hints(topic, hints)
        finally:
            del self._senders[topic]

    async def _send_hints(self, topic: str, hints: Hints) -> None:
        for message in hints.messages(topic, self._lost):
            if not await self._send(topic, message):
                await self._pause(_RETRY_AFTER)
                return
            await self._pause(INTERVAL)

    async def _send(self, topic: str, message: dict[str, Any]) -> bool:
        # It counts also where it does not arrive: that is how a consumer notices.
        number = self._numbers[topic] = self._numbers.get(topic, 0) + 1
        try:
            layer: Any = get_channel_layer(self.alias)
            async with asyncio.timeout(_SEND_WITHIN):
                await layer.group_send(group_of(topic), {**message, "relay": self.run_id, "number": number})
        except (Exception, asyncio.CancelledError) as error:
            # A layer that raises CancelledError itself has failed; a task that is cancelled from outside ends.
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            self._failed(topic, error)
            return False
        self._worked(topic)
        return True

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            pass

    def _failed(self, topic: str, error: BaseException) -> None:
        self.failures += 1
        if not self._failing:
            reason = f"no answer in {_SEND_WITHIN:.0f} s" if isinstance(error, TimeoutError) else str(error)
            logger.error(
                "The channel layer %r takes no message for the group %r (%s: %s); browsers do not hear of changes. "
                "Trying again every %.0f s; this is said once.",
                self.alias,
                group_of(topic),
                type(error).__name__,
                reason,
                _RETRY_AFTER,
            )
        self._failing.add(topic)
        if not self._stopped.is_set():
            hints = self._of(topic)
            hints.gap = hints.gap or "the channel layer was out of reach"

    def _worked(self, topic: str) -> None:
        if topic not in self._failing:
            return
        self._failing.remove(topic)
        if not self._failing:
            logger.warning(
                "The channel layer %r works again; it has refused %d messages since the start. Browsers are told to "
                "fetch anew.",
                self.alias,
                self.failures,
            )


def duty_of(alias: str) -> str | None:
    """The duty to feed a layer: the same for all who reach the same one, whatever its alias there."""
    said = settings.CHANNEL_LAYERS[alias]
    try:
        in_memory = issubclass(import_string(said["BACKEND"]), InMemoryChannelLayer)
    except (ImportError, KeyError):
        in_memory = True  # none that works; that is said where it is used
    if in_memory:
        return None
    # As a hash: hosts may hold passwords. Objects, such as an SSL context, are no two times the same in text.
    text = json.dumps(said, sort_keys=True, default=lambda one: type(one).__qualname__)
    return f"feed the channel layer {said['BACKEND']} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def is_cancelled() -> bool:
    """Whether somebody wants the running task to end."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def configured_sink(channels: Collection[str] = ()) -> ChannelsSink | None:
    """The sink for the layer that PGSIGNALS["CHANNEL_LAYER"] names, or None where the project has no such layer."""
    said = conf.get()
    if said.CHANNEL_LAYER is None or said.CHANNEL_LAYER not in getattr(settings, "CHANNEL_LAYERS", {}):
        return None
    return ChannelsSink(said.CHANNEL_LAYER, {*channels, *said.CHANNELS, *registry.channels()})
