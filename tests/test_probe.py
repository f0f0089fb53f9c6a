"""The relay proves that it hears; where it does not, it says so, and a gap begins where it heard last."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection, connections
from django.test import override_settings
from psycopg import sql

from pgsignals import on_pg_event, publish
from pgsignals.decode import Decoder
from pgsignals.listening import relay as relay_module
from pgsignals.listening.connection import ListeningConnection, parameters
from pgsignals.listening.health import is_healthy
from pgsignals.listening.relay import HEALTHY, PROVING, Relay
from pgsignals.sink import Beginning, Companion, Deliver, Sink

from .conftest import connect
from .relaying import WITHIN, Box, Running, Tap, only_receivers_of_this_test, relaying
from .waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

OFTEN = {"PROBE_EVERY": 0.05, "RECONNECT_MAX": 0.05}


@contextmanager
def probing(**settings: Any) -> Iterator[Running]:
    """A relay that proves delivery all the time."""
    with override_settings(PGSIGNALS={**OFTEN, **settings}), relaying(receivers=False, channels=["app"]) as running:
        yield running


def texts(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if part in one.getMessage()]


def place(**other: str) -> str:
    """The test's database, as a connection string."""
    said = connection.settings_dict
    names = {"host": said["HOST"], "port": said["PORT"], "user": said["USER"], "dbname": said["NAME"]}
    return psycopg.conninfo.make_conninfo(**{key: str(value) for key, value in {**names, **other}.items() if value})


# Proofs.


def test_delivery_is_proven_again_and_again() -> None:
    with probing() as running:
        relay = running.relay
        first = until(lambda: relay.proven)
        until(lambda: relay.proven and first and relay.proven > first)
        assert relay.state == HEALTHY
        assert relay.proofs >= 2
        assert relay.gaps == relay.reconnects == 0


def test_what_was_committed_before_a_proof_has_arrived() -> None:
    with probing() as running:
        for number in range(20):
            publish("app", number)
            committed = datetime.now(UTC)
            until(lambda moment=committed: running.relay.proven and running.relay.proven > moment)
            assert [event.payload for event in running.tap.events.items] == list(range(number + 1))


def test_probes_are_told_to_nobody() -> None:
    with probing() as running:
        until(lambda: running.relay.proofs > 3)
        assert running.tap.events.items == []


def test_a_standstill_of_the_process_is_no_deafness(caplog: pytest.LogCaptureFixture) -> None:
    with probing(PROBE_WITHIN=0.5) as running:
        until(lambda: running.relay.proofs)
        assert running.relay._loop is not None
        for _ in range(3):
            running.relay._loop.call_soon_threadsafe(time.sleep, 0.8)
        before = running.relay.proofs
        until(lambda: running.relay.proofs > before + 3)
        assert running.relay.reconnects == 0
    assert not texts(caplog, "deaf")


def test_a_flood_before_the_token_is_no_deafness(caplog: pytest.LogCaptureFixture) -> None:
    with probing(PROBE_WITHIN=0.3) as running, connect() as writer:
        writer.execute("SELECT count(pg_notify('app', n::text)) FROM generate_series(1, 100000) n")
        running.tap.events.wait(100_000)
        assert running.relay.reconnects == 0
    assert not texts(caplog, "deaf")


# Gaps begin where it heard last.


def test_a_gap_begins_at_the_last_proof_before_the_loss() -> None:
    with probing(PROBE_EVERY=60) as running:
        for number in range(1, 4):
            proven, lost = running.relay.proven, datetime.now(UTC)
            running.cut()
            gap = running.tap.gaps.wait(number + 1)[number]
            assert gap.since == proven
            assert gap.until > lost


def test_a_relay_that_went_deaf_says_so_and_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """As behind a line that is half-open: nothing is closed, and nothing arrives."""
    with probing(PROBE_WITHIN=1) as running:
        until(lambda: running.relay.proofs > 1)
        listening = running.relay._connection
        assert listening is not None
        assert running.relay._loop is not None
        proven = running.relay.proven
        deafened = asyncio.run_coroutine_threadsafe(listening.ask(sql.SQL("UNLISTEN *"), 5), running.relay._loop)
        deafened.result(5)
        after = datetime.now(UTC)
        publish("app", "nobody hears this")
        gap = running.tap.gaps.wait(2)[1]
        publish("app", "and this is heard")
        assert [event.payload for event in running.tap.events.wait()] == ["and this is heard"]
        assert proven is not None
        assert proven <= gap.since <= after < gap.until
        assert gap.cause == "deaf: the probe's token did not arrive"
    (said,) = texts(caplog, "is deaf")
    assert "a pooler in transaction mode" in said
    assert "PGSIGNALS['LISTEN']" in said


# Tokens that cannot be sent.


