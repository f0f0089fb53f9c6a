"""Live changelists: one to look at, one to edit in, one whose keys are anybody's text, one whose rows show no keys."""

from __future__ import annotations

import uuid

from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString

from pgsignals.live.admin import LiveModelAdmin

from .models import Delivery, Letter, Parcel, Stop, Tag


@admin.register(Parcel)
class ParcelAdmin(LiveModelAdmin, admin.ModelAdmin):
    list_display = ["name", "status", "weight"]
    list_filter = ["status"]
    list_per_page = 20
    search_fields = ["name"]
    fields = ["name", "status", "weight", "owner"]


class StopInline(admin.TabularInline):
    model = Stop
    extra = 2


@admin.register(Delivery)
class DeliveryAdmin(LiveModelAdmin, admin.ModelAdmin):
    actions = None
    list_display = ["status_link", "name"]
    list_display_links = ["name"]
    list_per_page = 20
    fields = ["name", "weight", "asked"]
    readonly_fields = ["asked"]
    inlines = [StopInline]

    def status_link(self, parcel: Delivery) -> SafeString:
        """The same for many rows, and before the link to the object."""
        return format_html('<a href="/status/{0}/">{0}</a>', parcel.status)

    def asked(self, parcel: Delivery) -> str:
        """Another one each time, as "3 minutes ago" is."""
        return str(uuid.uuid4())


@admin.register(Letter)
class LetterAdmin(LiveModelAdmin, admin.ModelAdmin):
    list_display = ["pk", "text", "stamps"]
    list_editable = ["text", "stamps"]
    list_per_page = 20


@admin.register(Tag)
class TagAdmin(LiveModelAdmin, admin.ModelAdmin):
    list_display = ["name"]
