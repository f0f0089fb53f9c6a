"""The relay: what it goes on after, what it says of it, and what it refuses at the start."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections
from django.test import override_settings
from psycopg import sql

from pgsignals import Notify, PgEvent, on_pg_event, publish
from pgsignals.listening.connection import ListeningConnection, parameters
from pgsignals.listening.refusal import refuse
from pgsignals.listening.relay import Relay, RelayRefused
from pgsignals.listening.running import build
from pgsignals.receivers import Registry
from pgsignals.signals import relay_connected, relay_gap

from .conftest import Listener, connect
from .postgres import Server
from .relaying import WITHIN, Box, Running, Tap, only_receivers_of_this_test, relaying
from .servers import free_port
from .shop.models import Customer, Silent
from .waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

QUICK = override_settings(PGSIGNALS={"RECONNECT_MAX": 0.05, "CONNECT_TIMEOUT": 5})


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with only_receivers_of_this_test() as registry:
        yield registry


@pytest.fixture
def signals() -> Iterator[Box]:
    """What relay_connected and relay_gap say, in their order."""
    box = Box()

    def connected(**said: Any) -> None:
        box.put(("connected", said))

    def gap(**said: Any) -> None:
        box.put(("gap", said))

    relay_connected.connect(connected, sender="default")
    relay_gap.connect(gap, sender="default")
    yield box
    relay_connected.disconnect(connected, sender="default")
    relay_gap.disconnect(gap, sender="default")


def notify(channel: str, payload: str) -> None:
    with connect() as writer:
        writer.execute("SELECT pg_notify(%s, %s)", [channel, payload])


# Coming and going.


def test_a_start_is_announced_as_a_gap_to_sinks_and_as_connected_to_signals(signals: Box) -> None:
    with relaying() as running:
        (start,) = running.tap.gaps.wait()
        ((kind, said),) = signals.wait()
    assert (start.cause, start.since, start.database) == ("start", start.until, "default")
    assert (kind, said["sender"], said["database"]) == ("connected", "default", "default")
    assert len(signals.items) == 1


def test_a_lost_connection_is_reported_and_comes_back_with_a_gap(
    signals: Box, caplog: pytest.LogCaptureFixture
) -> None:
    before = datetime.now(UTC)
    with relaying() as running:
        Customer.objects.create(name="a")
        running.tap.events.wait(1)
        running.cut()
        _, gap = running.tap.gaps.wait(2)
        Customer.objects.create(name="b")
        assert [event.op for event in running.tap.events.wait(2)] == ["insert", "insert"]
        assert [kind for kind, _ in signals.wait(3)] == ["connected", "connected", "gap"]
    reason = "terminating connection due to administrator command"
    assert running.tap.losses.items == [reason]
    assert gap.cause == reason
    assert before <= gap.since < gap.until <= datetime.now(UTC)
    said = signals.items[2][1]
    assert (said["since"], said["until"], said["cause"], said["sender"]) == (gap.since, gap.until, reason, "default")
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert f"No connection to the database 'default': {reason}. Connecting again in 0." in lines[0]
    assert "Connected again. Fast events of the last" in lines[1]


def test_what_arrived_before_the_connection_was_lost_is_still_relayed() -> None:
    with relaying(channels=["app_events"]) as running, connect() as writer:
        pid = running.pid()
        with writer.transaction():
            for number in range(1000):
                writer.execute("SELECT pg_notify('app_events', %s)", [str(number)])
            writer.execute("SELECT pg_notify('app_events', 'last')")
        running.tap.events.wait(1)
        writer.execute("SELECT pg_terminate_backend(%s)", [pid])
        running.tap.gaps.wait(2)
    assert [event.payload for event in running.tap.events.items] == [*range(1000), "last"]


def test_a_notification_that_comes_while_it_still_connects_is_taken() -> None:
    """Between the LISTEN of one channel and that of the next, psycopg is the one who reads the socket."""
    box = Box()

    def channels() -> Iterator[str]:
        yield "first"
        notify("first", "early")
        yield "second"

    async def attempt() -> None:
        there = parameters(connections["default"])
        listening = await ListeningConnection.open(there, channels(), box.put, timeout=WITHIN)
        listening.close()

    asyncio.run(attempt())
    assert [(one.relname, one.extra) for one in chain(*box.items)] == [(b"first", b"early")]


def test_more_than_one_slice_is_taken_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What libpq has read already makes the socket readable no more, so nobody would come for the rest."""
    monkeypatch.setattr("pgsignals.listening.connection._SLICE", 3)
    monkeypatch.setattr(ListeningConnection._drain, "__defaults__", (3,))
    with relaying(channels=["app_events"]) as running:
        with connect() as writer:
            writer.execute("SELECT pg_notify('app_events', n::text) FROM generate_series(1, 50) AS n")
        assert [event.payload for event in running.tap.events.wait(50)] == list(range(1, 51))


