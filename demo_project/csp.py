"""Content-Security-Policy: the demo shows that nothing of pgsignals, and nothing of the pages, needs an exception."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

POLICY = "default-src 'self'"


@sync_and_async_middleware
def content_security_policy(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Send the policy with every page. Django 6.0 has a middleware of its own for this; 5.2 has none.

    Of both kinds, because a middleware that is synchronous has a thread wait for what comes after it: one that waits
    when the server ends would wait for ever.
    """
    if iscoroutinefunction(get_response):

        async def awaited(request: HttpRequest) -> HttpResponse:
            answer: Awaitable[HttpResponse] = get_response(request)
            return _with_policy(await answer)

        return awaited
    return lambda request: _with_policy(get_response(request))


def _with_policy(response: HttpResponse) -> HttpResponse:
    response.headers.setdefault("Content-Security-Policy", POLICY)
    return response
