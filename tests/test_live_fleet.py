"""Across machines: the relay in `listen`, channels_redis on a Redis server, browsers on two daphne processes."""

from __future__ import annotations

import sys

from playwright.sync_api import expect, sync_playwright

from .browser import ARGUMENTS, chromium
from .live.site import site
from .servers import redis_server, running

LIVE = ".pg-live[data-state=live]"


def test_one_relay_moves_the_pages_of_all_web_processes() -> None:
    """And when it is started anew they all catch up."""
    path = chromium()
    with redis_server() as url, site("application", "application", PGSIGNALS_TEST_REDIS=url) as place:
        listen = [sys.executable, "-m", "django", "listen"]
        with running(listen, place.environment) as relay, place.sql() as sql, sync_playwright() as playwright:
            relay.wait_for("Listening to")
            sql.execute("INSERT INTO live_parcel (name, status, weight, owner) VALUES ('one', 'here', 1, '')")
            browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
            rows = []
            for address in place.addresses:
                context = browser.new_context()
                context.add_cookies([{"name": "sessionid", "value": place.sessions["ada"], "url": address}])
                page = context.new_page()
                page.goto(f"{address}/admin/live/parcel/")
                page.wait_for_selector(LIVE)
                rows.append(page.locator("#result_list tbody tr").first)
            sql.execute("UPDATE live_parcel SET status = 'gone' WHERE name = 'one'")
            for row in rows:
                expect(row).to_contain_text("gone", timeout=15_000)
            assert relay.end() == 0
            sql.execute("UPDATE live_parcel SET status = 'lost' WHERE name = 'one'")
            with running(listen, place.environment) as again:
                again.wait_for("Listening to")
                for row in rows:
                    expect(row).to_contain_text("lost", timeout=15_000)
                assert again.end() == 0
            browser.close()