def test_connections_of_ours_can_be_told_apart_in_the_server() -> None:
    """By their application_name; a name that the project gave stays readable."""
    assert parameters(connections["default"])["application_name"] == "pgsignals listen"
    settings = {**connection.settings_dict, "OPTIONS": {"application_name": "billing"}}
    assert (
        parameters(type(connections["default"])(settings, "default"))["application_name"] == "pgsignals listen billing"
    )
    with relaying() as running:
        assert running.pid()


def test_the_listening_connection_stays_outside_of_transactions() -> None:
    """A listener inside one receives nothing, and keeps the server's queue from being cleaned."""
    with relaying() as running, connect() as other:
        query = "SELECT state, xact_start FROM pg_stat_activity WHERE pid = %s"
        assert other.execute(query, [running.pid()]).fetchone() == ("idle", None)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own, not started yet, which stands behind the alias `default`."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def there(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """The alias leads to that server in the relay's thread. Sends a message there."""
    for key, value in server.django().items():
        monkeypatch.setitem(connection.settings_dict, key, value)

    def send(channel: str, payload: str) -> None:
        with connect() as writer:
            writer.execute("SELECT pg_notify(%s, %s)", [channel, payload])

    return send


@QUICK
def test_a_server_that_is_not_up_yet_is_waited_for(server: Server, there: Any, caplog: Any) -> None:
    """At the start of a machine the order of things is not ours."""
    tap, retried = Tap(), threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            retried.set()

    watch = Watch()
    logging.getLogger("pgsignals.relay").addHandler(watch)
    running = Running(Relay("default", [tap], ["app_events"]), tap)
    try:
        assert retried.wait(WITHIN)
        server.start()
        (start,) = tap.gaps.wait()
        assert start.cause == "start"
        there("app_events", '"hello"')
        assert tap.events.wait()[0].payload == "hello"
    finally:
        logging.getLogger("pgsignals.relay").removeHandler(watch)
        running.stop()
    assert running.error is None
    assert any("No connection to the database 'default'" in record.message for record in caplog.records)


@QUICK
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_is_survived(server: Server, there: Any, mode: str) -> None:
    """While it is down or starting up, whatever it answers is a reason to try again and none to give up."""
    server.start()
    with relaying(channels=["app_events"], receivers=False) as running:
        server.stop(mode)
        running.tap.losses.wait()
        server.start()
        _, gap = running.tap.gaps.wait(2)
        there("app_events", '"again"')
        assert running.tap.events.wait()[0].payload == "again"
    assert "terminating connection" in gap.cause or "server closed" in gap.cause


# What never ends it.


