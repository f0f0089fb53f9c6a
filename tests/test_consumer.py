"""The WebSocket: closed by default, honest about what it missed, unmoved by what strangers send."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.contrib.sessions.backends.db import SessionStore
from django.db import OperationalError, connection
from django.test import Client

from pgsignals.durable import control
from pgsignals.live import permissions
from pgsignals.live.access import Access
from pgsignals.live.consumer import WINDOW, PgEventConsumer
from pgsignals.live.hub import hub_of
from pgsignals.live.topics import model_topic

from .shop.models import Order
from .waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

ORDER = "shop.order"


@pytest.fixture(autouse=True)
def layer(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


class Eager(PgEventConsumer):
    """Looks permissions up again before each message."""

    recheck_after = 0.0


def user(*permissions: str, **fields: Any) -> User:
    person = User.objects.create_user("ada", password="a", **fields)
    # Of our groups, not of Django's.
    granted = Permission.objects.filter(codename__in=permissions)
    person.user_permissions.set(granted.exclude(codename="view_group", content_type__app_label="auth"))
    return person


def talk(
    person: Any, work: Callable[[WebsocketCommunicator], Awaitable[None]], consumer: type = PgEventConsumer
) -> None:
    async def main() -> None:
        communicator = WebsocketCommunicator(consumer.as_asgi(), "/ws/pg/")
        communicator.scope["user"] = person
        session = await sync_to_async(session_of)(person)
        if session is not None:
            communicator.scope["session"] = session
        connected, _ = await communicator.connect(timeout=10)
        assert connected
        await work(communicator)
        await communicator.disconnect(timeout=10)

    async_to_sync(main)()


def session_of(person: Any) -> SessionStore | None:
    client = Client()
    client.force_login(person)
    return SessionStore(client.session.session_key)


async def ask(communicator: WebsocketCommunicator, *topics: str) -> Any:
    await communicator.send_json_to({"subscribe": topics})
    return await communicator.receive_json_from(timeout=10)


async def send(topic: str, number: int, relay: str = "r", **more: Any) -> None:
    message: dict[str, Any] = {
        "type": "pg.event",
        "topic": topic,
        "relay": relay,
        "number": number,
        "refetch": False,
        "events": [],
    }
    await get_channel_layer().group_send(f"pg.{topic}", {**message, **more})


def test_a_user_hears_of_models_that_the_user_may_view_and_of_nothing_else() -> None:
    """A model that is forbidden and one that does not exist look the same."""

    async def work(communicator: WebsocketCommunicator) -> None:
        asked = [ORDER, "shop.customer", "shop.customer:5", "no.such", "nodot", "channel:app_events", "group:billing"]
        answer = await ask(communicator, *asked)
        assert (answer["type"], answer["topics"], answer["refused"]) == ("subscribed", [ORDER], asked[1:])
        await send("shop.customer", 1)
        await send(ORDER, 1, events=[["insert", 5, []]])
        got = await communicator.receive_json_from(timeout=10)
        assert (got["topic"], got["events"]) == (ORDER, [["insert", 5, []]])

    talk(user("view_order"), work)


@pytest.mark.parametrize("who", ["nobody", "anonymous", "inactive"])
def test_who_may_not_listen_at_all_is_told_so_and_nothing_else(who: str) -> None:
    """By a close code: a handshake that is refused looks to a browser like a server that is away."""
    person = user("view_order", is_active=who != "inactive") if who != "anonymous" else AnonymousUser()

    async def main() -> None:
        communicator = WebsocketCommunicator(PgEventConsumer.as_asgi(), "/ws/pg/")
        if who != "nobody":
            communicator.scope["user"] = person
        assert (await communicator.connect(timeout=10))[0]
        assert await communicator.receive_output(timeout=10) == {"type": "websocket.close", "code": 4403}
        await communicator.send_json_to({"subscribe": [ORDER]})
        await send(ORDER, 1)
        await communicator.disconnect(timeout=10)
        assert communicator.output_queue.empty()

    async_to_sync(main)()


def test_a_missed_number_or_another_relay_becomes_a_gap() -> None:
    """The layer may have dropped a message, or the relay started anew: the browser fetches."""

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        heard = []
        for number, relay in ((7, "r"), (8, "r"), (10, "r"), (1, "s"), (2, "s")):
            await send(ORDER, number, relay)
            got = await communicator.receive_json_from(timeout=10)
            heard.append(got["type"])
            if got["type"] == "gap":
                assert got == {"type": "gap", "topic": ORDER, "cause": "missed"}
                assert (await communicator.receive_json_from(timeout=10))["number"] == number
        assert heard == ["event", "event", "gap", "gap", "event"]

    talk(user("view_order"), work)


def test_two_relays_that_feed_one_group_are_told_apart() -> None:
    """Each has numbers of its own: only what is missing from one of them is a gap, and a relay's first message."""

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        heard = []
        for number, relay in ((1, "r"), (1, "s"), (2, "r"), (2, "s"), (3, "r"), (4, "s"), (4, "r")):
            await send(ORDER, number, relay)
            while (await communicator.receive_json_from(timeout=10))["type"] == "gap":
                heard.append("gap")
            heard.append(relay)
        assert heard == ["r", "gap", "s", "r", "s", "r", "gap", "s", "r"]

    talk(user("view_order"), work)


