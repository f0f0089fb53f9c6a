"""A WebSocket that tells a browser which rows changed.

Mount it behind Channels' own guards, which check the origin and find the user::

    AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter([path("ws/pg/", PgEventConsumer.as_asgi())])))

The browser sends {"subscribe": ["flights.flight"]} and gets {"type": "subscribed", "topics": [...], "refused": [...]},
then {"type": "event", "topic", "number", "refetch", "events": [[operation, key, changed fields], ...]}, and
{"type": "gap"} where it must fetch anew, {"type": "lost"} while the relay has no connection, {"type": "refused"} when a
permission is gone. {"ping": anything} is answered by {"type": "pong"}.
"""

from __future__ import annotations

import json
import logging
import time
from importlib import import_module
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.auth import get_user
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.apps import apps
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.db import Error as DatabaseError

from .. import conf
from .topics import asked_topic, group_of

logger = logging.getLogger("pgsignals.live")

MAX_TOPICS = 100
"""Topics of one connection."""

MAX_TEXT = 64_000
"""Characters of what a browser may send at once."""

RECHECK_AFTER = 30.0
"""Seconds for which a permission is believed; the next message after that waits until it is looked up again."""

_MOST_RELAYS = 64
"""Relays whose numbers are followed, for each topic; of more, those heard of last."""

MAX_TOPIC = 200
"""Characters of a topic."""

_KEPT_BACK = "an event that was kept back"

_TRY_AGAIN = 1013
"""The close code of WebSockets for a failure that will pass."""


