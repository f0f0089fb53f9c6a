"""Live pages of a project, in a real browser: what moves, what stays where it was, and who sees it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, WebSocket, expect

from .browser import browser, node_module
from .live.site import Site, site

__all__ = ["browser"]

LIVE = ".pg-live[data-state=live]"
PARCELS = "/admin/live/parcel/"
LETTERS = "/admin/live/letter/"
DELIVERIES = "/admin/live/delivery/"
WAIT = 15_000
"""Milliseconds that a page may take to show what it must."""

expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def place(browser: Browser) -> Iterator[Site]:
    htmx = {f"PGSIGNALS_TEST_HTMX{number}": str(path) for number, path in HTMX.items()}
    with site("with_relay", PGSIGNALS_TEST_LAYER="memory", **htmx) as served:
        yield served


HTMX = {number: f"tests/npm/node_modules/htmx{number}/dist/htmx.min.js" for number in (2, 4)}


@pytest.fixture
def sql(place: Site) -> Iterator[psycopg.Connection[Any]]:
    """Somebody at psql, and sixty parcels."""
    with place.sql() as connection:
        connection.execute("TRUNCATE live_parcel, live_stop, live_letter, live_tag RESTART IDENTITY")
        connection.execute(
            "INSERT INTO live_parcel (name, status, weight, owner) "
            "SELECT 'parcel ' || lpad(n::text, 3, '0'), 'here', 1, '' FROM generate_series(1, 60) AS n"
        )
        connection.execute(
            "INSERT INTO live_letter (text, stamps, owner) SELECT 'letter ' || n, 1, '' FROM generate_series(1, 5) AS n"
        )
        connection.execute("DELETE FROM auth_user_user_permissions")
        yield connection


class Visitor:
    """Somebody with a browser, and all that went wrong in it."""

    def __init__(self, context: BrowserContext, place: Site) -> None:
        self.context = context
        self.place = place
        self.pages: list[Page] = []
        self.errors: list[str] = []
        self.frames: list[dict[str, Any]] = []
        self.fetched: list[str] = []

    def open(self, path: str, ready: str = LIVE, sockets: bool = True) -> Page:
        """A page that listens, marked so that a reload would show."""
        page = self.context.new_page()
        self.pages.append(page)
        if not sockets:
            page.route_web_socket("**/ws/pg/", lambda socket: socket.close())
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda one: self.errors.append(one.text) if one.type == "error" else None)
        page.on("websocket", self._watch)
        page.goto(self.place.address + path)
        if ready:
            page.wait_for_selector(ready, state="attached")
        page.evaluate("window.stillTheSame = true")
        page.on("request", lambda request: self.fetched.append(request.url) if request.method == "GET" else None)
        return page

    def settle(self, page: Page) -> None:
        """Until the page has fetched what happened since it was made. What is fetched is counted from here on."""
        page.wait_for_load_state("networkidle")
        del self.fetched[:]

    def _watch(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda text: self.frames.append(json.loads(text)))


@pytest.fixture(scope="module")
def people(browser: Browser, place: Site) -> Iterator[Callable[..., BrowserContext]]:
    """Gives each user's browser, with what it has in its cache."""
    known: dict[str, BrowserContext] = {}

    def person(name: str, **options: Any) -> BrowserContext:
        key = f"{name} {options}"
        if key not in known:
            known[key] = browser.new_context(viewport={"width": 1200, "height": 700}, **options)
            known[key].set_default_timeout(WAIT)
            known[key].add_cookies([{"name": "sessionid", "value": place.sessions[name], "url": place.address}])
        return known[key]

    yield person
    for context in known.values():
        context.close()


