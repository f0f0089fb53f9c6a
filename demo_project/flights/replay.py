"""Plays the day: turns what happened into writes, at the moments when it happened.

The writes are of all kinds, as in a grown system: a model's save(), bulk updates, raw SQL. None of them says anything
about events. The triggers see them all.

The files tell when a flight left and landed, not when its delay or its end became known. That part is invented, the
same in each run: passengers hear of a delay shortly before they were to leave, and the worse half of it later; of a
cancellation, between two hours and half an hour before.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import OperationalError, connection, transaction

from . import day
from .models import Flight, Status

DELAYED = 15
"""Minutes from which a flight counts as delayed, as the aviation authorities count."""

BEAT = 0.25
"""Seconds of real time between two writes: what happens within one is written together."""

PAUSE = 1
"""Seconds before another attempt where the database was away."""

REST = 8
"""Seconds for which the finished day is left to be looked at, before the next begins."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that becomes known about a flight."""

    at: datetime
    status: Status
    leg: day.Leg
    delay: int | None = None
    """Minutes of departure delay, as known at that moment."""


def happenings() -> list[Happening]:
    """The whole day, in order."""
    return sorted(
        (happening for leg in day.legs() for happening in _story(leg)),
        key=lambda happening: happening.at,
    )


def _story(leg: day.Leg) -> Iterator[Happening]:
    leaves = leg.scheduled_departure
    if leg.departure_delay is None:
        yield Happening(leaves - timedelta(minutes=30 + leg.number % 90), Status.CANCELLED, leg)
        return
    late = leg.departure_delay
    if late >= DELAYED:
        yield Happening(leaves - timedelta(minutes=10), Status.DELAYED, leg, late if late < 60 else late // 2)
    if late >= 60:
        yield Happening(leaves + timedelta(minutes=late // 2 - 10), Status.DELAYED, leg, late)
    yield Happening(leaves + timedelta(minutes=late), Status.DEPARTED, leg, late)
    if leg.arrival is not None:
        yield Happening(leg.arrival, Status.ARRIVED, leg, late)
    else:
        yield Happening(leg.scheduled_arrival + timedelta(minutes=late), Status.DIVERTED, leg, late)


def reset() -> None:
    """Back to the morning, in one statement: everybody who listens gets it as a few notifications."""
    Flight.objects.update(
        status=Status.SCHEDULED,
        departure=None,
        arrival=None,
        departure_delay=None,
        arrival_delay=None,
        news_at=None,
    )


# The four ways to write.


def _cancel(flights: Sequence[tuple[Flight, Happening]]) -> None:
    """One UPDATE through the ORM: no save(), no post_save."""
    latest = max(happening.at for _flight, happening in flights)
    Flight.objects.filter(pk__in=[flight.pk for flight, _happening in flights]).update(
        status=Status.CANCELLED, news_at=latest
    )


def _delay(flights: Sequence[tuple[Flight, Happening]]) -> None:
    """bulk_update."""
    for flight, happening in flights:
        flight.status, flight.departure_delay, flight.news_at = Status.DELAYED, happening.delay, happening.at
    Flight.objects.bulk_update([flight for flight, _happening in flights], ["status", "departure_delay", "news_at"])


def _depart(flights: Sequence[tuple[Flight, Happening]]) -> None:
    """save(), one by one."""
    for flight, happening in flights:
        flight.status, flight.departure_delay = Status.DEPARTED, happening.delay
        flight.departure = flight.news_at = happening.at
        flight.save(update_fields=["status", "departure_delay", "departure", "news_at"])


def _land(flights: Sequence[tuple[Flight, Happening]]) -> None:
    """Raw SQL, as another service might write."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE flights_flight AS flight
            SET status = landed.status, arrival = landed.arrival, arrival_delay = landed.delay, news_at = landed.news_at
            FROM unnest(%s::bigint[], %s::text[], %s::timestamptz[], %s::int[], %s::timestamptz[])
                AS landed (id, status, arrival, delay, news_at)
            WHERE flight.id = landed.id
            """,
            [
                [flight.pk for flight, _happening in flights],
                [happening.status.value for _flight, happening in flights],
                [happening.leg.arrival for _flight, happening in flights],
                [happening.leg.arrival_delay for _flight, happening in flights],
                [happening.at for _flight, happening in flights],
            ],
        )


_WRITERS: dict[Status, Callable[[Sequence[tuple[Flight, Happening]]], None]] = {
    Status.CANCELLED: _cancel,
    Status.DELAYED: _delay,
    Status.DEPARTED: _depart,
    Status.ARRIVED: _land,
    Status.DIVERTED: _land,
}


def write(together: Sequence[Happening]) -> None:
    """Write what falls together, in one transaction. A flight that was deleted meanwhile is left out."""
    # At high speed a flight may leave and land within a beat. No flight's story runs against the writers' order, so
    # that each writer needs to run once only, for the last thing of its kind.
    by_status: dict[Status, dict[day.Leg, Happening]] = defaultdict(dict)
    for happening in together:
        by_status[happening.status][happening.leg] = happening
    with transaction.atomic():
        for status, writer in _WRITERS.items():
            if found := _flights(by_status[status]):
                writer(found)


def _flights(last: dict[day.Leg, Happening]) -> list[tuple[Flight, Happening]]:
    if not last:
        return []
    by_key = {
        (flight.airline_id, flight.number, flight.scheduled_departure): flight
        for flight in Flight.objects.filter(number__in=[leg.number for leg in last])
    }
    keyed = ((by_key.get((leg.carrier, leg.number, leg.scheduled_departure)), last[leg]) for leg in last)
    return [(flight, happening) for flight, happening in keyed if flight is not None]


class Replay(threading.Thread):
    """Walks the day in real time, in a thread of its own.

    speed: simulated minutes in a real minute. loop: begin again when the day is over.
    report: is given a sentence where something goes wrong.
    """

    def __init__(self, speed: float, *, loop: bool = False, report: Callable[[str], Any] = print) -> None:
        super().__init__(name="replay", daemon=True)
        self.speed = speed
        self.loop = loop
        self.report = report
        self.stopping = threading.Event()

    def run(self) -> None:
        """The day, or day after day, until stopped."""
        try:
            while not self.stopping.is_set():
                self.insist(reset)
                self.play(happenings())
                if not self.loop or self.stopping.wait(REST):
                    break
        finally:
            connection.close()

    def play(self, story: list[Happening]) -> None:
        """Write each happening when its time has come."""
        begin, started, position = story[0].at, time.monotonic(), 0
        while position < len(story) and not self.stopping.wait(BEAT):
            # Simulated minutes per real minute are simulated seconds per real second.
            now = begin + timedelta(seconds=(time.monotonic() - started) * self.speed)
            upto = position
            while upto < len(story) and story[upto].at <= now:
                upto += 1
            if upto > position:
                self.insist(write, story[position:upto])
                position = upto

    def insist(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Do it, and again while the database is away: whoever restarts it in the middle of the day misses nothing."""
        while not self.stopping.is_set():
            try:
                return action(*arguments)
            except OperationalError as error:
                self.report(f"The replay could not write ({str(error).strip()}); it tries again in {PAUSE} s.")
                connection.close()
                self.stopping.wait(PAUSE)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self.stopping.set()
        if self.is_alive():
            self.join(5)
