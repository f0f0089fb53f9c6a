"""What the sink sends to groups: few messages, numbered, and a gap where the layer failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from channels.layers import get_channel_layer

from pgsignals.event import Origin, PgEvent
from pgsignals.live import sink as sink_module
from pgsignals.live.sink import ChannelsSink, configured_sink
from pgsignals.live.topics import channel_group, group_of, model_group
from pgsignals.sink import Gap

MEMORY = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


@pytest.fixture(autouse=True)
def layer(settings: Any) -> None:
    settings.CHANNEL_LAYERS = MEMORY


def row(op: str, pk: Any, *changed: str) -> PgEvent:
    origin = Origin(op=op, channel="pgsignals", database="default", label="shop.order", changed=frozenset(changed))
    return PgEvent(origin, [pk] if pk is not None else [])


def message(payload: Any) -> PgEvent:
    return PgEvent(Origin(op="message", channel="app_events", database="default"), payload)


def run(work: Callable[[ChannelsSink, Callable[[], Awaitable[dict[str, Any]]]], Awaitable[None]], topic: str) -> None:
    """A sink at work, and a channel in the topic's group."""

    async def main() -> None:
        layer = get_channel_layer()
        await layer.group_add(group_of(topic), "test!browser")

        async def receive() -> dict[str, Any]:
            return dict(await asyncio.wait_for(layer.receive("test!browser"), 10))

        sink = ChannelsSink("default", channels=["app_events"])
        await sink.start()
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
    """Between two messages there is the interval, however many events come; the first goes at once."""
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(sink_module.asyncio, "sleep", sleep)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        for pk in range(3):
            sink.put([row("insert", pk)], 1)
            await receive()

    run(work, "shop.order")
    assert pauses[:2] == [0.1, 0.1]


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
        now = datetime.now(UTC)
        sink.gap(Gap("default", now, now, "no more"))
        got = await receive()
        assert (got["type"], got["cause"], got["number"]) == ("pg.gap", "no more", 2)

    run(work, topic)


def test_a_layer_that_fails_is_said_once_and_followed_by_a_gap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The number goes on, so that a browser notices; when the layer works again it is told to fetch anew."""
    monkeypatch.setattr(sink_module, "_RETRY_AFTER", 0.01)

    async def work(sink: ChannelsSink, receive: Any) -> None:
        layer = get_channel_layer()
        real_send = layer.group_send
        left = iter([OSError("gone"), OSError("gone")])

        async def failing(group: str, sent: Any) -> None:
            if error := next(left, None):
                raise error
            await real_send(group, sent)

        monkeypatch.setattr(layer, "group_send", failing)
        sink.put([row("insert", 1)], 1)
        got = await receive()
        assert (got["type"], got["number"]) == ("pg.gap", 3)

    run(work, "shop.order")
    assert caplog.text.count("takes no message (OSError: gone)") == 1
    assert "works again" in caplog.text


def test_group_names_are_what_channels_takes() -> None:
    layer = get_channel_layer
    assert model_group("flights.Flight") == "pg.flights.flight"
    assert channel_group("app_events") == "pg.channel.app_events"
    odd = [channel_group(name) for name in ("Grüße: alle!", "x" * 63, "a b", "a-b", "a?b")] + [model_group("a" * 150)]
    assert len(set(odd)) == len(odd)
    for name in odd:
        assert (
            layer().require_valid_group_name(name) if hasattr(layer(), "require_valid_group_name") else len(name) < 100
        )


def test_a_project_without_a_layer_has_no_sink(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {}
    assert configured_sink() is None
    settings.CHANNEL_LAYERS = MEMORY
    assert configured_sink() is not None
    settings.PGSIGNALS = {"CHANNEL_LAYER": None}
    assert configured_sink() is None
