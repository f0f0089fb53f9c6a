"""How calls are made: in lists, with timeouts, side by side, counted, watched, and tidied up after."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from pgsignals import PgEvent, on_pg_event, on_pg_gap, publish
from pgsignals.dispatch import ReceiversSink
from pgsignals.dispatch.buffer import Buffer
from pgsignals.dispatch.looped import Looped
from pgsignals.dispatch.threaded import Threaded
from pgsignals.event import Source, Statement
from pgsignals.receivers import Condition, Options, Receiver, Registry, name_of
from pgsignals.signals import pg_event, receiver_failed
from pgsignals.sink import Gap

from .relaying import WITHIN, Box, only_receivers_of_this_test, relaying
from .servers import ROOT
from .shop.models import Order
from .waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


MESSAGES = Source(op="message", channel="app_events", database="default")


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with only_receivers_of_this_test() as registry:
        yield registry


@pytest.fixture
def failures() -> Iterator[Box]:
    """What receiver_failed says."""
    box = Box()

    def heard(**said: Any) -> None:
        box.put(said)

    receiver_failed.connect(heard)
    yield box
    receiver_failed.disconnect(heard)


def receiver_of(registry: Registry, function: Callable[..., Any]) -> Receiver:
    return next(one for one in registry if one.function is function)


# Lists.


@pytest.mark.parametrize("is_async", [False, True])
def test_a_batch_receiver_gets_lists_in_order_no_longer_than_the_setting(is_async: bool) -> None:
    box = Box()

    def take(events: list[PgEvent]) -> None:
        box.put([event.raw_pk for event in events])

    async def take_later(events: list[PgEvent]) -> None:
        take(events)

    on_pg_event(Order, "insert", batch=True)(take_later if is_async else take)
    with override_settings(PGSIGNALS={"BATCH": 40}), relaying():
        made = Order.objects.bulk_create([Order() for _ in range(100)])
        box.wait_for(lambda keys: keys[-1] == made[-1].pk)
    assert [len(keys) for keys in box.items] == [40, 40, 20]
    assert [key for keys in box.items for key in keys] == [order.pk for order in made]


def test_the_instances_of_a_batch_cost_one_query_together() -> None:
    box = Box()

    @on_pg_event(Order, "insert", batch=True)
    def take(events: list[PgEvent]) -> None:
        with CaptureQueriesContext(connection) as queries:
            found = [event.instance() for event in events]
        box.put((found, len(queries)))

    with relaying():
        made = Order.objects.bulk_create([Order(status=str(number)) for number in range(50)])
        found, queries = box.wait()[0]
    assert found == made
    assert queries == 1


# Timeouts.


def test_a_sync_receiver_that_takes_too_long_is_left_behind_and_the_next_event_is_handled(
    registry: Registry, failures: Box
) -> None:
    box, go_on = Box(), threading.Event()

    @on_pg_event("app_events", timeout=0.3)
    def hangs_at_first(event: PgEvent) -> None:
        if event.payload == 1:
            go_on.wait(WITHIN)
        box.put((event.payload, threading.get_ident()))

    try:
        with relaying():
            with transaction.atomic():  # so that they come together
                publish("app_events", 1)
                publish("app_events", 2)
            (second, its_thread) = box.wait()[0]
            said = failures.wait()[0]
            go_on.set()
            (first, other_thread) = box.wait(2)[1]
            counts = receiver_of(registry, hangs_at_first).counts
    finally:
        go_on.set()
    assert (second, first) == (2, 1)
    assert its_thread != other_thread
    assert isinstance(said["exception"], TimeoutError)
    assert said["event"].payload == 1
    assert (counts.calls, counts.failures) == (2, 1)


def test_an_async_receiver_that_takes_too_long_is_cancelled(registry: Registry, failures: Box) -> None:
    box = Box()

    @on_pg_event("app_events", timeout=0.2)
    async def hangs_at_first(event: PgEvent) -> None:
        try:
            if event.payload == 1:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            box.put("cancelled")
            raise
        box.put(event.payload)

    with relaying():
        publish("app_events", 1)
        publish("app_events", 2)
        assert sorted(map(str, box.wait(2))) == ["2", "cancelled"]
        assert isinstance(failures.wait()[0]["exception"], TimeoutError)
        assert receiver_of(registry, hangs_at_first).counts.failures == 1


# Side by side.


def test_async_receivers_run_side_by_side_and_no_more_than_the_setting() -> None:
    running, most, done = 0, Box(), Box()

    @on_pg_event("app_events")
    async def waits(event: PgEvent) -> None:
        nonlocal running
        running += 1
        most.put(running)
        # Until as many run as may, or those that are left.
        end = time.monotonic() + 0.3
        while running < 4 and time.monotonic() < end:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        running -= 1
        done.put(event.payload)

    with override_settings(PGSIGNALS={"CONCURRENCY": 4}), relaying():
        for number in range(12):
            publish("app_events", number)
        assert sorted(done.wait(12)) == list(range(12))
    assert max(most.items) == 4


def test_one_async_receiver_that_waits_does_not_hold_up_the_others() -> None:
    box, release = Box(), threading.Event()

    @on_pg_event("app_events")
    async def waits_for_the_first(event: PgEvent) -> None:
        while event.payload == 0 and not release.is_set():
            await asyncio.sleep(0.005)
        box.put(event.payload)

    with relaying():
        for number in range(5):
            publish("app_events", number)
        assert sorted(box.wait(4)) == [1, 2, 3, 4]
        release.set()
        assert box.wait(5)[4] == 0


def test_an_event_that_comes_by_itself_is_handled_while_the_one_before_it_still_waits() -> None:
    """Each is alone when it comes: nothing then has another task look for more."""
    begun, box, release = Box(), Box(), threading.Event()

    @on_pg_event("app_events")
    async def waits_for_the_second(event: PgEvent) -> None:
        begun.put(event.payload)
        while event.payload == 2 and not release.is_set():
            await asyncio.sleep(0.005)
        box.put(event.payload)

    with relaying():
        for number in range(6):
            publish("app_events", number)
            begun.wait(number + 1)
        assert box.wait(5) == [0, 1, 3, 4, 5]
        release.set()
        assert box.wait(6)[5] == 2


# What is counted, and said.


def test_calls_events_failures_and_time_are_counted(registry: Registry) -> None:
    box = Box()

    @on_pg_event(Order, "insert")
    def each(event: PgEvent) -> None:
        box.put(event)
        if len(box.items) == 2:
            raise ValueError("as staged")

    @on_pg_event(Order, "insert", batch=True)
    def together(events: list[PgEvent]) -> None:
        time.sleep(0.05)

    one, other = receiver_of(registry, each), receiver_of(registry, together)
    began = time.monotonic()
    with relaying():
        Order.objects.bulk_create([Order() for _ in range(5)])
        until(lambda: (one.counts.calls, other.counts.calls), lambda calls: calls == (5, 1))
    assert (one.counts.events, one.counts.failures) == (5, 1)
    assert (other.counts.events, other.counts.failures) == (5, 0)
    assert 0 < one.counts.seconds < time.monotonic() - began
    assert 0.05 <= other.counts.seconds < time.monotonic() - began


@pytest.mark.parametrize("is_async", [False, True])
def test_a_slow_receiver_is_named_while_it_runs_and_once(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    box, go_on = Box(), threading.Event()

    def said() -> list[str]:
        return [one.getMessage() for one in caplog.records if "slowly" in one.getMessage()]

    def slowly(event: PgEvent) -> None:
        go_on.wait(WITHIN)
        box.put(event)

    async def slowly_too(event: PgEvent) -> None:
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        box.put(event)

    on_pg_event("app_events")(slowly_too if is_async else slowly)
    with override_settings(PGSIGNALS={"SLOW_RECEIVER": 0.1}), caplog.at_level(logging.WARNING), relaying():
        publish("app_events", 1)
        until(said)
        go_on.set()
        box.wait()
        publish("app_events", 2)
        box.wait(2)
    (only,) = said()
    assert "has been running for" in only
    assert "test_calling.py" in only


def test_a_call_that_was_slow_is_said_when_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    box = Box()

    @on_pg_event("app_events")
    def slowly(event: PgEvent) -> None:
        time.sleep(0.05)
        box.put(event)

    # Shorter than the time between two looks at what runs.
    with override_settings(PGSIGNALS={"SLOW_RECEIVER": 0.01}), caplog.at_level(logging.WARNING), relaying():
        publish("app_events", 1)
        box.wait()
        until(lambda: [one for one in caplog.records if "slowly" in one.getMessage()])


# What a receiver leaves behind.


def leaves_atomic() -> None:
    transaction.atomic().__enter__()
    Order.objects.create(status="left behind")


def leaves_autocommit_off() -> None:
    connection.set_autocommit(False)
    Order.objects.create(status="left behind")


def leaves_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    Order.objects.create(status="left behind")


@pytest.mark.parametrize("leave", [leaves_atomic, leaves_autocommit_off, leaves_begin])
def test_a_transaction_left_open_is_rolled_back_said_and_not_the_next_ones(
    leave: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    box = Box()

    @on_pg_event("app_events")
    def leaves(event: PgEvent) -> None:
        leave()

    @on_pg_event("app_events")
    def next_one(event: PgEvent) -> None:
        box.put((connection.in_atomic_block, connection.get_autocommit(), Order.objects.count()))
        Order.objects.create(status="kept")

    with relaying():
        publish("app_events", 1)
        assert box.wait() == [(False, True, 0)]
        until(lambda: list(Order.objects.values_list("status", flat=True)), lambda found: found == ["kept"])
    assert any("left a transaction open" in one.getMessage() for one in caplog.records)


# Gaps.


@pytest.mark.parametrize("is_async", [False, True])
def test_a_gap_reaches_its_receivers_although_no_event_follows(is_async: bool) -> None:
    box = Box()

    def missed(gap: Gap) -> None:
        box.put(gap)

    async def missed_later(gap: Gap) -> None:
        box.put(gap)

    on_pg_gap(missed_later if is_async else missed)
    with relaying() as running:
        running.cut()
        gap = box.wait()[0]
    assert gap.database == "default"
    assert gap.since < gap.until
    assert "terminating connection" in gap.cause
    assert len(box.items) == 1


def test_only_receivers_that_want_it_hear_of_the_start() -> None:
    box = Box()
    on_pg_gap(start=True)(lambda gap: box.put(("wants it", gap.cause)))
    on_pg_gap(lambda gap: box.put(("does not", gap.cause)))
    with relaying() as running:
        assert box.wait() == [("wants it", "start")]
        running.cut()
        box.wait(3)
    assert [name for name, _ in box.items] == ["wants it", "wants it", "does not"]


def test_events_and_the_gap_among_them_keep_their_order() -> None:
    box = Box()
    on_pg_event("app_events")(lambda event: box.put(event.payload))
    on_pg_gap(lambda gap: box.put("gap"))
    with relaying() as running:
        publish("app_events", 1)
        box.wait()
        running.cut()
        box.wait(2)
        publish("app_events", 2)
        assert box.wait(3) == [1, "gap", 2]


@pytest.mark.parametrize("is_async", [False, True])
def test_whether_they_come_alone_together_or_beside_gaps_none_is_lost_doubled_or_out_of_order(is_async: bool) -> None:
    """An event that comes alone goes another way than those that come with others, or while something waits."""
    box, dice = Box(), random.Random(os.getpid())
    put, handed = [], Counter()

    def take(event: PgEvent) -> None:
        box.put(event.payload)
        if event.payload % 37 == 0:
            time.sleep(0.003)

    async def take_later(event: PgEvent) -> None:
        take(event)

    on_pg_event("app_events")(take_later if is_async else take)
    if not is_async:
        on_pg_gap(lambda gap: box.put(gap.cause))
    sink = ReceiversSink("default")
    kind = sink.looped if is_async else sink.threaded

    def counting(event: PgEvent) -> bool:
        was_taken = type(kind).hand(kind, event)
        handed[event.payload] += was_taken
        return was_taken

    kind.hand = counting  # type: ignore[method-assign]

    async def put_all() -> None:
        await sink.start()
        for step in range(1500):
            if dice.random() < 0.1 and not is_async:
                put.append(f"gap {step}")
                sink.gap(Gap("default", datetime.now(UTC), datetime.now(UTC), put[-1], connected=False))
            numbers = [step * 10 + one for one in range(dice.choice([1, 1, 1, 1, 3]))]
            put.extend(numbers)
            sink.put([PgEvent(MESSAGES, Statement(), number) for number in numbers], 10)
            await asyncio.sleep(dice.choice([0, 0, 0.0003, 0.001, 0.002]))
        while len(box.items) < len(put):
            await asyncio.sleep(0.001)
        while sink.waiting() != (0, 0.0):
            await asyncio.sleep(0.001)
        await sink.stop()

    asyncio.run(asyncio.wait_for(put_all(), WITHIN))
    assert box.items == put, f"with the seed {os.getpid()}"
    assert 100 < handed.total() < len(put) - 100


def test_in_web_processes_only_those_for_everywhere_are_called(registry: Registry) -> None:
    box = Box()
    on_pg_event("app_events")(lambda event: box.put("event, listen alone"))
    on_pg_event("app_events", everywhere=True)(lambda event: box.put("event, everywhere"))
    on_pg_gap(lambda gap: box.put("gap, listen alone"))
    on_pg_gap(everywhere=True)(lambda gap: box.put("gap, everywhere"))
    sink = ReceiversSink("default", registry, "everywhere")
    with relaying(sinks=[sink], receivers=False) as running:
        running.cut()
        running.tap.gaps.wait(2)
        publish("app_events", 1)
        box.wait_for(lambda one: one == "event, everywhere")
    assert box.items == ["gap, everywhere", "event, everywhere"]


# Who is called.


def test_a_receiver_that_is_registered_later_is_called_from_then_on() -> None:
    box = Box()
    with relaying(channels=["app_events"]):
        on_pg_event("app_events")(lambda event: box.put(("first", event.payload)))
        publish("app_events", 1)
        box.wait()
        on_pg_event("app_events")(lambda event: box.put(("later", event.payload)))
        publish("app_events", 2)
        assert box.wait(3) == [("first", 1), ("first", 2), ("later", 2)]


def test_the_signal_may_be_connected_later() -> None:
    box = Box()

    def heard(event: PgEvent, **_: Any) -> None:
        box.put(event.payload)

    with relaying(channels=["app_events"]) as running:
        publish("app_events", 1)
        running.tap.events.wait()
        pg_event.connect(heard)
        try:
            publish("app_events", 2)
            assert box.wait() == [2]
        finally:
            pg_event.disconnect(heard)


def test_what_one_relay_alone_may_do_is_done_by_one_and_then_by_the_other(registry: Registry) -> None:
    boxes = Box(), Box()
    other = Registry()
    condition, options = Condition(None, "app_events", ("message",)), Options(once=True)

    def handle(box: Box, event: PgEvent) -> None:
        box.put(event.payload)

    gaps = Box()
    on_pg_gap(gaps.put)
    # The same name, so the same duty, in what stand for two processes.
    registry.add(functools.partial(handle, boxes[0]), condition, options)
    other.add(functools.partial(handle, boxes[1]), condition, options)
    others = relaying(channels=["app_events"], sinks=[ReceiversSink("default", other)], receivers=False)
    with others as second, relaying():
        publish("app_events", 1)
        boxes[1].wait()
        second.tap.events.wait()
        assert boxes[0].items == gaps.items == []
        ends = datetime.now(UTC)
        second.stop()
        # What came meanwhile nobody was called with.
        gap = gaps.wait()[0]
        assert gap.since < ends < gap.until
        assert re.fullmatch(r"another relay called these receivers until now: .*handle", gap.cause)
        until(lambda: (publish("app_events", 2), boxes[0].items)[1])
    assert len(gaps.items) == 1
    assert boxes[1].items == [1]
    assert set(boxes[0].items) == {2}


class Handler:
    def __call__(self, event: PgEvent) -> None:
        """An object that can be called."""

    def handle(self, event: PgEvent) -> None:
        """A method of it."""


PARTIAL = functools.partial(Handler(), event=None)
METHOD = Handler().handle


def test_a_receivers_name_is_the_same_in_every_process() -> None:
    """Whatever kind of callable it is: what one relay alone may do goes by it."""
    assert name_of(PARTIAL) == "partial of tests.test_calling.Handler"
    assert name_of(METHOD) == "tests.test_calling.Handler.handle"
    said = "from tests import test_calling as t; print([t.name_of(one) for one in (t.PARTIAL, t.METHOD)])"
    command = [sys.executable, "-c", f"import django; django.setup(); {said}"]
    environment = {"DJANGO_SETTINGS_MODULE": "tests.settings", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == repr([name_of(PARTIAL), name_of(METHOD)])


# What waits, and the end.


def test_what_waits_is_known_while_a_receiver_hangs() -> None:
    entered, go_on = threading.Event(), threading.Event()

    @on_pg_event("app_events")
    def hangs(event: PgEvent) -> None:
        entered.set()
        go_on.wait(WITHIN)

    try:
        with relaying() as running:
            publish("app_events", 0)
            assert entered.wait(WITHIN)
            for number in range(1, 8):
                publish("app_events", number)
            until(running.relay.waiting, lambda found: found[0] == 7 and found[1] > 0.05)
            go_on.set()
            until(running.relay.waiting, lambda found: found == (0, 0.0))
    finally:
        go_on.set()


def test_the_end_in_the_middle_of_a_run_drops_the_rest_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    box = Box()
    with relaying() as running:

        @on_pg_event(Order, "insert")
        def stops(event: PgEvent) -> None:
            box.put(event)
            running.relay.stop()
            time.sleep(0.05)

        Order.objects.bulk_create([Order() for _ in range(100)])
        box.wait()
    assert len(box.items) < 100
    left = 100 - len(box.items)
    assert any(f"Stopped with {left} events" in one.getMessage() for one in caplog.records)


# When it is not a receiver that fails.


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_that_is_no_receivers_is_a_gap_and_later_events_are_handled(
    is_async: bool, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread or a task that ended would leave the receivers deaf, and nobody would know."""
    box, gaps, matching = Box(), Box(), registry.matching
    on_pg_gap(gaps.put)

    def take(event: PgEvent) -> None:
        box.put(event.payload)

    async def take_later(event: PgEvent) -> None:
        take(event)

    def fails_at_first(event: PgEvent) -> list[Receiver]:
        if event.payload < 4:
            raise RuntimeError("as staged")
        return matching(event)

    on_pg_event("app_events")(take_later if is_async else take)
    monkeypatch.setattr(registry, "matching", fails_at_first)
    with override_settings(PGSIGNALS={"CONCURRENCY": 2}), relaying():
        for number in range(1, 4):
            publish("app_events", number)
            gaps.wait(number)
        publish("app_events", 4)
        assert box.wait() == [4]
    assert {gap.cause for gap in gaps.items} == {"receivers could not be called: RuntimeError"}
    assert all(gap.since <= gap.until and not gap.connected for gap in gaps.items)
    assert "Calling receivers failed, and goes on" in caplog.text