def test_a_missed_number_before_a_gap_is_one_gap() -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        await send(ORDER, 1)
        await communicator.receive_json_from(timeout=10)
        await send(ORDER, 5, type="pg.gap", cause="c")
        await send(ORDER, 6)
        kinds = [(await communicator.receive_json_from(timeout=10))["type"] for _ in range(2)]
        assert kinds == ["gap", "event"]

    talk(user("view_order"), work)


def test_losses_and_gaps_are_passed_on() -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        for number, kind in enumerate(("lost", "gap"), 1):
            message = {"type": f"pg.{kind}", "topic": ORDER, "relay": "r", "number": number, "cause": "c"}
            await get_channel_layer().group_send(f"pg.{ORDER}", message)
            assert await communicator.receive_json_from(timeout=10) == {"type": kind, "topic": ORDER, "cause": "c"}

    talk(user("view_order"), work)


@pytest.mark.parametrize("change", ["permission", "inactive", "deleted", "logout"])
def test_a_permission_that_is_lost_ends_the_topic(change: str) -> None:
    """Not one further event is sent, and the browser is told that this is so."""
    person = user("view_order")

    def lose() -> None:
        if change == "permission":
            person.user_permissions.clear()
        elif change == "inactive":
            User.objects.update(is_active=False)
        elif change == "deleted":
            User.objects.all().delete()
        else:
            from django.contrib.sessions.models import Session

            Session.objects.all().delete()

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        await send(ORDER, 1)
        assert (await communicator.receive_json_from(timeout=10))["type"] == "event"
        await sync_to_async(lose)()
        await send(ORDER, 2)
        assert await communicator.receive_json_from(timeout=10) == {"type": "refused", "topic": ORDER}
        await send(ORDER, 3)
        # An answer to a question comes after whatever would have been sent.
        assert (await ask(communicator, ORDER))["topics"] == []

    talk(person, work, Eager)