class PgEventConsumer(AsyncWebsocketConsumer):
    """Closed by default: a user hears of the models that Django lets the user view, and of nothing else."""

    recheck_after = RECHECK_AFTER

    @property
    def channel_layer_alias(self) -> str:  # type: ignore[override]
        """The layer that the relay feeds."""
        return conf.get().CHANNEL_LAYER or DEFAULT_CHANNEL_LAYER

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
        self.topics: dict[str, dict[str, int]] = {}
        self._checked = time.monotonic()
        user = self.scope.get("user")
        if self.channel_layer is None:
            logger.error(
                "A WebSocket was refused: settings.CHANNEL_LAYERS has no layer %r, so no event would ever reach it.",
                self.channel_layer_alias,
            )
            await self.close()
        elif user is None or not user.is_authenticated:
            await self.close()
        else:
            self._by_session = await _has_login(self.scope.get("session"))
            await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave all groups."""
        for topic in getattr(self, "topics", {}):
            await self.channel_layer.group_discard(group_of(topic), self.channel_name)

    # From the browser.

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """What the browser sends. Whatever it is, nothing else comes of it than a subscription or an error."""
        try:
            asked = _read(text_data)
        except ValueError:
            await self._tell(type="error", message='Send {"subscribe": ["app.model", ...]}.')
            return
        if asked is None:
            await self._tell(type="pong")
            return
        try:
            await self._recheck()
            await self._subscribe(asked)
        except DatabaseError as error:
            _say_unknown(error, "The WebSocket is closed; its browser tries again.")
            await self.close(_TRY_AGAIN)

    async def _subscribe(self, wanted: list[str]) -> None:
        room = max(MAX_TOPICS - len(self.topics), 0)
        new = [topic for topic in wanted if topic not in self.topics][:room]
        user = self.scope["user"]
        # Whoever logged out, or was deactivated, since the connection was opened is nobody that a project is asked of.
        for topic in await self._allowed(user, new) if _is_present(user) else []:
            self.topics[topic] = {}
            await self.channel_layer.group_add(group_of(topic), self.channel_name)
        refused = [topic for topic in wanted if topic not in self.topics]
        await self._tell(type="subscribed", topics=[topic for topic in wanted if topic in self.topics], refused=refused)

    @database_sync_to_async
    def _allowed(self, user: Any, topics: list[str]) -> list[str]:
        return [topic for topic in topics if self._allows(user, topic)]

    def _allows(self, user: Any, topic: str) -> bool:
        try:
            return bool(self.can_subscribe(user, topic))
        except DatabaseError:
            raise
        except Exception:  # the project's own code, and the browser chose what it was asked
            logger.exception("can_subscribe() failed for the topic %.80r, which is refused.", topic)
            return False

    # From the groups.

    async def pg_event(self, message: dict[str, Any]) -> None:
        """Rows changed, or messages were published."""
        if await self._hears(message):
            await self._tell_missed(message)
            kept = {name: message[name] for name in ("refetch", "events", "payloads") if name in message}
            await self._tell(type="event", topic=message["topic"], number=message["number"], **kept)

    async def pg_gap(self, message: dict[str, Any]) -> None:
        """Something may have been missed."""
        if await self._hears(message):
            self._follow(message)
            await self._tell(type="gap", topic=message["topic"], cause=message["cause"])

    async def pg_lost(self, message: dict[str, Any]) -> None:
        """The relay has no connection to the database."""
        if await self._hears(message):
            await self._tell_missed(message)
            await self._tell(type="lost", topic=message["topic"], cause=message["cause"])

    async def _hears(self, message: dict[str, Any]) -> bool:
        """Whether the browser may still hear of it."""
        try:
            await self._recheck()
        except DatabaseError as error:
            # A loss or a gap tells nothing of the data. An event does: it is kept back, and because its number is not
            # followed either, the next message will say that something was missed.
            if message["type"] == "pg.event":
                _say_unknown(error, f"An event of {message['topic']} is kept back; a gap will follow.")
                # Also where it is the first: the next message then comes after one of another relay.
                self.topics.get(message["topic"], {}).setdefault(_KEPT_BACK, 0)
                return False
        return message["topic"] in self.topics

    async def _tell_missed(self, message: dict[str, Any]) -> None:
        if self._follow(message):
            await self._tell(type="gap", topic=message["topic"], cause="missed")

    def _follow(self, message: dict[str, Any]) -> bool:
        """Note the number. Whether one before it did not come: the layer dropped it, or a new relay began."""
        relay, number = message["relay"], message["number"]
        heard = self.topics[message["topic"]]
        missed = bool(heard) and heard.get(relay) != number - 1
        # Several relays may feed one group, each with numbers of its own.
        heard.pop(relay, None)
        heard[relay] = number
        if len(heard) > _MOST_RELAYS:
            del heard[next(iter(heard))]
        return missed

    # Permissions are taken away, and sessions end, while a page stays open.

    async def _recheck(self) -> None:
        """Raises django.db.Error where they cannot be looked up; then the next message tries again."""
        if time.monotonic() - self._checked < self.recheck_after:
            return
        user = await self._fresh_user()
        allowed = await self._allowed(user, list(self.topics)) if _is_present(user) else []
        self.scope["user"] = user
        self._checked = time.monotonic()
        for topic in [topic for topic in self.topics if topic not in allowed]:
            del self.topics[topic]
            await self.channel_layer.group_discard(group_of(topic), self.channel_name)
            await self._tell(type="refused", topic=topic)

    async def _fresh_user(self) -> Any:
        # A user who came by a token may have a session all the same, which knows nothing of a login.
        if not self._by_session:
            user: Any = self.scope["user"]
            return await _user_with(user.pk)
        # A new session object: the one in the scope remembers what it was at the handshake.
        store = import_module(settings.SESSION_ENGINE).SessionStore(self.scope["session"].session_key)
        return await get_user({**self.scope, "session": store})

    async def _tell(self, **message: Any) -> None:
        await self.send(text_data=json.dumps(message))


def _is_present(user: Any) -> bool:
    return bool(user.is_authenticated and user.is_active)


@database_sync_to_async
def _has_login(session: Any) -> bool:
    return session is not None and SESSION_KEY in session


@database_sync_to_async
def _user_with(pk: Any) -> Any:
    # Routing modules are imported before Django's apps are.
    from django.contrib.auth.models import AnonymousUser

    return get_user_model()._default_manager.filter(pk=pk).first() or AnonymousUser()


def _read(text: str | None) -> list[str] | None:
    """The topics that are asked for, each once; None for a ping. Raises ValueError for anything else."""
    if text is None or len(text) > MAX_TEXT:
        raise ValueError("no text, or too much")
    try:
        said = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if isinstance(said, dict) and "ping" in said:
        return None
    asked = said.get("subscribe") if isinstance(said, dict) else None
    if not isinstance(asked, list) or not all(isinstance(topic, str) and len(topic) <= MAX_TOPIC for topic in asked):
        raise ValueError("no list of topics")
    return list(dict.fromkeys(map(asked_topic, asked)))


def _say_unknown(error: Exception, what_follows: str) -> None:
    logger.warning("Permissions cannot be looked up (%s). %s", " ".join(str(error).split()), what_follows)
