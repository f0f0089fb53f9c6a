"""A WebSocket that tells a browser which rows changed.

Mount it behind Channels' own guards, which check the origin and find the user::

    AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter([path("ws/pg/", PgEventConsumer.as_asgi())])))

| the browser sends | and gets |
|---|---|
| `{"subscribe": ["a.b"], "since": {topic: id}}` | `{"type": "subscribed", "topics", "refused", "resumed", "ids"}` |
| `{"unsubscribe": ["a.b"]}` | nothing more of it |
| `{"ping": 1}` | `{"type": "pong"}` |
| `{"ack": 64}`, to `{"type": "ack", "number": 64}` | what comes next: who does not answer is too slow |

and then `{"type": "event", "topic", "number", "refetch", "events": [[operation, key, changed fields], ...]}`,
`{"type": "gap"}` where it must fetch anew, `{"type": "lost"}` while the relay has no connection, `{"type": "refused"}`
when a permission is gone, `{"type": "error", "message"}` for what it should not have sent.

Who may not listen at all is told by the close code 4403, and should not try again; a refused handshake would look to a
browser as if the server were away.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import Error as DatabaseError

from .. import conf
from .access import Door
from .hub import hub_of
from .origin import is_ours
from .outbox import Flooded, Frame
from .permissions import Permissions, say_unknown
from .subscriber import MAX_TOPIC, Subscriber
from .topics import asked_topic
from .visitor import has_login, session_user, user_anew

logger = logging.getLogger("pgsignals.live")

MAX_TEXT = 64_000
"""Characters of what a browser may send at once."""

WINDOW = 64
"""Frames that are sent to a browser which has not said that it read them."""

ASK_EVERY = 32
"""Frames after which it is asked."""

HEARTBEAT = 30.0
"""Seconds of silence after which permissions are looked up again."""

_TRY_AGAIN = 1013
"""The close code of WebSockets for a failure that will pass."""
_POLICY = 1008
"""And for what one does not do."""
_REFUSED = 4403
"""Ours, in the range that is left to applications, for who may not listen at all."""


class PgEventConsumer(Door, AsyncWebsocketConsumer):
    """Closed by default: see `pgsignals.live.access`, whose methods may be overridden here."""

    @property
    def channel_layer_alias(self) -> str:  # type: ignore[override]
        """The layer that the relay feeds."""
        return conf.get().CHANNEL_LAYER or DEFAULT_CHANNEL_LAYER

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The whole connection."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not in disconnect(): nobody calls that where the layer fails, or the server cancels.
            await self._leave()

    async def connect(self) -> None:
        """Accept those who may listen, and say no to the others."""
        user = self.scope.get("user")
        if self.channel_layer is None:
            logger.error(
                "A WebSocket was refused: settings.CHANNEL_LAYERS has no layer %r, so no event would ever reach it.",
                self.channel_layer_alias,
            )
            await self.close()
        elif not self._is_asked_by_us():
            await self.close()
        elif user is None or not await _admits(self, user):
            await self.accept()
            await self.close(_REFUSED)
        else:
            self._by_session = await has_login(self.scope.get("session"))
            await self.accept()
            permissions = Permissions(self, user, lambda: self._fresh_user())
            self.subscriber = Subscriber(permissions, hub_of(self.channel_layer))
            self.subscriber.outbox.give(WINDOW)
            self._sent = 0
            self._pumping = asyncio.create_task(self._pump(), name="pgsignals-browser")

    async def _leave(self) -> None:
        if hasattr(self, "subscriber"):
            self._pumping.cancel()
            await self.subscriber.close()

    def _is_asked_by_us(self) -> bool:
        headers = {name: value.decode("latin-1") for name, value in self.scope.get("headers", [])}
        return is_ours(headers.get(b"origin"), headers.get(b"host", ""))

    async def _fresh_user(self) -> Any:
        # A user who came by a token may have a session all the same, which knows nothing of a login.
        return await (session_user(self.scope["session"]) if self._by_session else user_anew(self.scope["user"]))

    # From the browser.

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """What the browser sends. Whatever it is, nothing else comes of it than a subscription or an error."""
        if not hasattr(self, "subscriber"):
            return  # it was refused, and speaks all the same
        try:
            await self._do(_read(text_data))
        except ValueError:
            await self._answer(Frame("error", None, {"message": 'Send {"subscribe": ["app.model", ...]}.'}))
        except DatabaseError as error:
            say_unknown(error, "The WebSocket is closed; its browser tries again.")
            await self.close(_TRY_AGAIN)
        except Flooded:
            await self._throw_out()
        except Exception:  # the layer's own, of whatever kind
            await self._fail()

    async def _do(self, said: Mapping[str, Any]) -> None:
        if "ping" in said:
            await self._answer(Frame("pong"))
        elif "ack" in said:
            self._acknowledge(said["ack"])
        elif "unsubscribe" in said:
            await self.subscriber.unsubscribe(_topics(said["unsubscribe"]))
        else:
            since = said.get("since") or {}
            if not isinstance(since, dict):
                raise ValueError("no ids")
            await self.subscriber.subscribe(_topics(said.get("subscribe")), since)

    def _acknowledge(self, number: Any) -> None:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= self._sent:
            raise ValueError("no number that was sent")
        self.subscriber.outbox.give(WINDOW - (self._sent - number))

    async def _answer(self, frame: Frame) -> None:
        try:
            self.subscriber.outbox.put(frame)
        except Flooded:
            await self._throw_out()

    async def _throw_out(self) -> None:
        logger.warning("A browser asks and does not read the answers; its WebSocket is closed.")
        await self.close(_POLICY)

    # To the browser.

    async def _pump(self) -> None:
        try:
            async for frame in self.subscriber.frames(HEARTBEAT):
                if frame is not None:
                    await self._send(frame)
        except Flooded:
            await self._throw_out()
        except OSError:
            pass  # it is gone
        except Exception:
            await self._fail()

    async def _fail(self) -> None:
        logger.exception("A WebSocket failed, and is closed; its browser comes back.")
        await self.close(_TRY_AGAIN)

    async def _send(self, frame: Frame) -> None:
        await self.send(text_data=frame.text)
        self._sent += 1
        if self._sent % ASK_EVERY == 0:
            await self.send(text_data=Frame("ack", None, {"number": self._sent}).text)


_admits = database_sync_to_async(Door.admits_safely)


def _read(text: str | None) -> Mapping[str, Any]:
    """What a browser says. Raises ValueError for what is no object of JSON, or too long."""
    if text is None or len(text) > MAX_TEXT:
        raise ValueError("no text, or too much")
    try:
        said = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(said, dict):
        raise ValueError("no object")
    return said


def _topics(asked: Any) -> list[str]:
    """The topics that are asked for, each once. Raises ValueError for anything else."""
    if not isinstance(asked, list) or not all(isinstance(topic, str) and len(topic) <= MAX_TOPIC for topic in asked):
        raise ValueError("no list of topics")
    return list(dict.fromkeys(map(asked_topic, asked)))