def test_a_permission_is_believed_for_thirty_seconds_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up again with the first message after that, not with each: a busy page would query without end."""
    asked: list[str] = []
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(permissions, "time", clock)

    class Counting(PgEventConsumer):
        def can_subscribe(self, user: Any, topic: str) -> bool:
            asked.append(topic)
            return True

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        lookups = []
        for number, moment in enumerate((1029, 1030, 1031, 1059, 1061), 1):
            now[0] = moment
            await send(ORDER, number)
            await communicator.receive_json_from(timeout=10)
            lookups.append(len(asked))
        assert lookups == [1, 2, 2, 2, 3]

    talk(user(), work, Counting)


class Broken(Eager):
    """The database is out of reach while `broken`."""

    broken = False

    def can_subscribe(self, user: Any, topic: str) -> bool:
        if self.broken:
            raise OperationalError("the server is gone")
        return super().can_subscribe(user, topic)


@pytest.fixture
def broken() -> type[Broken]:
    class Mine(Broken):
        pass

    return Mine


def test_while_permissions_cannot_be_looked_up_losses_and_gaps_pass_and_events_become_a_gap(
    broken: type[Broken], caplog: pytest.LogCaptureFixture
) -> None:
    """That is when the database is gone: the page must hear that it is, and must stay connected."""

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        await send(ORDER, 1)
        assert (await communicator.receive_json_from(timeout=10))["type"] == "event"
        broken.broken = True
        await send(ORDER, 2, type="pg.lost", cause="c")
        assert (await communicator.receive_json_from(timeout=10))["type"] == "lost"
        await send(ORDER, 3)
        await send(ORDER, 4, type="pg.gap", cause="c")
        assert (await communicator.receive_json_from(timeout=10))["type"] == "gap"
        await send(ORDER, 5)
        await asyncio.to_thread(until, lambda: caplog.text.count("is kept back") == 2)
        await communicator.send_json_to({"ping": 1})
        assert await communicator.receive_json_from(timeout=10) == {"type": "pong"}
        broken.broken = False
        await send(ORDER, 6)
        assert await communicator.receive_json_from(timeout=10) == {"type": "gap", "topic": ORDER, "cause": "missed"}
        assert (await communicator.receive_json_from(timeout=10))["number"] == 6

    talk(user("view_order"), work, broken)
    assert "Permissions cannot be looked up (the server is gone)" in caplog.text


def test_a_subscription_that_cannot_be_decided_closes_the_socket_so_that_the_browser_comes_again(
    broken: type[Broken],
) -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        broken.broken = True
        await communicator.send_json_to({"subscribe": [ORDER]})
        end = await communicator.receive_output(timeout=10)
        assert (end["type"], end["code"]) == ("websocket.close", 1013)

    talk(user("view_order"), work, broken)


async def layer_fails(*given: Any) -> Any:
    raise ConnectionError("the layer is away")


def test_a_layer_that_fails_closes_the_socket_so_that_the_browser_comes_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        monkeypatch.setattr(get_channel_layer(), "group_add", layer_fails)
        await communicator.send_json_to({"subscribe": [ORDER]})
        end = await communicator.receive_output(timeout=10)
        assert (end["type"], end["code"]) == ("websocket.close", 1013)

    talk(user("view_order"), work)
    assert "A WebSocket failed, and is closed; its browser comes back." in caplog.text
    assert "ConnectionError: the layer is away" in caplog.text


@pytest.mark.parametrize("end", ["disconnect", "layer", "server"])
def test_however_it_ends_nothing_is_left_of_it(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Channels tells of a disconnect, and neither of a layer that fails beneath it nor of a server that gives up."""
    person = user("view_order", "view_customer")

    async def main() -> None:
        layer, broken = get_channel_layer(), asyncio.Event()
        works = layer.receive

        async def receive(channel: str) -> Any:
            await broken.wait()
            return await layer_fails()

        monkeypatch.setattr(layer, "receive", receive)
        communicator = WebsocketCommunicator(PgEventConsumer.as_asgi(), "/ws/pg/")
        communicator.scope["user"] = person
        assert (await communicator.connect(timeout=10))[0]
        # The consumer's own channel is what fails.
        monkeypatch.setattr(layer, "receive", works)
        assert (await ask(communicator, ORDER, "shop.customer"))["refused"] == []
        assert set(hub_of(layer)._members) == {"pg.shop.order", "pg.shop.customer"}
        if end == "disconnect":
            await communicator.disconnect(timeout=10)
        elif end == "layer":
            broken.set()
            with pytest.raises(ConnectionError):
                await communicator.wait(timeout=10)
        else:
            communicator.future.cancel()
            await asyncio.wait([communicator.future], timeout=10)
        assert hub_of(layer)._members == layer.groups == {}
        await asyncio.sleep(0)  # what was cancelled ends
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("pgsignals")] == []

    async_to_sync(main)()