@pytest.fixture
def visit(people: Callable[..., BrowserContext], place: Site, sql: object) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors; in the end no page may have had an error."""
    made: list[Visitor] = []

    def visitor(name: str = "ada", **options: Any) -> Visitor:
        made.append(Visitor(people(name, **options), place))
        return made[-1]

    yield visitor
    for one in made:
        for page in one.pages:
            page.close()
    assert [one.errors for one in made] == [[] for _ in made]


def texts(page: Page, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def row(page: Page, name: str) -> Any:
    return page.locator("#result_list tbody tr", has_text=name)


def wait_for_a_look(page: Page) -> None:
    """Until the page has fetched itself once."""
    fetched = "() => performance.getEntriesByType('resource').some((one) => one.initiatorType === 'fetch')"
    page.wait_for_function(fetched, polling=20)
    page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 20))")  # what it has fetched it takes over


# The changelist.


def test_a_changed_row_is_shown_and_marked_and_nothing_reloads(visit: Any, sql: Any) -> None:
    page = visit().open(PARCELS)
    sql.execute("UPDATE live_parcel SET status = 'lost' WHERE name = 'parcel 003'")
    expect(row(page, "parcel 003")).to_have_class("pg-changed")
    expect(row(page, "parcel 003")).to_contain_text("lost")
    assert page.locator(".pg-changed").count() == 1
    expect(page.locator(".pg-changed")).to_have_count(0)
    assert page.evaluate("window.stillTheSame")


def test_filter_search_sorting_and_page_stay(visit: Any, sql: Any) -> None:
    """The list that one looks at is the list that is refreshed."""
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE name > 'parcel 015'")
    page = visit().open(PARCELS + "?status__exact=gone&q=parcel&o=-1&p=2")
    before = texts(page, "#result_list tbody th")
    assert (before[0], before[-1]) == ("parcel 040", "parcel 021")
    sql.execute("UPDATE live_parcel SET status = 'here' WHERE name = 'parcel 060'")
    expect(page.locator("#result_list tbody tr").first).to_contain_text("parcel 039")
    assert texts(page, "#result_list tbody th") == [*before[1:], "parcel 020"]
    expect(page.locator(".paginator")).to_contain_text("44 parcels")
    assert page.url.endswith("?status__exact=gone&q=parcel&o=-1&p=2")
    assert page.input_value("#searchbar") == "parcel"


def test_what_is_ticked_focused_and_scrolled_to_stays(visit: Any, sql: Any) -> None:
    page = visit().open(PARCELS)
    row(page, "parcel 005").locator("input").check()
    row(page, "parcel 006").locator("input").check()
    row(page, "parcel 007").locator("a").focus()
    page.evaluate("window.scrollTo(0, 150)")
    sql.execute("UPDATE live_parcel SET name = 'a ' || name WHERE name IN ('parcel 005', 'parcel 007', 'parcel 019')")
    sql.execute("DELETE FROM live_parcel WHERE name IN ('parcel 001', 'parcel 006')")
    expect(page.locator("#result_list tbody tr").first).to_contain_text("a parcel 005")
    assert texts(page, "#result_list tbody tr:has(input:checked) th") == ["a parcel 005"]
    assert page.evaluate("document.activeElement.textContent") == "a parcel 007"
    assert page.evaluate("window.scrollY") == 150
    expect(page.locator(".action-counter")).to_have_text("1 of 20 selected")


def test_all_that_are_ticked_are_those_that_are_there_now(visit: Any, sql: Any) -> None:
    """Django's own script would go on with the rows that it found first."""
    page = visit().open(PARCELS + "?q=parcel+00")
    assert page.locator("#result_list tbody tr").count() == 9
    sql.execute("INSERT INTO live_parcel (name, status, weight, owner) VALUES ('parcel 00x', 'here', 1, '')")
    sql.execute("DELETE FROM live_parcel WHERE name IN ('parcel 001', 'parcel 002')")
    expect(page.locator("#result_list tbody tr")).to_have_count(8)
    page.check("#action-toggle")
    expect(page.locator(".action-counter")).to_have_text("8 of 8 selected")
    assert page.locator("#result_list tbody tr.selected").count() == 8
    row(page, "parcel 00x").locator("input").uncheck()
    expect(page.locator(".action-counter")).to_have_text("7 of 8 selected")
    page.select_option("select[name=action]", "delete_selected")
    page.click("button[name=index]")
    page.wait_for_selector("text=Are you sure")
    assert "parcel 00x" not in page.inner_text("#content")
    assert "parcel 003" in page.inner_text("#content")


def test_all_pages_that_are_selected_stay_selected_and_that_stays_visible(visit: Any, sql: Any) -> None:
    """Django's script offers them again, while the form would still send all of them."""
    page = visit().open(PARCELS)
    page.check("#action-toggle")
    page.click("text=Select all 60 parcels")
    sql.execute("INSERT INTO live_parcel (name, status, weight, owner) VALUES ('parcel 000', 'here', 1, '')")
    expect(page.locator("#result_list tbody tr").first).to_contain_text("parcel 000")
    expect(page.locator(".actions .all")).to_have_text("All 61 selected")
    assert page.locator(".actions .all").is_visible()
    assert page.locator(".actions .question").is_hidden()
    assert page.locator("#result_list tbody input:checked").count() == 20
    assert page.locator("input.select-across").get_attribute("value") == "1"
    page.click("text=Clear selection")
    assert page.locator("#result_list tbody input:checked").count() == 0
    assert page.locator("input.select-across").get_attribute("value") == "0"


def test_rows_without_ticks_whose_first_links_are_alike_are_told_apart(visit: Any, sql: Any) -> None:
    """None is lost, and the one that changed is marked."""
    page = visit().open(DELIVERIES)
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE name = 'parcel 003'")
    expect(row(page, "parcel 003")).to_have_class("pg-changed")
    assert page.locator(".pg-changed").count() == 1
    assert texts(page, "#result_list tbody th") == [f"parcel {number:03}" for number in range(1, 21)]


