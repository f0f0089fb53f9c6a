"""Names. A *topic* is what a browser asks for, a *group* is where Channels sends it.

| topic | is about | Channels group |
|---|---|---|
| `flights.flight` | a model | `pg.flights.flight` |
| `flights.flight:17` | one object, by its key | the same |
| `channel:app_events` | an application channel | `pg.channel.app_events` |
| `group:billing` | how a durable group gets on | none: whoever is asked looks into the database |

There are no groups for single rows: what hears of them is sent all of the model's, and passes on what fits.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from typing import Any

from ..event import PgEvent

_CHANNEL = "channel:"
_GROUP = "group:"

_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]")

_LONGEST = 99
"""Characters of a group's name (channels.layers.BaseChannelLayer)."""


def asked_topic(text: str) -> str:
    """The topic that somebody means who writes `flights.Flight`."""
    if not is_model(text):
        return text
    # Case counts in an app's label, as in Django, and not in a model's name.
    label, colon, key = text.partition(":")
    app, dot, model = label.partition(".")
    return f"{app}{dot}{model.lower()}{colon}{key}"


@lru_cache(maxsize=1000)
def model_topic(label: str) -> str:
    """The topic of a model, by its label. It is remembered: not for what browsers ask."""
    return asked_topic(label)


def object_topic(label: str, pk: Any) -> str:
    """The topic of one object. A composite key is a list, as JSON."""
    return f"{model_topic(label)}:{key_text(pk)}"


def key_text(pk: Any) -> str:
    """A key as a topic has it."""
    return json.dumps([str(one) for one in pk]) if isinstance(pk, list | tuple) else str(pk)


def channel_topic(channel: str) -> str:
    """The topic of an application channel."""
    return f"{_CHANNEL}{channel}"


def is_channel(topic: str) -> bool:
    """Whether it is the topic of an application channel."""
    return topic.startswith(_CHANNEL)


def is_model(topic: str) -> bool:
    """Whether it is the topic of a model, or of one of its objects."""
    return not topic.startswith((_CHANNEL, _GROUP))


def durable_group(topic: str) -> str | None:
    """The durable group that a topic is about."""
    return topic.removeprefix(_GROUP) if topic.startswith(_GROUP) else None


def base_of(topic: str) -> str:
    """What is sent to the Channels group: an object's topic without its key."""
    return topic.partition(":")[0] if is_model(topic) else topic


def key_of(topic: str) -> str | None:
    """The key in an object's topic."""
    return topic.partition(":")[2] if is_model(topic) and ":" in topic else None


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
    """The Channels group of a topic."""
    base = base_of(topic)
    return channel_group(base.removeprefix(_CHANNEL)) if is_channel(base) else model_group(base)


def _safe(name: str) -> str:
    """Channels takes ASCII letters, digits, - _ . only, and fewer than 100 of them: others get a digest."""
    safe = _UNSAFE.sub("-", name)
    if safe == name and len(safe) <= _LONGEST:
        return name
    # A browser may ask for what UTF-8 cannot write.
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{safe[:80]}.{digest[:12]}"