def test_a_projects_own_rule_that_fails_refuses(caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(PgEventConsumer):
        def can_subscribe(self, user: Any, topic: str) -> bool:
            return bool(topic.split(":")[1]) or super().can_subscribe(user, topic)

    async def work(communicator: WebsocketCommunicator) -> None:
        answer = await ask(communicator, ORDER, "channel:\ud800")
        assert (answer["topics"], answer["refused"]) == (["channel:\ud800"], [ORDER])

    talk(user("view_order"), work, Buggy)
    assert "can_subscribe() failed for the topic 'shop.order', which is refused" in caplog.text
    assert "IndexError" in caplog.text


@pytest.mark.parametrize("change", ["inactive", "deleted"])
def test_a_user_who_came_without_a_session_is_looked_up_too(change: str) -> None:
    """With a token, say. A rule that lets everybody in is not asked about somebody who is no longer there."""

    class Generous(Eager):
        def can_subscribe(self, user: Any, topic: str) -> bool:
            return True

    async def main() -> None:
        communicator = WebsocketCommunicator(Generous.as_asgi(), "/ws/pg/")
        communicator.scope["user"] = await sync_to_async(user)()
        await communicator.connect(timeout=10)
        await ask(communicator, ORDER)
        everybody = User.objects.all()
        await (everybody.aupdate(is_active=False) if change == "inactive" else everybody.adelete())
        await send(ORDER, 1)
        assert await communicator.receive_json_from(timeout=10) == {"type": "refused", "topic": ORDER}
        await communicator.disconnect(timeout=10)

    async_to_sync(main)()


def test_a_permission_that_is_lost_is_not_believed_in_a_later_subscription() -> None:
    """The user of the handshake remembers permissions; a page that stays open must not live on that."""
    person = user("view_order")

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER, "shop.customer")
        await sync_to_async(person.user_permissions.clear)()
        await communicator.send_json_to({"subscribe": [ORDER, "shop.article"]})
        assert await communicator.receive_json_from(timeout=10) == {"type": "refused", "topic": ORDER}
        assert (await communicator.receive_json_from(timeout=10))["refused"] == [ORDER, "shop.article"]

    talk(person, work, Eager)


def test_the_consumer_uses_the_layer_that_the_relay_feeds(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"other": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    settings.PGSIGNALS = {"CHANNEL_LAYER": "other"}

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        message = {"type": "pg.lost", "topic": ORDER, "relay": "r", "number": 1, "cause": "c"}
        await get_channel_layer("other").group_send(f"pg.{ORDER}", message)
        assert (await communicator.receive_json_from(timeout=10))["type"] == "lost"

    talk(user("view_order"), work)


def test_without_a_layer_nobody_is_let_in_and_the_log_says_why(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.CHANNEL_LAYERS = {}

    async def main() -> bool:
        communicator = WebsocketCommunicator(PgEventConsumer.as_asgi(), "/ws/pg/")
        communicator.scope["user"] = await sync_to_async(user)()
        connected, _ = await communicator.connect(timeout=10)
        return bool(connected)

    assert async_to_sync(main)() is False
    assert "settings.CHANNEL_LAYERS has no layer 'default'" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "5",
        "null",
        '{"subscribe": 5}',
        '{"subscribe": "shop.order"}',
        '{"subscribe": {"shop.order": 1}}',
        '{"subscribe": [5]}',
        '{"subscribe": [[]]}',
        "[" * 100_000,
        "{}",
    ],
)
def test_rubbish_is_answered_and_harms_nothing(text: str) -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        await communicator.send_to(text_data=text)
        assert (await communicator.receive_json_from(timeout=10))["type"] == "error"
        await communicator.send_to(bytes_data=b"\x00\xff")
        assert (await communicator.receive_json_from(timeout=10))["type"] == "error"
        assert (await ask(communicator, ORDER))["topics"] == [ORDER]

    talk(user("view_order"), work)


def test_thousands_of_topics_are_refused() -> None:
    """All that are too many, by name; and a text that is too long is not even read."""

    class Generous(PgEventConsumer):
        def can_subscribe(self, user: Any, topic: str) -> bool:
            return True

    async def work(communicator: WebsocketCommunicator) -> None:
        asked = [f"a.b{number}" for number in range(5000)]
        answer = await ask(communicator, *asked)
        assert (answer["topics"], answer["refused"]) == (asked[:100], asked[100:])
        assert (await ask(communicator, "a.more"))["refused"] == ["a.more"]
        await communicator.send_to(text_data=json.dumps({"subscribe": asked * 10}))
        assert (await communicator.receive_json_from(timeout=10))["type"] == "error"

    talk(user(), work, Generous)


class Open(Eager):
    """The project decides itself who hears of a channel."""

    def can_subscribe(self, user: Any, topic: str) -> bool:
        return topic == NEWS or super().can_subscribe(user, topic)


NEWS = "channel:news"


