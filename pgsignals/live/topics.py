"""Names. A *topic* is what a browser asks for, a *group* is where Channels sends it.

`flights.flight` is the topic of a model, in the group `pg.flights.flight`; `channel:app_events` is the topic of an
application channel, in `pg.channel.app_events`. There are no groups for single rows: consumers filter by key.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from ..event import PgEvent

_CHANNEL = "channel:"

_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]")

_LONGEST = 99
"""Characters of a group's name (channels.layers.BaseChannelLayer)."""


def asked_topic(text: str) -> str:
    """The topic that somebody means who writes `flights.Flight`."""
    # Case counts in an app's label, as in Django, and not in a model's name.
    app, dot, model = text.partition(".")
    return text if is_channel(text) else f"{app}{dot}{model.lower()}"


@lru_cache(maxsize=1000)
def model_topic(label: str) -> str:
    """The topic of a model, by its label. It is remembered: not for what browsers ask."""
    return asked_topic(label)


def channel_topic(channel: str) -> str:
    """The topic of an application channel."""
    return f"{_CHANNEL}{channel}"


def is_channel(topic: str) -> bool:
    """Whether it is the topic of an application channel, and not of a model."""
    return topic.startswith(_CHANNEL)


def topic_of(event: PgEvent) -> str:
    """The topic that an event belongs to."""
    return channel_topic(event.channel) if event.label is None else model_topic(event.label)


def model_group(label: str) -> str:
    """The group of a model: `pg.flights.flight`."""
    return _safe(f"pg.{model_topic(label)}")


def channel_group(channel: str) -> str:
    """The group of an application channel: `pg.channel.app_events`."""
    return _safe(f"pg.channel.{channel}")


def group_of(topic: str) -> str:
    """The group of a topic."""
    return channel_group(topic.removeprefix(_CHANNEL)) if is_channel(topic) else model_group(topic)


def _safe(name: str) -> str:
    """Channels takes ASCII letters, digits, - _ . only, and fewer than 100 of them: others get a digest."""
    safe = _UNSAFE.sub("-", name)
    if safe == name and len(safe) <= _LONGEST:
        return name
    # A browser may ask for what UTF-8 cannot write.
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{safe[:80]}.{digest[:12]}"
