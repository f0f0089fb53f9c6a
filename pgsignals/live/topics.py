"""Names. A *topic* is what a browser asks for, a *group* is where Channels sends it.

`flights.flight` is the topic of a model, in the group `pg.flights.flight`; `channel:app_events` is the topic of an
application channel, in `pg.channel.app_events`. There are no groups for single rows: consumers filter by key.
"""

from __future__ import annotations

import hashlib
import re

from ..event import PgEvent

_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]")

_LONGEST = 99
"""Characters of a group's name (channels.layers.BaseChannelLayer)."""


def model_topic(label: str) -> str:
    """The topic of a model, by its label."""
    return label.lower()


def channel_topic(channel: str) -> str:
    """The topic of an application channel."""
    return f"channel:{channel}"


def topic_of(event: PgEvent) -> str:
    """The topic that an event belongs to."""
    return channel_topic(event.channel) if event.label is None else model_topic(event.label)


def model_group(label: str) -> str:
    """The group of a model: `pg.flights.flight`."""
    return _safe(f"pg.{label.lower()}")


def channel_group(channel: str) -> str:
    """The group of an application channel: `pg.channel.app_events`."""
    return _safe(f"pg.channel.{channel}")


def group_of(topic: str) -> str:
    """The group of a topic."""
    kind, colon, channel = topic.partition(":")
    return channel_group(channel) if colon and kind == "channel" else model_group(topic)


def _safe(name: str) -> str:
    """Channels takes ASCII letters, digits, - _ . only, and fewer than 100 of them: others get a digest."""
    safe = _UNSAFE.sub("-", name)
    if safe == name and len(safe) <= _LONGEST:
        return name
    return f"{safe[:80]}.{hashlib.sha256(name.encode()).hexdigest()[:12]}"