def test_who_may_only_look_sees_which_rows_have_changed(visit: Any, sql: Any) -> None:
    give(sql, "bob", "view_parcel")
    page = visit("bob").open(PARCELS)
    assert page.locator("input.action-select").count() == 0
    wait_for_a_look(page)
    sql.execute("DELETE FROM live_parcel WHERE name = 'parcel 001'")
    expect(page.locator("#result_list tbody tr").first).to_contain_text("parcel 002")
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE name = 'parcel 004'")
    expect(row(page, "parcel 004")).to_have_class("pg-changed")
    assert page.locator(".pg-changed").count() == 1


def test_ten_thousand_rows_in_one_statement_are_one_refresh(visit: Any, sql: Any) -> None:
    sql.execute(
        "INSERT INTO live_parcel (name, status, weight, owner) "
        "SELECT 'parcel ' || n, 'here', 1, '' FROM generate_series(1000, 10999) AS n"
    )
    visitor = visit()
    page = visitor.open(PARCELS)
    visitor.settle(page)
    sql.execute("UPDATE live_parcel SET status = 'gone'")
    expect(row(page, "parcel 001")).to_contain_text("gone")
    # A later change is a refresh of its own, and what would have come in between is counted.
    sql.execute("UPDATE live_parcel SET status = 'lost' WHERE name = 'parcel 001'")
    expect(row(page, "parcel 001")).to_contain_text("lost")
    assert len([url for url in visitor.fetched if url.endswith(PARCELS)]) == 2


def test_a_page_of_the_list_that_is_no_longer_there_says_so(visit: Any, sql: Any) -> None:
    """And goes on when it is there again."""
    page = visit().open(PARCELS + "?p=3")
    sql.execute("DELETE FROM live_parcel WHERE name > 'parcel 030'")
    expect(page.locator(".pg-note")).to_contain_text("no longer there")
    sql.execute(
        "INSERT INTO live_parcel (name, status, weight, owner) "
        "SELECT 'q ' || n, 'here', 1, '' FROM generate_series(31, 60) AS n"
    )
    expect(page.locator("#result_list tbody tr").last).to_contain_text("q 60")
    expect(page.locator(".pg-note")).to_be_hidden()


def test_a_list_in_a_popup_is_left_alone(visit: Any, sql: Any) -> None:
    """Django's script has bound its links to the window that opened it."""
    page = visit().open(PARCELS + "?_popup=1", ready="#result_list")
    assert page.locator(".pg-live").count() == 0


def test_an_empty_list_fills_and_a_full_one_empties(visit: Any, sql: Any) -> None:
    """The empty one has neither a table nor actions; afterwards both work."""
    page = visit().open(PARCELS + "?status__exact=lost")
    assert page.locator("#result_list").count() == 0
    sql.execute("UPDATE live_parcel SET status = 'lost' WHERE name < 'parcel 004'")
    expect(page.locator("#result_list tbody tr")).to_have_count(3)
    page.check("#action-toggle")
    expect(page.locator(".action-counter")).to_have_text("3 of 3 selected")
    sql.execute("UPDATE live_parcel SET status = 'here' WHERE name = 'parcel 001'")
    expect(page.locator(".action-counter")).to_have_text("2 of 2 selected")
    sql.execute("UPDATE live_parcel SET status = 'here'")
    expect(page.locator("#result_list tbody tr")).to_have_count(0)
    expect(page.locator(".paginator")).to_contain_text("0 parcels")
    assert page.evaluate("window.stillTheSame")


def test_what_somebody_types_is_never_taken_away(visit: Any, sql: Any) -> None:
    """The list waits, says so, and marks what is not as it was; and goes on when the edit is undone."""
    page = visit().open(LETTERS)
    field = page.locator("#id_form-0-text")
    field.fill("my own words")
    page.locator("#id_form-3-stamps").focus()
    sql.execute("UPDATE live_letter SET text = 'theirs' WHERE id IN (1, 2)")
    expect(page.locator(".pg-note")).to_contain_text("others have changed meanwhile: 2.")
    assert texts(page, "tr.pg-stale th") == ["1", "2"]
    assert field.input_value() == "my own words"
    assert page.evaluate("document.activeElement.id") == "id_form-3-stamps"
    assert page.input_value("#id_form-1-text") == "letter 2"
    field.fill("letter 1")
    page.locator("#id_form-0-stamps").focus()
    page.evaluate("document.activeElement.blur()")
    expect(page.locator("#id_form-1-text")).to_have_value("theirs")
    expect(page.locator(".pg-note")).to_be_hidden()
    assert page.locator("tr.pg-stale").count() == 0


