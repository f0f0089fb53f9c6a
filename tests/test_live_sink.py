"""What the sink sends to groups: few messages, numbered, and a gap where the layer failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer, get_channel_layer
from channels_redis.core import RedisChannelLayer

from pgsignals.event import PgEvent
from pgsignals.live import sink as sink_module
from pgsignals.live.sink import ChannelsSink, configured_sink
from pgsignals.live.topics import channel_group, group_of, model_group, model_topic
from pgsignals.sink import Gap

from .making import made
from .servers import free_port, redis_server

MEMORY = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


@pytest.fixture(autouse=True)
def layer(settings: Any) -> None:
    settings.CHANNEL_LAYERS = MEMORY


def row(op: str, pk: Any, *changed: str) -> PgEvent:
    return made([pk] if pk is not None else [], op=op, label="shop.order", changed=frozenset(changed))


def message(payload: Any) -> PgEvent:
    return made(payload, op="message", channel="app_events")


def gap(cause: str, connected: bool = True) -> Gap:
    now = datetime.now(UTC)
    return Gap("default", now, now, cause, connected)


def run(work: Callable[[ChannelsSink, Callable[[], Awaitable[dict[str, Any]]]], Awaitable[None]], topic: str) -> None:
    """A sink at work, and a channel in the topic's group."""

    async def main() -> None:
        layer = get_channel_layer()
        browser = await layer.new_channel()
        await layer.group_add(group_of(topic), browser)

        async def receive() -> dict[str, Any]:
            return dict(await asyncio.wait_for(layer.receive(browser), 10))

        sink = ChannelsSink("default", channels=["app_events"])
        await sink.start()
        if sink.duty is not None:
            sink.lead(frozenset({sink.duty}))
            assert (await receive())["type"] == "pg.gap"
        try:
            await work(sink, receive)
        finally:
            await sink.stop()

    asyncio.run(main())


def test_rows_of_a_moment_are_one_message_with_the_last_of_each_key() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([row("insert", 1), row("update", 1, "a"), row("update", 1, "b"), row("delete", 2)], 100)
        sink.put([row("insert", 3)], 100)
        got = await receive()
        assert got["type"] == "pg.event"
        assert got["topic"] == "shop.order"
        assert got["events"] == [["update", 1, ["a", "b"]], ["delete", 2, []], ["insert", 3, []]]
        assert got["refetch"] is False

    run(work, "shop.order")


def test_messages_are_numbered_for_each_group_and_name_the_run() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        numbers = []
        for pk in range(3):
            sink.put([row("insert", pk)], 1)
            got = await receive()
            numbers.append(got["number"])
            assert got["relay"] == sink.run_id
        assert numbers == [1, 2, 3]

    run(work, "shop.order")


def test_a_group_gets_at_most_ten_messages_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two messages there is the interval, whatever kinds they are, and what comes in it is put together."""
    paused, go_on = asyncio.Event(), asyncio.Event()
    pauses: list[float] = []

    async def pause(self: ChannelsSink, seconds: float) -> None:
        pauses.append(seconds)
        paused.set()
        await go_on.wait()

    monkeypatch.setattr(ChannelsSink, "_pause", pause)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([row("insert", 1)], 1)
        assert (await receive())["events"] == [["insert", 1, []]]
        await paused.wait()
        sink.put([row("insert", 2)], 1)
        sink.gap(gap("c"))
        sink.put([row("insert", 3)], 1)
        go_on.set()
        assert (await receive())["type"] == "pg.gap"
        assert (await receive())["events"] == [["insert", 2, []], ["insert", 3, []]]

    run(work, "shop.order")
    assert pauses[:2] == [0.1, 0.1]


def test_the_first_message_of_a_group_waits_for_no_other_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group has its own interval: here another one's never ends."""
    paused = asyncio.Event()

    async def pause(self: ChannelsSink, seconds: float) -> None:
        paused.set()
        await self._stopped.wait()

    monkeypatch.setattr(ChannelsSink, "_pause", pause)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([message("x")], 1)
        await paused.wait()
        sink.put([row("insert", 1)], 1)
        assert (await receive())["events"] == [["insert", 1, []]]

    run(work, "shop.order")


