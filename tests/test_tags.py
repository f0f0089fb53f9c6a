"""{% load pgsignals %}: what stands in the page."""

from __future__ import annotations

from typing import Any

import pytest
from django.http import HttpRequest
from django.template import Context, Engine, Library, RequestContext, Template, TemplateSyntaxError
from django.utils.functional import SimpleLazyObject

from .shop.models import Token


def render(text: str, **context: Any) -> str:
    return Template("{% load pgsignals %}" + text).render(Context(context))


def test_a_fragment_names_its_topics_and_where_it_listens() -> None:
    assert render('{% pg_live "shop.Order" %}<b>{{ x }}</b>{% endpg_live %}', x="<") == (
        '<div data-pg-fragment="1" data-pg-socket="/ws/pg/" data-pg-topics="shop.order"><b>&lt;</b></div>'
    )


def test_options_become_attributes() -> None:
    made = render(
        '{% pg_live "shop.Order" "channel:news" pk=5 name="board" tag="section" url="/part/?a=1&b=2" '
        'class="a b" data_x=7 %}{% endpg_live %}'
    )
    assert made.startswith("<section ")
    assert made.endswith("></section>")
    for attribute in (
        'data-pg-topics="shop.order:5 channel:news"',
        'data-pg-fragment="board"',
        'data-pg-url="/part/?a=1&amp;b=2"',
        'class="a b"',
        'data-x="7"',
    ):
        assert f" {attribute}" in made


def test_fragments_are_told_apart_by_their_order() -> None:
    """So that each finds itself in the page that is fetched anew; also inside a loop."""
    made = render('{% for x in "abc" %}{% pg_live "shop.Order" %}{% endpg_live %}{% endfor %}')
    assert [f'data-pg-fragment="{number}"' in made for number in (1, 2, 3, 4)] == [True, True, True, False]


CARD = '{% load pgsignals %}{% pg_live "shop.Order" %}{{ x }}{% endpg_live %}'


@pytest.mark.parametrize(
    "part", ['{% include "card.html" %}', '{% include "card.html" with x=x only %}', "{% card x %}"]
)
def test_fragments_of_parts_are_told_apart_as_well(part: str) -> None:
    """What is included in a loop, or comes of a tag, is a template of its own."""
    loaders = [("django.template.loaders.locmem.Loader", {"card.html": CARD})]
    engine = Engine(loaders=loaders, libraries={"pgsignals": "pgsignals.templatetags.pgsignals"})
    library = Library()
    library.inclusion_tag("card.html", name="card")(lambda x: {"x": x})
    engine.template_builtins.append(library)
    page = engine.from_string('{% for x in "abc" %}' + part + "{% endfor %}" + CARD)
    made = page.render(Context())
    assert [made.count(f'data-pg-fragment="{number}"') for number in (1, 2, 3, 4)] == [1, 1, 1, 1]


def test_variables_are_taken_from_the_context(settings: Any) -> None:
    settings.PGSIGNALS = {"LIVE_URL": "/elsewhere/"}
    token = Token()
    made = render("{% pg_live label pk=token.pk %}{% endpg_live %}", label="shop.Token", token=token)
    assert f'data-pg-socket="/elsewhere/" data-pg-topics="shop.token:{token.pk}"' in made


def test_keys_are_text_whatever_they_hold() -> None:
    """Topics are divided by spaces, so what is in a key is written as in a URL."""
    made = render('{% pg_live "shop.Page" pk=key %}{% endpg_live %}', key="a b\"><script>'%&")
    assert 'data-pg-topics="shop.page:a%20b%22%3E%3Cscript%3E&#x27;%25%26"' in made
    assert "<script>" not in made


def test_any_element_hears_of_topics() -> None:
    assert render('<body {% pg_topics "shop.Order" "group:billing" %}>') == (
        '<body  data-pg-socket="/ws/pg/" data-pg-topics="shop.order group:billing">'
    )


def test_the_scripts_come_in_their_order_and_nothing_is_inline() -> None:
    made = render("{% pg_scripts %}")
    assert [line.partition("pgsignals/")[2].partition('"')[0] for line in made.splitlines()] == [
        "live.js",
        "refresh.js",
        "page.js",
    ]
    assert all(line.endswith(" defer></script>") for line in made.splitlines())


class Nonce(SimpleLazyObject):
    """As Django's and django-csp's are: false until somebody has asked for its text, which is also when it counts."""

    def __init__(self) -> None:
        super().__init__(lambda: 'a"b')

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize("by", ["context", "request"])
def test_the_scripts_have_the_nonce_of_the_pages_policy(by: str) -> None:
    """Which Django's context processor gives, or django-csp's middleware."""
    request = HttpRequest()
    if by == "request":
        request.csp_nonce = Nonce()  # type: ignore[attr-defined]
    context = RequestContext(request, {"csp_nonce": Nonce()} if by == "context" else {})
    made = Template("{% load pgsignals %}{% pg_scripts %}").render(context)
    assert made.count('.js" nonce="a&quot;b" defer></script>') == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% pg_live %}{% endpg_live %}", "takes topics"),
        ("{% pg_live pk=5 %}{% endpg_live %}", "takes topics"),
        ('{% pg_live pk=5 "shop.Order" %}{% endpg_live %}', "takes topics, then options"),
        ('{% pg_live "shop.Ordr" %}{% endpg_live %}', "names no model: App 'shop' doesn't have a 'ordr' model"),
        ('{% pg_live "nodot" %}{% endpg_live %}', "names no model"),
        ('{% pg_topics "no.such" %}', "names no model"),
        ('{% pg_live "shop.Order" tag="a b" %}{% endpg_live %}', "must be an element's name"),
        ('{% pg_live "shop.Order" tag="" %}{% endpg_live %}', "must be an element's name"),
    ],
)
def test_what_will_not_do_is_said(text: str, says: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=says):
        render(text)
