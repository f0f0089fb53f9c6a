"""Plays the day: turns what happened into writes, at the moments when it happened.

The writes are of all kinds, as in a grown system: a model's save(), bulk updates, raw SQL. None of them says anything
about events. The triggers see them all.

The files tell when a flight left and landed, not when its delay or its end became known. That part is invented, the
same in each run: passengers hear of a delay shortly before they were to leave, and the worse half of it later; of a
cancellation, between two hours and half an hour before.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.db import OperationalError, connection, transaction
from django.db.models import Max

from . import day
from .clock import SPEED, Clock
from .models import Flight, Status

DELAYED = 15
"""Minutes from which a flight counts as delayed, as the aviation authorities count."""

BEAT = 0.25
"""Seconds of real time between two writes: what happens within one is written together."""

PAUSE = 1
"""Seconds before another attempt where the database was away."""

HUSH = timedelta(minutes=5)
"""Before the first happening, and after the last."""

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


@cache
def happenings() -> tuple[Happening, ...]:
    """The whole day, in order."""
    found = (happening for leg in day.legs() for happening in _story(leg))
    return tuple(sorted(found, key=lambda happening: happening.at))


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
        # What somebody else has cancelled neither leaves nor lands.
        for flight in Flight.objects.filter(number__in=[leg.number for leg in last]).exclude(status=Status.CANCELLED)
    }
    keyed = ((by_key.get((leg.carrier, leg.number, leg.scheduled_departure)), last[leg]) for leg in last)
    return [(flight, happening) for flight, happening in keyed if flight is not None]


current: Replay | None = None
"""The replay that runs in this process: only `manage.py demo` has one."""


def now() -> datetime:
    """What time it is in the day: by its clock, or else when something last happened."""
    if current is not None:
        return current.clock.read().at
    latest = Flight.objects.aggregate(latest=Max("news_at"))["latest"]
    return latest or happenings()[0].at - HUSH


class Replay(threading.Thread):
    """Writes the day by its clock, in a thread of its own.

    clock: whose hands may be moved; the day is then written up to there, or anew.
    loop: begin again when the day is over.
    report: is given a sentence where something goes wrong.
    """

    def __init__(self, clock: Clock, *, loop: bool = False, report: Callable[[str], Any] = print) -> None:
        super().__init__(name="replay", daemon=True)
        self.clock = clock
        self.loop = loop
        self.report = report
        self.stopping = threading.Event()
        self.story = happenings()
        self._written: int | None = None
        """How much of the story is in the database; None where nobody knows."""

    def run(self) -> None:
        """The day, until stopped. A clock that stands still from the start leaves the database as it is."""
        reading = self.clock.read()
        while reading.paused and not reading.set_at and not self.stopping.is_set():
            reading = self.clock.wait(BEAT, reading)
        try:
            while not self.stopping.is_set():
                self.write_up_to(reading.at)
                if self.loop and reading.at >= self.clock.end and not self.stopping.wait(REST):
                    self.clock.jump(self.clock.begin)
                reading = self.clock.wait(BEAT, reading)
        finally:
            connection.close()

    def write_up_to(self, now: datetime) -> None:
        """Have the database say what had happened up to a moment."""
        upto = bisect_right(self.story, now, key=lambda happening: happening.at)
        if self._written is None or upto < self._written:
            self.insist(anew, self.story[:upto])
        elif upto > self._written:
            self.insist(write, self.story[self._written : upto])
        self._written = upto

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


@transaction.atomic
def anew(story: Sequence[Happening]) -> None:
    """The day from its beginning, in one transaction: who looks sees what was, and then what is."""
    reset()
    write(story)


def day_clock(speed: float = SPEED, *, paused: bool = False) -> Clock:
    """A clock for the day: from its first happening to a while after its last."""
    story = happenings()
    return Clock(story[0].at - HUSH, story[-1].at + HUSH, speed, paused=paused)
