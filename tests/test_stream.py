"""Events for code of one's own, and over plain HTTP: the same answers as the WebSocket's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from channels.layers import get_channel_layer
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.test import AsyncClient, Client

from pgsignals.live import hub, resume, sse, stream
from pgsignals.live.access import Access

from .streaming import WITHIN, client, relay, write

pytestmark = pytest.mark.django_db(transaction=True)

ORDER = "shop.order"
ACCOUNT = "ledger.account"
INSERT = "INSERT INTO shop_order (id, state, total, note) VALUES (%s, 'new', 1, '')"


class Eager(Access):
    recheck_after = 0.0


@pytest.fixture(autouse=True)
def layer(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    settings.PGSIGNALS = {"LIVE_ACCESS": f"{__name__}.Eager"}


@pytest.fixture
def ada(transactional_db: None) -> User:
    person = User.objects.create_user("ada", password="a")
    person.user_permissions.set(Permission.objects.filter(codename__in=["view_order", "view_account"]))
    return person


# The iterator.


def test_an_iterator_gives_what_happens(ada: User) -> None:
    async def main() -> None:
        async with relay(), client(ada, "shop.Order", "shop.order:2") as one:
            assert (await one.next()).said["topics"] == [ORDER, "shop.order:2"]
            await write(INSERT, 1)
            frame = await one.event()
            assert (frame.topic, frame.said["events"]) == (ORDER, [["insert", 1, []]])
            await write(INSERT, 2)
            assert [(await one.event()).topic for _ in range(2)] == [ORDER, "shop.order:2"]

    asyncio.run(main())


@pytest.mark.parametrize("topics", [["shop.customer"], [ORDER, "shop.customer"], ["channel:news"]])
def test_an_iterator_that_would_be_deaf_to_something_is_refused(ada: User, topics: list[str]) -> None:
    async def main() -> None:
        with pytest.raises(PermissionDenied, match=f"ada may not listen to {topics[-1]}"):
            async with client(ada, *topics) as one:
                await one.next()

    asyncio.run(main())


def test_an_iterator_ends_with_the_permission(ada: User) -> None:
    async def main() -> None:
        async with relay(), client(ada, ORDER) as one:
            await one.next()
            await ada.user_permissions.aclear()
            await write(INSERT, 1)
            frame = await one.until(lambda frame: frame.type != "gap")
            assert (frame.type, frame.topic) == ("refused", ORDER)
            with pytest.raises(StopAsyncIteration):
                await one.next()

    asyncio.run(main())


def test_in_silence_the_permission_is_looked_up_too(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT", 0.01)

    async def main() -> None:
        async with client(ada, ORDER) as one:
            await one.next()
            await User.objects.aupdate(is_active=False)
            assert (await one.next()).type == "refused"

    asyncio.run(main())


def test_whoever_leaves_is_in_no_group_any_more(ada: User) -> None:
    async def main() -> dict[str, Any]:
        async with client(ada, ORDER, "shop.order:5") as one:
            await one.next()
            assert set(get_channel_layer().groups) == {"pg.shop.order"}
        return dict(get_channel_layer().groups)

    assert asyncio.run(main()) == {}


def test_without_a_layer_an_iterator_says_so(ada: User, settings: Any) -> None:
    settings.CHANNEL_LAYERS = {}

    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match="no layer 'default'"):
            async with client(ada, ORDER) as one:
                await one.next()

    asyncio.run(main())


def test_a_layer_that_fails_is_said_and_tried_again(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left in silence, and nobody has to come back: who listens is told to fetch anew when it works."""
    monkeypatch.setattr(hub, "FIRST_WAIT", 0.01)

    async def main() -> None:
        layer = get_channel_layer()
        works, broken = layer.receive, asyncio.Event()

        async def receive(channel: str) -> Any:
            if not broken.is_set():
                broken.set()
                raise ConnectionError("the layer is away")
            return await works(channel)

        monkeypatch.setattr(layer, "receive", receive)
        async with relay(), client(ada, ORDER) as one:
            lost = await one.until(lambda frame: frame.type == "lost")
            assert (lost.topic, lost.said["cause"]) == (ORDER, "the channel layer is out of reach")
            assert (await one.until(lambda frame: frame.type == "gap")).topic == ORDER
            await write(INSERT, 1)
            assert (await one.event()).said["events"] == [["insert", 1, []]]

    asyncio.run(main())


