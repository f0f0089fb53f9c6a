"""The demo's pages in a real browser: a write in PostgreSQL becomes a change on the screen, and nothing reloads."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from .browser import Demo, browser, connect, context, database, demo, manage, sql

LIVE = '#live[data-state="live"]'
__all__ = ["browser", "context", "database", "demo", "sql"]


@pytest.fixture
def page(context: BrowserContext, demo: Demo, sql: object) -> Page:
    """The dashboard, logged in by the front door, listening, and marked so that a reload would show."""
    opened = context.new_page()
    opened.goto(demo.address)
    opened.wait_for_selector(LIVE)
    shows(opened, "scheduled", 1004)
    opened.evaluate("window.stillTheSame = true")
    return opened


def shows(page: Page, tile: str, value: object) -> None:
    """Wait until a tile shows a value."""
    page.wait_for_function(
        "([tile, value]) => document.querySelector(`[data-tile=${tile}] .value`).textContent === value",
        arg=[tile, str(value)],
    )


def watch_states(page: Page) -> None:
    page.evaluate(
        """() => {
            const sign = document.getElementById("live");
            window.states = [];
            new MutationObserver(() => window.states.push(sign.dataset.state))
                .observe(sign, { attributeFilter: ["data-state"] });
        }"""
    )


def test_a_raw_sql_write_changes_the_number_without_a_reload(page: Page, sql: psycopg.Connection[Any]) -> None:
    """Write, trigger, NOTIFY, relay, Channels group, WebSocket, screen."""
    sql.execute(
        "UPDATE flights_flight SET status = 'cancelled' WHERE id IN (SELECT id FROM flights_flight ORDER BY id LIMIT 3)"
    )
    shows(page, "cancelled", 3)
    shows(page, "scheduled", 1001)
    assert page.locator("#wall i.cancelled").count() == 3
    page.wait_for_function("() => document.querySelectorAll('#feed .cancelled').length === 3")
    assert page.evaluate("window.stillTheSame")


def test_a_thousand_changes_in_one_statement_arrive_as_well(page: Page, sql: psycopg.Connection[Any]) -> None:
    """Beyond what the group's messages name one by one, the page fetches everything."""
    sql.execute("UPDATE flights_flight SET status = 'delayed', departure_delay = 20")
    shows(page, "delayed", 1004)
    assert page.locator("#wall i.delayed").count() == 1004


def test_a_flight_that_is_deleted_leaves_the_wall(page: Page, sql: psycopg.Connection[Any]) -> None:
    """And one that is added comes to it."""
    (number,) = sql.execute("SELECT max(number) FROM flights_flight").fetchone() or (0,)
    columns = "airline_id, tail_number, origin_id, destination_id, distance, scheduled_departure, scheduled_arrival"
    sql.execute(
        f"INSERT INTO flights_flight ({columns}, number, status) "
        f"SELECT {columns}, {number + 1}, 'diverted' FROM flights_flight LIMIT 1"
    )
    shows(page, "diverted", 1)
    assert page.locator("#wall i").count() == 1005
    sql.execute("DELETE FROM flights_flight WHERE number = %s", [number + 1])
    shows(page, "diverted", 0)
    assert page.locator("#wall i").count() == 1004


def test_a_lost_listener_is_shown_and_what_was_missed_is_caught_up(
    page: Page, sql: psycopg.Connection[Any], database: str
) -> None:
    """The listener's backend is killed, and kept out for as long as it takes to write behind its back."""
    watch_states(page)
    with connect() as server:
        server.execute(f"ALTER DATABASE {database} WITH ALLOW_CONNECTIONS false")
        try:
            killed = server.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = %s AND application_name LIKE 'pgsignals%%'",
                [database],
            ).fetchone()
            assert killed
            assert killed[0] >= 1  # with the worker's own
            page.wait_for_selector('#live[data-state="lost"]')
            assert "lost" in page.inner_text("#live").lower()
            sql.execute("UPDATE flights_flight SET status = 'diverted' WHERE airline_id = 'HA'")
        finally:
            server.execute(f"ALTER DATABASE {database} WITH ALLOW_CONNECTIONS true")
    page.wait_for_selector(LIVE)
    shows(page, "diverted", 1)
    assert page.evaluate("window.states") == ["lost", "live"]
    assert page.evaluate("window.stillTheSame")


