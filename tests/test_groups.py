"""Groups: each event once for each, in order, whatever fails."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import transaction

from pgsignals import PgEvent, on_pg_event, publish
from pgsignals.durable import groups
from pgsignals.durable.failures import Discard, Retry
from pgsignals.models import DeadLetter, LogEntry, ParkedEvent, Partition
from pgsignals.signals import event_dead

from .conftest import connect
from .ledger.models import Account, Effect, Entry
from .relaying import Box
from .working import alone, drained, rows, until, working

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]


def test_a_group_gets_each_event_once_in_the_order_of_its_key() -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put((event.id, event.pk, event.op)))
    with working("billing"):
        one, other = Account.objects.create(), Account.objects.create()
        Account.objects.update(balance=1)
        one_pk, other_pk = one.pk, other.pk
        one.delete()
        seen = box.wait(5)
    assert [op for _, pk, op in seen if pk == one_pk] == ["insert", "update", "delete"]
    assert [op for _, pk, op in seen if pk == other_pk] == ["insert", "update"]
    assert len({number for number, _, _ in seen}) == 5


def test_a_new_group_starts_now_or_at_the_beginning() -> None:
    Account.objects.create(owner="before")
    now, beginning = Box(), Box()
    on_pg_event(Account, group="late")(lambda event: now.put(event.new["owner"]))
    on_pg_event(Account, group="early", start="beginning")(lambda event: beginning.put(event.new["owner"]))
    drained("late", "early")
    assert now.items == []
    assert beginning.items == ["before"]
    Account.objects.create(owner="after")
    drained("late", "early")
    assert now.items == ["after"]
    assert beginning.items == ["before", "after"]


def test_what_was_written_while_nobody_ran_is_handled_later_and_once() -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put(event.pk))
    drained("billing")
    Account.objects.bulk_create(Account() for _ in range(2500))
    assert drained("billing", LOG_BATCH=100) == 2500
    assert drained("billing") == 0
    assert sorted(box.items) == sorted(Account.objects.values_list("pk", flat=True))


def test_a_transaction_that_commits_late_is_not_missed_and_holds_nobody_up() -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put(event.new["owner"]))
    with working("billing"), connect() as slow:
        slow.autocommit = False
        slow.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('slow', 0, '')")
        Account.objects.create(owner="fast")
        assert box.wait(1) == ["fast"]
        slow.commit()
        assert box.wait(2) == ["fast", "slow"]


def test_what_is_rolled_back_is_not_seen() -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put(event.new["owner"]))
    with working("billing"):
        with transaction.atomic():
            Account.objects.create(owner="outer")
            with transaction.atomic():
                Account.objects.create(owner="gone")
                transaction.set_rollback(True)
            Account.objects.create(owner="last")
        assert sorted(box.wait(2)) == ["last", "outer"]


def test_several_workers_share_a_group() -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put((event.pk, threading.get_ident())))
    with working("billing", count=2, LEASE=2.0):
        until(
            lambda: len(rows("SELECT DISTINCT owner FROM pgsignals_partition WHERE owner IS NOT NULL")) == 2, "shares"
        )
        Account.objects.bulk_create(Account() for _ in range(200))
        seen = box.wait(200)
    assert len({pk for pk, _ in seen}) == 200
    assert len({thread for _, thread in seen}) == 2


def test_leases_are_renewed_while_a_position_moves() -> None:
    """Neither waits for the other for ever, in whatever order the partitions' rows are locked."""
    with connect() as pulse, connect() as worker, connect() as other:
        groups.register(pulse, "billing", 2, False, "now")
        first, last = groups.acquire(pulse, "me", "billing", 2, 60.0)
        renewed: list[set[int]] = []
        renewal = threading.Thread(target=lambda: renewed.append(groups.renew(pulse, [first, last], 60.0)))
        waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        with worker.transaction():
            worker.execute(groups.SAFELY, groups.movement([last], last.position))
            renewal.start()
            until(
                lambda: other.execute(waits, [pulse.info.backend_pid]).fetchone() == (True,), "a lock to be waited for"
            )
            worker.execute(groups.SAFELY, groups.movement([first], first.position))
        renewal.join()
    assert renewed == [{first.id, last.id}]


def test_an_event_that_fails_is_tried_again_and_blocks_its_key_only() -> None:
    box, failures = Box(), []

    @on_pg_event(Account, group="billing")
    def fails_at_first(event: PgEvent) -> None:
        values = event.new
        if values["owner"] == "bad" and len(failures) < 2:
            failures.append(event.id)
            raise Retry(after=timedelta(seconds=0.05))
        box.put((values["owner"], values["balance"]))

    with working("billing"):
        bad = Account.objects.create(owner="bad")
        bad.balance = 1
        bad.save()
        Account.objects.create(owner="good")
        seen = box.wait(3)
    assert len(failures) == 2
    assert [one for one in seen if one[0] == "bad"] == [("bad", 0), ("bad", 1)]
    assert not ParkedEvent.objects.exists()