def test_who_comes_while_the_relay_has_no_connection_is_told_so(ada: User) -> None:
    """As those were who were there when it was lost; and later not any more."""

    async def main() -> None:
        layer = get_channel_layer()
        said = {"type": "pg.lost", "topic": ORDER, "relay": "r", "number": 1, "cause": "the server is down"}
        async with client(ada, ORDER) as one:
            await one.next()
            await layer.group_send("pg.shop.order", said)
            assert (await one.next()).type == "lost"
            async with client(ada, ORDER, ACCOUNT) as another:
                assert (await another.next()).type == "subscribed"
                told = [await another.next() for _ in range(2)]
                assert [(frame.type, frame.topic) for frame in told] == [("lost", ORDER), ("lost", ACCOUNT)]
                assert told[0].said["cause"] == "the server is down"
            await layer.group_send("pg.shop.order", {**said, "type": "pg.gap", "number": 2, "cause": "it was"})
            assert (await one.next()).type == "gap"
            async with client(ada, ORDER) as later:
                assert (await later.next()).type == "subscribed"
                await layer.group_send("pg.shop.order", {**said, "type": "pg.gap", "number": 3, "cause": "again"})
                assert (await later.next()).said["cause"] == "again"

    asyncio.run(main())


def test_a_message_that_the_layer_delivers_twice_is_told_once(ada: User) -> None:
    async def main() -> None:
        layer = get_channel_layer()
        said = {"type": "pg.event", "topic": ORDER, "relay": "r", "refetch": False}
        async with client(ada, ORDER) as one:
            await one.next()
            for number in (1, 1, 2, 2):
                await layer.group_send("pg.shop.order", {**said, "number": number, "events": [["insert", number, []]]})
            frames = [await one.next() for _ in range(2)]
            assert [(frame.type, frame.said["events"]) for frame in frames] == [
                ("event", [["insert", 1, []]]),
                ("event", [["insert", 2, []]]),
            ]

    asyncio.run(main())


def test_clients_of_one_process_are_one_member_of_a_group(ada: User) -> None:
    """A layer hands out a message for each member; a thousand browsers must not cost it a thousand times."""

    async def main() -> None:
        groups = get_channel_layer().groups
        async with relay(), client(ada, ORDER) as one:
            await one.next()
            async with client(ada, ORDER) as other:
                await other.next()
                assert [len(members) for members in groups.values()] == [1]
                await write(INSERT, 1)
                assert [(await each.event()).said["events"] for each in (one, other)] == [[["insert", 1, []]]] * 2
            await write(INSERT, 2)
            assert (await one.event()).said["events"] == [["insert", 2, []]]

    asyncio.run(main())


# Over HTTP.


def logged_in(person: User) -> AsyncClient:
    """Made by the synchronous one, whose queries need no thread."""
    known = Client()
    known.force_login(person)
    visitor = AsyncClient()
    visitor.cookies = known.cookies
    return visitor


