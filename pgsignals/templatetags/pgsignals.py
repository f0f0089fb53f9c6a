"""Live fragments of ordinary pages: `{% load pgsignals %}`.

{% pg_live "flights.Flight" %} ... {% endpg_live %}     fetched anew when a flight changes
<body {% pg_topics "flights.Flight" %}>                 hears `pg:flights.flight`
{% pg_scripts %}                                        once, in the page's head
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django import template
from django.apps import apps
from django.forms.utils import flatatt
from django.forms.widgets import Script
from django.template.base import FilterExpression, NodeList, Parser, Token, token_kwargs
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString

from .. import conf
from ..live.topics import asked_topic, is_model, object_topic

register = template.Library()

_COUNTER = "pgsignals_fragments"
_OPTIONS = ("pk", "name", "url", "tag", "socket")


@register.simple_tag(takes_context=True)
def pg_scripts(context: template.Context) -> SafeString:
    """The scripts that live pages need, with the nonce of the page's Content-Security-Policy where it has one."""
    nonce = _nonce(context)
    attributes = {"defer": True} if nonce is None else {"defer": True, "nonce": str(nonce)}
    names = ("live", "refresh", "page")
    return format_html_join("\n", "{}", ((Script(f"pgsignals/{name}.js", **attributes),) for name in names))


def _nonce(context: template.Context) -> Any:
    """What Django's context processor `csp` gives, or the middleware of django-csp."""
    # Not by its truth: it is false until somebody has asked for its text.
    nonce = context.get("csp_nonce")
    return getattr(getattr(context, "request", None), "csp_nonce", None) if nonce is None else nonce


@register.simple_tag
def pg_topics(*topics: str, pk: Any = None, socket: str = "") -> SafeString:
    """The attributes of an element that hears of topics, as DOM events `pg:<topic>`."""
    return flatatt(_attributes(topics, pk, socket))


@register.tag
def pg_live(parser: Parser, token: Token) -> LiveNode:
    """A fragment that is fetched anew when something of its topics changes.

    {% pg_live "flights.Flight" ["channel:news" ...] [pk=flight.pk] [name="board"] [url=...] [tag="section"] %}

    Other options become attributes: class="board", id="board", data_x="1" (as data-x).
    """
    bits = token.split_contents()[1:]
    topics = []
    while bits and "=" not in bits[0].split('"')[0].split("'")[0]:
        topics.append(parser.compile_filter(bits.pop(0)))
    options = token_kwargs(bits, parser)
    if bits or not topics:
        raise template.TemplateSyntaxError('pg_live takes topics, then options: {% pg_live "flights.Flight" pk=1 %}')
    content = parser.parse(("endpg_live",))
    parser.delete_first_token()
    return LiveNode(topics, options, content)


class LiveNode(template.Node):
    """The element around a live fragment."""

    def __init__(
        self, topics: list[FilterExpression], options: dict[str, FilterExpression], nodelist: NodeList
    ) -> None:
        self.topics = topics
        self.options = options
        self.nodelist = nodelist

    def render(self, context: template.Context) -> SafeString:
        """The element, its content in it."""
        options = {name: value.resolve(context) for name, value in self.options.items()}
        own = {name: options.pop(name) for name in _OPTIONS if name in options}
        # Named by their order where they have no name: the same page, fetched anew, must have them in the same order.
        # Of the whole page: each template that is included has a render context of its own, on top of the others.
        page: Any = context.render_context.dicts[0]
        number = page[_COUNTER] = page.get(_COUNTER, 0) + 1
        attributes = {
            **{name.replace("_", "-"): escape(value) for name, value in options.items()},
            **_attributes([one.resolve(context) for one in self.topics], own.get("pk"), own.get("socket", "")),
            "data-pg-fragment": escape(own.get("name", number)),
        }
        if own.get("url"):
            attributes["data-pg-url"] = escape(own["url"])
        tag = str(own.get("tag", "div"))
        if not tag.replace("-", "").isalnum():
            raise template.TemplateSyntaxError(f"pg_live's tag is {tag!r}, and must be an element's name.")
        return format_html("<{}{}>{}</{}>", tag, flatatt(attributes), self.nodelist.render(context), tag)


def _attributes(topics: Any, pk: Any, socket: str) -> dict[str, str]:
    return {
        # Divided by spaces, so what is in a key is written as in a URL.
        "data-pg-topics": escape(" ".join(quote(_topic(str(topic), pk), safe=":.!'()*[],") for topic in topics)),
        "data-pg-socket": escape(socket or conf.get().LIVE_URL),
    }


def _topic(text: str, pk: Any) -> str:
    topic = asked_topic(text)
    if not is_model(topic):
        return topic
    label = topic.partition(":")[0]
    try:
        apps.get_model(label)
    except (LookupError, ValueError) as error:
        raise template.TemplateSyntaxError(f"The topic {text!r} names no model: {error}") from error
    return topic if pk is None else object_topic(label, pk)
