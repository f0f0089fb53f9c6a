"""Event streams over plain HTTP, by a client that reads as curl does."""

from __future__ import annotations

import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from .live.site import Site
from .test_live_pages import PARCELS, WAIT, browser, people, place, sql, visit

__all__ = ["browser", "people", "place", "sql", "visit"]


class Curl:
    """`curl -N`, or nearly: prints what comes."""

    def __init__(self, place: Site, query: str, **headers: str) -> None:
        server = urlsplit(place.address)
        self._connection = HTTPConnection(server.hostname or "", server.port, timeout=WAIT / 1000)
        cookie = {"Cookie": f"sessionid={place.sessions['ada']}"}
        self._connection.request("GET", f"/events/?{query}", headers={**cookie, **headers})
        self.response = self._connection.getresponse()
        self.last = ""

    def until(self, text: str) -> str:
        """The first line that has this in it; the last id is noted on the way."""
        while text not in (line := self.response.readline().decode()):
            assert line, "the stream has ended"
            if line.startswith("id: "):
                self.last = line.removeprefix("id: ").strip()
        return line

    def close(self) -> None:
        self._connection.close()
        self.response.close()


def members(place: Site) -> str:
    with urlopen(f"{place.address}/members/") as answer:
        return str(answer.read().decode())


def wait_for_members(place: Site, wanted: str) -> None:
    """Pages of tests before may still be leaving."""
    deadline = time.monotonic() + WAIT / 1000
    while (found := members(place)) != wanted:
        assert time.monotonic() < deadline, found


def test_curl_shows_events_and_gets_what_it_missed(place: Site, sql: Any) -> None:
    curl = Curl(place, "topic=live.letter")
    curl.until('"type": "subscribed"')
    # What the test began with, all rows deleted and inserted, may still be told of, and an update together with it.
    event = ""
    while '["update", 3, ["text"]]' not in event:
        sql.execute("UPDATE live_letter SET text = text || '!' WHERE id = 3")
        event = curl.until('"type": "event"')
    sql.execute("UPDATE live_letter SET text = 'one' WHERE id = 1")
    curl.until('["update", 1, ["text"]]')
    curl.close()
    sql.execute("UPDATE live_letter SET text = 'two' WHERE id = 2")
    again = Curl(place, "topic=live.letter", **{"Last-Event-ID": curl.last})
    assert '"resumed": ["live.letter"]' in again.until('"type": "subscribed"')
    assert '[["update", 2, ["text"]]]' in again.until('"type": "event"')
    again.close()


def test_who_leaves_is_forgotten(place: Site, visit: Any) -> None:
    """Nothing is left of streams and pages that were closed."""
    curls = [Curl(place, "topic=live.letter&topic=live.parcel:1") for _ in range(10)]
    for curl in curls:
        curl.until('"type": "subscribed"')
    page = visit().open(PARCELS)
    wait_for_members(place, "21")
    for curl in curls:
        curl.close()
    page.close()
    wait_for_members(place, "0")
