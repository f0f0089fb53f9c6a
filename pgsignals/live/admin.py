"""Admin pages that move by themselves.

    @admin.register(Flight)
    class FlightAdmin(LiveModelAdmin, admin.ModelAdmin): ...

Nothing else is needed: no template, no inline script. The pages listen at PGSIGNALS["LIVE_URL"].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.admin.options import IS_POPUP_VAR
from django.core import checks
from django.forms import Media
from django.forms.widgets import Script
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from .. import conf
from .declared import announces
from .topics import asked_topic, model_topic, object_topic

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    _Base = ModelAdmin[Any]
else:
    _Base = object


class LiveModelAdmin(_Base):
    """A mixin for a ModelAdmin whose model declares `Notify`.

    Its changelist refreshes itself when rows change, and keeps filters, search, sorting, page, selection, scroll, focus
    and what is being typed. Its change form says when somebody else has changed or deleted the object.
    """

    live_topics: Sequence[str] = ()
    """What the changelist hears of besides its own model: `"flights.Airline"`, `"channel:news"`."""

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """What is missing for these pages to be live."""
        return [*super().check(**kwargs), *_problems(self)]

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """As Django's, and live."""
        response = super().changelist_view(request, *args, **kwargs)
        if IS_POPUP_VAR in request.GET:
            return response  # whose links are bound to the window that opened it
        topics = [*self._own_topics(), *map(asked_topic, self.live_topics)]
        return self._live(response, topics, keys=_keys(response))

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """As Django's; live where it is about an object that is there."""
        response = super().render_change_form(request, context, *args, **kwargs)
        edited = kwargs.get("obj") or (args[3] if len(args) > 3 else None)
        if edited is None:
            return response
        return self._live(
            response,
            [object_topic(topic, edited.pk) for topic in self._own_topics()],
            list_url=reverse(f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_changelist"),
        )

    def _own_topics(self) -> list[str]:
        """The model's, and its parents' that have tables of their own: it is their tables that are written to."""
        model: Any = self.model._meta.concrete_model
        return [model_topic(one._meta.label_lower) for one in (model, *model._meta.get_parent_list())]

    def _live(self, response: Any, topics: Sequence[str], **more: Any) -> Any:
        if isinstance(response, TemplateResponse) and response.context_data and "media" in response.context_data:
            response.context_data["media"] += live_media(topics, **more)
        return response


def _problems(admin: LiveModelAdmin) -> Iterator[checks.CheckMessage]:
    alias = conf.get().CHANNEL_LAYER if not conf.problems() else "default"
    if find_spec("channels") is None:
        yield checks.Error(
            _("%(admin)s is live, and Channels is not installed.") % {"admin": type(admin).__name__},
            hint=_("Install it: pip install 'django-pgsignals[channels]'; or use a plain ModelAdmin."),
            obj=type(admin),
            id="pgsignals.E050",
        )
    elif alias is None or alias not in getattr(settings, "CHANNEL_LAYERS", {}):
        yield checks.Error(
            _("%(admin)s is live, and settings.CHANNEL_LAYERS has no layer %(alias)r, so no event would reach it.")
            % {"admin": type(admin).__name__, "alias": alias},
            hint=_("Add it; and mount PgEventConsumer at PGSIGNALS['LIVE_URL']: see docs/live.md."),
            obj=type(admin),
            id="pgsignals.E051",
        )
    if not any(map(announces, admin._own_topics())):
        yield checks.Warning(
            _("%(admin)s is live, and %(model)s announces nothing, so it would never move.")
            % {"admin": type(admin).__name__, "model": admin.opts.label},
            hint=_("Add Notify(name=...) to its Meta.constraints and migrate."),
            obj=type(admin),
            id="pgsignals.W052",
        )


def _keys(response: Any) -> list[str]:
    """The primary keys of a changelist's rows, which need not show them."""
    changelist = (getattr(response, "context_data", None) or {}).get("cl")
    return [str(one.pk) for one in changelist.result_list] if changelist else []


def live_media(topics: Sequence[str], list_url: str = "", keys: Sequence[str] = ()) -> Media:
    """The scripts and styles of a live page of the admin."""
    said = {
        "data-socket": conf.get().LIVE_URL,
        "data-topics": json.dumps(list(topics)),
        "data-list": list_url,
        "data-keys": json.dumps(list(keys)),
        "data-words": json.dumps(words()),
    }
    scripts: list[Any] = [Script(f"pgsignals/{name}.js", defer=True) for name in ("live", "refresh")]
    scripts.append(Script("pgsignals/admin.js", defer=True, **said))
    return Media(css={"all": ["pgsignals/admin.css"]}, js=scripts)


def words() -> dict[str, str]:
    """What the pages say, in the language of the request."""
    return {
        "connecting": _("Connecting …"),
        "live": _("Live"),
        "live_help": _("This page refreshes itself when something changes."),
        "lost": _("Not live: the connection is lost. Reconnecting …"),
        "lost_help": _("Reload the page to see what has changed meanwhile."),
        "refused": _("Not live: you may not listen here, or are no longer logged in."),
        "changed": _("The list has been refreshed; rows that changed: %d."),
        "waits": _("Rows that others have changed meanwhile: %d. The list is refreshed when you are done editing."),
        "no_page": _("This page of the list is no longer there: rows have been deleted, or are other ones now."),
        "overtaken": _("Somebody else has just changed this object."),
        "reload": _("Reload to see it as it is now; what you have typed is lost."),
        "gone": _("This object is no longer there: somebody has just deleted it."),
        "to_list": _("Back to the list"),
    }