@contextmanager
def no_new_connections() -> Iterator[None]:
    """Not even a superuser's."""
    name = sql.Identifier(str(connection.settings_dict["NAME"]))
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(place(dbname="postgres"), autocommit=True) as admin:
        admin.execute(allow.format(name, sql.Literal(False)))
        try:
            yield
        finally:
            admin.execute(allow.format(name, sql.Literal(True)))


def test_a_token_that_cannot_be_sent_is_no_reason_to_give_up_what_works(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), probing() as running:
        until(lambda: running.relay.state == HEALTHY)
        connection.ensure_connection()
        with no_new_connections():
            until(lambda: running.relay.state == PROVING)
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_notify('app', '1')")
            running.tap.events.wait(1)
        until(lambda: running.relay.state == HEALTHY)
        assert running.relay.reconnects == running.relay.gaps == 0
    (said,) = texts(caplog, "cannot be proven")
    assert "is not currently accepting connections" in said
    assert texts(caplog, "Delivery is proven again")


# A place of its own.


@pytest.mark.parametrize("kind", ["alias", "keywords", "uri"])
def test_it_listens_where_the_setting_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = place(application_name="direct")
    if kind == "alias":
        options = {**connection.settings_dict["OPTIONS"], "application_name": "direct"}
        monkeypatch.setitem(connections.settings, "direct", {**connection.settings_dict, "OPTIONS": options})
        said = "direct"
    if kind == "uri":
        given = psycopg.conninfo.conninfo_to_dict(said)
        user, name = given.pop("user"), given.pop("dbname")
        said = f"postgresql://{user}@/{name}?" + "&".join(f"{key}={value}" for key, value in given.items())
    with probing(LISTEN=said) as running:
        publish("app", 1)
        running.tap.events.wait()
        with connect() as other:
            query = "SELECT application_name FROM pg_stat_activity WHERE pid = %s"
            ((name,),) = other.execute(query, [running.pid()]).fetchall()
        assert name.startswith("pgsignals listen direct")


def test_payloads_are_read_as_utf_8_whatever_the_environment_and_the_connection_string_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PostgreSQL would write them in that encoding; or, of what it lacks, end the connection."""
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    for given in (place(), place(client_encoding="LATIN1")):
        box = Box()
        with override_settings(PGSIGNALS={"LISTEN": given}), only_receivers_of_this_test():
            on_pg_event("app_events")(lambda event, box=box: box.put(event.payload))
            with relaying():
                publish("app_events", "é🛫")
                assert box.wait() == ["é🛫"]


def test_a_place_that_does_not_hear_what_is_written_is_refused_at_the_start() -> None:
    """LISTEN succeeds there, and what the application commits never arrives."""
    with override_settings(PGSIGNALS={**OFTEN, "LISTEN": place(dbname="postgres"), "PROBE_WITHIN": 0.3}):
        running = Running(Relay("default", [Tap()], []), Tap())
        running._thread.join(20)
    text = str(running.error)
    assert "is deaf: what a second connection sent did not arrive in 0.3 s" in text
    assert "lead to different servers or databases" in text


# The connection.


def nothing(_: Any) -> None:
    """Takes notifications."""


async def open_one(previous: Any = None) -> ListeningConnection:
    given = parameters(connections["default"], "pgsignals listen")
    return await ListeningConnection.open(given, ["app"], nothing, 10, None, previous)


def test_what_the_server_does_not_answer_in_time_costs_the_connection() -> None:
    async def ask() -> str:
        listening = await open_one()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer in 0\.2 s"):
            await listening.ask(sql.SQL("SELECT pg_sleep(30)"), 0.2)
        assert time.monotonic() - began < 15
        return await listening.lost

    assert asyncio.run(ask()) == "no answer in 0.2 s"
    # The server notices only when it would answer.
    with connect() as other:
        other.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'")


def test_an_answer_that_came_while_the_process_stood_still_counts() -> None:
    async def ask() -> None:
        listening = await open_one()
        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.5)
        assert await listening.ask(sql.SQL("SELECT 1 FROM pg_sleep(0.1)"), 0.2) == [(1,)]
        assert not listening.lost.done()
        listening.close()

    asyncio.run(ask())


def test_while_notifications_arrive_an_answer_may_take_longer() -> None:
    """It comes behind them, and the line is not dead."""

    async def ask() -> None:
        listening = await open_one()

        async def arrive() -> None:
            with suppress(asyncio.CancelledError):
                while True:
                    listening.last_arrival = time.monotonic()
                    await asyncio.sleep(0.02)

        arriving = asyncio.create_task(arrive())
        assert await listening.ask(sql.SQL("SELECT 1 FROM pg_sleep(0.8)"), 0.2) == [(1,)]
        arriving.cancel()
        with pytest.raises(TimeoutError):
            await listening.ask(sql.SQL("SELECT 1 FROM pg_sleep(0.8)"), 0.2)

    asyncio.run(ask())


def test_what_is_left_of_the_predecessor_is_ended_and_nobody_else() -> None:
    async def replace() -> None:
        first, stranger = await open_one(), await open_one()
        second = await open_one(previous=first.session)
        assert "administrator command" in await asyncio.wait_for(first.lost, 10)
        await stranger.alive(5)
        await second.alive(5)
        for one in (first, stranger, second):
            one.close()

    asyncio.run(replace())


def test_a_predecessor_that_may_not_be_ended_keeps_nobody_from_listening(caplog: pytest.LogCaptureFixture) -> None:
    """Where the right to end sessions was taken from all."""
    right = "EXECUTE ON FUNCTION pg_terminate_backend(int, bigint)"

    async def replace() -> None:
        given = {**parameters(connections["default"], "pgsignals listen"), "user": "humble"}
        first = await ListeningConnection.open(given, ["app"], nothing, 10)
        second = await ListeningConnection.open(given, ["app"], nothing, 10, None, first.session)
        await second.alive(5)
        first.close()
        second.close()

    with connect() as admin:
        admin.execute("CREATE ROLE humble LOGIN")
        admin.execute(f"REVOKE {right} FROM PUBLIC")
        try:
            asyncio.run(replace())
        finally:
            admin.execute(f"GRANT {right} TO PUBLIC")
            admin.execute("DROP ROLE humble")
    (said,) = texts(caplog, "What may be left of the lost connection is not ended")
    assert "permission denied for function pg_terminate_backend" in said


def test_what_arrives_and_cannot_be_handled_is_a_gap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that nobody foresaw: an event loop would log it, and go on."""
    decode = Decoder.decode

    def fails_once(self: Decoder, *given: Any) -> Any:
        monkeypatch.setattr(Decoder, "decode", decode)
        raise RuntimeError("as staged")

    with probing() as running:
        monkeypatch.setattr(Decoder, "decode", fails_once)
        publish("app", 1)
        gap = running.tap.gaps.wait(2)[1]
        publish("app", 2)
        assert [event.payload for event in running.tap.events.wait()] == [2]
    # The latter where it came behind a query of the relay's own.
    assert gap.cause in ("what arrived could not be handled", "as staged")
    assert "RuntimeError: as staged" in caplog.text