class Reader:
    """Reads Server-Sent Events one by one."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.last = ""

    async def next(self) -> dict[str, str]:
        text = (await asyncio.wait_for(anext(self._pieces), WITHIN)).decode()
        assert text.endswith("\n\n"), "one whole event at a time"
        assert text.count("\n\n") == 1, "no line of its own"
        fields = dict(line.split(": ", 1) for line in text.splitlines() if line)
        self.last = fields.get("id", self.last)
        return fields

    async def until(self, fits: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        while not fits(fields := await self.next()):
            pass
        return fields

    async def event(self) -> Any:
        """The data of the next event that has no name."""
        return json.loads((await self.until(lambda fields: "data" in fields and "event" not in fields))["data"])


@asynccontextmanager
async def reading(visitor: AsyncClient, query: str, **headers: str) -> AsyncIterator[Reader]:
    response = await visitor.get(f"/events/?{query}", headers=headers)
    assert response.status_code == 200, response.content
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "no-store" in response.headers["Cache-Control"]
    async with aclosing(response.streaming_content) as pieces:
        yield Reader(pieces)


def test_http_says_what_the_websocket_says(ada: User) -> None:
    visitor = logged_in(ada)

    async def main() -> None:
        async with relay(), reading(visitor, "topic=shop.Order&topic=no.such") as reader:
            assert (await reader.next()) == {"retry": "2000"}
            subscribed = await reader.next()
            assert subscribed["event"] == "subscribed"
            said = json.loads(subscribed["data"])
            assert (said["topics"], said["refused"]) == ([ORDER], ["no.such"])
            await write(INSERT, 1)
            got = await reader.event()
            assert (got["type"], got["topic"], got["events"]) == ("event", ORDER, [["insert", 1, []]])

    asyncio.run(main())


def test_silence_is_filled_with_comments(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT", 0.01)
    visitor = logged_in(ada)

    async def main() -> None:
        async with reading(visitor, "topic=shop.order") as reader:
            await reader.next()
            await reader.next()
            assert await reader.next() == {"": "still there"}

    asyncio.run(main())


def test_who_comes_back_by_http_gets_what_was_missed_and_a_gap_for_the_rest(ada: User) -> None:
    """With the one id that EventSource remembers, for all topics."""
    visitor = logged_in(ada)
    topics = "topic=ledger.account&topic=shop.order"

    async def main() -> None:
        async with reading(visitor, topics) as reader:
            await reader.next()
            await reader.next()
        await write("INSERT INTO ledger_account (id, owner, balance, note) VALUES (1, '', 0, '')")
        headers = {"Last-Event-ID": reader.last}
        async with reading(visitor, topics, **headers) as again:
            await again.next()
            subscribed = json.loads((await again.next())["data"])
            assert subscribed["resumed"] == [ACCOUNT]
            got = await again.event()
            assert (got["topic"], got["events"], got["resumed"]) == (ACCOUNT, [["insert", 1, []]], True)
            gap = json.loads((await again.next())["data"])
            assert (gap["type"], gap["topic"]) == ("gap", ORDER)
        async with reading(visitor, topics, **{"Last-Event-ID": again.last}) as third:
            await third.next()
            assert json.loads((await third.next())["data"])["resumed"] == [ACCOUNT]
            assert json.loads((await third.next())["data"])["topic"] == ORDER

    asyncio.run(main())


def test_an_id_that_nobody_gave_out_is_a_gap(ada: User) -> None:
    visitor = logged_in(ada)

    async def main() -> None:
        async with reading(visitor, "topic=ledger.account", **{"Last-Event-ID": "17"}) as reader:
            await reader.next()
            await reader.next()
            assert (await reader.next())["event"] == "gap"

    asyncio.run(main())


class Everything(Access):
    def can_subscribe(self, user: Any, topic: str) -> bool:
        return True


def test_as_many_topics_as_there_may_be_are_each_a_gap_for_who_comes_back(ada: User, settings: Any) -> None:
    settings.PGSIGNALS = {"LIVE_ACCESS": f"{__name__}.Everything"}
    visitor = logged_in(ada)
    topics = [f"a.b{number}" for number in range(100)]
    query = "&".join(f"topic={topic}" for topic in topics)

    async def main() -> None:
        async with reading(visitor, query, **{"Last-Event-ID": "17"}) as reader:
            await reader.next()
            assert json.loads((await reader.next())["data"])["topics"] == topics
            assert [json.loads((await reader.next())["data"])["topic"] for _ in topics] == topics

    asyncio.run(main())


def test_who_comes_back_where_ids_were_too_long_to_be_sent_together_is_told_to_fetch_anew(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EventSource says that it has been here only if it was given an id."""
    monkeypatch.setattr(resume, "MAX_TOKEN", 200)
    visitor = logged_in(ada)
    topics = [f"{ACCOUNT}:{digit * 180}" for digit in "12"]
    query = "&".join(f"topic={topic}" for topic in topics)

    async def main() -> None:
        async with reading(visitor, query) as reader:
            await reader.next()
            assert set(json.loads((await reader.next())["data"])["ids"]) == set(topics)
        assert reader.last
        async with reading(visitor, query, **{"Last-Event-ID": reader.last}) as again:
            await again.next()
            assert json.loads((await again.next())["data"])["resumed"] == []
            assert [json.loads((await again.next())["data"])["type"] for _ in topics] == ["gap", "gap"]

    asyncio.run(main())


