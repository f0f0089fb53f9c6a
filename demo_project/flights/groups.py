"""What the page about durable events shows: groups with their lag, what is parked, what is dead, who works."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Sum

from demo_project import worker
from pgsignals.durable import control
from pgsignals.models import DeadLetter, ParkedEvent

from .models import Booking, Flight, Hotel, LandingFee

SHOWN = 6
"""Parked events, and dead letters, that are listed."""


@dataclass(frozen=True, slots=True)
class Line:
    """A parked event or a dead letter, as the page lists it."""

    pk: int
    event: int
    flight: str
    attempts: int
    error: str


def status() -> dict[str, Any]:
    """All of it, as it is now."""
    parked, dead = ParkedEvent.objects.order_by("event_id"), DeadLetter.objects.order_by("-died_at", "-pk")
    return {
        "groups": control.status(DEFAULT_DB_ALIAS),
        "hotel": Hotel.objects.first(),
        "rooms": Booking.objects.count(),
        "landings": LandingFee.objects.aggregate(all=Sum("landings"))["all"] or 0,
        "parked": _lines(parked),
        "parked_count": parked.count(),
        "dead": _lines(dead),
        "dead_count": dead.count(),
        "worker": worker.current,
    }


def _lines(stored: Any) -> list[Line]:
    found = list(stored[:SHOWN])
    names = {flight.pk: str(flight) for flight in Flight.objects.filter(pk__in=[_pk(one) for one in found])}
    return [Line(one.pk, one.event_id, names.get(_pk(one), ""), one.attempts, one.error) for one in found]


def _pk(stored: Any) -> Any:
    return json.loads(stored.key)
