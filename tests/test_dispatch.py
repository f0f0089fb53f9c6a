"""How receivers are called, and that none of them harms another, the relay, or the next event."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connection, connections
from django.dispatch import Signal
from django.test import override_settings

from pgsignals import PgEvent, on_pg_event, on_pg_gap, publish
from pgsignals.dispatch.buffer import Buffer
from pgsignals.receivers import Registry
from pgsignals.signals import EventSignal, pg_event, receiver_failed, relay_gap
from pgsignals.sink import Gap

from .conftest import connect
from .making import made
from .relaying import WITHIN, Box, Running, only_receivers_of_this_test, relaying
from .shop.models import Customer, Order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with only_receivers_of_this_test() as registry:
        yield registry


@pytest.fixture
def connected() -> Iterator[Callable[..., None]]:
    """Connects to a signal for the time of the test."""
    made: list[tuple[Signal, Any, Any]] = []

    def connect_to(signal: Signal, receiver: Callable[..., Any], sender: Any = None) -> None:
        signal.connect(receiver, sender=sender, weak=False)
        made.append((signal, receiver, sender))

    yield connect_to
    for signal, receiver, sender in made:
        signal.disconnect(receiver, sender=sender)


@pytest.fixture
def failures(connected: Callable[..., None]) -> Box:
    """What receiver_failed says."""
    box = Box()
    connected(receiver_failed, lambda **said: box.put(said))
    return box


def test_sync_and_async_receivers_get_the_event_of_a_row() -> None:
    """Typed, with the row's instance within reach from both."""
    box = Box()

    @on_pg_event(Order, "insert")
    def plainly(event: PgEvent) -> None:
        box.put(("sync", event, event.instance()))

    @on_pg_event(Order, "insert")
    async def later(event: PgEvent) -> None:
        box.put(("async", event, await event.ainstance()))

    with relaying():
        order = Order.objects.create(status="new")
        arrived = box.wait(2)
    assert {kind for kind, _, _ in arrived} == {"sync", "async"}
    assert all(event.pk == order.pk and event.new["status"] == "new" for _, event, _ in arrived)
    assert all(instance == order for _, _, instance in arrived)


