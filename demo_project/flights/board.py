"""The numbers on the dashboard: a handful of queries, however much happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from statistics import fmean
from typing import Any, NamedTuple

from django.db.models.functions import ExtractHour
from django.utils.timezone import localtime

from . import atlas, replay
from .day import NEW_YORK
from .models import Airline, Flight, Status

HOURS = [*range(4, 24), *range(4)]
"""The day's hours in order: it begins before five in the morning, and its last flights leave in the night after."""

ON_TIME = 15
"""Minutes of delay below which a flight counts as on time, as the aviation authorities count."""

FEED = 16
"""Lines of news."""

_LEFT = {Status.DEPARTED, Status.ARRIVED, Status.DIVERTED}


class Row(NamedTuple):
    """What the numbers need of a flight."""

    pk: int
    status: str
    airline: str
    delay: int | None
    left_in: int | None
    """The hour in which it left."""
    leaves_in: int
    """The hour in which it was to leave."""

    @property
    def left(self) -> bool:
        return self.status in _LEFT


# PostgreSQL works the hours out: two thousand datetimes that become Python's are half of what the numbers cost.
_COLUMNS = (
    "pk",
    "status",
    "airline_id",
    "departure_delay",
    ExtractHour("departure", tzinfo=NEW_YORK),
    ExtractHour("scheduled_departure", tzinfo=NEW_YORK),
)


def numbers(changed: Collection[int] = ()) -> dict[str, Any]:
    """Everything that the page shows, ready for JSON.

    changed: keys of flights whose news are wanted, besides the latest.
    """
    rows = [Row(*row) for row in Flight.objects.order_by("scheduled_departure", "pk").values_list(*_COLUMNS)]
    left = [row for row in rows if row.left]
    return {
        "total": len(rows),
        "counts": _counts(rows),
        "on_time": _on_time(rows),
        "delay": _mean(left),
        "clock": clock(),
        "planes": planes(),
        "hours": _by_hour(left),
        "airlines": _by_airline(left),
        "flights": [[row.pk, row.status, row.leaves_in] for row in rows],
        "feed": _feed(Flight.objects.filter(news_at__isnull=False).order_by("-news_at", "-pk")[:FEED]),
        "changed": _feed(Flight.objects.filter(pk__in=changed).order_by("-news_at", "-pk")) if changed else [],
    }


def clock() -> dict[str, Any]:
    """What time it is in the day, how fast that goes, and where in the day that is (from 0 to 1).

    Answers may overtake each other on their way to a page: `read` orders them, the moment before the clock was read.
    """
    read = time.time()
    if replay.current is None:
        return {"read": read, "at": replay.now(), "speed": 0, "paused": True, "part": 0.0, "length": 0}
    its = replay.current.clock
    reading = its.read()
    part = (reading.at - its.begin) / (its.end - its.begin)
    length = (its.end - its.begin).total_seconds()
    over = reading.at >= its.end
    return {
        "read": read,
        "at": reading.at,
        "speed": reading.speed,
        "paused": reading.paused or over,
        "part": round(part, 5),
        "length": length,
    }


def planes() -> list[list[Any]]:
    """The flights in the air: key, way on the map, when each left, when it will be there, and its delay in minutes.

    Each takes as long as was planned: only the day itself knows better.
    """
    flying = Flight.objects.filter(status=Status.DEPARTED, departure__isnull=False).order_by("departure", "pk")
    return [
        [
            flight.pk,
            atlas.way(flight.origin_id, flight.destination_id),
            flight.departure.timestamp(),
            (flight.departure + (flight.scheduled_arrival - flight.scheduled_departure)).timestamp(),
            flight.departure_delay or 0,
        ]
        for flight in flying
        if flight.departure and atlas.knows(flight.origin_id, flight.destination_id)
    ]


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    counted = Counter(row.status for row in rows)
    return {status.value: counted[status.value] for status in Status}


def _on_time(rows: Iterable[Row]) -> int | None:
    """Per cent of the flights that have left or been cancelled which left in time."""
    settled = [row for row in rows if row.left or row.status == Status.CANCELLED]
    punctual = [row for row in settled if row.left and (row.delay or 0) < ON_TIME]
    return round(100 * len(punctual) / len(settled)) if settled else None


def _mean(rows: Iterable[Row]) -> int | None:
    delays = [row.delay for row in rows if row.delay is not None]
    return round(fmean(delays)) if delays else None


def _by_hour(left: Iterable[Row]) -> dict[str, list[Any]]:
    """Departures, and their mean delay in minutes, by the hour in which they left."""
    found: dict[int, list[Row]] = {hour: [] for hour in HOURS}
    for row in left:
        if row.left_in is not None:
            found[row.left_in].append(row)
    return {
        "labels": [f"{hour:02}" for hour in HOURS],
        "departures": [len(found[hour]) for hour in HOURS],
        "delay": [_mean(found[hour]) for hour in HOURS],
    }


def _by_airline(left: Iterable[Row]) -> dict[str, list[Any]]:
    """Mean delay by airline, in an order that does not change while one looks."""
    found: dict[str, list[Row]] = {airline: [] for airline in _airlines()}
    for row in left:
        found.setdefault(row.airline, []).append(row)
    return {"labels": list(found), "delay": [_mean(rows) for rows in found.values()]}


def _airlines() -> list[str]:
    return sorted(Airline.objects.values_list("code", flat=True))


def _feed(flights: Any) -> list[dict[str, Any]]:
    return [_news(flight) for flight in flights]


def _news(flight: Flight) -> dict[str, Any]:
    return {
        "pk": flight.pk,
        "flight": flight.code,
        "route": f"{flight.origin_id} → {flight.destination_id}",
        "status": flight.status,
        "label": flight.get_status_display(),
        "delay": flight.departure_delay,
        "at": flight.news_at,
    }


def wall() -> list[tuple[int, list[tuple[int, str, str]]]]:
    """A dot for each flight (key, status, what to call it), by the hour in which it was to leave."""
    found: dict[int, list[tuple[int, str, str]]] = {hour: [] for hour in HOURS}
    for flight in Flight.objects.order_by("scheduled_departure", "pk"):
        leaves = localtime(flight.scheduled_departure, NEW_YORK)
        found[leaves.hour].append((flight.pk, flight.status, f"{flight}, {leaves:%H:%M}"))
    return [(hour, dots) for hour, dots in found.items() if dots]