def test_after_its_last_attempt_an_event_is_a_dead_letter_and_its_key_goes_on() -> None:
    box, told = Box(), Box()

    def tell(**said: object) -> None:
        told.put(said)

    event_dead.connect(tell)

    @on_pg_event(Account, group="billing", max_attempts=2)
    def fails(event: PgEvent) -> None:
        if event.op == "insert":
            raise Retry("no luck", after=0.01)
        box.put(event.op)

    try:
        with working("billing"):
            one = Account.objects.create()
            one.balance = 4
            one.save()
            assert box.wait(1) == ["update"]
            said = told.wait(1)[0]
    finally:
        event_dead.disconnect(tell)
    dead = DeadLetter.objects.get()
    assert (dead.group_name, dead.attempts, dead.op) == ("billing", 2, "i")
    assert "no luck" in dead.error
    assert "fails" in dead.traceback
    assert said["event"].pk == one.pk


def test_discard_gives_an_event_up_without_a_trace() -> None:
    box = Box()

    @on_pg_event(Account, group="billing")
    def discards(event: PgEvent) -> None:
        box.put(event.pk)
        raise Discard("not ours")

    with working("billing"):
        Account.objects.create()
        box.wait(1)
    assert not ParkedEvent.objects.exists()
    assert not DeadLetter.objects.exists()


def test_where_everything_fails_the_group_pauses_and_nothing_is_parked() -> None:
    calls, well = Box(), threading.Event()

    @on_pg_event(Account, group="billing")
    def fails(event: PgEvent) -> None:
        calls.put(event.pk)
        if not well.is_set():
            raise RuntimeError("the service is away")

    with working("billing"):
        Account.objects.bulk_create(Account() for _ in range(50))
        calls.wait(10)
        until(lambda: max(Partition.objects.values_list("failures", flat=True)) >= 1, "the pause")
        assert not ParkedEvent.objects.exists()
        well.set()
        until(lambda: len(set(calls.items)) == 50, "all")


def test_an_atomic_groups_writes_commit_with_its_position() -> None:
    @on_pg_event(Account, group="mirror", atomic=True)
    def mirror(event: PgEvent) -> None:
        Effect.objects.create(group="mirror", event_id=event.id, key=str(event.key))

    drained("mirror")
    Account.objects.bulk_create(Account() for _ in range(30))
    drained("mirror")
    assert sorted(Effect.objects.values_list("event_id", flat=True)) == sorted(
        LogEntry.objects.values_list("pk", flat=True)
    )


def test_an_atomic_batch_with_a_bad_event_is_rolled_back_and_done_one_by_one() -> None:
    tried: list[str] = []

    @on_pg_event(Account, group="mirror", atomic=True, max_attempts=1)
    def mirror(event: PgEvent) -> None:
        owner = event.new["owner"]
        Effect.objects.create(group="mirror", event_id=event.id, said=owner)
        tried.append(owner)
        if owner == "3":
            raise RuntimeError("bad")

    drained("mirror")
    Account.objects.bulk_create(Account(owner=str(number)) for number in range(6))
    drained("mirror")
    assert sorted(Effect.objects.values_list("said", flat=True)) == ["0", "1", "2", "4", "5"]
    assert DeadLetter.objects.get().attempts == 1
    assert tried.count("0") == 2


def test_a_list_receiver_gets_lists() -> None:
    box = Box()

    @on_pg_event(Account, group="billing", batch=True)
    def many(events: list[PgEvent]) -> None:
        box.put([event.id for event in events])

    drained("billing")
    Account.objects.bulk_create(Account() for _ in range(40))
    drained("billing")
    assert [len(one) for one in box.items] == [40]


def test_an_async_receiver_is_awaited() -> None:
    box = Box()

    @on_pg_event(Account, group="billing")
    async def later(event: PgEvent) -> None:
        box.put((await event.ainstance()).owner)

    # Where the connection of Django's own thread has died, the first attempt fails and the second does not.
    with working("billing"):
        Account.objects.create(owner="x")
        assert box.wait(1) == ["x"]


def test_messages_reach_groups_and_delayed_ones_later() -> None:
    box = Box()
    on_pg_event("app_events", group="billing")(lambda event: box.put(event.payload))
    with working("billing"):
        publish("app_events", "later", durable=True, delay=timedelta(seconds=0.3))
        publish("app_events", "now", durable=True, key="k")
        assert box.wait(2) == ["now", "later"]


def test_entries_are_ordered_by_the_declared_key() -> None:
    box = Box()
    on_pg_event(Entry, group="billing")(lambda event: box.put((event.key, event.new["amount"])))
    account = Account.objects.create()
    with working("billing", count=2):
        for amount in range(20):
            Entry.objects.create(account=account, amount=amount)
        assert box.wait(20) == [(account.pk, amount) for amount in range(20)]
