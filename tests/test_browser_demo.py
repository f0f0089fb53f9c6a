"""What a visitor can do to the demo, in a real browser: deeds, the clock, one event followed, groups that fail."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from playwright.sync_api import APIResponse, Browser, BrowserContext, Page, Route

from .browser import (
    PAGE_WAIT,
    Demo,
    browser,
    connect,
    context,
    database,
    demo,
    environment,
    node_module,
    own_database,
    sql,
    url_of,
)
from .servers import free_port

LIVE = '#live[data-state="live"]'
__all__ = ["browser", "context", "database", "demo", "sql"]

PAGES = ("", "journey/", "durable/")


def enter(context: BrowserContext, demo: Demo, path: str = "") -> Page:
    """A page that listens, through the front door, which lets the visitor in."""
    page = context.new_page()
    page.goto(demo.address)
    if path:
        page.goto(demo.address + path)
    page.wait_for_selector(LIVE)
    page.evaluate("window.stillTheSame = true")
    return page


def count(sql: psycopg.Connection[Any], status: str) -> int:
    found = sql.execute("SELECT count(*) FROM flights_flight WHERE status = %s", [status]).fetchone()
    assert found
    return int(found[0])


def shows(page: Page, tile: str, value: object) -> None:
    page.wait_for_function(
        "([tile, value]) => document.querySelector(`[data-tile=${tile}] .value`).textContent === value",
        arg=[tile, str(value)],
    )


def latency(page: Page, said: str) -> float:
    """What the page has measured of a deed, in milliseconds."""
    page.wait_for_selector(f'.latency .said:text("{said}")')
    page.wait_for_selector(".latency .figure")
    return float(page.get_attribute("#do", "data-latency") or 0)


# "Do something".


def test_a_visitor_delays_a_flight_and_sees_how_long_it_took_to_the_screen(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """From the commit to the paint; the write is real, and so is the time."""
    page = enter(context, demo)
    page.click("#do button.deed")
    assert 0 < latency(page, "leaves 45 minutes later") < PAGE_WAIT
    shows(page, "delayed", 1)
    assert count(sql, "delayed") == 1
    assert "1 row" in page.inner_text(".latency")
    assert page.evaluate("window.stillTheSame")


def test_a_visitor_cancels_a_carriers_morning_with_one_statement(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """And nothing of another carrier, and nothing of the afternoon."""
    page = enter(context, demo)
    page.select_option("#do-airline", "UA")
    page.click("#do [data-deed=cancel] button")
    assert latency(page, "United Air Lines") > 0
    cancelled = sql.execute(
        "SELECT count(*), min(airline_id), max(airline_id), "
        "max(scheduled_departure) < '2013-07-10 12:00 America/New_York' "
        "FROM flights_flight WHERE status = 'cancelled'"
    ).fetchone()
    assert cancelled
    assert cancelled[0] > 30
    assert cancelled[1:] == ("UA", "UA", True)
    shows(page, "cancelled", cancelled[0])
    xids = sql.execute("SELECT count(DISTINCT xmin::text) FROM flights_flight WHERE status = 'cancelled'").fetchone()
    assert xids == (1,)


def test_a_visitor_runs_sql_from_the_list_and_what_is_rolled_back_is_never_heard_of(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """The statement is shown word for word before it is run."""
    page = enter(context, demo)
    page.click("#do button.deed")
    assert latency(page, "later")
    page.select_option("#do-statement", label="Add 15 minutes to every delay")
    assert "departure_delay + 15" in page.inner_text("#do-sql")
    page.click("#do [data-deed=run] button")
    assert latency(page, "Add 15 minutes")
    assert sql.execute("SELECT departure_delay FROM flights_flight WHERE status = 'delayed'").fetchall() == [(60,)]

    heard = page.evaluate(
        "() => { window.heard = 0; document.body.addEventListener('pg:flights.flight', () => window.heard++); }"
    )
    assert heard is None
    page.select_option("#do-statement", label="Cancel everything, and roll back")
    page.click("#do [data-deed=run] button")
    page.wait_for_selector('.latency .quiet:text("nothing is announced")')
    assert count(sql, "cancelled") == 0
    # What is written after it arrives, and nothing before.
    sql.execute("UPDATE flights_flight SET status = 'diverted' WHERE airline_id = 'HA'")
    shows(page, "diverted", 1)
    assert page.evaluate("window.heard") == 1


# The clock.


def test_the_clock_is_turned_by_keyboard_and_all_pages_follow(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """Jump, speed, run, pause: native controls; another page shows the same."""
    page, other = enter(context, demo), enter(context, demo, "journey/")
    page.focus("#controls input[name=part]")
    page.keyboard.press("End")
    shows(page, "arrived", 846)
    shows(page, "cancelled", 121)
    other.wait_for_function("() => document.querySelector('#controls input[name=part]').value === '1000'")
    page.keyboard.press("Home")
    shows(page, "scheduled", 1004)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "speed"
    page.keyboard.press("End")
    other.wait_for_function("() => document.querySelector('#controls select').value === '3600'")
    page.focus("#controls .play")
    page.keyboard.press("Enter")
    page.wait_for_function("() => Number(document.querySelector('[data-tile=departed] .value').textContent) > 0")
    other.wait_for_selector('.play[aria-pressed="true"]')
    page.keyboard.press("Enter")
    other.wait_for_selector('.play[aria-pressed="false"]')
    page.focus("#controls input[name=part]")
    page.keyboard.press("Home")
    shows(page, "scheduled", 1004)


def test_the_map_shows_each_flight_that_is_in_the_air(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """One that lands is gone from it."""
    page = enter(context, demo)
    sql.execute(
        "UPDATE flights_flight SET status = 'departed', departure = scheduled_departure, departure_delay = 50 "
        "WHERE airline_id = 'HA'"
    )
    page.wait_for_selector("#map .plane.very", state="attached")
    assert page.locator("#map .plane").count() == page.locator("#map .way").count() == 1
    sql.execute("UPDATE flights_flight SET status = 'arrived' WHERE airline_id = 'HA'")
    page.wait_for_selector("#map .plane", state="detached")


def put(sql: psycopg.Connection[Any], number: int, origin: str, destination: str, leaves: str) -> int:
    """A flight that no day of the demo had, as somebody at psql puts it in. Its key."""
    (pk,) = sql.execute(
        """INSERT INTO flights_flight (airline_id, number, tail_number, distance, origin_id, destination_id,
            scheduled_departure, scheduled_arrival, departure, status, departure_delay)
        VALUES ('UA', %(number)s, '', 300, %(origin)s, %(destination)s,
            %(leaves)s, %(leaves)s::timestamptz + interval '5 hours', %(leaves)s, 'departed', 50) RETURNING id""",
        {"number": number, "origin": origin, "destination": destination, "leaves": leaves},
    ).fetchone() or (0,)
    return int(pk)


def test_a_flight_that_the_day_did_not_have_is_shown_as_well(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """Between airports that no other flight joins, at an hour in which no other leaves, to where no map goes."""
    page = enter(context, demo)
    hours = "Array.from(document.querySelectorAll('#wall .hour'), (one) => one.dataset.hour)"
    assert "3" not in page.evaluate(hours)
    sql.execute("INSERT INTO flights_airport (code, name, time_zone) VALUES ('ZZZ', 'Nowhere', 'UTC')")
    known = [
        put(sql, 9001, "LAX", "SFO", "2013-07-11 03:30 America/New_York"),
        put(sql, 9002, "HNL", "SJU", "2013-07-10 12:30 America/New_York"),
    ]
    unknown = put(sql, 9003, "JFK", "ZZZ", "2013-07-10 12:30 America/New_York")
    try:
        shows(page, "departed", 3)
        planes = "Array.from(document.querySelectorAll('.plane'), (one) => Number(one.dataset.pk))"
        assert set(page.evaluate(planes)) == set(known)
        assert page.evaluate(hours)[-1] == "3"
        assert page.locator(f'[data-hour="3"] i[data-pk="{known[0]}"].departed').count() == 1
        page.locator(f'.plane[data-pk="{known[0]}"]').dispatch_event("click", {"bubbles": True})
        page.wait_for_url(f"**/flights/flight/{known[0]}/change/")
    finally:
        sql.execute("DELETE FROM flights_flight WHERE id = ANY(%s)", [[*known, unknown]])
        sql.execute("DELETE FROM flights_airport WHERE code = 'ZZZ'")


def test_an_answer_that_is_overtaken_does_not_set_the_clock_going_again(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    page = enter(context, demo)
    page.focus("#controls .play")
    page.keyboard.press("Enter")
    page.wait_for_selector('.play[aria-pressed="true"]')
    held: list[tuple[Route, APIResponse]] = []

    def hold(route: Route) -> None:
        answer = route.fetch()
        if answer.json()["counts"]["diverted"]:
            held.append((route, answer))
        else:
            route.fulfill(response=answer)

    page.route("**/numbers/**", hold)
    sql.execute("UPDATE flights_flight SET status = 'diverted' WHERE airline_id = 'HA'")
    while not held:
        page.wait_for_timeout(10)
    page.keyboard.press("Enter")
    page.wait_for_selector('.play[aria-pressed="false"]')
    route, answer = held[0]
    assert answer.json()["clock"]["paused"] is False
    route.fulfill(response=answer)
    shows(page, "diverted", answer.json()["counts"]["diverted"])
    assert page.get_attribute(".play", "aria-pressed") == "false"
    page.unroute("**/numbers/**")
    page.focus("#controls input[name=part]")
    page.keyboard.press("Home")


# One event.


def test_one_event_is_followed_from_the_write_to_the_paint(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """Each station shows what it saw, and their times are in the order of the way."""
    page = enter(context, demo, "journey/")
    page.click("#journey button")
    page.wait_for_selector('#journey[data-done="true"]')
    times = page.evaluate(
        """() => Object.fromEntries(Array.from(document.querySelectorAll(".station.passed"), (one) => [
            one.dataset.station,
            Number(one.querySelector(".when b").textContent.replace("\\u2212", "-").replace(" ms", ""))]))"""
    )
    assert set(times) == {"write", "trigger", "relay", "receiver", "browser", "paint"}
    assert times["write"] < 0 < min(times["trigger"], times["relay"], times["receiver"])
    assert times["browser"] < times["paint"]
    (pk,) = sql.execute("SELECT id FROM flights_flight WHERE status = 'delayed'").fetchone() or (None,)
    assert f'[[{pk}, ["scheduled", null], ["delayed", 45]]]' in page.inner_text("[data-station=trigger] pre")
    assert 'new: {"status": "delayed", "departure_delay": 45}' in page.inner_text("[data-station=relay] pre")
    assert f'["update", {pk},' in page.inner_text("[data-station=browser] pre")


# Durable events.


def figure(page: Page, group: str, name: str, value: str) -> None:
    page.wait_for_function(
        "([group, name, value]) => document.querySelector(`[data-group=${group}] [data-figure=${name}]`)"
        "?.textContent === value",
        arg=[group, name, value],
    )


def test_an_event_that_fails_is_retried_dies_and_is_handled_when_a_visitor_says_so(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """The hotel refuses everybody; four attempts, a dead letter, a click, and the rooms are booked."""
    page = enter(context, demo, "durable/")
    page.wait_for_selector("[data-group=hotels] .badge.good")
    (before,) = sql.execute("SELECT count(*) FROM flights_booking").fetchone() or (0,)
    page.click("#act-hotel")
    page.wait_for_selector("#act-hotel:not(.quiet-button)")
    page.click("#act-cancel")
    page.wait_for_selector('[data-list=parked] .why:text("HotelFull")')
    figure(page, "hotels", "dead", "5")
    assert page.locator('[data-list=dead] .why:text("HotelFull")').count() == 5
    page.click("#act-hotel")
    page.wait_for_selector("#act-hotel.quiet-button")
    page.click("#act-requeue")
    figure(page, "hotels", "effect", f"{before + 5:,}")
    figure(page, "hotels", "dead", "0")
    assert page.evaluate("window.stillTheSame")


def test_a_worker_that_is_killed_loses_nothing(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """What happens meanwhile waits in the log; the next worker counts each landing once."""
    page = enter(context, demo, "durable/")
    page.wait_for_selector("[data-group=ledger] .badge.good")
    (before,) = sql.execute("SELECT coalesce(sum(landings), 0) FROM flights_landingfee").fetchone() or (0,)
    page.click("#act-worker")
    page.wait_for_selector("#act-worker:not(.quiet-button)")
    landed = sql.execute("UPDATE flights_flight SET status = 'arrived' WHERE airline_id = 'DL'").rowcount
    figure(page, "ledger", "lag", str(landed))
    page.click("#act-worker")
    figure(page, "ledger", "lag", "0")
    figure(page, "ledger", "effect", f"{before + landed:,}")


@pytest.mark.parametrize("answer", [403, 500, "login", "nothing"])
def test_what_cannot_be_done_is_said_and_the_button_keeps_the_focus(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any], answer: Any
) -> None:
    """Also where the session is over, and the answer is another page."""
    page = enter(context, demo, "durable/")

    def refuse(route: Route) -> None:
        if answer == "nothing":
            route.abort()
        elif answer == "login":
            route.fulfill(status=302, headers={"Location": "/admin/login/"})
        else:
            route.fulfill(status=answer)

    path = page.get_attribute("#act-cancel", "formaction")
    page.route(f"**{path}", refuse)
    page.focus("#act-cancel")
    page.keyboard.press("Enter")
    page.wait_for_selector('#act-said:text("It was not done:")')
    said = {403: "answered 403", 500: "answered 500", "login": "another page", "nothing": "fetch"}
    assert said[answer] in page.inner_text("#act-said")
    page.unroute(f"**{path}")
    page.keyboard.press("Enter")
    page.wait_for_selector("#act-said:empty", state="attached")
    page.wait_for_selector("#act-cancel:not([aria-disabled])")
    assert page.evaluate("document.activeElement.id") == "act-cancel"


# How it looks and reads.


@pytest.mark.parametrize("width", [360, 1440, 1920])
def test_pages_stand_still_while_they_load_and_fit_their_screen(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any], width: int
) -> None:
    """Chromium's own measure of what has moved since the first paint; and nothing is wider than the screen."""
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(demo.address)
    page.add_init_script(
        """window.shift = 0;
        new PerformanceObserver((list) => list.getEntries().forEach((one) => {
            window.shift += one.hadRecentInput ? 0 : one.value;
        })).observe({ type: "layout-shift", buffered: true });"""
    )
    for path in PAGES:
        page.goto(demo.address + path)
        page.wait_for_selector(LIVE)
        page.wait_for_load_state("networkidle")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.evaluate("window.shift") < 0.02, path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Browser, demo: Demo, sql: psycopg.Connection[Any], scheme: str) -> None:
    """Board, followed event, groups and changelist, in both themes, with something on them."""
    axe = node_module("axe-core/axe.min.js").read_text()
    sql.execute("UPDATE flights_flight SET status = 'departed', departure = now(), news_at = now() WHERE id % 3 = 0")
    sql.execute("UPDATE flights_flight SET status = 'cancelled', news_at = now() WHERE id % 7 = 0")
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)  # type: ignore[arg-type]
    context.set_default_timeout(PAGE_WAIT)
    page = enter(context, demo)
    found = []
    for path in (*PAGES, "admin/flights/flight/"):
        page.goto(demo.address + path)
        page.wait_for_selector(f"{LIVE}, .pg-live[data-state=live]")
        page.evaluate(axe)
        faults = page.evaluate("async () => (await axe.run()).violations")
        found += [
            (path, fault["id"], [node["html"][:200] for node in fault["nodes"][:5]])
            for fault in faults
            if fault["impact"] in ("serious", "critical")
        ]
    context.close()
    assert found == []


