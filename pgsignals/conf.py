"""The settings: one dict, `PGSIGNALS`. Nobody else reads it.

Every key has its unit in its documentation and a default; a key that is not here is refused by a system check.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from .tables import SLOTS


@dataclass(frozen=True, slots=True)
class Settings:
    """What `PGSIGNALS` says, with the defaults of what it does not say."""

    DATABASE: str = "default"
    """Alias of the database to listen to, and to publish to where the router has no opinion."""

    LISTEN: str | None = None
    """Where to connect for listening, if not as DATABASE says: another alias, or a connection string of libpq
    (`host=... dbname=...` or `postgresql://...`). For projects whose own alias leads through a pooler."""

    CHANNELS: tuple[str, ...] = ()
    """Further channels to listen to, besides those that receivers name."""

    CHANNEL_LAYER: str | None = "default"
    """Alias of the Channels layer that gets the events; None forwards nothing."""

    BUFFER: int = 64
    """Megabytes of events that may wait for receivers before the oldest are dropped and a gap is announced."""

    RECONNECT_MAX: float = 30.0
    """Seconds: the longest wait between two attempts to reconnect."""

    CONNECT_TIMEOUT: float = 10.0
    """Seconds that connecting, with its LISTEN, may take."""

    PROBE_EVERY: float = 15.0
    """Seconds between two proofs that what is sent to the database arrives at the relay."""

    PROBE_WITHIN: float = 5.0
    """Seconds within which the probe's token must arrive."""

    SLOW_RECEIVER: float = 1.0
    """Seconds that one call of a receiver may take before a warning names it."""

    CONCURRENCY: int = 16
    """Calls of asynchronous receivers that may run at the same time."""

    BATCH: int = 1000
    """Events that a receiver with batch=True gets at once, at most."""

    LOCK_TIMEOUT: float = 5.0
    """Seconds that creating a trigger waits for its table's lock before the migration gives up."""

    WAKE_UP: str = "gated"
    """How writers wake those who read the log: `gated` (of writers that commit at the same time, one rings),
    `every_commit`, or `poll` (nobody rings, readers look every LOG_POLL seconds; what prepared transactions need).
    `migrate` puts it into the database."""

    LOG_POLL: float = 1.0
    """Seconds after which readers look into the log though nobody rang."""

    LOG_KEEP: float = 7 * 86400.0
    """Seconds for which an event stays in the log, at least; longer where a group has not handled it."""

    LOG_BATCH: int = 1000
    """Events that a group's worker reads, and with atomic=True commits, at once, at most."""

    LEASE: float = 10.0
    """Seconds after which another worker takes over what a worker that is not heard of any more had."""

    PARTITIONS: int = 8
    """Shares into which a new group's keys are divided: as many workers as that can be busy. Fixed when the group's
    first worker starts; 1,024 at most."""

    LIVE_URL: str = "/ws/pg/"
    """Where live pages open their WebSocket: a path of the same host, or a whole address (`wss://...`)."""

    LIVE_ACCESS: str = "pgsignals.live.access.Access"
    """The class that says who may hear of what, for WebSockets and Server-Sent Events alike."""

    LIVE_FIELDS: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By model, those of its declared fields whose values go to the processes that serve browsers, so that an access
    can decide by them, for rows that are deleted as well. They are not sent to browsers."""


_KINDS: dict[str, tuple[type, ...]] = {
    "DATABASE": (str,),
    "LISTEN": (str, type(None)),
    "CHANNELS": (list, tuple),
    "CHANNEL_LAYER": (str, type(None)),
    "BUFFER": (int,),
    "RECONNECT_MAX": (int, float),
    "CONNECT_TIMEOUT": (int, float),
    "PROBE_EVERY": (int, float),
    "PROBE_WITHIN": (int, float),
    "SLOW_RECEIVER": (int, float),
    "CONCURRENCY": (int,),
    "BATCH": (int,),
    "LOCK_TIMEOUT": (int, float),
    "WAKE_UP": (str,),
    "LOG_POLL": (int, float),
    "LOG_KEEP": (int, float),
    "LOG_BATCH": (int,),
    "LEASE": (int, float),
    "PARTITIONS": (int,),
    "LIVE_URL": (str,),
    "LIVE_ACCESS": (str,),
    "LIVE_FIELDS": (dict,),
}

_MOST = {"PARTITIONS": SLOTS}

_CHOICES = {"WAKE_UP": ("gated", "every_commit", "poll")}


def get() -> Settings:
    """The settings now in force. Raises ImproperlyConfigured for the first thing that is wrong with them."""
    given = _given()
    if wrong := describe_problems(given):
        raise ImproperlyConfigured(wrong[0])
    if "CHANNELS" in given:
        given["CHANNELS"] = tuple(given["CHANNELS"])
    if "LIVE_FIELDS" in given:
        given["LIVE_FIELDS"] = {label.lower(): tuple(names) for label, names in given["LIVE_FIELDS"].items()}
    return Settings(**given)


def problems() -> list[str]:
    """Everything that is wrong with settings.PGSIGNALS, one sentence each."""
    try:
        return describe_problems(_given())
    except ImproperlyConfigured as error:
        return [str(error)]


def _given() -> dict[str, Any]:
    given = getattr(django_settings, "PGSIGNALS", {})
    if not isinstance(given, dict):
        raise ImproperlyConfigured(f"settings.PGSIGNALS is {given!r}, and must be a dict.")
    return dict(given)


def describe_problems(given: dict[str, Any]) -> list[str]:
    """One sentence for each unknown key and each value of a wrong kind, with the remedy."""
    known = [one.name for one in fields(Settings)]
    found = []
    for key, value in given.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.5)
            meant = f" Did you mean {near[0]!r}?" if near else f" The keys are {', '.join(known)}."
            found.append(f"settings.PGSIGNALS has the unknown key {key!r}.{meant}")
        elif not isinstance(value, _KINDS[key]) or (isinstance(value, bool)):
            kinds = " or ".join(kind.__name__ for kind in _KINDS[key]).replace("NoneType", "None")
            found.append(f"settings.PGSIGNALS[{key!r}] is {value!r}, and must be of type {kinds}.")
        elif key in _CHOICES and value not in _CHOICES[key]:
            found.append(f"settings.PGSIGNALS[{key!r}] is {value!r}, and must be one of {', '.join(_CHOICES[key])}.")
        elif isinstance(value, int | float) and not value > 0:  # NaN is not
            found.append(f"settings.PGSIGNALS[{key!r}] is {value!r}, and must be greater than 0.")
        elif key in _MOST and isinstance(value, int) and value > _MOST[key]:
            found.append(f"settings.PGSIGNALS[{key!r}] is {value!r}, and must be {_MOST[key]} at most.")
        elif isinstance(value, list | tuple) and not all(isinstance(name, str) for name in value):
            found.append(f"settings.PGSIGNALS['CHANNELS'] is {value!r}, and must hold channel names only.")
        elif key == "LIVE_URL" and not str(value).startswith(("/", "ws://", "wss://")):
            found.append(f"settings.PGSIGNALS['LIVE_URL'] is {value!r}, and must begin with /, ws:// or wss://.")
        elif isinstance(value, dict) and not all(map(_names_fields, value.items())):
            found.append(
                f"settings.PGSIGNALS['LIVE_FIELDS'] is {value!r}, and must hold lists of fields by the model's label."
            )
    return found


def _names_fields(item: tuple[Any, Any]) -> bool:
    label, names = item
    return isinstance(label, str) and isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
