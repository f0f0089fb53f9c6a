"""Live changelists: one to look at, one to edit in, one whose keys are anybody's text."""

from __future__ import annotations

from django.contrib import admin

from pgsignals.live.admin import LiveModelAdmin

from .models import Letter, Parcel, Tag


@admin.register(Parcel)
class ParcelAdmin(LiveModelAdmin, admin.ModelAdmin):
    list_display = ["name", "status", "weight"]
    list_filter = ["status"]
    list_per_page = 20
    search_fields = ["name"]
    fields = ["name", "status", "weight", "owner"]


@admin.register(Letter)
class LetterAdmin(LiveModelAdmin, admin.ModelAdmin):
    list_display = ["pk", "text", "stamps"]
    list_editable = ["text", "stamps"]
    list_per_page = 20


@admin.register(Tag)
class TagAdmin(LiveModelAdmin, admin.ModelAdmin):
    list_display = ["name"]
