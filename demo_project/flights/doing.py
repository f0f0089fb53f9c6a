"""What a visitor may do to the day. Each deed is an ordinary write; nothing in it knows of events."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from . import replay
from .day import NEW_YORK
from .models import Airline, Flight, Status

MINUTES = 45
"""By which a flight is delayed."""

PARTS = ((12, gettext_lazy("morning")), (18, gettext_lazy("afternoon")), (30, gettext_lazy("evening")))
"""Parts of the day, and the hours at which they end."""

_ROLLBACK = ";\nROLLBACK"

_WAITING = (Status.SCHEDULED, Status.DELAYED)


@dataclass(frozen=True, slots=True)
class Deed:
    """What was done."""

    said: str
    keys: list[int]
    """Of the flights that were written."""
    commit: float = 0.0
    """When the commit was asked for, in milliseconds since 1970: no later than it happened."""
    sql: str = ""
    silent: bool = False
    """Whether nothing is to be heard of it."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Raw SQL that the visitor may run, word for word."""

    name: str
    sql: str
    silent: bool = False
    """Whether it announces nothing: it changes nothing, or is rolled back."""

    @property
    def rolls_back(self) -> bool:
        return self.sql.endswith(_ROLLBACK)

    @property
    def lines(self) -> str:
        """As somebody at psql would write it."""
        return f"BEGIN;\n{self.sql};" if self.rolls_back else f"{self.sql};"


STATEMENTS = (
    Statement(
        gettext_lazy("Add 15 minutes to every delay"),
        "UPDATE flights_flight\nSET departure_delay = departure_delay + 15\nWHERE status = 'delayed'\nRETURNING id",
    ),
    Statement(
        gettext_lazy("Divert a flight that is in the air"),
        "UPDATE flights_flight SET status = 'diverted'\nWHERE id = (SELECT id FROM flights_flight\n"
        "            WHERE status = 'departed' ORDER BY random() LIMIT 1)\nRETURNING id",
    ),
    Statement(
        gettext_lazy("Reinstate all cancelled flights"),
        "UPDATE flights_flight\nSET status = 'scheduled', departure_delay = NULL\nWHERE status = 'cancelled'\n"
        "RETURNING id",
    ),
    Statement(
        gettext_lazy("Update every row, and change nothing"),
        "UPDATE flights_flight\nSET status = status\nRETURNING id",
        silent=True,
    ),
    Statement(
        gettext_lazy("Cancel everything, and roll back"),
        "UPDATE flights_flight\nSET status = 'cancelled'\nRETURNING id;\nROLLBACK",
        silent=True,
    ),
)


class NothingToDo(Exception):
    """There is no flight to which it could be done; the text says so."""


def do(deed: Callable[[], Deed]) -> Deed:
    """Do it in one transaction, and note when that was asked to commit."""
    with transaction.atomic():
        done = deed()
        commit = time.time() * 1000
    return replace(done, commit=commit)


def delay() -> Deed:
    """One flight that has not left yet leaves later: `save()`."""
    waiting = list(Flight.objects.filter(status__in=_WAITING)[:20])
    if not waiting:
        raise NothingToDo(_("No flight is left to be delayed. Set the clock back."))
    flight = random.choice(waiting)
    flight.status, flight.news_at = Status.DELAYED, _clock()
    flight.departure_delay = (flight.departure_delay or 0) + MINUTES
    flight.save(update_fields=["status", "departure_delay", "news_at"])
    said = _("%(flight)s leaves %(minutes)d minutes later") % {"flight": flight.code, "minutes": MINUTES}
    return Deed(said, [flight.pk], sql="flight.save(update_fields=[…])")


def cancel(airline: str) -> Deed:
    """What a carrier has planned for this part of the day and not flown: one UPDATE through the ORM."""
    carrier = Airline.objects.filter(code=airline).first()
    if carrier is None:
        raise NothingToDo(_("There is no such airline."))
    part, end = part_of_day()
    doomed = Flight.objects.filter(airline=carrier, status__in=_WAITING, scheduled_departure__lt=end)
    keys = list(doomed.values_list("pk", flat=True))
    if not keys:
        raise NothingToDo(_("%(airline)s has no flight left this %(part)s.") % {"airline": carrier, "part": part})
    count = Flight.objects.filter(pk__in=keys).update(status=Status.CANCELLED, news_at=_clock())
    said = ngettext(
        "%(count)d flight of %(airline)s cancelled", "%(count)d flights of %(airline)s cancelled", count
    ) % {"count": count, "airline": carrier.name}
    return Deed(said, keys, sql="Flight.objects.filter(…).update(status='cancelled')")


def cancel_next(most: int = 5) -> Deed:
    """The flights that would leave next."""
    keys = list(Flight.objects.filter(status__in=_WAITING).values_list("pk", flat=True)[:most])
    count = Flight.objects.filter(pk__in=keys).update(status=Status.CANCELLED, news_at=_clock())
    said = ngettext("%(count)d flight cancelled", "%(count)d flights cancelled", count)
    return Deed(said % {"count": count}, keys)


def run(number: int) -> Deed:
    """One of the STATEMENTS. Raises IndexError for another."""
    statement = STATEMENTS[number]
    with connection.cursor() as cursor:
        cursor.execute(statement.sql.removesuffix(_ROLLBACK))
        keys = [key for (key,) in cursor.fetchall()]
    if statement.rolls_back:
        transaction.set_rollback(True)
    return Deed(str(statement.name), keys, sql=statement.sql, silent=statement.silent)


def part_of_day() -> tuple[str, datetime]:
    """What the day's clock would call it, and when that ends."""
    now = localtime(_clock(), NEW_YORK)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if now.hour < 4:
        midnight -= timedelta(days=1)
    hour, name = next((end, name) for end, name in PARTS if now < midnight + timedelta(hours=end))
    return str(name), midnight + timedelta(hours=hour)


def _clock() -> datetime:
    return replay.now()
