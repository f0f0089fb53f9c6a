"""Puts the day's plan into the database: airlines, airports, flights, and who may look at them."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection, transaction

from . import day
from .models import Airline, Airport, Flight, Hotel

VISITOR = "demo"
HOTEL = "Runway Inn"
_LOCK = 20130710
"""Number of the advisory lock that keeps two loads apart."""


@transaction.atomic
def load() -> int:
    """Load what is absent. Returns how many flights were added: all, or none when they were there."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    if Flight.objects.exists():
        return 0
    Airline.objects.bulk_create(
        [Airline(code=code, name=name) for code, name in day.airlines().items()], ignore_conflicts=True
    )
    Airport.objects.bulk_create([_airport(airport) for airport in day.airports().values()], ignore_conflicts=True)
    return len(Flight.objects.bulk_create([_flight(leg) for leg in day.legs()]))


def _airport(airport: day.Airport) -> Airport:
    return Airport(
        code=airport.code,
        name=airport.name,
        latitude=airport.latitude,
        longitude=airport.longitude,
        time_zone=airport.zone,
    )


def _flight(leg: day.Leg) -> Flight:
    return Flight(
        airline_id=leg.carrier,
        number=leg.number,
        tail_number=leg.tail,
        origin_id=leg.origin,
        destination_id=leg.destination,
        distance=leg.distance,
        scheduled_departure=leg.scheduled_departure,
        scheduled_arrival=leg.scheduled_arrival,
    )


def open_hotel() -> None:
    """The only hotel there is, with room for everybody again."""
    Hotel.objects.update_or_create(name=HOTEL, defaults={"is_full": False})


def make_visitor() -> None:
    """A staff user who may see and change flights and the log. It has no password, so nobody can guess it."""
    visitor, made = get_user_model().objects.get_or_create(username=VISITOR, defaults={"is_staff": True})
    if made:
        visitor.set_unusable_password()
        visitor.save(update_fields=["password"])
    visitor.user_permissions.add(*Permission.objects.filter(content_type__app_label__in=["flights", "pgsignals"]))
