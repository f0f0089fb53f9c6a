"""The day as it was: reads the data files. Knows no database.

Times in the files are those of the clocks on the wall, at the airport where the thing happens. New York's clocks and
the destination's may differ by six hours, so that everything is turned into moments (aware datetimes) here, once.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

FOLDER = Path(__file__).parent / "data"
NEW_YORK = ZoneInfo("America/New_York")

# The source has neither name nor zone for these. All keep Atlantic time, and no summer time.
_ATLANTIC = {
    "BQN": "Rafael Hernandez",
    "PSE": "Mercedita",
    "SJU": "Luis Munoz Marin Intl",
    "STT": "Cyril E King",
}


@dataclass(frozen=True, slots=True)
class Airport:
    code: str
    name: str
    latitude: float | None
    longitude: float | None
    zone: str


@dataclass(frozen=True, slots=True)
class Leg:
    """One flight: what was planned, and what came of it."""

    carrier: str
    number: int
    tail: str
    origin: str
    destination: str
    distance: int
    """Miles."""
    scheduled_departure: datetime
    scheduled_arrival: datetime
    departure_delay: int | None
    """Minutes, negative when early; None when it never left."""
    arrival_delay: int | None
    """Minutes; None when it never arrived where it was to."""

    @property
    def cancelled(self) -> bool:
        return self.departure_delay is None

    @property
    def diverted(self) -> bool:
        return not self.cancelled and self.arrival_delay is None

    @property
    def departure(self) -> datetime | None:
        return _after(self.scheduled_departure, self.departure_delay)

    @property
    def arrival(self) -> datetime | None:
        return _after(self.scheduled_arrival, self.arrival_delay)


def _after(moment: datetime, minutes: int | None) -> datetime | None:
    return None if minutes is None else moment + timedelta(minutes=minutes)


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@cache
def airlines() -> dict[str, str]:
    """Names by carrier code."""
    return {row["carrier"]: row["name"] for row in _rows("airlines.csv")}


@cache
def airports() -> dict[str, Airport]:
    """Airports by code."""
    return {row["faa"]: _airport(row) for row in _rows("airports.csv")}


def _airport(row: dict[str, str]) -> Airport:
    code = row["faa"]
    return Airport(
        code,
        row["name"] or _ATLANTIC[code],
        float(row["lat"]) if row["lat"] else None,
        float(row["lon"]) if row["lon"] else None,
        row["tzone"] or "America/Puerto_Rico",
    )


@cache
def legs() -> tuple[Leg, ...]:
    """All flights of the day, in the order in which they were to leave."""
    found = [_leg(row) for row in _rows("nyc_flights_2013-07-10.csv")]
    return tuple(sorted(found, key=lambda leg: (leg.scheduled_departure, leg.carrier, leg.number)))


def _leg(row: dict[str, str]) -> Leg:
    midnight = datetime(int(row["year"]), int(row["month"]), int(row["day"]))
    leaves, arrives = _clock(row["sched_dep_time"]), _clock(row["sched_arr_time"])
    # Nobody flies so far west that it would be earlier there than it was here: a lower time is the next day's.
    overnight = timedelta(days=1) if arrives < leaves else timedelta()
    return Leg(
        row["carrier"],
        int(row["flight"]),
        "" if row["tailnum"] == "NA" else row["tailnum"],
        row["origin"],
        row["dest"],
        int(row["distance"]),
        _moment(midnight + leaves, NEW_YORK),
        _moment(midnight + overnight + arrives, ZoneInfo(airports()[row["dest"]].zone)),
        _minutes(row["dep_delay"]),
        _minutes(row["arr_delay"]),
    )


def _clock(hhmm: str) -> timedelta:
    hours, minutes = divmod(int(hhmm), 100)
    return timedelta(hours=hours, minutes=minutes)


def _moment(on_the_wall: datetime, zone: ZoneInfo) -> datetime:
    # In UTC: Python's arithmetic on a moment in a zone moves the hands of the clock and forgets summer time.
    return on_the_wall.replace(tzinfo=zone).astimezone(UTC)


def _minutes(number: str) -> int | None:
    return None if number == "NA" else int(number)