GOOD = {"v": 1, "d": "d", "s": "public", "x": 1, "t": 0, "m": "shop.customer", "o": "i", "n": 1, "r": [[7]]}


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "rubbish",
        "[]",
        "null",
        "[" * 7000,
        "9" * 7000,
        json.dumps({**GOOD, "v": None}),
        json.dumps({**GOOD, "t": 10**30}),
        json.dumps({**GOOD, "r": [7]}),
        json.dumps({**GOOD, "r": [[7, [1]]]}),
        json.dumps({**GOOD, "o": "x"}),
        json.dumps({**GOOD, "m": "no label"}),
    ],
)
def test_a_strangers_payload_is_left_out_with_a_line_and_harms_nobody(
    payload: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can connect can send it. The events after it arrive."""
    with relaying() as running:
        notify("pgsignals", payload)
        Customer.objects.create(pk=1, name="a")
        assert [event.pk for event in running.tap.events.wait()] == [1]
        assert len(running.tap.gaps.items) == 1
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert len(line) < 500


def test_a_flood_of_what_cannot_be_read_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with relaying(channels=["app_events"]) as running, connect() as writer:
        writer.execute("SELECT count(pg_notify('pgsignals', 'rubbish ' || n)) FROM generate_series(1, 5000) AS n")
        notify("app_events", "1")
        running.tap.events.wait()
    lines = [record.getMessage() for record in caplog.records if "was left out" in record.getMessage()]
    assert len(lines) == 5
    assert "It is number 5 since the start; later ones are counted, and said every 60 s" in lines[-1]


def test_one_sink_that_fails_keeps_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Tap):
        def put(self, events: Any, size: int) -> None:
            raise UnicodeEncodeError("utf-8", "x", 0, 1, "of the sink")

    with relaying(channels=["app_events"], sinks=[Broken()]) as running, connect() as writer:
        writer.execute("SELECT count(pg_notify('app_events', n::text)) FROM generate_series(1, 3000) AS n")
        assert [event.payload for event in running.tap.events.wait(3000)] == list(range(1, 3001))
    assert "The sink Broken failed, and has missed something" in caplog.text


def test_another_projects_model_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with relaying() as running:
        for _ in range(3):
            notify("pgsignals", json.dumps({**GOOD, "m": "other.thing"}))
        notify("pgsignals", json.dumps({**GOOD, "m": "other.thong"}))
        Customer.objects.create(pk=1, name="a")
        running.tap.events.wait()
    lines = [record.message for record in caplog.records if "left out" in record.message]
    assert ["'other.thing'" in line for line in lines] == [True, False]


def test_many_unknown_labels_fill_neither_memory_nor_log(caplog: pytest.LogCaptureFixture) -> None:
    """Labels that somebody forges are limitless; what the relay keeps and says of them is not."""
    with relaying() as running:
        with connect() as writer, writer.transaction():
            for number in range(3000):
                writer.execute("SELECT pg_notify('pgsignals', %s)", [json.dumps({**GOOD, "m": f"other.a{number}"})])
        Customer.objects.create(pk=1, name="a")
        running.tap.events.wait()
        assert len(running.relay.intake.unknown) <= 101
    lines = [record.message for record in caplog.records if "left out" in record.message]
    assert len(lines) == 101
    assert "Further labels" in lines[-1]


def test_a_newer_version_is_a_gap(signals: Box, caplog: pytest.LogCaptureFixture) -> None:
    """Its events cannot be read, so they are lost here; that is said, and what is readable goes on."""
    with relaying() as running:
        for _ in range(2):
            notify("pgsignals", json.dumps({**GOOD, "v": 2}))
        Customer.objects.create(pk=1, name="a")
        running.tap.events.wait()
        assert [gap.cause for gap in running.tap.gaps.wait(3)[1:]] == ["an event of an unknown version"] * 2
        assert signals.wait_for(lambda said: said[0] == "gap")[1]["cause"] == "an event of an unknown version"
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "deploy the same version" in errors[0]
    assert [kind for kind, _ in signals.items].count("connected") == 1


# Messages.


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ('{"a": 1}', {"a": 1}),
        ("plain text", "plain text"),
        ("", None),
        ("null", None),
        ("it's \\ \" é🛫", "it's \\ \" é🛫"),
    ],
)
def test_a_message_from_any_client_arrives_as_json_or_as_its_text(text: str, payload: Any) -> None:
    with relaying(channels=["app_events"]) as running:
        notify("app_events", text)
        event = running.tap.events.wait()[0]
    assert (event.op, event.channel, event.payload, event.database) == ("message", "app_events", payload, "default")


@pytest.mark.parametrize("channel", ["Mixed Case", 'quote"d', "é" * 31, "select", "a.b"])
def test_a_channel_may_have_any_name(channel: str) -> None:
    with relaying(channels=[channel]) as running:
        publish(channel, 1)
        event = running.tap.events.wait()[0]
    assert event.channel == channel


def test_the_channels_of_receivers_and_settings_are_listened_to() -> None:
    on_pg_event("of_a_receiver")(lambda event: None)
    with override_settings(PGSIGNALS={"CHANNELS": ["of_settings"]}):
        relay = build(channels=["of_the_command", "of_settings"])
    assert relay.channels == ("pgsignals", "of_a_receiver", "of_settings", "of_the_command")
    assert relay.database == "default"


@contextmanager
def loud() -> Iterator[None]:
    """`Silent` announces on a channel of its own, by a declaration that no model has."""
    declaration = Notify(name="silent_loud", channel="Loud Rows")
    with connection.schema_editor() as editor:
        editor.add_constraint(Silent, declaration)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            editor.remove_constraint(Silent, declaration)


@pytest.fixture
def _loud() -> Iterator[None]:
    with loud():
        yield


@pytest.mark.usefixtures("_loud")
def test_rows_on_a_channel_of_their_own_are_relayed_to_model_and_channel_once(caplog: pytest.LogCaptureFixture) -> None:
    """The relay learns of the channel from the database; messages that are published there stay messages."""
    by_model, by_channel, by_both = Box(), Box(), Box()
    on_pg_event(Silent, "insert")(lambda event: by_model.put(event))
    on_pg_event("Loud Rows", type="greeting")(lambda event: by_channel.put(event))
    on_pg_event(model="shop.Silent")(on_pg_event("Loud Rows")(lambda event: by_both.put(event)))
    with caplog.at_level(logging.INFO), relaying() as running:
        Silent.objects.create()
        publish("Loud Rows", {"type": "greeting"})
        rows, message = running.tap.events.wait(2)
        assert by_both.wait(2) == [rows, message]
        by_channel.wait(1)
    assert (rows.op, rows.label, rows.channel, rows.model) == ("insert", "shop.silent", "Loud Rows", Silent)
    assert (message.op, message.payload) == ("message", {"type": "greeting"})
    assert by_model.items == [rows]
    assert by_channel.items == [message]
    assert by_both.items == [rows, message]
    assert "Listening to pgsignals, Loud Rows in" in caplog.text


def test_a_channel_that_comes_while_it_listens_is_listened_to_and_what_was_missed_is_a_gap() -> None:
    """After a migration, in a process that nobody has started anew."""
    with override_settings(PGSIGNALS={"PROBE_EVERY": 0.05}), relaying(receivers=False) as running:
        before = datetime.now(UTC)
        with loud():
            gap = running.tap.gaps.wait(2)[1]
            Silent.objects.create()
            assert [event.channel for event in running.tap.events.wait()] == ["Loud Rows"]
            proofs = running.relay.proofs
            until(lambda: running.relay.proofs > proofs + 2)
        assert gap.cause == "triggers speak on channels that are new here: Loud Rows"
        assert gap.since < gap.until
        assert before < gap.until
        assert not gap.connected
        assert len(running.tap.gaps.items) == 2
        assert running.relay.reconnects == 0


@pytest.mark.usefixtures("_loud")
def test_rows_on_a_channel_of_their_own_are_not_on_ours() -> None:
    listener = Listener("Loud Rows", "pgsignals")
    Silent.objects.create()
    Customer.objects.create()
    heard = [(one.channel, json.loads(one.payload)["m"]) for one in listener.notifications()]
    listener.connection.close()
    assert heard == [("Loud Rows", "shop.silent"), ("pgsignals", "shop.customer")]


def test_a_comment_that_anybody_wrote_on_a_function_keeps_no_relay_from_listening() -> None:
    """Whoever may create a function may write anything there."""
    comments = [
        "no JSON",
        "[]",
        "[" * 100_000,
        '{"pgsignals": 1, "channel": 5}',
        '{"channel": "x"}',
        '{"pgsignals": 1, "channel": "\\ud800"}',
        '{"pgsignals": 1, "channel": "' + "x" * 64 + '"}',
        '{"pgsignals": 1, "channel": "pgsignals"}',
        None,
    ]
    with connect() as owner:
        owner.execute("CREATE TABLE odd (id int)")
        for number, comment in enumerate(comments):
            function = f"pgsignals_odd_{number}()"
            owner.execute(f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
            owner.execute(f"CREATE TRIGGER odd_{number} AFTER INSERT ON odd EXECUTE FUNCTION {function}")
            if comment:
                owner.execute(sql.SQL("COMMENT ON FUNCTION {} IS {}").format(sql.SQL(function), sql.Literal(comment)))
        try:
            with relaying() as running:
                Customer.objects.create()
                running.tap.events.wait()
        finally:
            owner.execute("DROP TABLE odd")
            for number in range(len(comments)):
                owner.execute(f"DROP FUNCTION pgsignals_odd_{number}()")


def test_receivers_run_from_the_first_event_on_to_the_end_of_ten_thousand() -> None:
    """One statement, many notifications, each row once and in order."""
    box = Box()

    @on_pg_event(Customer, "insert")
    def heard(event: PgEvent) -> None:
        box.put(event.pk)

    with relaying():
        Customer.objects.bulk_create([Customer(pk=number, name="n") for number in range(1, 10_001)])
        assert box.wait(10_000) == list(range(1, 10_001))


# What is refused at the start.


def refusal(database: str) -> str:
    """How a relay for the alias ends."""
    tap = Tap()
    with pytest.raises(RelayRefused) as caught:
        asyncio.run(asyncio.wait_for(Relay(database, [tap]).run(), WITHIN))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "text",
    [
        "connection failed: FATAL:  server login has been failing, try again later (server_login_retry)",
        "connection failed: FATAL:  pgbouncer cannot connect to server",
        "FATAL:  query_wait_timeout",
        "FATAL:  Datenbanksystem startet gerade",
        "FATAL:  sorry, too many clients already",
    ],
)
def test_what_is_not_known_to_be_final_is_tried_again(text: str) -> None:
    """A pooler has texts of its own, and a server may speak any language."""
    refuse("default", psycopg.OperationalError(text))


def test_a_server_that_drops_every_connection_at_once_is_asked_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    enough = threading.Event()

    async def dropped(*arguments: Any) -> Any:
        lost = asyncio.get_running_loop().create_future()
        lost.set_result("dropped")
        return SimpleNamespace(server="here", channels=[], session=None, lost=lost, close=lambda: None)

    async def wait(self: Relay, attempt: int, reason: str) -> None:
        waits.append(attempt)
        if len(waits) == 5:
            enough.set()
            self.stop()
            await self._stop.wait()

    monkeypatch.setattr(ListeningConnection, "open", dropped)
    monkeypatch.setattr(Relay, "_wait", wait)
    asyncio.run(asyncio.wait_for(Relay("default", []).run(), WITHIN))
    assert waits == [1, 2, 3, 4, 5]


def test_waits_grow_to_a_bound_and_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that many relays do not come back in step."""
    spans: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        spans.append((low, high))
        return 0.0

    async def wait() -> None:
        relay = Relay("default", [])
        for attempt in range(1, 12):
            await relay._wait(attempt, "dropped")
        await relay._wait(10_000, "dropped")

    monkeypatch.setattr(random, "uniform", uniform)
    asyncio.run(wait())
    assert [high for _, high in spans] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30, 30])
    assert all(low == high / 2 for low, high in spans)


