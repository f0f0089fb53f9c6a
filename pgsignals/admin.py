"""The log in Django's admin: events, groups with their lag, positions, workers, parked events and dead letters.

All of it is read-only. Who may change groups pauses and resumes them; who may change dead letters edits what they say,
and has them tried again or given up.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .durable import control
from .models import DeadLetter, DelayedMessage, Group, LogEntry, ParkedEvent, Partition, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.models import Model, QuerySet

    _Admin = admin.ModelAdmin[Model]
    _Form = forms.ModelForm[DeadLetter]
    _Pages = Paginator[Any]
else:
    _Admin, _Form, _Pages = admin.ModelAdmin, forms.ModelForm, Paginator

_MOST_COUNTED = 10_000
"""Rows of the log that the changelist counts: nobody turns to the page after these, and millions take long."""


class ShortPaginator(_Pages):
    """Counts no further than anybody looks."""

    @cached_property
    def count(self) -> int:
        """At most _MOST_COUNTED."""
        objects: Any = self.object_list
        return int(objects.order_by()[:_MOST_COUNTED].count())


class ReadOnlyAdmin(_Admin):
    """Shows, and changes nothing."""

    show_full_result_count = False
    paginator = ShortPaginator

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def may_act(self, request: HttpRequest) -> bool:
        """Whether the user may do what this admin offers besides looking."""
        return super().has_change_permission(request)


def pretty(text: str) -> SafeString:
    """JSON, indented; other text as it is."""
    try:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        pass
    return format_html("<pre>{}</pre>", text)


def words_of(text: str) -> Iterator[str]:
    """What was searched for, word by word; JSON in quotes or brackets is one word, with these."""
    reader = json.JSONDecoder()
    while text := text.lstrip():
        length = len(text.split(maxsplit=1)[0])
        if text[0] in '"[':
            with suppress(ValueError):
                length = reader.raw_decode(text)[1]
        yield text[:length]
        text = text[length:]


def as_keys(word: str) -> list[str]:
    """The keys, which are stored as JSON, that somebody may mean who writes 17, ada, or "ada"."""
    keys = [word, json.dumps(word, ensure_ascii=False)]
    with suppress(ValueError):
        keys.append(json.dumps(json.loads(word), ensure_ascii=False, separators=(",", ":")))
    return keys


def as_moment(word: str) -> datetime | None:
    """A date, or a date and a time, in the current time zone where it names none."""
    with suppress(ValueError):
        if (moment := parse_datetime(word)) is not None or (moment := _midnight(word)) is not None:
            return timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return None


def _midnight(word: str) -> datetime | None:
    day = parse_date(word)
    return None if day is None else datetime.combine(day, time.min)


class WhenFilter(admin.SimpleListFilter):
    """The log is young, and its days are long."""

    title = _("at")
    parameter_name = "past"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Seconds, and how they are called."""
        return [
            ("600", _("Past 10 minutes")),
            ("3600", _("Past hour")),
            ("86400", _("Past day")),
            ("604800", _("Past week")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """By the event's own time."""
        if not (self.value() or "").isdecimal():
            return queryset
        return queryset.filter(at__gte=timezone.now() - timedelta(seconds=int(str(self.value())[:9])))


class StoredAdmin(ReadOnlyAdmin):
    """Of events as they are stored. Searched by source, key and time, each exactly: that is what indexes are for."""

    search_fields = ["source", "key"]
    search_help_text = _(
        "A model's label or a channel, a key, a moment: flights.flight 17 2026-11-24T06:00 "
        "(of two moments, what is between them)."
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """All words must fit."""
        sources: list[str] = self.sources(queryset) if search_term.strip() else []
        named = {one.lower(): one for one in sources}
        moments = []
        for word in words_of(search_term):
            if word.lower() in named:
                queryset = queryset.filter(source=named[word.lower()])
            elif (moment := as_moment(word)) is not None:
                moments.append(moment)
            else:
                queryset = queryset.filter(source__in=sources, key__in=as_keys(word))
        if moments:
            queryset = queryset.filter(at__gte=min(moments))
        if len(moments) > 1:
            queryset = queryset.filter(at__lte=max(moments))
        return queryset, False

    def sources(self, queryset: QuerySet[Any]) -> list[str]:
        """Models and channels that there are."""
        return list(queryset.order_by().values_list("source", flat=True).distinct())

    @admin.display(description=_("at"), ordering="at")
    def moment(self, stored: Any) -> str:
        """To the millisecond, in the current time zone: events of one minute are many."""
        return timezone.localtime(stored.at).isoformat(" ", "milliseconds")

    @admin.display(description=_("about"))
    def about(self, stored: Any) -> SafeString:
        """The head: what changed, the context."""
        return pretty(stored.head)

    @admin.display(description=_("row or payload"))
    def row(self, stored: Any) -> SafeString:
        """The key, then old and new values in the order of `f` of the head; or a message's payload."""
        return pretty(stored.body)


@admin.register(LogEntry)
class LogEntryAdmin(StoredAdmin):
    """All that was announced and is kept, the newest first."""

    list_display = ["id", "moment", "source", "op", "key", "xid"]
    list_filter = ["op", WhenFilter]
    _all = ("id", "moment", "xid", "source", "op", "key", "about", "row")
    fields = _all
    readonly_fields = _all
    ordering = ["-id"]

    def sources(self, queryset: QuerySet[Any]) -> list[str]:
        """Without reading the whole log."""
        return control.sources(queryset.db)


@admin.register(Group)
class GroupAdmin(ReadOnlyAdmin):
    """Who is how far."""

    list_display = ["name", "state", "lag", "behind", "working", "parked", "dead", "handled"]
    _all = ("name", "atomic", "partitions", "created_at", "paused_at", "lag", "behind", "working", "parked", "dead")
    fields = _all
    readonly_fields = _all
    actions = ["pause", "resume"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """With what is to be said of each, looked up once for all."""
        queryset = super().get_queryset(request)
        self._status = {one.name: one for one in control.status(queryset.db)}
        return queryset

    def _of(self, group: Group) -> control.GroupStatus | None:
        return self._status.get(group.name)

    @admin.display(description=_("state"))
    def state(self, group: Group) -> str:
        """Paused, waiting, working, or nobody there."""
        one = self._of(group)
        if one is None:
            return "?"
        if one.paused:
            return str(_("paused"))
        if one.waits:
            return str(_("waits, because everything failed"))
        return str(_("works") if one.workers else _("nobody works"))

    @admin.display(description=_("lag, events"))
    def lag(self, group: Group) -> str:
        """Events that it has not handled."""
        one = self._of(group)
        return "" if one is None else f"{one.lag}{'+' if one.lag >= control.COUNTED else ''}"

    @admin.display(description=_("behind, seconds"))
    def behind(self, group: Group) -> str:
        """Since the oldest of these was written."""
        one = self._of(group)
        return "" if one is None else f"{one.seconds:.1f}"

    @admin.display(description=_("workers"))
    def working(self, group: Group) -> str:
        """How many there are, and how many partitions they have."""
        one = self._of(group)
        return "" if one is None else f"{one.workers} ({one.leased}/{one.partitions})"

    @admin.display(description=_("parked"))
    def parked(self, group: Group) -> int:
        """Events that wait for another attempt."""
        one = self._of(group)
        return 0 if one is None else one.parked

    @admin.display(description=_("dead"))
    def dead(self, group: Group) -> int:
        """Events that were given up."""
        one = self._of(group)
        return 0 if one is None else one.dead

    @admin.display(description=_("handled"))
    def handled(self, group: Group) -> int:
        """Since the group is there."""
        one = self._of(group)
        return 0 if one is None else one.handled

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """Who may change groups."""
        return self.may_act(request)

    @admin.action(description=_("Pause"), permissions=["pause"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Workers stop within a second."""
        for group in queryset:
            control.pause(queryset.db, group.name)

    @admin.action(description=_("Resume"), permissions=["pause"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """They go on where they were."""
        for group in queryset:
            control.resume(queryset.db, group.name)


@admin.register(Partition)
class PartitionAdmin(ReadOnlyAdmin):
    """Positions and leases."""

    list_display = ["group_name", "number", "owner", "leased_until", "last_id", "failures", "moved_at"]
    list_filter = ["group_name"]
    ordering = ["group_name", "number"]


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Threads of `listen` processes."""

    list_display = ["name", "group_name", "started_at", "seen_at"]
    list_filter = ["group_name"]


@admin.register(DelayedMessage)
class DelayedMessageAdmin(ReadOnlyAdmin):
    """Messages that are not due yet."""

    list_display = ["due_at", "channel", "key"]
    ordering = ["due_at"]


@admin.register(ParkedEvent)
class ParkedEventAdmin(StoredAdmin):
    """Events that failed, or wait behind one that did."""

    list_display = ["event_id", "group_name", "source", "op", "key", "attempts", "next_at", "error"]
    list_filter = ["group_name"]
    _all = ("event_id", "group_name", "moment", "source", "op", "key", "attempts", "next_at", "error", "about", "row")
    fields = _all
    readonly_fields = _all
    ordering = ["event_id"]


class DeadLetterForm(_Form):
    """What the event says may be put right before it is tried again."""

    class Meta:
        model = DeadLetter
        fields = ("body",)
        labels = {"body": _("row or payload")}
        help_texts = {
            "body": _(
                "The key, then old and new values in the order of f above; or a message's payload. Saving has the "
                "group handle the event again, with all attempts."
            )
        }

    def clean_body(self) -> str:
        """It must still be JSON, of the same kind."""
        text = str(self.cleaned_data["body"])
        try:
            said = json.loads(text)
        except ValueError as error:
            raise ValidationError(_("This is not JSON: %(error)s") % {"error": error}) from error
        if self.instance.op != "m" and type(said) is not type(json.loads(self.instance.body)):
            raise ValidationError(_("A row stays a list (its key, old and new values), or an object of columns."))
        return text


@admin.register(DeadLetter)
class DeadLetterAdmin(StoredAdmin):
    """Events that a group gave up. Saving an edited one has it tried again."""

    form = DeadLetterForm  # type: ignore[assignment]
    list_display = ["event_id", "group_name", "source", "op", "key", "attempts", "died_at", "error"]
    list_filter = ["group_name", WhenFilter]
    _shown = (
        "event_id",
        "group_name",
        "moment",
        "source",
        "op",
        "key",
        "attempts",
        "died_at",
        "error",
        "trace",
        "about",
    )
    fields = (*_shown, "body")
    readonly_fields = _shown
    actions = ["requeue", "discard"]
    ordering = ["-died_at"]
    save_on_top = False

    @admin.display(description=_("traceback"))
    def trace(self, letter: DeadLetter) -> SafeString:
        """Of the last attempt."""
        return format_html("<pre>{}</pre>", letter.traceback)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Who may change dead letters."""
        return self.may_act(request)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **options: Any) -> Any:
        """What was saved is no dead letter any more, so nobody goes on editing it."""
        return super().render_change_form(request, {**context, "show_save_and_continue": False}, *args, **options)

    def has_requeue_permission(self, request: HttpRequest) -> bool:
        """The same."""
        return self.may_act(request)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Keep what was written, and have the event tried again."""
        alias = obj._state.db
        type(obj).objects.using(alias).filter(pk=obj.pk).update(body=obj.body)
        control.requeue(alias, [obj.pk])

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """As Django does; and say what becomes of the event."""
        messages.info(request, _("The event is handled again by the group %(group)s.") % {"group": obj.group_name})
        return super().log_change(request, obj, message)

    @admin.action(description=_("Try again"), permissions=["requeue"])
    def requeue(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """With all attempts."""
        count = control.requeue(queryset.db, list(queryset.values_list("pk", flat=True)))
        said = ngettext("%(count)d event is tried again.", "%(count)d events are tried again.", count)
        messages.success(request, said % {"count": count})

    @admin.action(description=_("Give up for good"), permissions=["requeue"])
    def discard(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """The events stay in the log as long as others do."""
        count = control.discard(queryset.db, list(queryset.values_list("pk", flat=True)))
        said = ngettext("%(count)d dead letter was deleted.", "%(count)d dead letters were deleted.", count)
        messages.success(request, said % {"count": count})
