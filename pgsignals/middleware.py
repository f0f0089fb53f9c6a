"""Every event of a request says who caused it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from .context import deferred

MAX_PATH = 200
"""Characters of the request's path."""

MAX_PATH_BYTES = 400
"""Bytes of the path as JSON: a strange path must not push the actor out of the context."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,200}")


class ContextMiddleware:
    """Puts `actor`, `request_id`, `method` and `path` into the context of all that the request writes.

    Stands in MIDDLEWARE after AuthenticationMiddleware, "pgsignals.middleware.ContextMiddleware". A request that
    writes nothing costs nothing: the user is loaded at the first write, and again where `login()` replaced it.
    What a streaming response writes while it streams is outside. For more, or less, override `get_context`.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._await(request)
        with self._context(request):
            response: HttpResponseBase = self.get_response(request)
        return response

    async def _await(self, request: HttpRequest) -> HttpResponseBase:
        with self._context(request):
            response: HttpResponseBase = await self.get_response(request)
        return response

    def _context(self, request: HttpRequest) -> Any:
        return deferred(partial(self.get_context, request), sign=partial(getattr, request, "user", None))

    def get_context(self, request: HttpRequest) -> dict[str, Any]:
        """What to say about a request; called at its first write, inside the transaction.

        What it raises, and a context over 1,024 bytes, is logged as an error; the write goes on without context.
        A query that fails inside a transaction breaks the transaction: put it into an `atomic()` of its own.
        """
        said = {
            "request_id": request_id(request),
            "method": str(request.method)[:16],
            "path": short_path(request.path),
        }
        user = getattr(request, "user", None)
        if user is not None and user.is_authenticated:
            return {"actor": user.pk, **said}
        return said


def request_id(request: HttpRequest) -> str:
    """X-Request-ID where it is 1 to 200 letters, digits and ._:/+=-; otherwise a new one, the same for the request."""
    given = request.headers.get("X-Request-ID", "")
    if _REQUEST_ID.fullmatch(given):
        return given
    if not hasattr(request, "_pgsignals_request_id"):
        request._pgsignals_request_id = uuid.uuid4().hex  # type: ignore[attr-defined]
    made: str = request._pgsignals_request_id  # type: ignore[attr-defined]
    return made


def short_path(path: str) -> str:
    """The beginning of the path."""
    path = path[:MAX_PATH].encode(errors="replace").decode()
    while len(json.dumps(path, ensure_ascii=False).encode()) > MAX_PATH_BYTES:
        path = path[:-1]
    return path