def test_rows_that_only_have_other_numbers_are_not_called_changed(visit: Any, sql: Any) -> None:
    """The fields of a list to edit in are numbered, and a row that goes renumbers all that follow."""
    page = visit().open(LETTERS)
    page.locator("#id_form-4-stamps").focus()
    sql.execute("DELETE FROM live_letter WHERE id = 2")
    expect(page.locator(".pg-note")).to_contain_text("others have changed meanwhile: 1.")
    assert texts(page, "tr.pg-stale th") == ["2"]
    page.evaluate("document.activeElement.blur()")
    expect(page.locator("#result_list tbody tr")).to_have_count(4)
    assert page.input_value("#id_form-1-text") == "letter 3"
    sql.execute(
        "WITH gone AS (DELETE FROM live_letter WHERE id = 1) UPDATE live_letter SET text = 'theirs' WHERE id = 4"
    )
    expect(page.locator("[role=status][aria-live=polite]").first).to_contain_text("rows that changed: 1.")


def test_a_list_that_was_refreshed_can_be_saved(visit: Any, sql: Any) -> None:
    """The form's own bookkeeping (which row is which object, how many) moves with the rows."""
    page = visit().open(LETTERS)
    sql.execute("DELETE FROM live_letter WHERE id = 1")
    sql.execute("INSERT INTO live_letter (text, stamps, owner) VALUES ('letter 6', 1, ''), ('letter 7', 1, '')")
    expect(page.locator("#result_list tbody tr")).to_have_count(6)
    page.locator("#result_list tbody tr", has_text="7").locator("input[name$=stamps]").fill("9")
    page.click("input[name=_save]")
    page.wait_for_selector(".success")
    assert sql.execute("SELECT id, stamps FROM live_letter WHERE stamps <> 1").fetchall() == [(7, 9)]


def test_a_save_that_was_refused_is_not_refreshed_away(visit: Any, sql: Any) -> None:
    visitor = visit()
    page = visitor.open(LETTERS)
    page.fill("#id_form-0-stamps", "")
    page.evaluate("document.getElementById('changelist-form').noValidate = true")
    page.click("input[name=_save]")
    page.wait_for_selector(".errorlist")
    page.wait_for_selector(LIVE)
    sql.execute("UPDATE live_letter SET text = 'theirs' WHERE id = 2")
    expect(page.locator(".pg-note")).to_be_visible()
    assert page.locator(".errorlist").count() > 0
    assert page.input_value("#id_form-0-stamps") == ""


def test_those_who_hear_the_page_are_told_politely(visit: Any, sql: Any) -> None:
    page = visit().open(PARCELS)
    region = page.locator("[role=status][aria-live=polite]").first
    expect(region).to_have_text("Live")
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE name < 'parcel 003'")
    expect(region).to_have_text("The list has been refreshed; rows that changed: 2.")


def test_marks_do_not_move_for_those_who_want_no_motion(visit: Any, sql: Any) -> None:
    page = visit(reduced_motion="reduce").open(PARCELS)
    sql.execute("UPDATE live_parcel SET status = 'lost' WHERE name = 'parcel 003'")
    cell = page.locator("tr.pg-changed > *").first
    cell.wait_for()
    assert cell.evaluate("cell => getComputedStyle(cell).animationName") == "none"
    assert cell.evaluate("cell => getComputedStyle(cell).boxShadow") != "none"