def test_what_waits_is_sent_when_the_relay_stops() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        for pk in (1, 2):
            sink.put([row("insert", pk)], 1)
            await asyncio.sleep(0)
        await sink.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [(await receive())["events"] for _ in range(2)] == [[["insert", 1, []]], [["insert", 2, []]]]

    run(work, "shop.order")


@pytest.mark.parametrize(
    "events",
    [
        [row("insert", pk) for pk in range(201)],
        [row("truncate", None)],
        [row("insert", 1), row("update", None)],
    ],
    ids=["201 keys", "truncate", "unknown key"],
)
def test_too_many_rows_or_unknown_ones_say_refetch(events: list[PgEvent]) -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put(events, 100)
        got = await receive()
        assert (got["refetch"], got["events"]) == (True, [])

    run(work, "shop.order")


FORGED = ["x" * 4000, *"abcdefgh"]


def test_rows_with_forged_keys_and_names_stay_small() -> None:
    """Anybody may notify: keys of kilobytes, and ever other names of fields, must not pile up."""

    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([row("insert", f"{number}" + "x" * 7000) for number in range(5)], 1)
        assert (await receive())["refetch"] is True
        sink.put([row("update", 1, *(f"{number}-{name * 500}" for name in FORGED)) for number in range(9)], 1)
        assert (await receive())["refetch"] is True

    run(work, "shop.order")


UNFIT = [float("nan"), float("inf"), 10**30, -(10**30), "\ud800", [{"a": [float("nan")]}], {"\udfff": 1}]


@pytest.mark.parametrize("odd", UNFIT, ids=repr)
def test_what_json_or_msgpack_cannot_carry_says_refetch(odd: Any) -> None:
    """It is what the layer or the browser would fail over, and must cost nobody else an event."""

    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([message({"good": 1}), message(odd)], 20)
        got = await receive()
        assert (got["refetch"], got["payloads"]) == (True, [])
        sink.put([message({"good": 2})], 20)
        assert (await receive())["payloads"] == [{"good": 2}]

    run(work, "channel:app_events")


def test_a_forged_key_that_cannot_travel_says_refetch() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([row("insert", [10**30])], 20)
        assert (await receive())["refetch"] is True

    run(work, "shop.order")


def test_two_hundred_rows_still_go_by_key() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([row("insert", pk) for pk in range(200)], 100)
        assert len((await receive())["events"]) == 200

    run(work, "shop.order")


def test_a_channels_messages_carry_their_payloads() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([message({"type": "user.created"}), message(None)], 20)
        got = await receive()
        assert (got["topic"], got["payloads"]) == ("channel:app_events", [{"type": "user.created"}, None])

    run(work, "channel:app_events")


def test_payloads_of_more_than_32_kilobytes_say_refetch() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        for _ in range(5):
            sink.put([message("x" * 7000)], 7000)
        got = await receive()
        assert (got["refetch"], got["payloads"]) == (True, [])

    run(work, "channel:app_events")


@pytest.mark.parametrize("topic", ["shop.order", "channel:app_events"])
def test_a_loss_and_a_gap_reach_the_groups_of_all_declared_models_and_channels(topic: str) -> None:
    """Also those in which nothing has happened yet."""

    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.lost("no more")
        assert (await receive())["type"] == "pg.lost"
        sink.gap(gap("no more"))
        got = await receive()
        assert (got["type"], got["cause"], got["number"]) == ("pg.gap", "no more", 2)

    run(work, topic)