async def answers(communicator: WebsocketCommunicator, *topics: str) -> list[str]:
    """What it subscribes to, after what else it has to say."""
    got = await ask(communicator, *topics)
    while got["type"] != "subscribed":
        got = await communicator.receive_json_from(timeout=10)
    return list(got["topics"])


def test_who_was_deactivated_or_logged_out_cannot_subscribe_anew() -> None:
    """Whatever the project's own can_subscribe() says: it was not meant for nobody."""
    person = user("view_order")

    async def deactivated(communicator: WebsocketCommunicator) -> None:
        assert await answers(communicator, NEWS) == [NEWS]
        await User.objects.filter(pk=person.pk).aupdate(is_active=False)
        assert await answers(communicator, NEWS) == []
        assert await answers(communicator, NEWS) == []
        await User.objects.filter(pk=person.pk).aupdate(is_active=True)

    async def logged_out(communicator: WebsocketCommunicator) -> None:
        assert await answers(communicator, NEWS) == [NEWS]
        await sync_to_async(communicator.scope["session"].flush)()
        assert await answers(communicator, NEWS) == []
        assert await answers(communicator, NEWS) == []

    talk(person, deactivated, Open)
    talk(person, logged_out, Open)


def test_a_first_event_that_is_kept_back_leaves_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The permission cannot be looked up: the browser must not take it that nothing happened."""
    fresh = Eager._fresh_user
    kept_back = threading.Event()

    async def away(self: Eager) -> Any:
        kept_back.set()
        raise OperationalError("the database is away")

    async def work(communicator: WebsocketCommunicator) -> None:
        assert (await ask(communicator, ORDER))["topics"] == [ORDER]
        monkeypatch.setattr(Eager, "_fresh_user", away)
        await send(ORDER, 1)
        await asyncio.to_thread(kept_back.wait, 10)
        monkeypatch.setattr(Eager, "_fresh_user", fresh)
        await send(ORDER, 2)
        assert [(await communicator.receive_json_from(timeout=10))["type"] for _ in range(2)] == ["gap", "event"]

    talk(user("view_order"), work, Eager)


def test_a_user_who_came_by_a_token_stays_though_there_is_a_session_without_a_login() -> None:
    person = user("view_order")

    async def main() -> list[str]:
        communicator = WebsocketCommunicator(Eager.as_asgi(), "/ws/pg/")
        communicator.scope["user"] = person
        communicator.scope["session"] = SessionStore()
        assert (await communicator.connect(timeout=10))[0]
        topics = await answers(communicator, ORDER)
        await send(ORDER, 1)
        assert (await communicator.receive_json_from(timeout=10))["type"] == "event"
        await communicator.disconnect(timeout=10)
        return topics

    assert async_to_sync(main)() == [ORDER]


async def after_acks(communicator: WebsocketCommunicator) -> Any:
    """The next message that is not a question whether those before were read; that is answered."""
    while (got := await communicator.receive_json_from(timeout=10))["type"] == "ack":
        await communicator.send_json_to({"ack": got["number"]})
    return got


def test_a_dozen_relays_are_told_apart() -> None:
    """As with one in each web process before a layer that they share: each has numbers of its own."""

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        seen = []
        for number in range(1, 4):
            for relay in range(12):
                await send(ORDER, number, relay=str(relay))
                got = await after_acks(communicator)
                if got["type"] == "gap":
                    # A relay that was not heard before may have been speaking for long.
                    assert number == 1
                    got = await after_acks(communicator)
                seen.append(got["type"])
        assert seen == ["event"] * 36

    talk(user("view_order"), work)


def test_a_topic_of_thousands_of_characters_is_an_error_and_not_remembered() -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        assert (await ask(communicator, "a." + "b" * 300))["type"] == "error"
        before = model_topic.cache_info().currsize
        assert (await ask(communicator, "no.such", "nor.such"))["topics"] == []
        assert model_topic.cache_info().currsize == before

    talk(user("view_order"), work)


# Single objects, groups, and what a project decides itself.


async def events_of(communicator: WebsocketCommunicator) -> Any:
    """The events of the next message that has some."""
    while (got := await after_acks(communicator))["type"] != "event":
        pass
    return got["topic"], got["events"]


def test_an_objects_topic_hears_of_that_object_alone() -> None:
    """And of what may be about it: a message that names no keys."""

    async def work(communicator: WebsocketCommunicator) -> None:
        assert (await ask(communicator, "shop.Order:17", "shop.order:x"))["topics"] == ["shop.order:17", "shop.order:x"]
        await send(ORDER, 1, events=[["update", 5, []], ["update", 17, ["status"]]])
        assert await events_of(communicator) == ("shop.order:17", [["update", 17, ["status"]]])
        await send(ORDER, 2, events=[["update", 5, []], ["update", "x", []]])
        assert await events_of(communicator) == ("shop.order:x", [["update", "x", []]])
        await send(ORDER, 3, refetch=True)
        assert [(await events_of(communicator))[0] for _ in range(2)] == ["shop.order:17", "shop.order:x"]

    talk(user("view_order"), work)


def test_a_model_and_one_of_its_objects_are_left_apart_from_each_other() -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER, "shop.order:17")
        await communicator.send_json_to({"unsubscribe": [ORDER]})
        assert (await ask(communicator, "no.such"))["topics"] == []
        await send(ORDER, 1, events=[["update", 5, []]])
        await send(ORDER, 2, events=[["update", 17, []]])
        assert await events_of(communicator) == ("shop.order:17", [["update", 17, []]])

    talk(user("view_order"), work)


def test_a_composite_key_is_named_as_a_list() -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        assert (await ask(communicator, 'shop.line:["5", "a"]'))["refused"] == []
        await send("shop.line", 1, events=[["update", [5, "b"], []], ["update", [5, "a"], []]])
        assert (await events_of(communicator))[1] == [["update", [5, "a"], []]]

    talk(user("view_line"), work)


def test_whoever_may_change_a_model_may_view_it() -> None:
    """As in Django's admin."""

    async def work(communicator: WebsocketCommunicator) -> None:
        assert (await ask(communicator, ORDER))["topics"] == [ORDER]

    talk(user("change_order"), work)


