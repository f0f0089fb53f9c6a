"""Who listens, looked up again: sessions end and users are deactivated while a page stays open."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from channels.auth import get_user
from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model


async def session_user(session: Any) -> Any:
    """The user of a session as it is stored now; anonymous where it is none any more."""
    # A new session object: the one of the handshake remembers what it was then.
    store = import_module(settings.SESSION_ENGINE).SessionStore(session.session_key)
    scope: Any = {"session": store}
    return await get_user(scope)


@database_sync_to_async
def user_anew(user: Any) -> Any:
    """A user who did not come by a session: as stored now; anonymous where there is none any more."""
    # Routing modules are imported before Django's apps are.
    from django.contrib.auth.models import AnonymousUser

    return get_user_model()._default_manager.filter(pk=user.pk).first() or AnonymousUser()


@database_sync_to_async
def has_login(session: Any) -> bool:
    """Whether it is by a session that somebody is logged in."""
    return session is not None and SESSION_KEY in session