def test_a_hidden_page_is_refreshed_when_it_is_looked_at(visit: Any, sql: Any) -> None:
    visitor = visit()
    page = visitor.open(PARCELS)
    visitor.settle(page)
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.isHidden, configurable: true })")
    page.evaluate("window.isHidden = true")
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE name = 'parcel 001'")
    wait_for_event(page, visitor, "live.parcel")
    assert visitor.fetched == []
    page.evaluate("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    expect(row(page, "parcel 001")).to_contain_text("gone")


def wait_for_event(page: Page, visitor: Visitor, topic: str) -> None:
    """Until the browser has been told."""
    while not any(one["type"] == "event" and one["topic"] == topic for one in visitor.frames):
        page.wait_for_timeout(10)


def test_where_websockets_are_refused_the_page_says_so_and_works(visit: Any, sql: Any) -> None:
    page = visit().open(PARCELS, ready=".pg-live[data-state=lost]", sockets=False)
    assert "Not live" in page.inner_text(".pg-live")
    row(page, "parcel 002").locator("input").check()
    expect(page.locator(".action-counter")).to_have_text("1 of 20 selected")
    page.click("text=parcel 003")
    page.wait_for_selector("#id_name")


# The form of one object.


def change(page: Page) -> Any:
    return page.locator(".pg-warning")


def test_a_form_says_that_somebody_else_has_changed_the_object(visit: Any, sql: Any) -> None:
    """What has been typed stays; a link brings what is stored."""
    page = visit().open(PARCELS + "1/change/")
    page.fill("#id_name", "mine")
    sql.execute("UPDATE live_parcel SET weight = 7 WHERE id = 2")
    sql.execute("UPDATE live_parcel SET weight = 5 WHERE id = 1")
    expect(change(page)).to_contain_text("Somebody else has just changed this object.")
    assert page.input_value("#id_name") == "mine"
    change(page).locator("a").click()
    expect(page.locator("#id_weight")).to_have_value("5")


def test_a_form_says_that_the_object_is_gone(visit: Any, sql: Any) -> None:
    page = visit().open(PARCELS + "1/change/")
    sql.execute("DELETE FROM live_parcel WHERE id = 1")
    expect(change(page)).to_contain_text("no longer there")
    assert change(page).locator("a").get_attribute("href") == PARCELS


def test_ones_own_save_is_no_warning(visit: Any, sql: Any) -> None:
    """Nor is a change that the form does not show. Another window's is."""
    visitor = visit()
    page = visitor.open(PARCELS + "1/change/")
    page.fill("#id_weight", "3")
    page.click("input[name=_continue]")
    page.wait_for_selector(".success")
    page.wait_for_selector(LIVE)
    del visitor.frames[:]
    sql.execute("UPDATE live_parcel SET read_at = now() WHERE id = 1")
    wait_for_event(page, visitor, "live.parcel:1")
    page.wait_for_load_state("networkidle")
    assert change(page).is_hidden()
    other = visitor.open(PARCELS + "1/change/")
    other.fill("#id_weight", "4")
    other.click("input[name=_save]")
    expect(change(page)).to_contain_text("Somebody else")


def test_what_differs_each_time_is_no_change_of_the_object(visit: Any, sql: Any) -> None:
    """Neither what new rows would hold nor what is only shown; somebody's change of what one edits is."""
    sql.execute(f"INSERT INTO live_stop (parcel_id, code, at) VALUES (1, '{uuid.uuid4()}', now())")
    page = visit().open(DELIVERIES + "1/change/")
    wait_for_a_look(page)
    assert change(page).is_hidden()
    sql.execute("UPDATE live_stop SET at = now() + interval '1 day'")
    sql.execute("UPDATE live_parcel SET read_at = now() WHERE id = 2")
    sql.execute("UPDATE live_parcel SET read_at = now() WHERE id = 1")
    expect(change(page)).to_contain_text("Somebody else")


def test_who_may_only_look_is_told_of_a_change_as_well(visit: Any, sql: Any) -> None:
    give(sql, "bob", "view_parcel")
    page = visit("bob").open(PARCELS + "1/change/")
    sql.execute("UPDATE live_parcel SET weight = 5 WHERE id = 1")
    expect(change(page)).to_contain_text("Somebody else has just changed this object.")


def test_a_save_that_failed_does_not_forget_that_somebody_else_was_quicker(visit: Any, sql: Any) -> None:
    page = visit().open(PARCELS + "1/change/")
    page.fill("#id_name", "")
    sql.execute("UPDATE live_parcel SET weight = 5 WHERE id = 1")
    change(page).wait_for()
    page.click("input[name=_save]")
    page.wait_for_selector(".errornote")
    expect(change(page)).to_contain_text("Somebody else")
    page.fill("#id_name", "mine")
    page.click("input[name=_continue]")
    page.wait_for_selector(".success")
    page.wait_for_selector(LIVE)
    wait_for_a_look(page)
    assert change(page).is_hidden()


def test_ones_own_save_is_no_warning_before_its_answer_is_there(visit: Any, sql: Any) -> None:
    """Its event is quicker. Where no answer comes, and one goes on, what is stored is looked at again."""
    visitor = visit()
    page = visitor.open(PARCELS + "1/change/")
    wait_for_a_look(page)

    def lose_the_answer(route: Any) -> None:
        if route.request.method == "POST":
            route.fetch(max_redirects=0)
            route.fulfill(status=204)
        else:
            route.continue_()

    page.route("**/change/", lose_the_answer)
    page.evaluate("() => performance.clearResourceTimings()")
    page.fill("#id_weight", "3")
    page.click("input[name=_save]")
    wait_for_event(page, visitor, "live.parcel:1")
    wait_for_a_look(page)
    assert change(page).is_hidden()
    page.fill("#id_weight", "4")
    expect(change(page)).to_contain_text("Somebody else")


def test_the_link_of_the_warning_loads_the_page_whatever_its_address_ends_with(visit: Any, sql: Any) -> None:
    page = visit().open(PARCELS + "1/change/#content-start")
    sql.execute("UPDATE live_parcel SET weight = 5 WHERE id = 1")
    change(page).locator("a").click()
    expect(page.locator("#id_weight")).to_have_value("5")


def test_a_form_whose_user_is_no_longer_logged_in_does_not_say_that_the_object_is_gone(visit: Any, sql: Any) -> None:
    visitor = visit(locale="en-GB")  # nobody else's browser
    page = visitor.open(PARCELS + "1/change/")
    wait_for_a_look(page)
    visitor.context.clear_cookies()
    sql.execute("UPDATE live_parcel SET weight = 5 WHERE id = 1")
    page.wait_for_selector(".pg-live[data-state=refused]")
    assert change(page).is_hidden()


# Who sees what.


def test_a_user_without_the_permission_gets_not_one_byte(visit: Any, sql: Any) -> None:
    """The page is refused, and the WebSocket says no and nothing more, while another user's page moves."""
    guest = visit("bob")
    page = guest.open("/admin/", ready="")
    assert guest.context.request.get(guest.place.address + PARCELS).status == 403
    page.evaluate(
        """() => new Promise((resolve) => {
            const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws/pg/");
            const topics = ["live.parcel", "live.parcel:1", "live.letter", "channel:x", "group:x"];
            socket.onopen = () => socket.send(JSON.stringify({ subscribe: topics }));
            socket.onmessage = resolve;
        })"""
    )
    other = visit().open(PARCELS)
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id = 1")
    sql.execute("UPDATE live_letter SET text = 'secret'")
    expect(row(other, "parcel 001")).to_contain_text("gone")
    refused = ["live.parcel", "live.parcel:1", "live.letter", "channel:x", "group:x"]
    subscribed = {"type": "subscribed", "topics": [], "refused": refused, "resumed": [], "ids": {}}
    assert guest.frames == [subscribed]
    guest.errors.clear()  # the console tells of the refused page


def test_who_is_not_logged_in_is_refused_and_no_browser_console_complains(browser: Browser, place: Site) -> None:
    """On a page that anybody may see: it says `refused`, and does not try for ever."""
    context = browser.new_context()
    visitor = Visitor(context, place)
    page = visitor.open("/admin/login/", ready="")
    page.evaluate(
        """() => {
            document.body.dataset.pgTopics = "live.parcel";
            document.body.dataset.pgSocket = "/ws/pg/";
        }"""
    )
    for name in ("live", "refresh", "page"):
        page.add_script_tag(url=f"/static/pgsignals/{name}.js")
    page.wait_for_selector("body[data-pg-state=refused]")
    assert visitor.errors == visitor.frames == []
    context.close()


def test_a_permission_that_is_taken_away_ends_the_stream(visit: Any, sql: Any) -> None:
    """The page says so, and not one byte of what happens afterwards arrives."""
    give(sql, "bob", "view_parcel")
    guest = visit("bob")
    page = guest.open(PARCELS)
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id = 1")
    expect(row(page, "parcel 001")).to_contain_text("gone")
    wait_until_all_is_told(guest, page, sql)
    sql.execute("DELETE FROM auth_user_user_permissions")
    del guest.frames[:]
    sql.execute("UPDATE live_parcel SET status = 'lost' WHERE id = 1")
    page.wait_for_selector(".pg-live[data-state=refused]")
    other = visit().open(PARCELS)
    sql.execute("UPDATE live_parcel SET status = 'here' WHERE id = 1")
    expect(row(other, "parcel 001")).to_contain_text("here")
    assert guest.frames == [{"type": "refused", "topic": "live.parcel"}]
    guest.errors = [error for error in guest.errors if "403" not in error]  # the page itself is refused as well


def wait_until_all_is_told(visitor: Visitor, page: Page, sql: Any) -> None:
    """Of parcels, up to now: the page may show what it has read before it is told, and frames may still come."""
    for number in range(60, 0, -1):
        sql.execute("UPDATE live_parcel SET owner = 'new' WHERE id = %s", [number])
        named = ["update", number, ["owner"]]
        while not any(frame.get("refetch") or named in frame.get("events", ()) for frame in visitor.frames):
            page.wait_for_timeout(20)
        last = visitor.frames[-1]
        del visitor.frames[:]
        # One that says "refetch" may be about what was before, and then one about this comes.
        if named in last.get("events", ()):
            return
    pytest.fail("frames name no row")


def give(sql: Any, name: str, permission: str) -> None:
    sql.execute(
        "INSERT INTO auth_user_user_permissions (user_id, permission_id) "
        "SELECT u.id, p.id FROM auth_user u, auth_permission p WHERE u.username = %s AND p.codename = %s",
        [name, permission],
    )


NASTY = """<img src=x onerror="window.owned=1"> '"&</script>{{ 7|add:7 }}"""


def test_a_key_that_is_anybodys_text_is_text(visit: Any, sql: Any) -> None:
    """In the list, in the form, in topics and in what is said."""
    visitor = visit()
    page = visitor.open("/admin/live/tag/")
    sql.execute("INSERT INTO live_tag (name) VALUES (%s)", [NASTY])
    expect(page.locator("#result_list tbody th")).to_have_text(NASTY)
    page.click("#result_list tbody th a")
    page.wait_for_selector(LIVE)
    assert {"type": "subscribed", "topics": [f"live.tag:{NASTY}"]}.items() <= visitor.frames[-1].items()
    sql.execute("DELETE FROM live_tag")
    expect(change(page)).to_contain_text("no longer there")
    assert page.evaluate("window.owned") is None


# Ordinary pages.


def test_a_fragment_is_fetched_anew_when_its_model_changes(visit: Any, sql: Any) -> None:
    """And the page around it stays; one request serves both fragments."""
    visitor = visit()
    page = visitor.open("/parcels/", ready="#all[data-pg-state=live]")
    page.fill("#remark", "")
    page.evaluate("document.activeElement.blur()")
    visitor.settle(page)
    sql.execute("UPDATE live_parcel SET status = 'gone', weight = 7 WHERE id = 1")
    expect(page.locator("#one")).to_have_text("parcel 001 weighs 7")
    expect(page.locator("#all li").first).to_have_text("parcel 001: gone")
    assert [url.removeprefix(visitor.place.address) for url in visitor.fetched] == ["/parcels/"]
    assert page.locator("[data-pg-gone]").count() == 0
    sql.execute("DELETE FROM live_parcel")
    expect(page.locator("#all li")).to_have_count(0)
    expect(page.locator("#one[data-pg-gone]")).to_have_text("parcel 001 weighs 7")
    assert page.evaluate("window.stillTheSame")


def test_elements_get_dom_events(visit: Any, sql: Any) -> None:
    """On the body, with what happened; and an element that is about one object only hears of that one."""
    page = visit().open("/parcels/", ready="#all[data-pg-state=live]")
    page.evaluate(
        """() => {
            window.mine = [];
            const one = document.getElementById("one");
            one.addEventListener("pg:live.parcel:1", (event) => window.mine.push(event.detail.events));
            one.addEventListener("pg:live.parcel", (event) => window.mine.push("not mine"));
        }"""
    )
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id = 2")
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id = 1")
    page.wait_for_function("() => window.mine.length")
    assert page.evaluate("window.mine") == [[["update", 1, ["status"]]]]
    names = [name for name, detail in page.evaluate("window.heard") if name == "pg:live.parcel"]
    assert names


def test_a_fragment_in_which_somebody_types_waits(visit: Any, sql: Any) -> None:
    page = visit().open("/parcels/", ready="#all[data-pg-state=live]")
    page.fill("#remark", "half a sen")
    sql.execute("UPDATE live_parcel SET status = 'gone', weight = 7 WHERE id = 1")
    expect(page.locator("#one")).to_have_text("parcel 001 weighs 7")
    page.wait_for_selector("#all[data-pg-waits]")
    assert page.input_value("#remark") == "half a sen"
    assert page.locator("#all li").first.inner_text() == "parcel 001: here"
    page.fill("#remark", "")
    page.evaluate("document.activeElement.blur()")
    expect(page.locator("#all li").first).to_have_text("parcel 001: gone")


def test_a_fragment_keeps_what_is_unfolded_and_the_focus(visit: Any, sql: Any) -> None:
    page = visit().open("/parcels/", ready="#kept[data-pg-state=live]")
    page.click("#kept summary")
    page.focus("#kept a")
    sql.execute("DELETE FROM live_parcel WHERE id = 60")
    expect(page.locator("#kept p")).to_have_text("59 parcels")
    expect(page.locator("#kept a")).to_be_focused()
    assert page.evaluate("document.querySelector('#kept details').open")


def test_a_token_that_is_another_each_time_is_no_change(visit: Any, sql: Any) -> None:
    """It is as good as the one before, and a form that is replaced for it takes the focus from somebody."""
    visitor = visit()
    page = visitor.open("/parcels/", ready="#kept[data-pg-state=live]")
    visitor.settle(page)
    page.evaluate("document.querySelector('#kept').addEventListener('pg:swap', () => { window.swapped = true; })")
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id = 1")
    expect(page.locator("#all li").first).to_have_text("parcel 001: gone")
    assert not page.evaluate("window.swapped")


def test_a_fragment_that_is_put_in_later_is_live_too(visit: Any, sql: Any) -> None:
    page = visit().open("/parcels/", ready="#all[data-pg-state=live]")
    page.evaluate(
        """() => {
            const later = document.createElement("p");
            later.id = "later";
            later.dataset.pgTopics = "live.letter";
            later.dataset.pgSocket = "/ws/pg/";
            later.addEventListener("pg:live.letter", (event) => { later.textContent = event.detail.events[0][0]; });
            document.body.append(later);
        }"""
    )
    page.wait_for_selector("#later[data-pg-state=live]", state="attached")
    sql.execute("DELETE FROM live_letter WHERE id = 1")
    expect(page.locator("#later")).to_have_text("delete")


def test_what_a_page_no_longer_has_is_no_longer_listened_to(visit: Any, sql: Any) -> None:
    """A page that is put together anew for hours would come to the number of topics that a client may have."""
    page = visit().open("/parcels/", ready="#all[data-pg-state=live]")
    page.evaluate(
        """() => {
            const send = WebSocket.prototype.send;
            window.sent = [];
            WebSocket.prototype.send = function (text) { window.sent.push(text); send.call(this, text); };
            const later = document.createElement("p");
            later.id = "later";
            later.dataset.pgTopics = "live.letter";
            later.dataset.pgSocket = "/ws/pg/";
            document.body.append(later);
        }"""
    )
    page.wait_for_selector("#later[data-pg-state=live]", state="attached")
    page.evaluate("document.querySelector('#later').remove()")
    page.wait_for_function("window.sent.includes(JSON.stringify({ unsubscribe: ['live.letter'] }))")
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id = 1")
    expect(page.locator("#all li").first).to_have_text("parcel 001: gone")


@pytest.mark.parametrize("version", [2, 4])
def test_htmx_is_triggered_by_what_happens(visit: Any, sql: Any, version: int) -> None:
    """hx-trigger="pg:live.parcel from:body", with the real htmx."""
    node_module(f"htmx{version}/dist/htmx.min.js")
    page = visit().open(f"/htmx/?version={version}", ready="body[data-pg-state=live]")
    assert page.inner_text("#count") == "0 gone"
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id < 4")
    expect(page.locator("#count")).to_have_text("3 gone")


def test_a_page_that_was_cut_off_gets_what_it_missed(visit: Any, sql: Any) -> None:
    """Durable events come without a gap: only what happened is fetched."""
    page = visit().open("/parcels/", ready="#all[data-pg-state=live]")
    page.evaluate(
        """() => {
            window.told = [];
            window.sockets = [];
            const Original = WebSocket;
            window.WebSocket = class extends Original { constructor(...all) { super(...all); sockets.push(this); } };
            window.live = pgsignals.connect("/ws/pg/", ["live.letter"], {
                onEvent: (message) => told.push(["event", message.events, message.resumed]),
                onGap: (message) => told.push(["gap", message.cause]),
                onTopic: () => told.push("subscribed"),
            });
        }"""
    )
    page.wait_for_function("() => told.length === 1")
    page.evaluate("sockets[0].close()")
    sql.execute("UPDATE live_letter SET text = 'missed' WHERE id = 2")
    page.wait_for_function("() => told.length === 3")
    assert page.evaluate("told") == ["subscribed", "subscribed", ["event", [["update", 2, ["text"]]], True]]


# For everybody.


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit: Any, sql: Any, scheme: str) -> None:
    """On the changelist as it is, waiting, and cut off; on a form with its warning; on an ordinary page."""
    axe = node_module("axe-core/axe.min.js").read_text()
    visitor = visit(color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    page = visitor.open(PARCELS)
    sql.execute("UPDATE live_parcel SET status = 'gone' WHERE id = 1")
    page.wait_for_selector(".pg-changed")
    assert faults(page, axe) == []
    page = visitor.open(LETTERS)
    page.fill("#id_form-0-text", "typing")
    sql.execute("UPDATE live_letter SET text = 'theirs' WHERE id = 2")
    page.wait_for_selector(".pg-stale")
    assert faults(page, axe) == []
    page = visitor.open(PARCELS + "1/change/")
    sql.execute("UPDATE live_parcel SET status = 'lost' WHERE id = 1")
    change(page).wait_for()
    assert faults(page, axe) == []
    page = visitor.open("/parcels/", ready="#all[data-pg-state=live]")
    assert faults(page, axe) == []


def faults(page: Page, axe: str) -> list[Any]:
    """What axe calls serious or critical."""
    # Not what is Django's own: the links of breadcrumbs, and fields in a list, which have no labels.
    page.evaluate(axe)
    not_ours = [".breadcrumbs", "#result_list td:not(.action-checkbox) input"]
    found = page.evaluate("exclude => axe.run({ exclude }, { resultTypes: ['violations'] })", not_ours)
    return [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
