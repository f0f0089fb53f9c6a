"""What the visitor may do: cause writes, turn the clock's hands, follow an event, have a group fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from demo_project import worker
from pgsignals import publish
from pgsignals.durable import control
from pgsignals.models import DeadLetter

from . import board, doing, journey, replay
from .models import Hotel
from .views import for_staff

CLOCK, WORKER = "flights_clock", "flights_worker"
"""The channels on which all who look hear that the clock was touched, or the worker."""

_CHANGE = "flights.change_flight"


class Refused(Exception):
    """What was asked for makes no sense, or cannot be done; the text says why."""


def answering(act: Callable[[HttpRequest, dict[str, Any]], dict[str, Any]]) -> Callable[..., HttpResponse]:
    """An act that takes a JSON object and gives one."""

    @for_staff(_CHANGE)
    @require_POST
    def view(request: HttpRequest) -> HttpResponse:
        try:
            asked = json.loads(request.body or b"{}")
            if not isinstance(asked, dict):
                raise Refused("Send a JSON object.")
            return JsonResponse(act(request, asked))
        except (Refused, doing.NothingToDo) as refused:
            return JsonResponse({"refused": str(refused)}, status=409)
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            return JsonResponse({"refused": f"This cannot be read: {error}"}, status=400)

    return view


@for_staff()
def moment(request: HttpRequest) -> HttpResponse:
    """This server's clock, in milliseconds since 1970, for browsers that compare theirs with it."""
    return HttpResponse(f"{time.time() * 1000:.3f}", content_type="text/plain")


@answering
def do(request: HttpRequest, asked: dict[str, Any]) -> dict[str, Any]:
    """{"deed": "delay"}, {"deed": "cancel", "airline": "B6"} or {"deed": "run", "statement": 0}."""
    deeds = {
        "delay": doing.delay,
        "cancel": lambda: doing.cancel(str(asked["airline"])),
        "run": lambda: doing.run(int(asked["statement"])),
    }
    return asdict(doing.do(deeds[str(asked["deed"])]))


@answering
def set_clock(request: HttpRequest, asked: dict[str, Any]) -> dict[str, Any]:
    """{"paused": true}, {"speed": 300}, {"jump": 0.5}: a part of the day, from 0 to 1."""
    if replay.current is None:
        raise Refused("No replay runs in this process: only `manage.py demo` has one.")
    clock = replay.current.clock
    if "speed" in asked:
        clock.run_at(float(asked["speed"]))
    if "jump" in asked:
        clock.jump(clock.begin + (clock.end - clock.begin) * float(asked["jump"]))
    if "paused" in asked:
        clock.pause() if asked["paused"] else clock.resume()
    said = board.clock()
    publish(CLOCK, said)
    return said


@answering
def follow(request: HttpRequest, asked: dict[str, Any]) -> dict[str, Any]:
    """Write something, and say what each station saw of it."""
    return journey.follow()


# Durable events. These are plain forms, so that they work without JavaScript.


def _durably(act: Callable[[HttpRequest], None], *permissions: str) -> Callable[..., HttpResponse]:
    @for_staff(_CHANGE, *permissions)
    @require_POST
    def view(request: HttpRequest) -> HttpResponse:
        act(request)
        return redirect("durable")

    return view


def _fill_hotel(request: HttpRequest) -> None:
    for hotel in Hotel.objects.all():
        hotel.is_full = request.POST.get("full") == "yes"
        hotel.save(update_fields=["is_full"])


def _run_worker(request: HttpRequest) -> None:
    if worker.current is not None:
        worker.current.start() if request.POST.get("run") == "yes" else worker.current.kill()
        publish(WORKER, {"runs": worker.current.pid is not None})


def _requeue(request: HttpRequest) -> None:
    letters = DeadLetter.objects.all()
    if one := request.POST.get("letter", ""):
        letters = letters.filter(pk=int(one)) if one.isascii() and one.isdigit() else letters.none()
    control.requeue(DEFAULT_DB_ALIAS, list(letters.values_list("pk", flat=True)))


def _cancel_some(request: HttpRequest) -> None:
    doing.do(doing.cancel_next)


fill_hotel = _durably(_fill_hotel, "flights.change_hotel")
run_worker = _durably(_run_worker)
requeue = _durably(_requeue, "pgsignals.change_deadletter")
cancel_some = _durably(_cancel_some)
