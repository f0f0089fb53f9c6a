"""Which site's page asks. A browser sends a visitor's cookies along whichever page it is that asks.

Channels' AllowedHostsOriginValidator does the same where it is mounted; whoever forgets it is safe all the same.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import validate_host


def is_ours(origin: str | None, host: str) -> bool:
    """Whether a page of this origin may listen here: one of this host, of ALLOWED_HOSTS, or of CSRF_TRUSTED_ORIGINS.

    What says no origin is no page of another site: curl, say. A `*` in ALLOWED_HOSTS is not meant for this.
    """
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    allowed = [one for one in settings.ALLOWED_HOSTS if one != "*"]
    if settings.DEBUG and not settings.ALLOWED_HOSTS:
        allowed = [".localhost", "127.0.0.1", "::1"]  # as Django has it
    return (
        (bool(parts.netloc) and parts.netloc == host)
        or (bool(name) and validate_host(f"[{name}]" if ":" in name else name, allowed))
        or origin in settings.CSRF_TRUSTED_ORIGINS
    )