def test_pages_are_right_again_after_the_server_was_restarted_beneath_them(browser: Browser) -> None:
    """Whatever happened meanwhile: the page says that it is cut off, and then shows what is."""
    port = str(free_port())
    with own_database() as name:
        env = environment(DATABASE_URL=url_of(name), DJANGO_SECRET_KEY="the same for both")
        first = Demo("--speed", "0", "--port", port, env=env)
        first.address = first.url()
        context = browser.new_context()
        context.set_default_timeout(60_000)
        try:
            pages = [enter(context, first), enter(context, first, "durable/")]
            pages.append(context.new_page())
            pages[2].goto(first.address + "admin/flights/flight/")
            pages[2].wait_for_selector(".pg-live[data-state=live]")
            assert first.interrupt() == 0, first.output
            for page, sign in zip(pages, ("#live", "#live", ".pg-live"), strict=True):
                page.wait_for_selector(f'{sign}[data-state="lost"]')
            with connect(name) as sql:
                sql.execute("UPDATE flights_flight SET status = 'diverted' WHERE id <= 5")
            second = Demo("--speed", "0", "--port", port, env=env)
            try:
                second.url()
                shows(pages[0], "diverted", 5)
                for page, sign in zip(pages, ("#live", "#live", ".pg-live"), strict=True):
                    page.wait_for_selector(f'{sign}[data-state="live"]')
                pages[2].wait_for_selector("#result_list .state.diverted >> nth=4")
                with connect(name) as sql:
                    sql.execute("UPDATE flights_flight SET status = 'diverted' WHERE id <= 8")
                shows(pages[0], "diverted", 8)
            finally:
                assert second.interrupt() == 0, second.output
        finally:
            context.close()
            first.close()
