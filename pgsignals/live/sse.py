"""Server-Sent Events: the same stream as over the WebSocket, for `curl -N`, EventSource and whatever reads HTTP.

    path("events/", PgEventStream.as_view())

    GET /events/?topic=flights.flight&topic=channel:news

    id: ...
    event: subscribed
    data: {"type": "subscribed", "topics": ["flights.flight"], ...}

    id: ...
    data: {"type": "event", "topic": "flights.flight", "refetch": false, "events": [["update", 17, ["status"]]]}

    : still there

Events have no name, so that `source.onmessage` gets them; `subscribed`, `gap`, `lost` and `refused` are named. A client
that comes back says `Last-Event-ID`, as EventSource does by itself: then what it missed comes first, as far as the log
has it, and a `gap` for the rest.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.utils.decorators import method_decorator
from django.views.generic import View

from . import resume
from .access import Door
from .origin import is_ours
from .outbox import Frame
from .permissions import Permissions
from .stream import listening
from .subscriber import MAX_TOPIC, MAX_TOPICS
from .topics import asked_topic
from .visitor import has_login, session_user, user_anew

logger = logging.getLogger("pgsignals.live")

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that nothing on the way takes the connection for dead."""

RETRY = 2000
"""Milliseconds after which a browser comes back."""

MAX_SENT = 4_000_000
"""Bytes after which a stream ends, and its client comes back for more. A server such as daphne keeps what a client does
not read; so it does not keep more than this."""


@method_decorator(transaction.non_atomic_requests, name="dispatch")
class PgEventStream(Door, View):
    """Closed by default: see `pgsignals.live.access`, whose methods may be overridden here."""

    http_method_names = ["get"]

    async def get(self, request: HttpRequest) -> Any:
        """The stream; 403 for who may hear of none of the topics, 400 without topics."""
        topics = [asked_topic(topic) for topic in dict.fromkeys(request.GET.getlist("topic"))]
        if not topics or len(topics) > MAX_TOPICS or any(len(topic) > MAX_TOPIC for topic in topics):
            return _refusal(400, "Name topics: ?topic=app.model&topic=app.model:17")
        if not hasattr(request, "scope"):
            logger.error("Server-Sent Events need an ASGI server, and this request came by WSGI; it is refused.")
            return _refusal(501, "This server cannot stream.")
        if _from_elsewhere(request):
            return _refusal(403, "Another site asks.")
        user = await request.auser()
        if not await self._may_enter(user, topics):
            return _refusal(403, "You may not listen to these topics.")
        by_session = await has_login(getattr(request, "session", None))

        async def fresh() -> Any:
            return await (session_user(request.session) if by_session else user_anew(user))

        response = StreamingHttpResponse(self._events(request, user, fresh, topics), content_type="text/event-stream")
        response.headers["Cache-Control"] = "no-cache, no-store"
        response.headers["X-Accel-Buffering"] = "no"  # or nginx collects them
        return response

    async def _may_enter(self, user: Any, topics: list[str]) -> bool:
        return bool(await Permissions(self, user, lambda: user_anew(user)).allowed(topics))

    async def _events(self, request: HttpRequest, user: Any, fresh: Any, topics: list[str]) -> AsyncIterator[str]:
        last = request.headers.get("Last-Event-ID", "")
        known = resume.unbundle(last, topics)
        # Who has been here before, and has no id for a topic, has missed something of it, too.
        since = {topic: known.get(topic, "") for topic in topics} if last else {}
        ids: dict[str, str] = {}
        sent = 0
        async with listening(user, fresh, self, topics, since) as subscriber:
            yield f"retry: {RETRY}\n\n"
            async for frame in subscriber.frames(HEARTBEAT):
                text = _written(frame, ids)
                sent += len(text)
                yield text
                if sent > MAX_SENT or subscriber.is_done():
                    return


def _written(frame: Frame | None, ids: dict[str, str]) -> str:
    if frame is None:
        return ": still there\n\n"
    if frame.type == "subscribed":
        ids.update(frame.said["ids"])
    if frame.id is not None and frame.topic is not None:
        ids[frame.topic] = frame.id
    name = "" if frame.type == "event" else f"event: {frame.type}\n"
    return f"id: {resume.bundle(ids)}\n{name}data: {frame.text}\n\n"


def _from_elsewhere(request: HttpRequest) -> bool:
    """Whether another site's page asks, with this visitor's cookies. curl and others say neither."""
    if (origin := request.headers.get("Origin")) is not None:
        return not is_ours(origin, request.get_host())
    return request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")


def _refusal(status: int, message: str) -> HttpResponse:
    return JsonResponse({"type": "error", "message": message}, status=status)