def test_a_killed_listener_is_back_by_itself(page: Page, sql: psycopg.Connection[Any]) -> None:
    """With nothing in its way it reconnects at once, and events flow again."""
    watch_states(page)
    sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals%'")
    page.wait_for_function("() => window.states.at(-1) === 'live'")
    assert page.evaluate("window.states[0]") == "lost"
    sql.execute("UPDATE flights_flight SET status = 'arrived' WHERE airline_id = 'HA'")
    shows(page, "arrived", 1)


def test_the_changelist_refreshes_itself_and_keeps_what_one_was_doing(
    page: Page, sql: psycopg.Connection[Any], demo: Demo
) -> None:
    """A ticked box stays ticked, the focus stays where it is, and the page does not move."""
    page.goto(f"{demo.address}admin/flights/flight/?p=2")
    page.wait_for_selector('.pg-live[data-state="live"]')
    page.evaluate("window.stillTheSame = true")
    row = page.locator("#result_list tbody tr").nth(5)
    pk = row.locator("input.action-select").get_attribute("value")
    row.locator("input.action-select").check()
    row.locator("th a").focus()
    page.evaluate("window.scrollTo(0, 300)")
    sql.execute("UPDATE flights_flight SET status = 'cancelled', number = number + 9000 WHERE id = %s", [pk])
    try:
        page.wait_for_function("() => document.querySelectorAll('#result_list .state.cancelled').length === 1")
        assert row.locator("input.action-select").is_checked()
        assert page.evaluate("document.activeElement.closest('tr').querySelector('input').value") == pk
        assert page.evaluate("window.scrollY") == 300
        assert page.evaluate("window.stillTheSame")
        assert page.inner_text(".action-counter") == "1 of 50 selected"
    finally:
        sql.execute("UPDATE flights_flight SET number = number - 9000 WHERE id = %s", [pk])


def test_no_page_breaks_its_content_security_policy(
    context: BrowserContext, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """Nothing inline, nothing from elsewhere; and the console stays empty of errors."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    answer = page.goto(demo.address)
    assert answer
    assert answer.headers["content-security-policy"] == "default-src 'self'"
    page.wait_for_selector(LIVE)
    sql.execute("UPDATE flights_flight SET status = 'departed', departure = now() WHERE airline_id = 'VX'")
    shows(page, "departed", 16)
    for path in ("journey/", "durable/", "admin/flights/flight/", "admin/", "admin/flights/flight/add/"):
        page.goto(demo.address + path)
        page.wait_for_load_state("networkidle")
    assert complaints == []


def test_staff_who_may_not_view_flights_get_neither_page_nor_events(
    page: Page, browser: Browser, demo: Demo, sql: psycopg.Connection[Any]
) -> None:
    """The pages answer 403, and the WebSocket refuses the topic and stays silent."""
    made = manage(
        "shell",
        "-c",
        "from django.contrib.auth.models import User; "
        "User.objects.create_user('guest', password='open', is_staff=True)",
        env=demo.env,
    )
    assert made.returncode == 0, made.stderr
    other = browser.new_context()
    guest = other.new_page()
    guest.goto(f"{demo.address}admin/login/?next=/admin/")
    guest.fill("#id_username", "guest")
    guest.fill("#id_password", "open")
    guest.click("input[type=submit]")
    guest.wait_for_selector("#user-tools")
    for path in ("", "numbers/", "journey/", "durable/"):
        answer = other.request.get(demo.address + path)
        assert answer.status == 403
    guest.evaluate(
        """() => new Promise((resolve) => {
            window.heard = [];
            const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws/pg/");
            socket.onopen = () => socket.send(JSON.stringify({ subscribe: ["flights.flight"] }));
            socket.onmessage = (event) => { window.heard.push(JSON.parse(event.data)); resolve(); };
        })"""
    )
    sql.execute("UPDATE flights_flight SET status = 'cancelled' WHERE airline_id = 'AS'")
    shows(page, "cancelled", 2)
    (heard,) = guest.evaluate("window.heard")
    assert (heard["type"], heard["topics"], heard["refused"]) == ("subscribed", [], ["flights.flight"])
    other.close()


def test_another_site_cannot_listen_through_the_visitors_browser(page: Page, demo: Demo) -> None:
    """The handshake is refused where the page that asks came from elsewhere."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect as open_socket

    cookies = "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in page.context.cookies())
    socket = demo.address.replace("http", "ws") + "ws/pg/"
    with open_socket(socket, origin=demo.address.rstrip("/"), additional_headers={"Cookie": cookies}):
        pass
    with (
        pytest.raises(InvalidStatus),
        open_socket(socket, origin="http://elsewhere.example", additional_headers={"Cookie": cookies}),
    ):
        pass