class OwnOrders(Access):
    """Orders of one status are secret; and how often it was asked."""

    asked: list[list[Any]] = []

    def filter_events(self, user: Any, events: Any) -> Any:
        self.asked.append([(one.op, one.pk, one.old and dict(one.old), one.new and dict(one.new)) for one in events])
        return [one for one in events if "secret" not in ((one.new or one.old) or {}).values()]


def test_a_projects_filter_sees_each_event_with_the_fields_that_go_along(settings: Any) -> None:
    """Of a row that is deleted too, whose values nobody could look up any more. The browser gets none of them."""
    OwnOrders.asked = []
    settings.PGSIGNALS = {"LIVE_ACCESS": f"{__name__}.OwnOrders", "LIVE_FIELDS": {"shop.Order": ["status"]}}

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        await send(
            ORDER,
            1,
            events=[
                ["insert", 1, [], None, ["open"]],
                ["update", 2, ["status"], ["open"], ["secret"]],
                ["delete", 3, [], ["secret"], None],
                ["delete", 4, [], ["open"], None],
            ],
        )
        assert (await events_of(communicator))[1] == [["insert", 1, []], ["delete", 4, []]]

    talk(user("view_order"), work)
    assert OwnOrders.asked == [
        [
            ("insert", 1, None, {"status": "open"}),
            ("update", 2, {"status": "open"}, {"status": "secret"}),
            ("delete", 3, {"status": "secret"}, None),
            ("delete", 4, {"status": "open"}, None),
        ]
    ]


def test_a_message_of_which_nothing_may_be_seen_is_not_sent(settings: Any) -> None:
    settings.PGSIGNALS = {"LIVE_ACCESS": f"{__name__}.OwnOrders", "LIVE_FIELDS": {"shop.order": ["status"]}}

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        await send(ORDER, 1, events=[["insert", 1, [], None, ["secret"]]])
        await send(ORDER, 2, events=[["insert", 2, [], None, ["open"]]])
        got = await after_acks(communicator)
        assert (got["type"], got["events"]) == ("event", [["insert", 2, []]])

    talk(user("view_order"), work)


