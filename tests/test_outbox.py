"""What waits for one client: bounded, and honest about what was dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pgsignals.live.outbox import LIMIT, MAX_ANSWERS, MAX_BYTES, Flooded, Frame, Outbox


def run(work: Callable[[Outbox], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work(Outbox())

    return asyncio.run(main())


def event(number: int, topic: str = "a.b", **more: Any) -> Frame:
    return Frame("event", topic, {"number": number, **more})


async def all_of(outbox: Outbox) -> list[tuple[str, str | None, Any]]:
    found = []
    while not outbox.is_empty():
        frame = await outbox.get()
        found.append((frame.type, frame.topic, frame.said.get("number", frame.said.get("cause"))))
    return found


def test_frames_come_in_order() -> None:
    async def work(outbox: Outbox) -> Any:
        outbox.put(event(1))
        outbox.put(Frame("gap", "a.c", {"cause": "c"}))
        outbox.put(event(2))
        return await all_of(outbox)

    assert run(work) == [("event", "a.b", 1), ("gap", "a.c", "c"), ("event", "a.b", 2)]


def test_what_is_too_much_becomes_one_gap_for_each_topic() -> None:
    """Answers stay, for they tell what else can be expected."""

    async def work(outbox: Outbox) -> Any:
        outbox.put(Frame("subscribed"))
        for number in range(LIMIT + 10):
            outbox.put(event(number, f"a.{number % 2}"))
        return await all_of(outbox)

    assert run(work) == [("subscribed", None, None), ("gap", "a.1", "too slow"), ("gap", "a.0", "too slow")]


def test_after_the_gap_events_are_told_again() -> None:
    async def work(outbox: Outbox) -> Any:
        for number in range(LIMIT + 1):
            outbox.put(event(number))
        first = await all_of(outbox)
        outbox.put(event(100))
        return first + await all_of(outbox)

    assert run(work) == [("gap", "a.b", "too slow"), ("event", "a.b", 100)]


def test_bytes_are_counted_too() -> None:
    async def work(outbox: Outbox) -> Any:
        outbox.put(event(1, text="x" * (MAX_BYTES - 1000)))
        outbox.put(event(2, "a.c", text="x" * 2000))
        return await all_of(outbox)

    assert run(work) == [("gap", "a.c", "too slow"), ("gap", "a.b", "too slow")]


def test_bytes_that_were_taken_are_free_again() -> None:
    async def work(outbox: Outbox) -> Any:
        found = []
        for number in range(10):
            outbox.put(event(number, text="x" * (MAX_BYTES - 1000)))
            found.append((await outbox.get()).type)
        return found

    assert run(work) == ["event"] * 10


def test_without_credit_nothing_is_given_until_there_is_some() -> None:
    async def work(outbox: Outbox) -> Any:
        outbox.give(1)
        outbox.put(event(1))
        outbox.put(event(2))
        first = await outbox.get()
        waiting = asyncio.ensure_future(outbox.get())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        outbox.give(1)
        return [first.said["number"], (await waiting).said["number"]]

    assert run(work) == [1, 2]


def test_what_waits_about_a_topic_that_is_refused_is_never_sent() -> None:
    async def work(outbox: Outbox) -> Any:
        outbox.put(event(1))
        outbox.put(event(2, "a.c"))
        outbox.forget("a.b")
        return await all_of(outbox)

    assert run(work) == [("event", "a.c", 2)]


def test_a_missed_topic_that_is_refused_has_no_gap() -> None:
    async def work(outbox: Outbox) -> Any:
        for number in range(LIMIT + 1):
            outbox.put(event(number))
        outbox.forget("a.b")
        return outbox.is_empty()

    assert run(work) is True


def test_who_asks_without_end_and_does_not_read_is_thrown_out() -> None:
    async def work(outbox: Outbox) -> None:
        for _ in range(MAX_ANSWERS):
            outbox.put(Frame("pong"))
        with pytest.raises(Flooded):
            outbox.put(Frame("pong"))

    run(work)


def test_a_waiting_get_that_is_given_up_loses_nothing() -> None:
    async def work(outbox: Outbox) -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await outbox.get()
        outbox.put(event(1))
        return await all_of(outbox)

    assert run(work) == [("event", "a.b", 1)]
