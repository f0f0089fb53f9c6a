"""Admin pages that move by themselves.

    @admin.register(Flight)
    class FlightAdmin(LiveModelAdmin, admin.ModelAdmin): ...

Nothing else is needed: no template, no inline script. The pages listen at PGSIGNALS["LIVE_URL"].
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.forms import Media
from django.forms.widgets import Script
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from .. import conf
from .topics import model_topic, object_topic

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

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """As Django's, and live."""
        return self._live(super().changelist_view(request, *args, **kwargs), model_topic(self.opts.label_lower))

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """As Django's; live where it is about an object that is there."""
        response = super().render_change_form(request, context, *args, **kwargs)
        edited = kwargs.get("obj") or (args[3] if len(args) > 3 else None)
        if edited is None:
            return response
        return self._live(
            response,
            object_topic(self.opts.label_lower, edited.pk),
            reverse(f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_changelist"),
        )

    def _live(self, response: Any, topic: str, list_url: str = "") -> Any:
        if isinstance(response, TemplateResponse) and response.context_data and "media" in response.context_data:
            response.context_data["media"] += live_media(topic, list_url)
        return response


def live_media(topic: str, list_url: str = "") -> Media:
    """The scripts and styles of a live page of the admin."""
    said = {
        "data-socket": conf.get().LIVE_URL,
        "data-topic": topic,
        "data-list": list_url,
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
        "overtaken": _("Somebody else has just changed this object."),
        "reload": _("Reload to see it as it is now; what you have typed is lost."),
        "gone": _("This object is no longer there: somebody has just deleted it."),
        "to_list": _("Back to the list"),
    }
