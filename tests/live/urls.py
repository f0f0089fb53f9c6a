"""Pages, the admin, and Server-Sent Events."""

from __future__ import annotations

import os
from pathlib import Path

from channels.layers import get_channel_layer
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path

from pgsignals.live.hub import hub_of
from pgsignals.live.sse import PgEventStream

from . import views


def htmx_js(request: HttpRequest, version: int) -> HttpResponse:
    """htmx, from where the tests have installed it."""
    path = Path(os.environ[f"PGSIGNALS_TEST_HTMX{version}"])
    return HttpResponse(path.read_bytes(), content_type="text/javascript")


async def members(request: HttpRequest) -> HttpResponse:
    """How many listen in this process."""
    members = hub_of(get_channel_layer())._members
    return HttpResponse(str(sum(map(len, members.values()))))


urlpatterns = [
    path("admin/", admin.site.urls),
    path("favicon.ico", lambda request: HttpResponse(status=204)),
    path("parcels/", views.parcels),
    path("htmx/", views.htmx),
    path("htmx<int:version>.js", htmx_js),
    path("count/", views.count),
    path("events/", PgEventStream.as_view()),
    path("members/", members),
]
