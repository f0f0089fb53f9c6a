"""Groups with receivers of every kind: lists, coroutines, both, with timeouts, of an atomic group."""

from __future__ import annotations

import asyncio
import threading

import pytest
from django.db import connection

from pgsignals import PgEvent, on_pg_event, publish
from pgsignals.durable import control
from pgsignals.models import DeadLetter, ParkedEvent

from .ledger.models import Account, Effect
from .relaying import Box
from .working import alone, drained, owners, rows, until, working

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]


def test_a_coroutine_function_gets_lists_whose_rows_are_loaded_by_one_query() -> None:
    box = Box()

    @on_pg_event(Account, group="billing", batch=True)
    async def many(events: list[PgEvent]) -> None:
        box.put([(await event.ainstance()).owner for event in events])

    drained("billing")
    owners("a", "b", "c")
    drained("billing", BATCH=2)
    assert box.items == [["a", "b"], ["c"]]


def test_a_coroutine_that_takes_too_long_has_failed() -> None:
    calls = Box()

    @on_pg_event(Account, group="billing", timeout=0.05, max_attempts=1)
    async def hangs(event: PgEvent) -> None:
        calls.put(event.new["owner"])
        if event.new["owner"] == "slow":
            await asyncio.Event().wait()

    drained("billing")
    owners("slow", "fast")
    drained("billing")
    assert calls.items == ["slow", "fast"]
    assert "TimeoutError" in DeadLetter.objects.get().error


def test_receivers_of_a_group_succeed_or_fail_together_and_the_most_patient_says_how_often() -> None:
    first, second = Box(), Box()

    @on_pg_event(Account, group="billing", max_attempts=1)
    def impatient(event: PgEvent) -> None:
        first.put(event.id)

    @on_pg_event(Account, group="billing", max_attempts=2)
    def fails(event: PgEvent) -> None:
        second.put(event.id)
        raise ValueError("no")

    drained("billing")
    with working("billing"):
        owners("a")
        until(DeadLetter.objects.exists, "the dead letter")
    assert len(first.items) == len(second.items) == 2
    assert DeadLetter.objects.get().attempts == 2


def test_an_atomic_group_gets_lists_and_where_one_fails_lists_of_one() -> None:
    sizes: list[int] = []

    @on_pg_event(Account, group="mirror", atomic=True, batch=True, max_attempts=1)
    def mirror(events: list[PgEvent]) -> None:
        sizes.append(len(events))
        Effect.objects.bulk_create(
            Effect(group="mirror", event_id=event.id, said=event.new["owner"]) for event in events
        )
        if any(event.new["owner"] == "bad" for event in events):
            raise ValueError("bad")

    drained("mirror")
    owners("a", "bad", "b")
    drained("mirror")
    assert sizes == [3, 1, 1, 1]
    assert list(Effect.objects.order_by("pk").values_list("said", flat=True)) == ["a", "b"]


def test_a_receiver_of_an_atomic_group_that_ends_the_transaction_has_failed() -> None:
    @on_pg_event(Account, group="mirror", atomic=True, max_attempts=1)
    def commits(event: PgEvent) -> None:
        Effect.objects.create(group="mirror", event_id=event.id)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")

    drained("mirror")
    owners("a")
    drained("mirror")
    assert not Effect.objects.exists()
    assert "division by zero" in DeadLetter.objects.get().error


def test_to_be_told_to_end_is_no_attempt() -> None:
    """With one attempt for each event, whatever was claimed and not handled would be dead."""
    box = Box()
    began, go_on = threading.Event(), threading.Event()

    @on_pg_event(Account, group="billing", max_attempts=1)
    def bill(event: PgEvent) -> None:
        began.set()
        go_on.wait(20)
        box.put(event.new["owner"])

    drained("billing")
    with working("billing") as workers:
        owners("a", "b", "c")
        began.wait(20)
        for worker in workers.workers:
            worker.stop()
        go_on.set()
    assert box.items == ["a"]
    assert rows("SELECT DISTINCT claimed_id, claims FROM pgsignals_partition") == [(None, 0)]
    drained("billing")
    assert box.items == ["a", "b", "c"]
    assert not DeadLetter.objects.exists()


def test_workers_share_evenly_as_they_come_and_go() -> None:
    on_pg_event(Account, group="billing")(lambda event: None)

    def shares() -> list[int]:
        found = "SELECT count(*) FROM pgsignals_partition WHERE owner IS NOT NULL GROUP BY owner ORDER BY 1"
        return [int(str(count)) for (count,) in rows(found)]

    with working("billing", count=2, LEASE=1.0):
        until(lambda: shares() == [4, 4], "two shares")
        with working("billing", LEASE=1.0):
            until(lambda: shares() == [2, 3, 3], "three shares")
        until(lambda: shares() == [4, 4], "two shares again")


def test_an_event_that_cannot_be_read_waits_in_the_table_of_what_failed_and_blocks_its_key_only() -> None:
    """As an edited dead letter may be."""
    box = Box()
    on_pg_event("app_events", group="billing")(lambda event: box.put(event.payload))
    drained("billing")
    publish("app_events", 1, durable=True, key="a")
    drained("billing")
    control.replay("default", "billing", rows("SELECT min(at) FROM pgsignals_log")[0][0], model="app_events")  # type: ignore[arg-type]
    ParkedEvent.objects.update(body="{")
    drained("billing")
    publish("app_events", 2, durable=True, key="a")
    publish("app_events", 3, durable=True, key="b")
    drained("billing")
    assert box.items == [1, 3]
    assert ParkedEvent.objects.count() == 2
