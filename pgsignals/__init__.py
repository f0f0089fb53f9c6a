"""PostgreSQL's own publish and subscribe, as a first-class part of Django.

Importing this needs no app registry: models and migrations import it.
"""

from .context import context, silenced
from .durable.failures import Discard, Retry
from .durable.once import processed_once
from .event import PgEvent
from .publishing import PublishError, apublish, publish
from .receivers import on_pg_event, on_pg_gap
from .triggers.declaration import Notify
from .triggers.operations import AddNotify, RemoveNotify

__version__ = "0.1.0"

__all__ = [
    "AddNotify",
    "Discard",
    "Notify",
    "PgEvent",
    "PublishError",
    "RemoveNotify",
    "Retry",
    "apublish",
    "context",
    "on_pg_event",
    "on_pg_gap",
    "processed_once",
    "publish",
    "silenced",
]
