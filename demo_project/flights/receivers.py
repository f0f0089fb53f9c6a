"""What happens when a flight changes. Django finds this file by itself, as it finds models.py.

To see the lines of the first while the day runs: FLIGHTS_LOG=INFO python manage.py demo
"""

from __future__ import annotations

import logging

from django.db.models import F

from pgsignals import PgEvent, on_pg_event

from . import journey
from .models import Booking, Flight, Hotel, LandingFee, Status

log = logging.getLogger("flights")


# Fast events: whoever listens when it happens is called, in `listen`; with everywhere=True beside the pages, too.


@on_pg_event(Flight, "update", changed="status")
def tell_the_desk(event: PgEvent) -> None:
    """Called for every flight whose status changed, whoever wrote it.

    What the declaration names travels with the event and costs nothing to read; the rest is loaded on demand.
    """
    if event.new is None or event.new["status"] != Status.CANCELLED:
        return
    if flight := event.instance():
        log.info("%s is cancelled: its passengers are told.", flight)


@on_pg_event(Flight, "update", everywhere=True)
async def pass_the_relay(event: PgEvent) -> None:
    """An asynchronous receiver runs in the relay's own loop. The page that follows one event asks when it came by."""
    journey.note("relay", event)


@on_pg_event(Flight, "update", everywhere=True)
def reach_a_receiver(event: PgEvent) -> None:
    """A synchronous one runs in a thread beside it."""
    journey.note("receiver", event, loads=True)


# Durable events: they wait in the log until the group has handled them, whoever is down meanwhile.


class HotelFull(Exception):
    """There is no room. The event is tried again, and is a dead letter in the end."""


@on_pg_event(Flight, "update", changed="status", group="hotels", max_attempts=4)
def book_rooms(event: PgEvent) -> None:
    """At least once for each cancellation; a second time finds the booking of the first."""
    if event.new is None or event.new["status"] != Status.CANCELLED or event.instance() is None:
        return
    hotel = Hotel.objects.get()
    if hotel.is_full:
        raise HotelFull(f"{hotel} has no room for the passengers of flight {event.pk}")
    Booking.objects.get_or_create(event=event.id, defaults={"flight_id": event.pk, "hotel": hotel})


@on_pg_event(Flight, "update", changed="status", group="ledger", atomic=True)
def charge_landing(event: PgEvent) -> None:
    """Exactly once for each landing: the count commits together with the group's position."""
    if event.new is None or event.new["status"] != Status.ARRIVED:
        return
    fee, _made = LandingFee.objects.get_or_create(airline_id=event.new["airline"])
    LandingFee.objects.filter(pk=fee.pk).update(landings=F("landings") + 1)