@pytest.mark.parametrize("change", ["permission", "inactive", "deleted", "logout"])
def test_what_is_lost_ends_the_stream(ada: User, change: str) -> None:
    """What happened after it is not in the stream, and the client is told why it ends."""
    visitor = logged_in(ada)

    async def lose() -> None:
        if change == "permission":
            await ada.user_permissions.aclear()
        elif change == "inactive":
            await User.objects.aupdate(is_active=False)
        elif change == "deleted":
            await User.objects.all().adelete()
        else:
            await visitor.alogout()

    async def main() -> None:
        async with relay(), reading(visitor, "topic=shop.order") as reader:
            await reader.next()
            await reader.next()
            await lose()
            await write(INSERT, 1)
            last = await reader.until(lambda fields: fields.get("event") != "gap")
            assert last["event"] == "refused"
            with pytest.raises(StopAsyncIteration):
                await reader.next()

    asyncio.run(main())


def status(visitor: AsyncClient, query: str, **headers: str) -> int:
    async def main() -> int:
        response = await visitor.get(f"/events/?{query}", headers=headers)
        if response.streaming:
            await response.streaming_content.aclose()
        return int(response.status_code)

    return asyncio.run(main())


def test_who_may_hear_of_nothing_is_refused_without_a_word_of_it(ada: User) -> None:
    assert status(logged_in(ada), "topic=shop.customer") == 403
    assert status(logged_in(ada), "topic=no.such") == 403
    assert status(AsyncClient(), "topic=shop.order") == 403
    assert status(logged_in(ada), "topic=shop.order") == 200


@pytest.mark.parametrize(
    ("query", "code"),
    [("", 400), ("topic=" + "x" * 300, 400), ("&".join(f"topic=a.b{number}" for number in range(101)), 400)],
)
def test_what_is_no_list_of_topics_is_refused(ada: User, query: str, code: int) -> None:
    assert status(logged_in(ada), query) == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://testserver.elsewhere.example"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_another_site_cannot_listen_through_a_visitors_browser(ada: User, headers: dict[str, str], code: int) -> None:
    """Whatever the project allows to be read across sites otherwise."""
    assert status(logged_in(ada), "topic=shop.order", **headers) == code


def test_under_wsgi_it_says_that_it_cannot(ada: User, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Client()
    visitor.force_login(ada)
    with caplog.at_level(logging.ERROR, "pgsignals.live"):
        assert visitor.get("/events/?topic=shop.order").status_code == 501
    assert "need an ASGI server" in caplog.text


def test_only_get_is_answered(ada: User) -> None:
    visitor = logged_in(ada)

    async def main() -> int:
        return int((await visitor.post("/events/?topic=shop.order")).status_code)

    assert asyncio.run(main()) == 405


def test_a_stream_is_ended_before_a_server_has_to_keep_too_much_of_it(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client comes back by itself, and nothing of durable events is lost."""
    monkeypatch.setattr(sse, "MAX_SENT", 1000)
    visitor = logged_in(ada)

    async def main() -> None:
        async with relay(), reading(visitor, "topic=ledger.account") as reader:
            for _ in range(4):
                await reader.next()
                await write("INSERT INTO ledger_account (owner, balance, note) VALUES ('', 0, '')")
            with pytest.raises(StopAsyncIteration):
                await reader.until(lambda fields: False)

    asyncio.run(main())


def test_a_project_may_open_one_view_to_everybody(rf: Any) -> None:
    class Public(sse.PgEventStream):
        def admits(self, user: Any) -> bool:
            return True

        def can_subscribe(self, user: Any, topic: str) -> bool:
            return topic == ORDER

    view = Public()
    assert asyncio.run(view._may_enter(AnonymousUser(), [ORDER, "shop.customer"])) is True
    assert asyncio.run(view._may_enter(AnonymousUser(), ["shop.customer"])) is False
