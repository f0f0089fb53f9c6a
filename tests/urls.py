"""The admin, for the tests of ours, and Server-Sent Events."""

from django.contrib import admin
from django.urls import path

from pgsignals.live.sse import PgEventStream

urlpatterns = [path("admin/", admin.site.urls), path("events/", PgEventStream.as_view())]
