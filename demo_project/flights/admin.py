"""Flights in the admin: a changelist that keeps itself up to date."""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from pgsignals.live.admin import LiveModelAdmin

from .models import Airline, Airport, Flight, Hotel


@admin.register(Flight)
class FlightAdmin(LiveModelAdmin, admin.ModelAdmin):
    list_display = ["code", "route", "airline", "scheduled_departure", "state", "delay"]
    list_filter = [
        "status",
        ("origin", admin.RelatedOnlyFieldListFilter),
        ("airline", admin.RelatedOnlyFieldListFilter),
    ]
    list_select_related = ["airline"]
    list_per_page = 50
    search_fields = ["number", "tail_number", "destination__code", "destination__name"]
    raw_id_fields = ["origin", "destination"]
    ordering = ["scheduled_departure", "pk"]

    @admin.display(description=_("flight"), ordering="number")
    def code(self, flight: Flight) -> str:
        return flight.code

    @admin.display(description=_("route"), ordering="destination")
    def route(self, flight: Flight) -> str:
        return f"{flight.origin_id} → {flight.destination_id}"

    @admin.display(description=_("status"), ordering="status")
    def state(self, flight: Flight) -> str:
        return format_html('<span class="state {}">{}</span>', flight.status, flight.get_status_display())

    @admin.display(description=_("delay"), ordering="departure_delay", empty_value="")
    def delay(self, flight: Flight) -> str | None:
        return None if flight.departure_delay is None else f"{flight.departure_delay:+d} min"


admin.site.register([Airline, Airport, Hotel])
admin.site.site_header = _("pgsignals")
admin.site.site_title = _("pgsignals")
