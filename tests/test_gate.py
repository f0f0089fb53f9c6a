"""A reader that is busy keeps the writers' gate shut, and rings for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.test import override_settings

from pgsignals import PgEvent, on_pg_event
from pgsignals.durable import gate as gate_module
from pgsignals.durable import reading
from pgsignals.durable.gate import MANY, Gate
from pgsignals.durable.line import Line
from pgsignals.durable.tail import Tail
from pgsignals.listening.running import build
from pgsignals.signals import pg_event

from .conftest import Listener
from .ledger.models import Account
from .relaying import Box, Running, Tap, relaying
from .working import alone, bell, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone", "bell"]


@pytest.fixture
def reader(transactional_db: object) -> Iterator[Line]:
    with reading.connect("default", "pgsignals test") as session:
        yield session


def ringers(bell: Listener) -> list[int]:
    """The backends that have rung."""
    return [one.pid for one in bell.notifications()]


def test_while_the_gate_is_shut_no_writer_rings_and_then_the_reader_does(bell: Listener, reader: Line) -> None:
    gate = Gate(reader)
    gate.shut()
    Account.objects.create()
    assert ringers(bell) == []
    gate.open()
    assert ringers(bell) == [reader.info.backend_pid]
    Account.objects.create()
    (writer,) = ringers(bell)
    assert writer != reader.info.backend_pid
    gate.open()
    assert ringers(bell) == []


def test_of_several_readers_one_keeps_the_gate(bell: Listener, reader: Line) -> None:
    with reading.connect("default", "pgsignals test") as another:
        first, second = Gate(reader), Gate(another)
        for gate in (first, second):
            gate.shut()
        second.open()
        assert ringers(bell) == []
        first.open()
        second.shut()
        second.open()
        assert ringers(bell) == [reader.info.backend_pid, another.info.backend_pid]


def test_a_reader_that_is_gone_keeps_no_gate(bell: Listener) -> None:
    with reading.connect("default", "pgsignals test") as session:
        Gate(session).shut()
    until(lambda: Account.objects.create() and ringers(bell), "a writer that rings")


def test_a_reader_that_stands_still_loses_the_gate(
    bell: Listener, reader: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "_LIMIT", "100ms")
    Gate(reader).shut()
    Account.objects.create()
    assert ringers(bell) == []
    until(lambda: Account.objects.create() and ringers(bell), "a writer that rings")


def test_what_the_session_had_for_idleness_comes_back(reader: Line) -> None:
    reader.execute("SET idle_session_timeout = '7min'")
    gate = Gate(reader)
    gate.shut()
    assert reader.execute("SHOW idle_session_timeout").fetchone() == ("3s",)
    gate.open()
    assert reader.execute("SHOW idle_session_timeout").fetchone() == ("7min",)


def test_a_role_that_may_not_notify_leaves_the_gate_to_the_writers(bell: Listener, reader: Line) -> None:
    reader.execute("CREATE ROLE gate_mute")
    reader.execute("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) FROM PUBLIC")
    try:
        reader.execute("SET ROLE gate_mute")
        gate = Gate(reader)
        gate.shut()
        gate.open()
    finally:
        reader.execute("RESET ROLE")
        reader.execute("GRANT EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) TO PUBLIC")
        reader.execute("DROP ROLE gate_mute")
    Account.objects.create()
    assert len(ringers(bell)) == 1


def test_behind_a_pooler_the_gate_is_left_to_the_writers(bell: Listener, reader: Line) -> None:
    """Its sessions are everybody's."""
    reader.is_direct = False
    gate = Gate(reader)
    gate.shut()
    Account.objects.create()
    assert len(ringers(bell)) == 1


def test_where_writers_ring_by_another_policy_the_gate_is_left_alone(bell: Listener, reader: Line) -> None:
    with override_settings(PGSIGNALS={"WAKE_UP": "every_commit"}):
        Gate(reader).shut()
    Account.objects.create()
    assert len(ringers(bell)) == 1


def shuts(session: Line) -> bool:
    """Whether a tail keeps the gate of this database."""
    query = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
        "AND application_name LIKE 'pgsignals log%' AND datname = current_database()"
    )
    return bool(session.execute(query).fetchone()[0])


@pytest.mark.parametrize("wanted", [True, False])
def test_a_tail_shuts_the_gate_while_much_is_written_and_opens_it_afterwards(reader: Line, wanted: bool) -> None:
    with relaying(companions=[Tail("default", lambda: wanted)]):
        until(
            lambda: Account.objects.bulk_create(Account() for _ in range(MANY)) and shuts(reader),
            "a tail that keeps the gate",
        )
        until(lambda: not shuts(reader), "the gate's opening")


def test_a_tail_whose_events_nobody_takes_reads_none_and_begins_when_somebody_does() -> None:
    box, asked, wanted = Box(), Box(), []

    def is_wanted() -> bool:
        asked.put(None)
        return bool(wanted)

    on_pg_event(Account)(lambda event: box.put(event.new["owner"]))
    with relaying(companions=[Tail("default", is_wanted)]):
        Account.objects.create(owner="before")
        # It is asked before each look; the second of these began after the commit.
        asked.wait(len(asked.items) + 2)
        wanted.append(True)
        Account.objects.create(owner="after")
        assert box.wait(1) == ["after"]
    assert box.items == ["after"]


@contextmanager
def relay_of_listen() -> Iterator[None]:
    tap = Moments()
    relay = build("default", more=[tap])
    running = Running(relay, tap)
    try:
        tap.gaps.wait()
        yield
    finally:
        running.stop()


class Moments(Tap):
    """Sees when the relay listens, and takes no events."""

    def takes(self) -> bool:
        return False


def test_a_signal_that_is_connected_while_the_relay_runs_hears_of_what_comes() -> None:
    box = Box()

    def heard(event: PgEvent, **said: object) -> None:
        box.put(event.pk)

    on_pg_event(Account, group="billing")(lambda event: None)
    with relay_of_listen():
        pg_event.connect(heard, sender=Account)
        try:
            account = Account.objects.create()
            assert box.wait(1) == [account.pk]
        finally:
            pg_event.disconnect(heard, sender=Account)
