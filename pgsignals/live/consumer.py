"""A WebSocket that tells a browser which rows changed.

Mount it behind Channels' own guards, which check the origin and find the user::

    AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter([path("ws/pg/", PgEventConsumer.as_asgi())])))

The browser sends {"subscribe": ["flights.flight"]} and gets {"type": "subscribed", "topics": [...], "refused": [...]},
then {"type": "event", "topic", "refetch", "events": [[operation, key, changed fields], ...]}, and {"type": "gap"} where
it must fetch anew, {"type": "lost"} while the relay has no connection, {"type": "refused"} when a permission is gone.
"""

from __future__ import annotations

import json
import time
from importlib import import_module
from typing import Any

from channels.auth import get_user
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.apps import apps
from django.conf import settings

from .topics import group_of

MAX_TOPICS = 100
"""Topics of one connection."""

RECHECK_AFTER = 30.0
"""Seconds for which a permission is believed; the next message after that waits until it is looked up again."""


class PgEventConsumer(AsyncWebsocketConsumer):
    """Closed by default: a user hears of the models that Django lets the user view, and of nothing else."""

    recheck_after = RECHECK_AFTER

    def can_subscribe(self, user: Any, topic: str) -> bool:
        """Whether a user may hear of a topic: a model's label, or `channel:<name>`. Override to decide otherwise.

        Called in a thread, so it may query. By default: active, and with the model's view permission; channels have
        no permission that Django knows of, so nobody.
        """
        try:
            meta = apps.get_model(topic)._meta
        except (LookupError, ValueError):
            return False
        return bool(user.is_active and user.has_perm(f"{meta.app_label}.view_{meta.model_name}"))

    async def connect(self) -> None:
        """Accept those who are logged in."""
        self.topics: dict[str, tuple[str, int] | None] = {}
        self._checked = time.monotonic()
        user = self.scope.get("user")
        if user is None or not user.is_authenticated:
            await self.close()
            return
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave all groups."""
        for topic in getattr(self, "topics", {}):
            await self.channel_layer.group_discard(group_of(topic), self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """What the browser sends. Whatever it is, nothing else comes of it than a subscription or an error."""
        try:
            asked = json.loads(text_data or "")["subscribe"]
            wanted = list(dict.fromkeys(topic.lower() if ":" not in topic else topic for topic in asked))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            await self._tell(type="error", message='Send {"subscribe": ["app.model", ...]}.')
            return
        await self._subscribe(wanted)

    async def _subscribe(self, wanted: list[str]) -> None:
        room = MAX_TOPICS - len(self.topics)
        new = [topic for topic in wanted if topic not in self.topics][: max(room, 0)]
        allowed = await self._allowed(self.scope["user"], new)
        for topic in allowed:
            self.topics[topic] = None
            await self.channel_layer.group_add(group_of(topic), self.channel_name)
        granted = [topic for topic in wanted if topic in self.topics]
        await self._tell(
            type="subscribed", topics=granted, refused=[topic for topic in wanted[:MAX_TOPICS] if topic not in granted]
        )

    @database_sync_to_async
    def _allowed(self, user: Any, topics: list[str]) -> list[str]:
        return [topic for topic in topics if self.can_subscribe(user, topic)]

    # From the groups.

    async def pg_event(self, message: dict[str, Any]) -> None:
        """Rows changed, or messages were published."""
        if await self._hears(message):
            kept = {name: message[name] for name in ("refetch", "events", "payloads") if name in message}
            await self._tell(type="event", topic=message["topic"], number=message["number"], **kept)

    async def pg_gap(self, message: dict[str, Any]) -> None:
        """Something may have been missed."""
        if await self._hears(message):
            await self._tell(type="gap", topic=message["topic"], cause=message["cause"])

    async def pg_lost(self, message: dict[str, Any]) -> None:
        """The relay has no connection to the database."""
        if await self._hears(message):
            await self._tell(type="lost", topic=message["topic"], cause=message["cause"])

    async def _hears(self, message: dict[str, Any]) -> bool:
        """Whether the browser may still hear of it. Tells it of numbers that were left out."""
        await self._recheck()
        topic = message["topic"]
        if topic not in self.topics:
            return False
        seen, now = self.topics[topic], (message["relay"], message["number"])
        self.topics[topic] = now
        if seen is not None and (seen[0], seen[1] + 1) != now:
            await self._tell(type="gap", topic=topic, cause="missed")
        return True

    async def _recheck(self) -> None:
        """Permissions are taken away, and sessions end, while a page stays open."""
        if time.monotonic() - self._checked < self.recheck_after:
            return
        self._checked = time.monotonic()
        self.scope["user"] = user = await self._fresh_user()
        allowed = await self._allowed(user, list(self.topics)) if user.is_authenticated else []
        for topic in [topic for topic in self.topics if topic not in allowed]:
            del self.topics[topic]
            await self.channel_layer.group_discard(group_of(topic), self.channel_name)
            await self._tell(type="refused", topic=topic)

    async def _fresh_user(self) -> Any:
        if "session" not in self.scope:
            user: Any = self.scope["user"]
            return await database_sync_to_async(type(user)._default_manager.get)(pk=user.pk)
        # A new session object: the one in the scope remembers what it was at the handshake.
        store = import_module(settings.SESSION_ENGINE).SessionStore(self.scope["session"].session_key)
        return await get_user({**self.scope, "session": store})

    async def _tell(self, **message: Any) -> None:
        await self.send(text_data=json.dumps(message))
