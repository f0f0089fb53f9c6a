"""The pages, and the front door. What a visitor may do there is in acts.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from ipaddress import ip_address
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model, login
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache

from . import atlas, board, clock, doing, groups, replay
from .models import Airline, Flight, Status

MOST_CHANGED = 50
"""Keys that a page may ask the news of at once."""

View = Callable[..., HttpResponse]


def for_staff(*permissions: str) -> Callable[[View], View]:
    """Who may look at flights in the admin, and has these permissions, may see the page; nobody else."""

    def decorate(view: View) -> View:
        @wraps(view)
        @never_cache
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path(), settings.LOGIN_URL)
            if not admin.site.has_permission(request) or not request.user.has_perms(
                ["flights.view_flight", *permissions]
            ):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return guarded

    return decorate


def front(request: HttpRequest) -> HttpResponse:
    """The board. Who comes from this very machine, to a server that `manage.py demo` runs, is logged in."""
    if not request.user.is_authenticated and _is_visitor(request):
        login(request, get_user_model().objects.get(username=settings.DEMO_VISITOR))
    return show_board(request)


def _is_visitor(request: HttpRequest) -> bool:
    if not settings.DEMO_VISITOR:
        return False
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


@for_staff()
def show_board(request: HttpRequest) -> HttpResponse:
    """The page, with the numbers of this moment in it."""
    numbers = board.numbers()
    part, _end = doing.part_of_day()
    context = {
        "title": _("The board"),
        "numbers": numbers,
        "tiles": [(status.value, status.label, numbers["counts"][status.value]) for status in Status],
        "hours": board.wall(),
        "atlas": atlas,
        "minutes": doing.MINUTES,
        "airlines": Airline.objects.order_by("name"),
        "part_of_day": part,
        "statements": doing.STATEMENTS,
    }
    return _page(request, "board", context)


@for_staff()
def numbers(request: HttpRequest) -> HttpResponse:
    """The numbers alone. `?changed=5,7` asks for these flights' lines too."""
    return JsonResponse(board.numbers(_keys(request.GET.get("changed", ""))))


@for_staff()
def show_journey(request: HttpRequest) -> HttpResponse:
    """One event, station by station."""
    return _page(request, "journey", {"title": _("One event")})


@for_staff("pgsignals.view_group", "pgsignals.view_deadletter")
def show_durable(request: HttpRequest) -> HttpResponse:
    """Groups, and what becomes of events that fail."""
    return _page(request, "durable", {"title": _("Durable events"), **groups.status()})


def _page(request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
    common = {
        **admin.site.each_context(request),
        "opts": Flight._meta,
        "tab": name,
        "replay": replay.current,
        "clock": board.clock(),
        "speeds": clock.SPEEDS,
        "is_nav_sidebar_enabled": False,  # a wall has no room for it
    }
    return TemplateResponse(request, f"flights/{name}.html", {**common, **context})


def _keys(text: str) -> list[int]:
    return [int(key) for key in text.split(",")[:MOST_CHANGED] if key.isascii() and key.isdigit() and len(key) < 19]
