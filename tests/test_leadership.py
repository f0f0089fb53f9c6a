"""What one relay alone may do is done by one, whatever happens to it."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from channels_redis.core import RedisChannelLayer
from django.db import connection
from django.test import override_settings

from pgsignals import on_pg_event, publish
from pgsignals.listening.leadership import CLASS
from pgsignals.live.topics import group_of, model_topic

from .conftest import connect
from .relaying import WITHIN, Box, only_receivers_of_this_test, relaying
from .servers import redis_server
from .shop.models import Order
from .test_listen import LISTENS, Command, Start, start
from .waiting import until

__all__ = ["start"]

pytestmark = pytest.mark.django_db(transaction=True)

LEADS = "This relay alone has now: call the receiver tests.listeners.receivers.once"


def holders() -> list[int]:
    """The server's processes that have a duty."""
    with connect() as other:
        query = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s AND granted"
        return [pid for (pid,) in other.execute(query, [CLASS]).fetchall()]


def handled(command: Command) -> list[int]:
    found = [re.fullmatch(r"once (\d+)", line) for line in list(command.err.items)]
    return [int(one[1]) for one in found if one]


class Numbers:
    """Sends the next number every few milliseconds."""

    def __init__(self) -> None:
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with connect() as writer:
            while not self._stop.wait(0.005):
                self.sent += 1
                writer.execute("SELECT pg_notify('app_events', %s)", [str(self.sent)])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def numbers() -> Iterator[Numbers]:
    sending = Numbers()
    yield sending
    sending.stop()


def leader_and_other(start: Start) -> tuple[Command, Command]:
    leader = start("listen", "--no-channels", receivers="once")
    leader.says(LEADS)
    other = start("listen", "--no-channels", receivers="once")
    other.says(LISTENS)
    return leader, other


def test_when_the_leader_is_killed_the_other_takes_over_within_three_seconds(start: Start, numbers: Numbers) -> None:
    leader, other = leader_and_other(start)
    until(lambda: handled(leader))
    assert len(holders()) == 1
    assert handled(other) == []
    leader.send(signal.SIGKILL)
    killed = time.monotonic()
    assert leader.process.wait(10) == -signal.SIGKILL
    other.says(LEADS)
    until(lambda: handled(other))
    seconds = time.monotonic() - killed
    numbers.stop()
    until(lambda: numbers.sent in handled(other))
    leader.ended()
    assert seconds < 3
    assert len(holders()) == 1
    # Never two at once: nothing was handled by both, and nothing twice by one.
    both = [*handled(leader), *handled(other)]
    assert len(both) == len(set(both))
    # What was missed lies between the two, and is announced.
    other.says("gap: another relay called these receivers until now: tests.listeners.receivers.once")
    last, first = max(handled(leader)), min(handled(other))
    assert handled(other) == list(range(first, numbers.sent + 1))
    assert last < first


def test_a_leader_that_ends_in_order_leaves_its_duty_at_once(start: Start, numbers: Numbers) -> None:
    leader, other = leader_and_other(start)
    until(lambda: handled(leader))
    leader.send(signal.SIGTERM)
    assert leader.ended() == 0
    until(lambda: handled(other))
    assert not set(handled(leader)) & set(handled(other))


def test_a_leader_whose_connection_is_ended_has_it_or_the_other_never_both(start: Start, numbers: Numbers) -> None:
    commands = leader_and_other(start)
    for _ in range(5):
        before = sum(len(handled(one)) for one in commands)
        until(holders)
        with connect() as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [holders()])
        until(lambda known=before: sum(len(handled(one)) for one in commands) > known + 50)
    numbers.stop()
    both = [number for one in commands for number in handled(one)]
    assert len(both) == len(set(both))


def make_orders(count: int) -> list[Order]:
    """In a thread, whose connection nobody would close."""
    try:
        return Order.objects.bulk_create([Order() for _ in range(count)])
    finally:
        connection.close()


def test_a_layer_that_all_share_is_fed_by_one(start: Start) -> None:
    """Real Redis: whoever shows a page hears of each row once, and of the change of the leader."""
    with redis_server() as url:
        said = "This relay alone has now: feed the channel layer"
        leader = start("listen", PGSIGNALS_TEST_REDIS=url)
        leader.says(said)
        other = start("listen", PGSIGNALS_TEST_REDIS=url)
        other.says(LISTENS)

        async def watch() -> None:
            layer = RedisChannelLayer(hosts=[url])
            await layer.group_add(group_of(model_topic("shop.order")), "page")

            async def until_hears_of(keys: set[int]) -> list[dict[str, Any]]:
                messages, missing = [], set(keys)
                while missing:
                    message = await asyncio.wait_for(layer.receive("page"), WITHIN)
                    messages.append(message)
                    missing -= {pk for _, pk, _ in message.get("events", ())}
                return messages

            made = await asyncio.to_thread(make_orders, 5)
            messages = await until_hears_of({order.pk for order in made})
            assert len([pk for message in messages for pk in message["events"]]) == 5
            first = {message["relay"] for message in messages}
            assert len(first) == 1
            leader.send(signal.SIGKILL)
            await asyncio.to_thread(other.says, said)
            (one,) = await asyncio.to_thread(make_orders, 1)
            messages = await until_hears_of({one.pk})
            assert {message["relay"] for message in messages}.isdisjoint(first)
            assert "pg.gap" in {message["type"] for message in messages}
            await layer.close_pools()

        asyncio.run(watch())


@pytest.fixture
def receivers() -> Iterator[Box]:
    """One that is called once, and one that is called in each."""
    box = Box()
    with only_receivers_of_this_test():
        on_pg_event("app_events", once=True)(lambda event: box.put(("once", event.payload)))
        on_pg_event("app_events")(lambda event: box.put(("each", event.payload)))
        yield box


def test_where_the_server_refuses_the_lock_it_is_said_and_the_rest_goes_on(
    receivers: Box, caplog: pytest.LogCaptureFixture
) -> None:
    with connect() as admin:
        lock = "FUNCTION pg_try_advisory_lock(int, int)"
        admin.execute("CREATE ROLE no_locks LOGIN")
        admin.execute(f"REVOKE EXECUTE ON {lock} FROM PUBLIC")
        place = admin.info
        direct = f"host={place.host} port={place.port} dbname={place.dbname} user=no_locks"
        try:
            with override_settings(PGSIGNALS={"LISTEN": direct}), relaying() as running:
                publish("app_events", 1)
                assert receivers.wait() == [("each", 1)]
                assert running.relay.leadership.held == frozenset()
        finally:
            admin.execute(f"GRANT EXECUTE ON {lock} TO PUBLIC")
            admin.execute("DROP ROLE no_locks")
    assert len([one for one in caplog.records if "the server refuses the lock" in one.getMessage()]) == 1
