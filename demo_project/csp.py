"""Content-Security-Policy: the demo shows that nothing of pgsignals, and nothing of the pages, needs an exception."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

POLICY = "default-src 'self'"


class ContentSecurityPolicyMiddleware:
    """Send the policy with every page. Django 6.0 has a middleware of its own for this; 5.2 has none."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response
