"""The front page, and the admin."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import path
from django.views.generic import RedirectView

from .flights.views import front

urlpatterns = [
    path("", front, name="front"),
    path("favicon.ico", RedirectView.as_view(url=static("flights/icon.svg"))),
    path("admin/", admin.site.urls),
]