@pytest.mark.parametrize("is_async", [False, True])
def test_such_an_error_with_an_event_that_came_alone_is_a_gap_as_well(
    is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of a kind goes past the buffer."""
    box, gaps = Box(), Box()
    on_pg_gap(gaps.put)

    def take(event: PgEvent) -> None:
        box.put(event.payload)

    async def take_later(event: PgEvent) -> None:
        take(event)

    def fails(*arguments: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("as staged")

    on_pg_event("app_events")(take_later if is_async else take)
    with relaying():
        publish("app_events", 1)
        box.wait(1)
        began = datetime.now(UTC)
        monkeypatch.setattr(*((Looped, "_work_off") if is_async else (Threaded, "_call_each")), fails)
        publish("app_events", 2)
        (gap,) = gaps.wait()
        publish("app_events", 3)
        assert box.wait(2) == [1, 3]
    assert began - timedelta(seconds=1) < gap.since <= gap.until


def test_what_arrives_while_the_thread_looks_whether_anything_waits_is_in_the_gap_of_such_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box, gaps, looks, go_on = Box(), Box(), threading.Event(), threading.Event()
    on_pg_event("app_events")(lambda event: box.put(event.payload))
    on_pg_gap(gaps.put)
    sink = ReceiversSink("default")
    take, call_each = Buffer.take, Threaded._call_each

    def takes_later(buffer: Buffer) -> list[Any]:
        if len(box.items) == 2 and not looks.is_set():
            looks.set()
            go_on.wait(WITHIN)
        return take(buffer)

    def fails_once(threaded: Threaded, receiver: Receiver, run: Any) -> None:
        if looks.is_set():
            monkeypatch.undo()
            raise RuntimeError("as staged")
        call_each(threaded, receiver, run)

    monkeypatch.setattr(Buffer, "take", takes_later)
    monkeypatch.setattr(Threaded, "_call_each", fails_once)

    async def put_all() -> None:
        await sink.start()
        for number in range(2):
            while not sink.threaded._idle:
                await asyncio.sleep(0.001)
            sink._woken = 0.0  # as if the last one was long ago
            sink.put([PgEvent(MESSAGES, Statement(), number)], 1)
            await asyncio.to_thread(box.wait, number + 1)
        assert await asyncio.to_thread(looks.wait, WITHIN)
        sink.put([PgEvent(MESSAGES, Statement(), 2)], 1)
        go_on.set()
        await asyncio.to_thread(gaps.wait)
        await sink.stop()

    asyncio.run(put_all())
    assert box.items == [0, 1]
    assert [gap.cause for gap in gaps.items] == ["receivers could not be called: RuntimeError"]


def test_an_event_that_was_handed_to_one_task_outlives_such_an_error_in_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box, ended = Box(), Looped._ended

    async def fails(looped: Looped, receiver: Receiver, argument: Any, *more: Any) -> None:
        if getattr(argument, "payload", None) == 1:
            raise RuntimeError("as staged")
        await ended(looped, receiver, argument, *more)

    monkeypatch.setattr(Looped, "_ended", fails)

    async def put_all() -> None:
        sink, may_end = ReceiversSink("default"), asyncio.get_running_loop().create_future()

        async def take(event: PgEvent) -> None:
            box.put(event.payload)
            if event.payload == 1:
                await may_end

        on_pg_event("app_events")(take)
        await sink.start()
        for number in range(3):
            sink.put([PgEvent(MESSAGES, Statement(), number)], 1)
            await asyncio.to_thread(box.wait, number + 1)
        while not sink.looped._idle or sink.looped._runs is not None:
            await asyncio.sleep(0.001)
        # The second event's task is to go on first, and then the one that the fourth is handed to.
        may_end.set_result(None)
        sink.put([PgEvent(MESSAGES, Statement(), 3)], 1)
        assert sink.looped.feed.handed
        await asyncio.to_thread(box.wait, 4)
        await sink.stop()

    asyncio.run(put_all())
    assert box.items == [0, 1, 2, 3]


def test_where_the_system_gives_no_thread_it_is_tried_until_it_does(
    failures: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For the one that goes on where a receiver was left behind."""
    box, go_on, new_thread = Box(), threading.Event(), Threaded._new_thread
    refusals = iter(range(2))

    def scarce(self: Threaded) -> threading.Thread:
        thread = new_thread(self)
        start = thread.start

        def start_or_not() -> None:
            if next(refusals, None) is not None:
                raise RuntimeError("can't start new thread")
            start()

        monkeypatch.setattr(thread, "start", start_or_not)
        return thread

    @on_pg_event("app_events", timeout=0.1)
    def hangs_at_first(event: PgEvent) -> None:
        if event.payload == 1:
            go_on.wait(WITHIN)
        box.put(event.payload)

    try:
        with relaying():
            monkeypatch.setattr(Threaded, "_new_thread", scarce)
            publish("app_events", 1)
            publish("app_events", 2)
            assert box.wait() == [2]
            assert failures.wait()[0]["event"].payload == 1
            go_on.set()
    finally:
        go_on.set()
    assert caplog.text.count("The system gives no thread for receivers (can't start new thread)") == 2


def test_what_fails_to_watch_receivers_watches_them_again(failures: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, go_on, watch = iter(range(2)), threading.Event(), Threaded.watch

    def fails_at_first(self: Threaded) -> None:
        if next(failing, None) is not None:
            raise RuntimeError("as staged")
        watch(self)

    @on_pg_event("app_events", timeout=0.1)
    def hangs(event: PgEvent) -> None:
        go_on.wait(WITHIN)

    monkeypatch.setattr(Threaded, "watch", fails_at_first)
    try:
        with relaying():
            publish("app_events", 1)
            assert isinstance(failures.wait()[0]["exception"], TimeoutError)
            go_on.set()
    finally:
        go_on.set()


def test_a_query_that_hangs_in_djangos_thread_holds_up_nobody_who_needs_none(failures: Box) -> None:
    """Connections are looked after in that thread, after receivers that failed and when there is nothing to do."""
    box, go_on = Box(), threading.Event()

    @on_pg_event("hang", timeout=0.1)
    async def hangs(event: PgEvent) -> None:
        await sync_to_async(go_on.wait)(2 * WITHIN)

    @on_pg_event("app_events")
    async def take(event: PgEvent) -> None:
        box.put(event.payload)
        await asyncio.sleep(0.001)  # long enough to have used the database
        if event.payload % 2:
            raise RuntimeError("as staged")

    try:
        with override_settings(PGSIGNALS={"CONCURRENCY": 2}), relaying():
            publish("hang", 0)
            assert isinstance(failures.wait()[0]["exception"], TimeoutError)
            for number in range(1, 6):
                publish("app_events", number)
                box.wait(number)
            go_on.set()
    finally:
        go_on.set()
    assert box.items == [1, 2, 3, 4, 5]