def test_a_filter_that_fails_withholds(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(PgEventConsumer):
        def filter_events(self, user: Any, events: Any) -> Any:
            return [one for one in events if one.pk / (one.pk - 1)]

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        await send(ORDER, 1, events=[["insert", 1, []]])
        await send(ORDER, 2, events=[["insert", 2, []]])
        assert (await events_of(communicator))[1] == [["insert", 2, []]]

    talk(user("view_order"), work, Buggy)
    assert "filter_events() failed for events of 'shop.order', which are withheld." in caplog.text


def test_a_filter_may_load_the_rows_in_one_query(django_assert_num_queries: Any) -> None:
    class Existing(PgEventConsumer):
        def filter_events(self, user: Any, events: Any) -> Any:
            with django_assert_num_queries(1):
                return [one for one in events if one.instance() is not None]

    kept = Order.objects.create()

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        await send(ORDER, 1, events=[["update", kept.pk, []], ["update", kept.pk + 1, []]])
        assert (await events_of(communicator))[1] == [["update", kept.pk, []]]

    talk(user("view_order"), work, Existing)


def test_messages_of_a_channel_are_filtered_as_well() -> None:
    class Mine(Open):
        def filter_events(self, user: Any, events: Any) -> Any:
            return [one for one in events if one.payload["to"] == user.username]

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, NEWS)
        message = {"type": "pg.event", "topic": NEWS, "relay": "r", "number": 1, "refetch": False}
        await get_channel_layer().group_send("pg.channel.news", {**message, "payloads": [{"to": "ada"}, {"to": "bob"}]})
        got = await after_acks(communicator)
        assert got["payloads"] == [{"to": "ada"}]

    talk(user(), work, Mine)


def test_a_page_that_is_open_to_all_admits_those_who_are_not_logged_in() -> None:
    class Public(PgEventConsumer):
        def admits(self, user: Any) -> bool:
            return True

        def can_subscribe(self, user: Any, topic: str) -> bool:
            return topic == ORDER

    async def work(communicator: WebsocketCommunicator) -> None:
        assert (await ask(communicator, ORDER, "shop.customer"))["topics"] == [ORDER]
        await send(ORDER, 1, events=[["insert", 1, []]])
        assert (await events_of(communicator))[1] == [["insert", 1, []]]

    async def main() -> None:
        communicator = WebsocketCommunicator(Public.as_asgi(), "/ws/pg/")
        communicator.scope["user"] = AnonymousUser()
        assert (await communicator.connect(timeout=10))[0]
        await work(communicator)
        await communicator.disconnect(timeout=10)

    async_to_sync(main)()


def test_a_browser_that_does_not_read_is_sent_no_more_and_then_told_what_it_missed() -> None:
    """Nothing waits for it, and what is kept for it is bounded."""

    async def work(communicator: WebsocketCommunicator) -> None:
        await ask(communicator, ORDER)
        for number in range(1, 1000):
            await send(ORDER, number)
            await asyncio.sleep(0)
        seen = [await communicator.receive_json_from(timeout=10) for _ in range(WINDOW + 1)]
        assert await communicator.receive_nothing(timeout=0.1)
        asked = [one["number"] for one in seen if one["type"] == "ack"]
        assert asked == [32, 64]
        await communicator.send_json_to({"ack": asked[-1]})
        got = await communicator.receive_json_from(timeout=10)
        assert (got["type"], got["topic"]) == ("gap", ORDER)
        await send(ORDER, 1000)
        assert (await events_of(communicator))[0] == ORDER

    talk(user("view_order"), work)


@pytest.mark.parametrize("said", [{"ack": 10**9}, {"ack": -1}, {"ack": "1"}, {"ack": True}, {"ack": None}])
def test_what_was_never_sent_cannot_have_been_read(said: Any) -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        await communicator.send_json_to(said)
        assert (await communicator.receive_json_from(timeout=10))["type"] == "error"

    talk(user(), work)


def test_a_browser_that_asks_without_reading_is_thrown_out(caplog: pytest.LogCaptureFixture) -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        for _ in range(1000):
            await communicator.send_json_to({"ping": 1})
        while (message := await communicator.receive_output(timeout=10))["type"] == "websocket.send":
            pass
        assert (message["type"], message["code"]) == ("websocket.close", 1008)

    talk(user(), work)
    assert "asks and does not read the answers" in caplog.text