def test_a_relay_that_is_still_connecting_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = threading.Event()

    async def never(*arguments: Any) -> Any:
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ListeningConnection, "open", never)
    running = Running(Relay("default", []), Tap())
    assert connecting.wait(WITHIN)
    running.stop()
    assert running.error is None


def test_a_server_that_ends_idle_sessions_does_not_end_ours() -> None:
    with connect() as admin:
        name = sql.Identifier(connection.settings_dict["NAME"])
        admin.execute(sql.SQL("ALTER DATABASE {} SET idle_session_timeout = '50ms'").format(name))
        try:
            with relaying(channels=["app_events"], receivers=False) as running:
                # Another session, which is not ours, has been ended by then.
                with psycopg.connect(**connection_of(admin)) as idle:
                    idle.execute("LISTEN nothing")
                    idle.commit()
                    with pytest.raises(psycopg.OperationalError):
                        for _ in idle.notifies(timeout=WITHIN):
                            pass
                notify("app_events", "1")
                running.tap.events.wait()
                assert len(running.tap.gaps.items) == 1
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} RESET idle_session_timeout").format(name))


def connection_of(admin: psycopg.Connection) -> dict[str, Any]:
    said = admin.info
    return {"host": said.host, "port": said.port, "user": said.user, "dbname": said.dbname}


