"""The dashboard, its numbers, and the front door."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model, login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache

from . import board
from .models import Flight, Status

MOST_CHANGED = 50
"""Keys that a page may ask the news of at once."""


@never_cache
def front(request: HttpRequest) -> HttpResponse:
    """The dashboard. Who comes from this very machine, to a server that `manage.py demo` runs, is logged in."""
    if not request.user.is_authenticated and _is_visitor(request):
        login(request, get_user_model().objects.get(username=settings.DEMO_VISITOR))
    if not request.user.is_authenticated:
        return redirect(settings.LOGIN_URL)
    return dashboard(request)


def _is_visitor(request: HttpRequest) -> bool:
    if not settings.DEMO_VISITOR:
        return False
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def dashboard(request: HttpRequest) -> HttpResponse:
    """The page, with the numbers of this moment in it."""
    _insist_on_permission(request)
    return TemplateResponse(request, "flights/dashboard.html", _context(request))


def _context(request: HttpRequest) -> dict[str, Any]:
    numbers = board.numbers()
    return {
        **admin.site.each_context(request),
        "title": _("The board"),
        "opts": Flight._meta,
        "numbers": numbers,
        "tiles": [(status.value, status.label, numbers["counts"][status.value]) for status in Status],
        "hours": board.wall(),
        "is_nav_sidebar_enabled": False,  # a wall has no room for it
        "topic": Flight._meta.label_lower,
    }


def dashboard_numbers(request: HttpRequest) -> JsonResponse:
    """The numbers alone. `?changed=5,7` asks for these flights' lines too."""
    _insist_on_permission(request)
    return JsonResponse(board.numbers(_keys(request.GET.get("changed", ""))))


def _keys(text: str) -> list[int]:
    return [int(key) for key in text.split(",")[:MOST_CHANGED] if key.isascii() and key.isdigit() and len(key) < 19]


def _insist_on_permission(request: HttpRequest) -> None:
    """Who may look at flights in the admin may look at these pages, and nobody else."""
    if not admin.site.has_permission(request) or not request.user.has_perm("flights.view_flight"):
        raise PermissionDenied