def test_how_a_durable_group_gets_on_is_for_those_who_may_view_groups() -> None:
    """At once, also where the log knows no such group yet."""

    async def work(communicator: WebsocketCommunicator) -> None:
        assert (await ask(communicator, "group:billing"))["topics"] == ["group:billing"]
        got = await communicator.receive_json_from(timeout=10)
        assert (got["topic"], got["status"]) == ("group:billing", None)
        await sync_to_async(make_group)()
        got = await communicator.receive_json_from(timeout=10)
        assert (got["status"]["name"], got["status"]["lag"], got["status"]["paused"]) == ("billing", 0, False)
        await sync_to_async(control.pause)("default", "billing")
        assert (await communicator.receive_json_from(timeout=10))["status"]["paused"] is True

    talk(user("view_group"), work)


def make_group() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO pgsignals_group (name, partitions, atomic) VALUES ('billing', 1, false)")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://site.example", True),
        ("https://site.example:8443", True),
        ("http://sub.wide.example", True),
        ("https://trusted.example", True),
        ("http://127.0.0.1:8000", True),
        ("http://elsewhere.example", False),
        ("http://site.example.elsewhere.example", False),
        ("http://elsewhere.example#site.example", False),
        ("http://site.example@elsewhere.example", False),
        ("http://trusted.example", False),
        ("http://127.0.0.1:9000", False),
        ("null", False),
        ("", False),
        ("http://[", False),
    ],
)
def test_another_site_cannot_listen_though_channels_guard_was_forgotten(
    settings: Any, origin: str | None, allowed: bool
) -> None:
    """Also where a project allows all hosts."""
    settings.ALLOWED_HOSTS = ["*", "site.example", ".wide.example"]
    settings.CSRF_TRUSTED_ORIGINS = ["https://trusted.example"]
    person = user("view_order")

    async def main() -> bool:
        headers = [(b"host", b"127.0.0.1:8000")]
        if origin is not None:
            headers.append((b"origin", origin.encode()))
        communicator = WebsocketCommunicator(PgEventConsumer.as_asgi(), "/ws/pg/", headers=headers)
        communicator.scope["user"] = person
        connected, _ = await communicator.connect(timeout=10)
        await communicator.disconnect(timeout=10)
        return bool(connected)

    assert async_to_sync(main)() is allowed


@pytest.mark.parametrize(
    "said",
    [
        {"subscribe": [ORDER], "since": 5},
        {"subscribe": [ORDER], "since": ["x"]},
        {"unsubscribe": ORDER},
        {"unsubscribe": [5]},
    ],
)
def test_more_rubbish_is_an_error(said: Any) -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        await communicator.send_json_to(said)
        assert (await communicator.receive_json_from(timeout=10))["type"] == "error"
        assert (await ask(communicator, ORDER))["topics"] == [ORDER]

    talk(user("view_order"), work)


def test_who_comes_back_with_as_many_topics_as_there_may_be_is_told_of_each_that_it_missed_something() -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        asked = [f"a.b{number}" for number in range(100)]
        await communicator.send_json_to({"subscribe": asked, "since": dict.fromkeys(asked, "x")})
        assert (await communicator.receive_json_from(timeout=10))["topics"] == asked
        assert [(await after_acks(communicator))["topic"] for _ in asked] == asked

    class Everything(PgEventConsumer):
        def can_subscribe(self, user: Any, topic: str) -> bool:
            return True

    talk(user(), work, Everything)


@pytest.mark.parametrize("since", [{ORDER: {"a": 1}}, {ORDER: [[]]}, {"x" * 1000: "x"}, {NEWS: "\ud800"}])
def test_ids_of_any_kind_are_a_gap_at_most(since: Any) -> None:
    async def work(communicator: WebsocketCommunicator) -> None:
        await communicator.send_json_to({"subscribe": [ORDER, NEWS, "channel:\ud800", "channel:\x00"], "since": since})
        answer = await communicator.receive_json_from(timeout=10)
        assert (answer["type"], answer["resumed"]) == ("subscribed", [])
        await send(ORDER, 1, events=[["insert", 1, []]])
        assert (await events_of(communicator))[1] == [["insert", 1, []]]

    class Everything(PgEventConsumer):
        def can_subscribe(self, user: Any, topic: str) -> bool:
            return True

    talk(user("view_order"), work, Everything)