def test_what_a_companion_reads_does_not_pile_up_while_the_event_loop_is_held_up() -> None:
    entered, go_on, delivered = threading.Event(), threading.Event(), Box()

    class Blocking(Sink):
        def put(self, events: Any, size: int) -> None:
            entered.set()
            go_on.wait(WITHIN)

    class Eager(Companion):
        def start(self, deliver: Deliver, beginning: Beginning) -> None:
            def read() -> None:
                for number in range(3):
                    deliver([], 0)
                    delivered.put(number)

            self.thread = threading.Thread(target=read, daemon=True)
            self.thread.start()

        def ring(self) -> None:
            pass

        def stop(self) -> None:
            self.thread.join(WITHIN)

    with relaying(receivers=False, sinks=[Blocking()], companions=[Eager()]):
        assert entered.wait(WITHIN)
        assert delivered.items == []
        go_on.set()
        assert delivered.wait(3) == [0, 1, 2]


# The clock.


class SetBack(datetime):
    """An hour."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) - timedelta(hours=1)


def test_a_clock_that_was_set_back_turns_no_gap_around(monkeypatch: pytest.MonkeyPatch) -> None:
    with probing() as running:
        until(lambda: running.relay.proofs)
        monkeypatch.setattr(relay_module, "datetime", SetBack)
        running.cut()
        gap = running.tap.gaps.wait(2)[1]
    assert gap.until < datetime.now(UTC) - timedelta(minutes=59)
    assert gap.since < gap.until


def test_a_clock_that_was_set_back_makes_no_old_proof_a_new_one() -> None:
    relay = Relay("default", [])
    relay.state, relay.proven = HEALTHY, datetime.now(UTC) + timedelta(hours=1)
    relay._heard = relay_module.Moment(relay.proven, time.monotonic() - 10)
    assert is_healthy(relay)
    relay._heard = relay_module.Moment(relay.proven, time.monotonic() - 31)
    assert not is_healthy(relay)


def test_twenty_connections_that_were_lost_leave_no_file_open() -> None:
    with probing() as running:
        until(lambda: running.relay.proofs)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1, 21):
            running.cut()
            running.tap.gaps.wait(number + 1)
        proofs = running.relay.proofs
        until(lambda: running.relay.proofs > proofs)
        # The probe's own connection may be open just now.
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)
