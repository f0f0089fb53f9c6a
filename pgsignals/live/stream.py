"""Events as an asynchronous iterator: what the WebSocket and the Server-Sent Events are, for code of one's own.

async for frame in stream(user, ["flights.flight", "channel:news"]):
    print(frame.type, frame.topic, frame.said)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured, PermissionDenied

from .. import conf
from .access import Access, configured
from .hub import hub_of
from .outbox import Frame
from .permissions import Permissions
from .subscriber import Subscriber
from .topics import asked_topic
from .visitor import user_anew

HEARTBEAT = 15.0
"""Seconds of silence after which permissions are looked up again."""


async def stream(
    user: Any, topics: Sequence[str], *, since: Mapping[str, str] | None = None, access: Access | None = None
) -> AsyncIterator[Frame]:
    """What a user is told of topics, from now on; it ends when the user may hear of none of them any more.

    since: by topic, the `id` of the last frame that was handled: what is in the log since then comes first.
    access: who may hear of what; what PGSIGNALS["LIVE_ACCESS"] names by default.

    The first frame is `subscribed`. Whoever leaves the loop early should close the iterator (`contextlib.aclosing`).
    A loop that is too slow is not waited for: it gets a `gap`.
    Raises PermissionDenied where a topic is refused at the beginning, ImproperlyConfigured without a channel layer.
    """
    wanted = list(dict.fromkeys(map(asked_topic, topics)))
    async with listening(user, lambda: user_anew(user), access or configured(), wanted, since) as subscriber:
        if refused := [topic for topic in wanted if topic not in subscriber.topics]:
            raise PermissionDenied(f"{user} may not listen to {', '.join(refused)}.")
        async for frame in subscriber.frames(HEARTBEAT):
            if frame is not None:
                yield frame
            if subscriber.is_done():
                return


@asynccontextmanager
async def listening(
    user: Any,
    fresh: Callable[[], Awaitable[Any]],
    access: Access,
    topics: Sequence[str],
    since: Mapping[str, str] | None,
) -> AsyncIterator[Subscriber]:
    """A subscriber that hears of those topics that are allowed. Raises ImproperlyConfigured without a layer."""
    alias = conf.get().CHANNEL_LAYER or DEFAULT_CHANNEL_LAYER
    layer = get_channel_layer(alias)
    if layer is None:
        raise ImproperlyConfigured(f"settings.CHANNEL_LAYERS has no layer {alias!r}, so no event would ever arrive.")
    subscriber = Subscriber(Permissions(access, user, fresh), hub_of(layer))
    try:
        await subscriber.subscribe(topics, since)
        yield subscriber
    finally:
        await subscriber.close()
