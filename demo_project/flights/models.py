"""Airlines, airports, and the flights between them.

The last lines of `Flight` are all that makes its changes live: whoever writes to the table, by whatever means,
the database announces it.
"""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from pgsignals import Notify


class Airline(models.Model):
    code = models.CharField(_("code"), max_length=2, primary_key=True)
    name = models.CharField(_("name"), max_length=100)

    class Meta:
        verbose_name = _("airline")
        verbose_name_plural = _("airlines")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Airport(models.Model):
    code = models.CharField(_("code"), max_length=3, primary_key=True)
    name = models.CharField(_("name"), max_length=100)
    latitude = models.FloatField(_("latitude"), null=True, blank=True)
    longitude = models.FloatField(_("longitude"), null=True, blank=True)
    time_zone = models.CharField(_("time zone"), max_length=40)

    class Meta:
        verbose_name = _("airport")
        verbose_name_plural = _("airports")
        ordering = ["code"]

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


class Status(models.TextChoices):
    """Where a flight is. The order is that of the board."""

    SCHEDULED = "scheduled", _("Scheduled")
    DELAYED = "delayed", _("Delayed")
    DEPARTED = "departed", _("In the air")
    ARRIVED = "arrived", _("Arrived")
    DIVERTED = "diverted", _("Diverted")
    CANCELLED = "cancelled", _("Cancelled")


class Flight(models.Model):
    airline = models.ForeignKey(Airline, on_delete=models.PROTECT, verbose_name=_("airline"))
    number = models.PositiveIntegerField(_("number"))
    tail_number = models.CharField(_("aircraft"), max_length=6, blank=True)
    origin = models.ForeignKey(Airport, on_delete=models.PROTECT, related_name="departures", verbose_name=_("from"))
    destination = models.ForeignKey(Airport, on_delete=models.PROTECT, related_name="arrivals", verbose_name=_("to"))
    distance = models.PositiveIntegerField(_("distance"), help_text=_("Miles"))
    scheduled_departure = models.DateTimeField(_("scheduled departure"), db_index=True)
    scheduled_arrival = models.DateTimeField(_("scheduled arrival"))

    # What the day changes.
    status = models.CharField(_("status"), max_length=10, choices=Status, default=Status.SCHEDULED, db_index=True)
    departure = models.DateTimeField(_("departure"), null=True, blank=True)
    arrival = models.DateTimeField(_("arrival"), null=True, blank=True)
    departure_delay = models.IntegerField(
        _("departure delay"), null=True, blank=True, help_text=_("Minutes; an estimate until it has left")
    )
    arrival_delay = models.IntegerField(_("arrival delay"), null=True, blank=True, help_text=_("Minutes"))
    news_at = models.DateTimeField(
        _("news at"),
        null=True,
        blank=True,
        db_index=True,
        help_text=_("When something last happened, on that day's clock"),
    )

    class Meta:
        verbose_name = _("flight")
        verbose_name_plural = _("flights")
        ordering = ["scheduled_departure", "pk"]
        constraints = [
            models.UniqueConstraint(fields=["airline", "number", "scheduled_departure"], name="flight_once"),
            Notify(name="flight_events", fields=["status", "departure_delay"]),
            # What must not be lost goes into the log as well: see the groups in receivers.py.
            Notify(
                name="flight_log",
                on=["update"],
                watch=["status"],
                fields=["status", "airline"],
                when=models.Q(status__in=[Status.ARRIVED, Status.CANCELLED]),
                durable=True,
            ),
        ]

    def __str__(self) -> str:
        return f"{self.code} {self.origin_id} → {self.destination_id}"

    @property
    def code(self) -> str:
        """As on the board: `B6 486`."""
        return f"{self.airline_id} {self.number}"


class Hotel(models.Model):
    """Takes in the passengers of cancelled flights, unless it is full."""

    name = models.CharField(_("name"), max_length=50, primary_key=True)
    is_full = models.BooleanField(_("is full"), default=False)

    class Meta:
        verbose_name = _("hotel")
        verbose_name_plural = _("hotels")
        constraints = [Notify(name="hotel_events")]

    def __str__(self) -> str:
        return self.name


class Booking(models.Model):
    """Rooms for the passengers of one cancellation."""

    event = models.BigIntegerField(_("event"), unique=True, help_text=_("Its number in the log"))
    flight = models.ForeignKey(Flight, on_delete=models.CASCADE, verbose_name=_("flight"))
    hotel = models.ForeignKey(Hotel, on_delete=models.CASCADE, verbose_name=_("hotel"))

    class Meta:
        verbose_name = _("booking")
        verbose_name_plural = _("bookings")

    def __str__(self) -> str:
        return f"{self.flight_id}, {self.hotel_id}"


class LandingFee(models.Model):
    """What an airline owes for its landings."""

    airline = models.OneToOneField(Airline, on_delete=models.CASCADE, primary_key=True, verbose_name=_("airline"))
    landings = models.PositiveIntegerField(_("landings"), default=0)

    class Meta:
        verbose_name = _("landing fee")
        verbose_name_plural = _("landing fees")

    def __str__(self) -> str:
        return f"{self.airline_id}: {self.landings}"
