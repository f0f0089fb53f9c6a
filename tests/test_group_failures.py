"""Groups whose receivers fail: what is tried again, what waits behind it, and what does not have to."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from pgsignals import PgEvent, on_pg_event
from pgsignals.durable import failures
from pgsignals.durable.failures import Retry
from pgsignals.models import DeadLetter, ParkedEvent, Partition

from .ledger.models import Account, Effect
from .relaying import Box
from .working import alone, drained, owners, rows, until, working

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]


def test_to_drain_is_not_to_wait_for_a_later_attempt_nor_for_what_waits_behind_it() -> None:
    box = Box()

    @on_pg_event(Account, group="billing")
    def later(event: PgEvent) -> None:
        if event.op == "insert":
            raise Retry(after=3600)
        box.put(event.op)

    drained("billing")
    account = Account.objects.create()
    account.save()
    account.delete()
    drained("billing")
    assert box.items == []
    assert list(ParkedEvent.objects.order_by("event_id").values_list("op", "attempts")) == [("i", 1), ("d", 0)]
    waits = failures.next_due(connection.connection, "billing", 1, [0])
    assert waits is not None
    assert waits > 3000, "a worker would sleep until then, and not look for what is behind over and over"


def test_where_everything_fails_nothing_is_parked_although_a_key_has_several_events() -> None:
    calls, well, done = Box(), threading.Event(), Box()

    @on_pg_event(Account, group="billing", start="beginning")
    def fails(event: PgEvent) -> None:
        calls.put(event.id)
        if not well.is_set():
            raise RuntimeError("the service is away")
        done.put(event.id)

    for number in range(12):
        owners(str(number))
        Account.objects.update(balance=number)
    with working("billing"):
        until(lambda: max(Partition.objects.values_list("failures", flat=True)) >= 2, "two pauses")
        assert not ParkedEvent.objects.exists()
        well.set()
        until(lambda: len(set(done.items)) == rows("SELECT count(*) FROM pgsignals_log")[0][0], "all")
    assert not DeadLetter.objects.exists()


def test_bad_events_at_the_front_do_not_hold_up_the_good_ones_for_ever() -> None:
    box = Box()

    @on_pg_event(Account, group="billing", max_attempts=2, start="beginning")
    def fails(event: PgEvent) -> None:
        if event.new["owner"] == "bad":
            raise ValueError("bad")
        box.put(event.new["owner"])

    owners(*["bad"] * 25, *["good"] * 10)
    with working("billing"):
        assert box.wait(10) == ["good"] * 10
        until(lambda: DeadLetter.objects.count() == 25, "the dead letters")


def test_who_says_when_to_try_again_is_not_taken_for_an_outage() -> None:
    @on_pg_event(Account, group="billing", start="beginning")
    def later(event: PgEvent) -> None:
        raise Retry("not yet", after=3600)

    owners(*map(str, range(15)))
    drained("billing")
    assert ParkedEvent.objects.filter(attempts=1).count() == 15
    assert max(Partition.objects.values_list("failures", flat=True)) == 0


def test_an_atomic_group_parks_nothing_where_everything_fails_and_waits_longer_each_time() -> None:
    well = threading.Event()

    @on_pg_event(Account, group="mirror", atomic=True, start="beginning", max_attempts=1)
    def mirror(event: PgEvent) -> None:
        Effect.objects.create(group="mirror", event_id=event.id)
        if not well.is_set():
            raise RuntimeError("the service is away")

    owners(*map(str, range(30)))
    with working("mirror"):
        until(lambda: max(Partition.objects.values_list("failures", flat=True)) >= 2, "two pauses")
        assert not ParkedEvent.objects.exists()
        assert not DeadLetter.objects.exists()
        well.set()
        until(lambda: Effect.objects.count() == 30, "all")
    assert len(set(Effect.objects.values_list("event_id", flat=True))) == 30


def test_an_atomic_group_goes_past_bad_events_at_the_front() -> None:
    @on_pg_event(Account, group="mirror", atomic=True, start="beginning", max_attempts=1)
    def mirror(event: PgEvent) -> None:
        Effect.objects.create(group="mirror", event_id=event.id, said=event.new["owner"])
        if event.new["owner"] == "bad":
            raise ValueError("bad")

    owners(*["bad"] * 15, *["good"] * 10, "bad")
    with working("mirror"):
        until(lambda: Effect.objects.count() == 10 and DeadLetter.objects.count() == 16, "all")
    assert set(Effect.objects.values_list("said", flat=True)) == {"good"}


def test_in_a_list_that_failed_nothing_overtakes_an_event_of_its_key() -> None:
    seen: list[tuple[int, int]] = []

    @on_pg_event(Account, "update", group="billing", batch=True)
    def many(events: list[PgEvent]) -> None:
        if len(events) > 1:
            raise RuntimeError("one of them")
        (event,) = events
        balance = event.new["balance"]
        if balance == 1 and event.pk == bad.pk and (event.pk, 0) not in seen:
            seen.append((event.pk, 0))
            raise Retry(after=0.05)
        seen.append((event.pk, balance))

    drained("billing")
    bad, good = Account.objects.create(), Account.objects.create()
    for balance in (1, 2, 3):
        Account.objects.update(balance=balance)
    with working("billing"):
        until(lambda: len(seen) == 7, "all")
    assert [balance for pk, balance in seen if pk == bad.pk] == [0, 1, 2, 3]
    assert [balance for pk, balance in seen if pk == good.pk] == [1, 2, 3]


def test_a_worker_that_is_told_to_end_hands_over_the_list_of_what_it_began() -> None:
    """Else the receiver that takes single events would have them twice, and no fault would explain it."""
    each, lists = Box(), Box()
    began, go_on = threading.Event(), threading.Event()

    @on_pg_event(Account, group="billing")
    def single(event: PgEvent) -> None:
        began.set()
        go_on.wait(20)
        each.put(event.id)

    @on_pg_event(Account, group="billing", batch=True)
    def many(events: list[PgEvent]) -> None:
        lists.put([event.id for event in events])

    drained("billing")
    with working("billing") as workers:
        owners(*map(str, range(20)))
        began.wait(20)
        for worker in workers.workers:
            worker.stop()
        go_on.set()
    assert 0 < len(each.items) < 20
    assert lists.items == [each.items]
    drained("billing")
    assert len(each.items) == len(set(each.items)) == 20
    assert sorted(number for one in lists.items for number in one) == sorted(each.items)


def test_what_partitions_at_another_position_do_does_not_lose_an_acknowledgment() -> None:
    """Half of the group is behind; the other half handles one new event, and the worker is told to end."""
    box = Box()
    ending: list[object] = []

    @on_pg_event(Account, group="billing", start="beginning")
    def bill(event: PgEvent) -> None:
        box.put(event.id)
        if event.new["owner"] == "end":
            until(lambda: ending, "the test knows the worker")
            for worker in ending:
                worker.stop()  # type: ignore[attr-defined]

    owners(*map(str, range(60)))
    drained("billing")
    behind = (
        "UPDATE pgsignals_partition SET since = '1:1:', until = pg_current_snapshot(), last_id = 0 WHERE number < 4"
    )
    with connection.cursor() as cursor:
        cursor.execute(behind)
    while not rows("SELECT 1 FROM pgsignals_log AS one WHERE body LIKE '%%\"end\"%%' AND slot %% 8 >= 4"):
        Account.objects.filter(owner="end").delete()
        rows("DELETE FROM pgsignals_log WHERE body LIKE '%%\"end\"%%' RETURNING 1")
        owners("end")
    before = set(box.items)
    box.items.clear()
    with working("billing", LOG_BATCH=5) as workers:
        ending.extend(workers.workers)
        until(lambda: not any(worker._thread.is_alive() for worker in workers.workers), "the end")
    assert 0 < len(box.items) < len(before), "it was ended in the middle"
    ending.clear()
    drained("billing")
    assert len(box.items) == len(set(box.items)), "no event came twice, for nothing failed"


def test_a_parked_event_of_a_model_that_is_gone_holds_up_nobody() -> None:
    @on_pg_event(Account, "insert", group="billing")
    def later(event: PgEvent) -> None:
        raise Retry(after=3600)

    drained("billing")
    Account.objects.create()
    drained("billing")
    gone = ParkedEvent.objects.get()
    gone.head = gone.head.replace("ledger.account", "ledger.gone")
    gone.next_at = gone.at
    gone.save(update_fields=["head", "next_at"])
    drained("billing")
    assert not ParkedEvent.objects.exists()
    assert not DeadLetter.objects.exists()