def test_a_layer_that_fails_is_said_once_and_followed_by_a_gap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The number goes on, so that a browser notices; when the layer works again it is told to fetch anew."""
    monkeypatch.setattr(sink_module, "_RETRY_AFTER", 0.01)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        failing(monkeypatch, [OSError("gone"), OSError("gone")])
        sink.put([row("insert", 1)], 1)
        got = await receive()
        assert (got["type"], got["number"]) == ("pg.gap", 3)

    run(work, "shop.order")
    assert caplog.text.count("takes no message for the group 'pg.shop.order' (OSError: gone)") == 1
    assert "works again" in caplog.text


def test_a_loss_right_after_a_gap_is_said_last() -> None:
    """Whoever hears of a gap takes it that the relay listens."""

    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.lost("first")
        sink.gap(gap("back"))
        sink.lost("again")
        assert [(await receive())["type"] for _ in range(2)] == ["pg.gap", "pg.lost"]
        sink.gap(gap("back"))
        assert (await receive())["type"] == "pg.gap"

    run(work, "shop.order")


def test_what_is_left_out_while_the_connection_is_gone_does_not_look_like_its_return() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.lost("gone")
        assert (await receive())["type"] == "pg.lost"
        sink.gap(gap("an event of an unknown version", connected=False))
        assert [(await receive())["type"] for _ in range(2)] == ["pg.gap", "pg.lost"]

    run(work, "shop.order")


def test_a_loss_during_a_failure_of_the_layer_is_said_when_it_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "_RETRY_AFTER", 0.01)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        failing(monkeypatch, [OSError("gone"), OSError("gone")])
        sink.lost("no more")
        assert [(await receive())["type"] for _ in range(2)] == ["pg.gap", "pg.lost"]

    run(work, "shop.order")


def failing(monkeypatch: pytest.MonkeyPatch, errors: list[Exception]) -> None:
    """The layer raises for the group of orders, as often as there are errors."""
    layer = get_channel_layer()
    real_send, left = layer.group_send, iter(errors)

    async def send(group: str, sent: Any) -> None:
        if group == "pg.shop.order" and (error := next(left, None)):
            raise error
        await real_send(group, sent)

    monkeypatch.setattr(layer, "group_send", send)


def test_a_layer_that_hangs_on_one_group_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has its deadline; the other group's messages arrive before that, and afterwards."""
    failed = asyncio.Event()
    real_failed = ChannelsSink._failed

    def note(self: ChannelsSink, topic: str, error: Exception) -> None:
        real_failed(self, topic, error)
        failed.set()

    monkeypatch.setattr(ChannelsSink, "_failed", note)
    monkeypatch.setattr(sink_module, "_SEND_WITHIN", 0.3)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        layer = get_channel_layer()
        real_send = layer.group_send

        async def send(group: str, sent: Any) -> None:
            await (asyncio.Event().wait() if group == "pg.shop.order" else real_send(group, sent))

        monkeypatch.setattr(layer, "group_send", send)
        sink.put([row("insert", 1), message(1)], 1)
        assert (await receive())["payloads"] == [1]
        assert not failed.is_set()
        await asyncio.wait_for(failed.wait(), 10)
        sink.put([message(2)], 1)
        assert (await receive())["payloads"] == [2]
        assert sink.failures == 1

    run(work, "channel:app_events")
    assert "(TimeoutError: no answer in 0 s)" in caplog.text


def test_a_layer_that_cannot_be_made_is_said_and_not_fatal(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A backend that is not installed: the relay and its receivers go on."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "no.such.Layer"}}

    async def main() -> None:
        sink = ChannelsSink("default")
        await sink.start()
        sink.put([row("insert", 1)], 1)
        await sink.stop()

    asyncio.run(main())
    assert "Cannot import BACKEND 'no.such.Layer'" in caplog.text


def redis_layer(url: str) -> dict[str, Any]:
    return {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [url]}}}


def test_redis_carries_what_the_sink_sends(settings: Any) -> None:
    """The keys and payloads that there are, and after one that msgpack cannot carry the next is as ever."""
    keys = [5, "é'\\", "3f2b6a2e-0000-4000-8000-000000000000", [1, "a"], -(2**53) + 1, 1.5, True]
    with redis_server() as url:
        settings.CHANNEL_LAYERS = redis_layer(url)

        async def work(sink: ChannelsSink, receive: Any) -> None:
            sink.put([row("insert", pk, "status") for pk in keys], 1)
            assert [event[1] for event in (await receive())["events"]] == keys
            sink.put([row("insert", 10**30)], 1)
            assert (await receive())["refetch"] is True
            sink.put([row("insert", 6)], 1)
            got = await receive()
            assert (got["number"], got["events"]) == (4, [["insert", 6, []]])
            await get_channel_layer().wait_received()

        run(work, "shop.order")