def test_an_unknown_alias_is_refused_with_those_there_are() -> None:
    assert refusal("nope") == "There is no database 'nope' in settings.DATABASES; there are: default, sqlite."


def test_another_vendors_database_is_refused() -> None:
    assert "The database 'sqlite' is SQLite; only PostgreSQL can be listened to" in refusal("sqlite")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("NAME", "no_such_database", 'database "no_such_database" does not exist'),
        ("USER", "no_such_role", 'role "no_such_role" does not exist'),
        ("NAME", "", "Please supply the NAME or OPTIONS"),
        ("OPTIONS", {"sslmode": "sometimes"}, 'invalid sslmode value: "sometimes"'),
        ("OPTIONS", {"no_such_option": "1"}, 'invalid connection option "no_such_option"'),
    ],
)
def test_what_the_server_or_libpq_will_never_accept_is_refused(
    key: str, value: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, key, value)
    assert says in refusal("default")


def test_a_wrong_password_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TCP, as a server that asks for one is reached."""
    port = free_port()
    guarded = Server(port=port, loopback=True)
    try:
        guarded.start()
        with psycopg.connect(host=str(guarded.folder), port=port, user="postgres", autocommit=True) as admin:
            admin.execute("ALTER ROLE postgres PASSWORD 'right'")
            (guarded.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\nlocal all all trust\n")
            admin.execute("SELECT pg_reload_conf()")
        place = {**guarded.django(), "HOST": "127.0.0.1", "PASSWORD": "wrong"}
        for key, value in place.items():
            monkeypatch.setitem(connection.settings_dict, key, value)
        assert "password authentication failed" in refusal("default")
        monkeypatch.setitem(connection.settings_dict, "PASSWORD", "")
        assert "no password supplied" in refusal("default")
        monkeypatch.setitem(connection.settings_dict, "PASSWORD", "right")
        with relaying(receivers=False) as running:
            assert "127.0.0.1" in running.relay.server
    finally:
        guarded.close()


@QUICK
def test_a_login_that_is_refused_later_does_not_end_the_relay(server: Server, there: Any) -> None:
    """A password that is being changed, a pg_hba.conf under repair: once it ran, it tries for ever."""
    server.start()
    hba = (server.data / "pg_hba.conf").read_text()
    with relaying(channels=["app_events"], receivers=False) as running, connect() as admin:
        pid = running.pid()
        (server.data / "pg_hba.conf").write_text("local all all reject\n")
        admin.execute("SELECT pg_reload_conf()")
        retried = Box()

        class Watch(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                retried.put(record.getMessage())

        watch = Watch()
        logging.getLogger("pgsignals.relay").addHandler(watch)
        try:
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            retried.wait_for(lambda line: "pg_hba.conf rejects" in line)
        finally:
            logging.getLogger("pgsignals.relay").removeHandler(watch)
        (server.data / "pg_hba.conf").write_text(hba)
        admin.execute("SELECT pg_reload_conf()")
        running.tap.gaps.wait(2)


def test_a_connection_that_is_never_answered_is_given_up_in_time() -> None:
    """Something listens, takes the connection and says nothing."""

    async def attempt() -> None:
        writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = {**connection.settings_dict, "HOST": "127.0.0.1", "PORT": port}
        wrapper = type(connections["default"])(settings, "default")
        with pytest.raises((TimeoutError, psycopg.OperationalError)):
            await ListeningConnection.open(parameters(wrapper), ["a"], lambda *said: None, timeout=0.2)
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        server.close()

    asyncio.run(asyncio.wait_for(attempt(), 5))


def test_wrong_settings_are_refused_before_anything_runs() -> None:
    with override_settings(PGSIGNALS={"BUFER": 1}), pytest.raises(ImproperlyConfigured, match="BUFFER"):
        build()
