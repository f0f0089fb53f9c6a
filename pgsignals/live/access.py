"""Who may hear of what: one answer for WebSockets, Server-Sent Events and `stream()`.

A project that decides for itself names a class in PGSIGNALS["LIVE_ACCESS"]::

    class Access(pgsignals.live.access.Access):
        def can_subscribe(self, user, topic):
            return topic == "channel:news" or super().can_subscribe(user, topic)

        def filter_events(self, user, events):
            mine = set(Order.objects.filter(owner=user, pk__in=[one.pk for one in events]).values_list("pk", flat=True))
            return [one for one in events if one.pk in mine]
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from django.apps import apps
from django.db import Error as DatabaseError
from django.utils.module_loading import import_string

from .. import conf
from ..event import PgEvent
from .topics import base_of, durable_group, is_model

logger = logging.getLogger("pgsignals.live")

RECHECK_AFTER = 30.0
"""Seconds for which a permission is believed; what comes after that waits until it is looked up again."""


class Access:
    """Closed by default: a user hears of the models that Django lets the user view, and of nothing else.

    All methods are called in threads, so they may query. Where one raises, the answer is no.
    """

    recheck_after: float = RECHECK_AFTER
    """Seconds for which an answer is believed."""

    def admits(self, user: Any) -> bool:
        """Whether a user may listen at all, and go on listening: logged in, and active.

        For pages that are open to everybody: True, and `can_subscribe` says yes to what is public.
        """
        return bool(user.is_authenticated and user.is_active)

    def admits_safely(self, user: Any) -> bool:
        """The same; where it raises something else than django.db.Error, no."""
        try:
            return bool(self.admits(user))
        except DatabaseError:
            raise
        except Exception:  # the project's own code
            logger.exception("admits() failed for the user %r, who is refused.", user.pk)
            return False

    def can_subscribe(self, user: Any, topic: str) -> bool:
        """Whether a user may hear of a topic; see `pgsignals.live.topics` for how these look.

        By default: active, and with Django's permission to view the model (or to change it, which implies that in
        Django), of groups with that for `pgsignals.Group`. Channels have no permission that Django knows of, so nobody.
        """
        if durable_group(topic) is not None:
            return _may_view(user, "pgsignals", "group")
        if not is_model(topic):
            return False
        try:
            meta = apps.get_model(base_of(topic))._meta
        except (LookupError, ValueError):
            return False
        return _may_view(user, meta.app_label, str(meta.model_name))

    def filter_events(self, user: Any, events: Sequence[PgEvent]) -> Iterable[PgEvent]:
        """Of events about one topic, those that a user may hear of: for permissions of single objects.

        What an event has in `old` and `new` are the fields that PGSIGNALS["LIVE_FIELDS"] names for the model: by these
        it can be told whose a deleted row was. `changed` and `pk` are as always; `instance()` loads all rows at once.
        Not asked where a browser is told to fetch anew, which names no object. By default, all of them.
        """
        return events

    def filters(self) -> bool:
        """Whether `filter_events` has to be asked."""
        return type(self).filter_events is not Access.filter_events


class Door(Access):
    """Where browsers come in. It asks what PGSIGNALS["LIVE_ACCESS"] names, unless a method says otherwise for this
    door alone."""

    @property
    def recheck_after(self) -> float:  # type: ignore[override]
        """Seconds for which an answer is believed."""
        return configured().recheck_after

    def admits(self, user: Any) -> bool:
        """Whether a user may listen at all, and go on listening."""
        return configured().admits(user)

    def can_subscribe(self, user: Any, topic: str) -> bool:
        """Whether a user may hear of a topic."""
        return configured().can_subscribe(user, topic)

    def filter_events(self, user: Any, events: Sequence[PgEvent]) -> Iterable[PgEvent]:
        """Of events about one topic, those that a user may hear of."""
        return configured().filter_events(user, events)

    def filters(self) -> bool:
        """Whether `filter_events` has to be asked."""
        return type(self).filter_events is not Door.filter_events or configured().filters()


def configured() -> Access:
    """The project's answer. Raises ImportError where PGSIGNALS["LIVE_ACCESS"] names nothing."""
    return _made(conf.get().LIVE_ACCESS)


@lru_cache(maxsize=8)
def _made(path: str) -> Access:
    made: Access = import_string(path)()
    return made


def _may_view(user: Any, app_label: str, model_name: str) -> bool:
    return bool(
        user.is_active
        and (user.has_perm(f"{app_label}.view_{model_name}") or user.has_perm(f"{app_label}.change_{model_name}"))
    )