def test_a_redis_that_goes_and_comes_back_leaves_one_error_and_a_gap(
    monkeypatch: pytest.MonkeyPatch, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it was tried meanwhile. Redis remembers no group: the browser joins again, and then hears."""
    sent, tried, go_on, over = asyncio.Event(), asyncio.Semaphore(0), asyncio.Semaphore(0), asyncio.Event()

    async def pause(self: ChannelsSink, seconds: float) -> None:
        task = asyncio.current_task()
        if task is None or not task.get_name().endswith(" shop.order"):
            await over.wait()  # each topic has a sender of its own; this one's is followed
        elif seconds == sink_module.INTERVAL:
            sent.set()
        else:
            tried.release()
            await go_on.acquire()

    async def main() -> None:
        sink = ChannelsSink("default")
        with redis_server(port):
            sink.lead(frozenset(sink.duties()))
            sink.put([row("insert", 1)], 1)
            await asyncio.wait_for(sent.wait(), 10)
        sink.put([row("insert", 2)], 1)
        for _ in range(3):
            await asyncio.wait_for(tried.acquire(), 10)
            go_on.release()
        await asyncio.wait_for(tried.acquire(), 10)
        with redis_server(port) as url:
            layer = RedisChannelLayer(hosts=[url])  # another process's
            browser = await layer.new_channel()
            await layer.group_add("pg.shop.order", browser)
            for _ in range(20):  # that a pooled connection died is found out only now
                go_on.release()
            got = await asyncio.wait_for(layer.receive(browser), 10)
            assert (got["type"], got["cause"]) == ("pg.gap", "the channel layer was out of reach")
            assert got["number"] > 4
            await layer.wait_received()
            over.set()
            await sink.stop()

    port = free_port()
    settings.CHANNEL_LAYERS = redis_layer(f"redis://127.0.0.1:{port}/0")
    monkeypatch.setattr(ChannelsSink, "_pause", pause)
    asyncio.run(main())
    assert caplog.text.count("takes no message") == 1


def test_group_names_are_what_channels_takes() -> None:
    assert model_group("flights.Flight") == "pg.flights.flight"
    assert channel_group("app_events") == "pg.channel.app_events"
    odd = [channel_group(name) for name in ("Grüße: alle!", "x" * 63, "a b", "a-b", "a?b", "\ud800")]
    odd.append(model_group("a" * 150))
    assert len(set(odd)) == len(odd)
    for name in odd:
        assert get_channel_layer().require_valid_group_name(name)


def test_case_counts_in_an_apps_label_and_not_in_a_models_name() -> None:
    """As Django has it: apps.get_model("shop.ORDER") finds a model, apps.get_model("SHOP.order") does not."""
    assert model_topic("Shop.ORDER") == "Shop.order"
    assert group_of("Shop.order") != group_of("shop.order")


def test_a_project_without_a_layer_has_no_sink(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {}
    assert configured_sink() is None
    settings.CHANNEL_LAYERS = MEMORY
    assert configured_sink() is not None
    settings.PGSIGNALS = {"CHANNEL_LAYER": None}
    assert configured_sink() is None


def test_a_layer_that_cancels_a_message_silences_no_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clients raise CancelledError where a connection broke. What follows is sent, after a gap."""
    monkeypatch.setattr(sink_module, "_RETRY_AFTER", 0)
    group_send = InMemoryChannelLayer.group_send
    failures = iter([asyncio.CancelledError()])

    async def cancelled_once(self: Any, group: str, message: dict[str, Any]) -> None:
        for error in failures:
            raise error
        await group_send(self, group, message)

    monkeypatch.setattr(InMemoryChannelLayer, "group_send", cancelled_once)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([row("insert", 1)], 1)
        assert (await receive())["type"] == "pg.gap"
        sink.put([row("insert", 2)], 1)
        assert (await receive())["type"] == "pg.event"

    run(work, "shop.order")


def test_a_key_that_javascript_cannot_hold_is_a_refetch() -> None:
    async def work(sink: ChannelsSink, receive: Any) -> None:
        sink.put([row("insert", 2**53 - 1)], 1)
        assert (await receive())["events"] == [["insert", 2**53 - 1, []]]
        sink.put([row("insert", 2**53 + 1)], 1)
        got = await receive()
        assert (got["refetch"], got["events"]) == (True, [])

    run(work, "shop.order")
