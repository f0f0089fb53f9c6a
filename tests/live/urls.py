"""Pages, the admin, and Server-Sent Events."""

from __future__ import annotations

import os
from pathlib import Path

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path

from pgsignals.live.sse import PgEventStream

from . import views


def htmx_js(request: HttpRequest) -> HttpResponse:
    """htmx, from where the tests have installed it."""
    return HttpResponse(Path(os.environ["PGSIGNALS_TEST_HTMX"]).read_bytes(), content_type="text/javascript")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("parcels/", views.parcels),
    path("htmx/", views.htmx),
    path("htmx.js", htmx_js),
    path("count/", views.count),
    path("events/", PgEventStream.as_view()),
]
