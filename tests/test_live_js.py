"""The script in the page: what it tells the page, and when it comes back. A real Chromium, but the test's own clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

import pgsignals

from .browser import ARGUMENTS, chromium

SCRIPT = Path(pgsignals.__file__).parent / "static/pgsignals/live.js"

# In the place of the browser's own: the page keeps every socket, and the test speaks for the server.
FAKE = """() => {
    window.sockets = [];
    window.heard = [];
    Math.random = () => 0.5;
    window.WebSocket = class {
        closed = false;
        readyState = 0;
        constructor(url) { this.url = url; this.sent = []; sockets.push(this); }
        send(text) { this.sent.push(JSON.parse(text)); }
        close(code = 1006) { this.closed = true; if (this.onclose) { this.onclose({ code }); } }
        static OPEN = 1;
    };
}"""

CONNECT = """() => {
    window.live = pgsignals.connect("/ws/pg/", ["a.b", "a.c"], {
        onEvent: (message) => heard.push(["event", message.topic]),
        onGap: (message) => heard.push(["gap", message.topic, message.cause]),
        onTopic: (message) => message.granted || heard.push(["denied", message.topic]),
        onState: (state) => heard.push(["state", state]),
    });
}"""


ONLINE = "window.dispatchEvent(new Event('online'))"
SEEN = "document.dispatchEvent(new Event('visibilitychange'))"


class Script:
    """A page that is connected, and the server's part in the test's hand."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def heard(self) -> list[Any]:
        """What the page was told since the last time."""
        return list(self.page.evaluate("heard.splice(0)"))

    def sockets(self) -> int:
        return int(self.page.evaluate("sockets.length"))

    def sent(self) -> list[Any]:
        return list(self.page.evaluate("sockets.at(-1).sent.splice(0)"))

    def opens(self) -> None:
        self.page.evaluate("sockets.at(-1).readyState = 1; sockets.at(-1).onopen()")

    def says(self, **message: Any) -> None:
        self.page.evaluate("text => sockets.at(-1).onmessage({ data: text })", json.dumps(message))

    def subscribed(self, *refused: str) -> None:
        granted = [topic for topic in ("a.b", "a.c") if topic not in refused]
        self.opens()
        self.says(type="subscribed", topics=granted, refused=refused)

    def closes(self, code: int = 1006) -> None:
        self.page.evaluate("code => sockets.at(-1).close(code)", code)

    def wait(self, milliseconds: int) -> None:
        self.page.clock.run_for(milliseconds)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_page()
        page.route("**/*", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
        page.clock.install(time=0)
        page.clock.pause_at(1)
        yield page
        browser.close()


@pytest.fixture
def script(page: Page) -> Script:
    page.goto("https://example.test/page")
    page.evaluate(FAKE)
    page.add_script_tag(path=SCRIPT)
    page.evaluate(CONNECT)
    return Script(page)


def test_it_connects_subscribes_and_passes_events_on(script: Script) -> None:
    assert script.page.evaluate("sockets[0].url") == "wss://example.test/ws/pg/"
    script.opens()
    assert script.sent() == [{"subscribe": ["a.b", "a.c"]}]
    script.says(type="subscribed", topics=["a.b", "a.c"], refused=[])
    script.says(type="event", topic="a.b", number=1, refetch=False, events=[])
    assert script.heard() == [["state", "connecting"], ["state", "live"], ["event", "a.b"]]


def test_after_a_reconnect_every_topic_has_a_gap(script: Script) -> None:
    """Each once, and a little later, so that all browsers do not fetch in the same moment."""
    script.subscribed()
    script.heard()
    script.closes()
    assert script.heard() == [["state", "lost"]]
    script.wait(1000)
    assert script.sockets() == 2
    script.subscribed()
    script.says(type="gap", topic="a.b", cause="missed")
    assert script.heard() == [["state", "live"]]
    script.wait(400)
    assert script.heard() == [["gap", "a.b", "reconnected"], ["gap", "a.c", "reconnected"]]


def test_the_waits_grow_and_start_small_again_after_a_success(script: Script) -> None:
    waits = [750, 1500, 3000, 6000, 11250, 11250]
    for number, milliseconds in enumerate(waits, 1):
        script.closes()
        script.wait(milliseconds - 1)
        assert script.sockets() == number
        script.wait(1)
        assert script.sockets() == number + 1
    script.subscribed()
    script.closes()
    script.wait(750)
    assert script.sockets() == len(waits) + 2


def test_a_network_that_returns_is_used_at_once(script: Script) -> None:
    script.closes()
    script.page.evaluate(ONLINE)
    assert script.sockets() == 2
    script.subscribed()
    script.wait(30_000)
    assert script.sockets() == 2


def test_what_was_begun_over_a_network_that_is_gone_is_begun_again(script: Script) -> None:
    script.page.evaluate(ONLINE)
    assert (script.sockets(), script.page.evaluate("sockets[0].closed")) == (2, True)
    assert script.heard() == [["state", "connecting"]]


def test_a_network_that_returns_puts_an_open_connection_to_the_test(script: Script) -> None:
    """It may be dead, and would otherwise be called live for half a minute."""
    script.subscribed()
    script.sent()
    script.page.evaluate(ONLINE)
    assert script.sent() == [{"ping": 1}]
    script.says(type="pong")
    script.wait(20_000)
    assert script.sockets() == 1
    script.heard()
    script.page.evaluate(ONLINE)
    script.wait(3000)
    assert script.heard() == [["state", "lost"]]


def test_a_laptop_that_wakes_asks_at_once_whether_its_connection_lives(script: Script) -> None:
    """While it slept no timer ran."""
    script.subscribed()
    script.sent()
    script.page.evaluate(SEEN)
    assert script.sent() == []
    script.page.clock.set_system_time(script.page.evaluate("Date.now()") / 1000 + 3600)
    script.page.evaluate(SEEN)
    assert script.sent() == [{"ping": 1}]
    script.heard()
    script.wait(3000)
    assert script.heard() == [["state", "lost"]]


def test_a_connection_that_does_not_come_about_is_given_up(script: Script) -> None:
    script.heard()
    script.wait(10_000)
    assert script.heard() == [["state", "lost"]]
    assert script.page.evaluate("sockets[0].closed")
    script.wait(750)
    assert script.sockets() == 2


def test_a_connection_that_has_gone_silent_is_given_up(script: Script) -> None:
    """Its other end vanished without a word; only a question that stays unanswered shows that."""
    script.subscribed()
    script.sent()
    script.wait(25_000)
    assert script.sent() == [{"ping": 1}]
    script.says(type="pong")
    script.wait(24_000)
    assert script.sent() == []
    script.wait(1000)
    assert script.sent() == [{"ping": 1}]
    script.heard()
    script.wait(10_000)
    assert script.heard() == [["state", "lost"]]
    assert script.page.evaluate("sockets[0].closed")
    script.wait(750)
    assert script.sockets() == 2


def test_a_relay_without_its_database_shows_until_it_is_back(script: Script) -> None:
    script.subscribed()
    script.heard()
    script.says(type="lost", topic="a.b", cause="c")
    assert script.heard() == [["state", "lost"]]
    script.says(type="gap", topic="a.b", cause="c")
    script.wait(400)
    assert script.heard() == [["state", "live"], ["gap", "a.b", "c"]]
    assert script.sockets() == 1


def test_how_far_it_was_is_said_after_a_reconnect_and_what_was_resumed_is_no_gap(script: Script) -> None:
    """The server knows of durable events what was missed, and sends it."""
    script.opens()
    script.sent()
    script.says(type="subscribed", topics=["a.b", "a.c"], refused=[], resumed=[], ids={"a.b": "one", "a.c": "two"})
    script.says(type="event", topic="a.b", refetch=False, events=[], id="three")
    script.heard()
    script.closes()
    script.wait(1000)
    script.opens()
    assert script.sent() == [{"subscribe": ["a.b", "a.c"], "since": {"a.b": "three", "a.c": "two"}}]
    script.says(type="subscribed", topics=["a.b", "a.c"], refused=[], resumed=["a.b"], ids={})
    script.wait(400)
    assert script.heard() == [["state", "lost"], ["state", "live"], ["gap", "a.c", "reconnected"]]


def test_it_says_that_it_reads_when_it_is_asked(script: Script) -> None:
    """A server that hears nothing of it sends no more."""
    script.subscribed()
    script.sent()
    script.says(type="ack", number=32)
    assert script.sent() == [{"ack": 32}]


def test_topics_may_be_added(script: Script) -> None:
    script.subscribed()
    script.sent()
    script.page.evaluate("live.subscribe(['a.b', 'a.d'])")
    assert script.sent() == [{"subscribe": ["a.d"]}]
    script.says(type="subscribed", topics=["a.d"], refused=[], resumed=[], ids={})
    script.closes()
    script.wait(1000)
    script.opens()
    assert script.sent() == [{"subscribe": ["a.b", "a.c", "a.d"]}]


def test_topics_added_before_the_connection_is_open_are_asked_for_with_the_others(script: Script) -> None:
    script.page.evaluate("live.subscribe(['a.d'])")
    script.opens()
    assert script.sent() == [{"subscribe": ["a.b", "a.c", "a.d"]}]


def test_refused_is_shown_only_when_no_topic_is_left(script: Script) -> None:
    script.subscribed()
    script.heard()
    script.says(type="refused", topic="a.b")
    assert script.heard() == [["denied", "a.b"]]
    script.says(type="refused", topic="a.c")
    assert script.heard() == [["denied", "a.c"], ["state", "refused"]]


def test_a_topic_that_is_refused_at_first_leaves_the_other_live(script: Script) -> None:
    script.subscribed("a.b")
    assert script.heard() == [["state", "connecting"], ["state", "live"], ["denied", "a.b"]]


def test_refused_from_the_start(script: Script) -> None:
    script.subscribed("a.b", "a.c")
    assert script.heard() == [["state", "connecting"], ["state", "refused"], ["denied", "a.b"], ["denied", "a.c"]]


def test_who_may_not_listen_at_all_is_told_once_and_tries_no_more(script: Script) -> None:
    """Of topics that are added later too; and a network that returns changes nothing."""
    script.opens()
    script.heard()
    script.closes(4403)
    assert script.heard() == [["denied", "a.b"], ["denied", "a.c"], ["state", "refused"]]
    script.page.evaluate("live.subscribe(['a.d'])")
    assert script.heard() == [["denied", "a.d"]]
    script.page.evaluate("window.dispatchEvent(new Event('online'))")
    script.wait(120_000)
    assert (script.heard(), script.sockets()) == ([], 1)


def test_who_was_logged_out_meanwhile_is_told_after_the_reconnect(script: Script) -> None:
    script.subscribed()
    script.closes()
    script.wait(1000)
    script.heard()
    script.opens()
    script.closes(4403)
    script.wait(120_000)
    assert script.heard() == [["denied", "a.b"], ["denied", "a.c"], ["state", "refused"]]
    assert script.sockets() == 2


def test_after_close_nothing_more_is_told_or_tried(script: Script) -> None:
    script.subscribed()
    script.says(type="gap", topic="a.b", cause="c")
    script.heard()
    script.page.evaluate("live.close()")
    script.page.evaluate(ONLINE)
    script.wait(120_000)
    assert script.heard() == []
    assert (script.sockets(), script.page.evaluate("sockets[0].closed")) == (1, True)


@pytest.mark.parametrize("kind", ["pong", "something new", "toString", "__proto__"])
def test_messages_of_a_kind_that_it_does_not_know_are_passed_over(script: Script, kind: str) -> None:
    script.subscribed()
    script.heard()
    script.says(type=kind)
    assert script.heard() == []


# When to fetch: refresh.js.

REFRESH = SCRIPT.with_name("refresh.js")

REFRESHER = """() => {
    window.calls = [];
    window.outcome = () => Promise.resolve();
    window.news = pgsignals.refresher((told) => {
        calls.push([Array.from(told.keys), told.everything]);
        return outcome();
    });
}"""


@pytest.fixture
def refresher(page: Page) -> Page:
    page.goto("https://example.test/page")
    page.add_script_tag(path=SCRIPT)
    page.add_script_tag(path=REFRESH)
    page.evaluate(REFRESHER)
    return page


def calls(page: Page) -> Any:
    return page.evaluate("calls.splice(0)")


def tell(page: Page, *keys: Any, refetch: bool = False) -> None:
    message = {"events": [["update", key, []] for key in keys], "refetch": refetch}
    page.evaluate("message => news.tell(message)", message)


def test_a_few_rows_are_fetched_for_soon_and_together(refresher: Page) -> None:
    tell(refresher, 1)
    refresher.clock.run_for(50)
    tell(refresher, 2, "x")
    assert calls(refresher) == []
    refresher.clock.run_for(60)
    assert calls(refresher) == [[[["1", "update"], ["2", "update"], ["x", "update"]], False]]
    refresher.clock.run_for(5000)
    assert calls(refresher) == []


def test_a_burst_is_one_fetch_and_one_that_does_not_end_is_one_now_and_then(refresher: Page) -> None:
    for _ in range(10):
        tell(refresher, refetch=True)
        refresher.clock.run_for(100)
    assert calls(refresher) == []
    refresher.clock.run_for(350)
    assert calls(refresher) == [[[], True]]
    for _ in range(50):
        tell(refresher, refetch=True)
        refresher.clock.run_for(100)
    assert 3 <= len(calls(refresher)) <= 4


def test_what_comes_while_it_fetches_is_fetched_afterwards(refresher: Page) -> None:
    refresher.evaluate("() => { window.outcome = () => new Promise((resolve) => { window.done = resolve; }); }")
    tell(refresher, 1)
    refresher.clock.run_for(60)
    tell(refresher, 2)
    refresher.clock.run_for(5000)
    assert calls(refresher) == [[[["1", "update"]], False]]
    refresher.evaluate("done()")
    refresher.clock.run_for(300)
    assert calls(refresher) == [[[["2", "update"]], False]]


def test_a_fetch_that_failed_is_tried_later_and_later_and_for_everything(refresher: Page) -> None:
    refresher.evaluate("() => { window.outcome = () => Promise.reject(new Error('away')); }")
    tell(refresher, 1)
    refresher.clock.run_for(60)
    assert len(calls(refresher)) == 1
    for seconds in (2, 4, 8):
        refresher.clock.run_for(seconds * 1000 - 200)
        assert calls(refresher) == []
        refresher.clock.run_for(200)
        assert calls(refresher) == [[[], True]]


def test_a_failure_for_good_is_the_last_fetch_until_all_may_be_otherwise(refresher: Page) -> None:
    """Somebody has logged in again, say; then the connection is live again."""
    refresher.evaluate(
        "() => { window.outcome = () => Promise.reject(Object.assign(new Error('no'), { final: true })); }"
    )
    tell(refresher, 1)
    refresher.clock.run_for(60)
    assert len(calls(refresher)) == 1
    tell(refresher, 2)
    refresher.clock.run_for(200_000)
    assert calls(refresher) == []
    refresher.evaluate("news.all()")
    refresher.clock.run_for(60)
    assert calls(refresher) == [[[], True]]


def test_a_hidden_page_keeps_no_endless_list(refresher: Page) -> None:
    """After a thousand keys it is everything."""
    refresher.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.isHidden })")
    refresher.evaluate("window.isHidden = true")
    tell(refresher, *range(1002))
    tell(refresher, 5)
    refresher.clock.run_for(10_000)
    assert calls(refresher) == []
    refresher.evaluate("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    refresher.clock.run_for(60)
    ((keys, everything),) = calls(refresher)
    assert (len(keys) <= 1, everything) == (True, True)


@pytest.mark.parametrize(
    ("html", "edit", "edited"),
    [
        ("<input value=a>", "field.value = 'b'", True),
        ("<input value=a>", "field.value = 'a'", False),
        ("<input type=hidden value=a>", "field.value = 'b'", False),
        ("<input type=checkbox checked>", "field.checked = false", True),
        ("<input type=radio>", "", False),
        ("<textarea>a</textarea>", "field.value = 'b'", True),
        ("<select><option>a<option>b</select>", "", False),
        ("<select><option>a<option>b</select>", "field.selectedIndex = 1", True),
        ("<select><option>a<option selected>b</select>", "", False),
        ("<select><option>a<option selected>b</select>", "field.selectedIndex = 0", True),
        ("<select multiple><option>a<option>b</select>", "", False),
        ("<select multiple><option>a<option selected>b</select>", "field.options[0].selected = true", True),
        ("<select></select>", "", False),
    ],
)
def test_whether_a_field_was_edited(refresher: Page, html: str, edit: str, edited: bool) -> None:
    refresher.evaluate("html => { document.body.innerHTML = html; }", html)
    field = refresher.locator("body > *").element_handle()
    refresher.evaluate(f"field => {{ {edit}; }}", field)
    assert refresher.evaluate("field => pgsignals.isEdited(field)", field) is edited