def test_events_come_in_the_order_of_commits() -> None:
    box = Box()
    on_pg_event("app_events")(lambda event: box.put(event.payload))
    with relaying():
        for number in range(200):
            publish("app_events", number)
        assert box.wait(200) == list(range(200))


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()]
)
def test_a_receiver_that_raises_is_reported_and_harms_nobody(
    kind: str, error: BaseException, failures: Box, caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback in the log, the signal, and the other receivers and later events as ever."""
    box = Box()

    def breaks(event: PgEvent) -> None:
        raise error

    async def breaks_later(event: PgEvent) -> None:
        raise error

    async def works_later(event: PgEvent) -> None:
        box.put(("async", event.payload))

    broken = breaks if kind == "sync" else breaks_later
    on_pg_event("app_events")(broken)
    on_pg_event("app_events")(lambda event: box.put(("sync", event.payload)))
    on_pg_event("app_events")(works_later)
    with relaying():
        publish("app_events", 1)
        publish("app_events", 2)
        assert set(box.wait(4)) == {("sync", 1), ("async", 1), ("sync", 2), ("async", 2)}
        said = failures.wait(2)[0]
    assert said["receiver"] is said["sender"] is broken
    assert type(said["exception"]) is type(error)
    assert said["event"].payload == 1
    record = next(record for record in caplog.records if "The receiver" in record.message)
    assert f".breaks{'' if kind == 'sync' else '_later'} raised {type(error).__name__} for <PgEvent" in record.message
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[2] is not None


def test_a_receiver_of_receiver_failed_that_raises_harms_nobody(connected: Callable[..., None]) -> None:
    box = Box()

    def breaks(**said: Any) -> None:
        raise SystemExit

    connected(receiver_failed, breaks)

    @on_pg_event("app_events")
    def fails(event: PgEvent) -> None:
        box.put(event.payload)
        raise ValueError

    with relaying():
        publish("app_events", 1)
        publish("app_events", 2)
        assert box.wait(2) == [1, 2]


def test_values_that_cannot_be_read_fail_the_receiver_that_reads_them_alone(failures: Box) -> None:
    """A forged event is still an event; whoever looks into it is told what it holds."""
    box = Box()

    @on_pg_event(Order)
    def reads(event: PgEvent) -> None:
        assert event.new
        event.new["total"]

    on_pg_event(Order)(lambda event: box.put(event.raw_pk))
    header = '{"v":1,"d":"d","s":"public","x":1,"t":0,"m":"shop.order","o":"i","n":1,'
    forged = header + '"f":["total"],"r":[["x",["no number"]]]}'
    with relaying(), connect() as writer:
        writer.execute("SELECT pg_notify('pgsignals', %s)", [forged])
        assert box.wait() == ["x"]
        assert "shop.order.total: the value 'no number'" in str(failures.wait()[0]["exception"])


# The signal pg_event.


def test_pg_event_is_sent_with_the_model_as_sender(connected: Callable[..., None]) -> None:
    box, all_of_them = Box(), Box()
    connected(pg_event, lambda **said: box.put(said), sender=Order)
    connected(pg_event, lambda **said: all_of_them.put(said["event"].label))
    with relaying():
        Customer.objects.create(name="a")
        order = Order.objects.create()
        said = box.wait()[0]
        assert all_of_them.wait(2) == ["shop.customer", "shop.order"]
    assert said["sender"] is Order
    assert said["signal"] is pg_event
    assert said["event"].pk == order.pk
    assert len(box.items) == 1


def test_pg_event_is_sent_with_the_channels_name_as_sender(connected: Callable[..., None]) -> None:
    """Equal names need not be one object, and Django compares objects."""
    box = Box()
    connected(pg_event, lambda **said: box.put((said["sender"], said["event"].payload)), sender="app_" + "events"[:])
    with relaying(channels=["app_events", "other"]):
        publish("other", 1)
        publish("app_events", 2)
        assert box.wait() == [("app_events", 2)]


def test_a_name_that_is_disconnected_hears_nothing_more() -> None:
    signal, heard = EventSignal(), []

    def hear(**said: Any) -> None:
        heard.append(said)

    signal.connect(hear, sender="".join(["app", "_events"]))
    assert signal.disconnect(hear, sender="".join(["app_", "events"]))
    signal.send(sender=signal.sender("app_events"))
    assert heard == []


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3)])
def test_a_receiver_of_pg_event_that_raises_is_reported_like_any(
    error: BaseException, connected: Callable[..., None], failures: Box
) -> None:
    box = Box()

    def breaks(**said: Any) -> None:
        raise error

    connected(pg_event, breaks)
    on_pg_event("app_events")(lambda event: box.put(event.payload))
    with relaying():
        publish("app_events", 1)
        publish("app_events", 2)
        assert box.wait(2) == [1, 2]
        assert failures.wait(2)[0]["exception"] is error


# The buffer.


def message(payload: int) -> PgEvent:
    return made(payload, op="message", channel="app_events")


def test_the_buffer_drops_the_oldest_and_says_how_many() -> None:
    buffer = Buffer("default", 1)
    for number in range(5):
        buffer.put([message(number), message(-number)], 400_000)
    gap, *kept = buffer.take()
    assert isinstance(gap, Gap)
    assert gap.cause == "overflow: 6 events waited longer than the buffer of receivers is big"
    assert gap.since <= gap.until
    assert [[event.payload for event in item] for item in kept if not isinstance(item, Gap)] == [[3, -3], [4, -4]]
    assert buffer.take() == []


def test_a_gap_that_gives_way_is_a_part_of_the_one_that_is_announced() -> None:
    """Of a reconnect, for example: an event as big as the buffer must not swallow it."""
    buffer = Buffer("default", 1)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    buffer.put(Gap("default", long_ago, long_ago, "the server was restarted"))
    buffer.put([message(1)], 5_000_000)
    gap, kept = buffer.take()
    assert isinstance(gap, Gap)
    assert (gap.since, gap.connected) == (long_ago, True)
    assert kept == [message(1)]


def test_an_overflow_began_when_the_oldest_that_was_dropped_arrived() -> None:
    buffer = Buffer("default", 1)
    before = datetime.now(UTC)
    buffer.put([message(1)], 900_000)
    after = datetime.now(UTC)
    buffer.put([message(2)], 900_000)
    buffer.put([message(3)], 900_000)
    gap, *_ = buffer.take()
    assert isinstance(gap, Gap)
    assert before <= gap.since <= after <= gap.until


def test_an_overflow_is_said_at_once_and_once(caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that hangs takes nothing any more."""
    buffer = Buffer("default", 1)
    for number in range(9):
        buffer.put([message(number)], 600_000)
    assert [record.getMessage() for record in caplog.records] == [
        "Receivers are too slow: the buffer is full, and its oldest events are dropped."
    ]


def test_gaps_that_wait_are_bounded_too() -> None:
    buffer = Buffer("default", 1)
    now = datetime.now(UTC)
    for _ in range(50_000):
        buffer.put(Gap("default", now, now, "an event of an unknown version", connected=False))
    assert len(buffer.take()) < 10_000


def test_what_cannot_even_be_reported_stops_no_receiver() -> None:
    """A callable whose repr() raises, and that raises."""
    box = Box()

    class Odd:
        def __call__(self, event: PgEvent) -> None:
            raise ZeroDivisionError

        def __repr__(self) -> str:
            raise ZeroDivisionError

    on_pg_event("app_events")(Odd())
    on_pg_event("app_events")(lambda event: box.put(event.payload))
    with relaying():
        publish("app_events", 1)
        publish("app_events", 2)
        assert box.wait(2) == [1, 2]


def test_the_buffer_keeps_one_item_however_big_it_is() -> None:
    buffer = Buffer("default", 1)
    buffer.put([message(1)], 5_000_000)
    assert buffer.take() == [[message(1)]]


def test_after_an_overflow_the_buffer_is_as_big_as_before() -> None:
    buffer = Buffer("default", 1)
    for number in range(9):
        buffer.put([message(number)], 600_000)
    buffer.take()
    buffer.put([message(1)], 400_000)
    buffer.put([message(2)], 400_000)
    assert buffer.take() == [[message(1)], [message(2)]]


def test_a_receiver_that_is_too_slow_gets_a_gap_and_the_latest(
    connected: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else waits for it: the relay goes on reading, and the asynchronous receivers with it."""
    box, later, gaps = Box(), Box(), Box()
    entered, go_on = threading.Event(), threading.Event()
    connected(relay_gap, lambda **said: gaps.put(said))

    @on_pg_event("app_events")
    def slow(event: PgEvent) -> None:
        entered.set()
        assert go_on.wait(WITHIN)
        box.put(event.payload["number"])

    @on_pg_event("app_events")
    async def quick(event: PgEvent) -> None:
        later.put(event.payload["number"])

    with override_settings(PGSIGNALS={"BUFFER": 1}), relaying():
        publish("app_events", {"number": 0})
        assert entered.wait(WITHIN)
        for number in range(1, 301):
            publish("app_events", {"number": number, "padding": "x" * 7000})
        later.wait_for(lambda number: number == 300)
        go_on.set()
        box.wait_for(lambda number: number == 300)
        gap = gaps.wait()[0]
    assert 0 < len(box.items) < 200
    assert box.items == [0, *range(301 - len(box.items) + 1, 301)]
    dropped = 301 - len(box.items)
    assert gap["cause"].startswith(f"overflow: {dropped} events")
    assert gap["database"] == gap["sender"] == "default"
    assert any("Events were dropped" in record.message for record in caplog.records)
    assert len(later.items) == 301


# Hung receivers, connections, the end.


def test_a_hung_sync_receiver_stops_neither_another_sink_nor_the_reconnect() -> None:
    entered, go_on = threading.Event(), threading.Event()

    @on_pg_event("app_events")
    def hangs(event: PgEvent) -> None:
        entered.set()
        assert go_on.wait(WITHIN)

    later = Box()

    @on_pg_event("app_events")
    async def works(event: PgEvent) -> None:
        later.put(event.payload)

    with relaying() as running:
        try:
            publish("app_events", 1)
            assert entered.wait(WITHIN)
            running.cut()
            running.tap.gaps.wait(2)
            publish("app_events", 2)
            running.tap.events.wait(2)
            assert later.wait(2) == [1, 2]
        finally:
            go_on.set()


def test_a_hung_async_receiver_stops_neither_sync_ones_nor_the_reconnect() -> None:
    entered, go_on = Box(), asyncio.Event()
    plainly = Box()

    @on_pg_event("app_events")
    async def hangs(event: PgEvent) -> None:
        entered.put(asyncio.get_running_loop())
        await go_on.wait()

    on_pg_event("app_events")(lambda event: plainly.put(event.payload))
    with relaying() as running:
        publish("app_events", 1)
        loop = entered.wait()[0]
        try:
            running.cut()
            running.tap.gaps.wait(2)
            publish("app_events", 2)
            assert plainly.wait(2) == [1, 2]
        finally:
            loop.call_soon_threadsafe(go_on.set)


@pytest.fixture
def _kept_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections stay open from event to event; by default each batch of events has a new one."""
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)


def my_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def close_in_djangos_thread(running: Running) -> None:
    """That of asynchronous code, which tests that follow use too."""
    assert running.relay._loop is not None
    closing = sync_to_async(connections.close_all)()
    asyncio.run_coroutine_threadsafe(closing, running.relay._loop).result(WITHIN)


@pytest.mark.usefixtures("_kept_connections")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_connection_that_died_under_a_receiver_is_not_handed_to_the_next(kind: str, failures: Box) -> None:
    """As around requests: Django's connections are looked after between events."""
    box = Box()

    def queries(event: PgEvent) -> None:
        box.put((event.payload, my_pid()))

    on_pg_event("app_events")(queries if kind == "sync" else sync_to_async(queries))
    with relaying() as running, connect() as other:
        publish("app_events", 1)
        publish("app_events", 2)
        (_, pid), (_, same) = box.wait(2)
        assert pid == same
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        publish("app_events", 3)
        assert isinstance(failures.wait()[0]["exception"], OperationalError)
        publish("app_events", 4)
        assert [payload for payload, _ in box.wait(3)] == [1, 2, 4]
        close_in_djangos_thread(running)


@pytest.mark.usefixtures("_kept_connections")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_receiver_of_a_gap_does_not_get_a_connection_that_was_lost_with_the_relays(kind: str, failures: Box) -> None:
    """It makes anew what it knows, just when the server was started anew."""
    pids, gaps = Box(), Box()

    def queries(event: PgEvent) -> None:
        pids.put(my_pid())

    def makes_anew(gap: Gap) -> None:
        gaps.put(my_pid())

    on_pg_event("app_events")(queries if kind == "sync" else sync_to_async(queries))
    on_pg_gap(makes_anew if kind == "sync" else sync_to_async(makes_anew))
    with relaying() as running, connect() as other:
        publish("app_events", 1)
        (pid,) = pids.wait()
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        running.cut()
        assert gaps.wait() != [pid]
        close_in_djangos_thread(running)
    assert failures.items == []


def test_a_dead_connection_harms_no_later_event_of_the_same_notification(failures: Box) -> None:
    """The rows of one statement travel together, and each has its own chance."""
    box = Box()

    @on_pg_event(Order, "insert")
    def queries(event: PgEvent) -> None:
        if event.pk == 1:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        box.put(event.instance())

    with relaying():
        Order.objects.bulk_create([Order(pk=1), Order(pk=2)])
        assert box.wait() == [Order(pk=2)]
        assert failures.wait()[0]["event"].pk == 1


def test_a_transaction_that_a_receiver_left_open_is_not_the_next_ones() -> None:
    """Autocommit is back for the next event: what it writes is there at once."""
    box = Box()

    @on_pg_event("app_events")
    def leaves_open(event: PgEvent) -> None:
        box.put(connection.get_autocommit())
        connection.set_autocommit(False)

    with relaying():
        publish("app_events", 1)
        box.wait(1)
        publish("app_events", 2)
        assert box.wait(2) == [True, True]


def release_when_it_stops(running: Running, go_on: threading.Event) -> None:
    """The receivers' sink wakes its thread when it has been told to stop; at that moment the receiver may go on."""
    threaded = running.relay.sinks[0].threaded  # type: ignore[attr-defined]
    wake = threaded.wake

    def wake_and_release() -> None:
        wake()
        if threaded._stopping:  # and not for an event that came a moment ago
            go_on.set()

    threaded.wake = wake_and_release


def test_the_end_waits_for_the_running_receiver_and_drops_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    entered, go_on, done = threading.Event(), threading.Event(), Box()

    @on_pg_event("app_events")
    def slow(event: PgEvent) -> None:
        entered.set()
        assert go_on.wait(WITHIN)
        done.put(event.payload)

    with relaying() as running:
        publish("app_events", 1)
        assert entered.wait(WITHIN)
        publish("app_events", 2)
        publish("app_events", 3)
        running.tap.events.wait(3)
        release_when_it_stops(running, go_on)
        running.stop()
    assert done.items == [1]
    assert any("Stopped with 2 events" in record.message for record in caplog.records)


@pytest.mark.usefixtures("_kept_connections")
def test_the_end_closes_the_receivers_database_connections() -> None:
    box = Box()

    @on_pg_event("app_events")
    def queries(event: PgEvent) -> None:
        my_pid()
        box.put(connections["default"])

    with relaying():
        publish("app_events", 1)
        (used,) = box.wait()
        assert used.connection is not None
    assert used.connection is None
