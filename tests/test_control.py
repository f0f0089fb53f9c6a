"""Replay, pause, skip, requeue: what people do with groups."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from pgsignals import PgEvent, on_pg_event
from pgsignals.durable import control
from pgsignals.models import DeadLetter, ParkedEvent

from .conftest import connect
from .ledger.models import Account, Entry
from .relaying import Box
from .working import alone, drained, until, working

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]


@pytest.fixture
def box() -> Box:
    """The owners of the accounts that the group `billing` has seen; it has begun already."""
    box = Box()
    on_pg_event(Account, "insert", group="billing")(lambda event: box.put(event.new["owner"]))
    drained("billing")
    return box


def manage(*arguments: str) -> str:
    out = io.StringIO()
    call_command("pgsignals", *arguments, stdout=out)
    return out.getvalue()


def test_a_group_handles_again_what_was_written_since_a_moment(box: Box) -> None:
    Account.objects.create(owner="before")
    moment = timezone.now()
    Account.objects.bulk_create([Account(owner="a"), Account(owner="b")])
    drained("billing")
    assert "Dry run" in manage("replay", "--group", "billing", "--since", moment.isoformat(), "--dry-run")
    assert drained("billing") == 0
    assert "2 events" in manage("replay", "--group", "billing", "--since", moment.isoformat())
    drained("billing")
    assert sorted(box.items) == ["a", "a", "b", "b", "before"]


def test_a_replay_of_one_model_or_key_leaves_the_others(box: Box) -> None:
    entries = Box()
    on_pg_event(Entry, group="billing")(lambda event: entries.put(event.new["amount"]))
    moment = timezone.now() - timedelta(minutes=1)
    one, other = Account.objects.create(owner="a"), Account.objects.create(owner="b")
    Entry.objects.create(account=one, amount=4)
    drained("billing")
    assert control.replay("default", "billing", moment, model="ledger.Entry") == 1
    drained("billing")
    assert (sorted(box.items), entries.items) == (["a", "b"], [4, 4])
    assert control.replay("default", "billing", moment, model="ledger.Account", key=str(other.pk)) == 1
    drained("billing")
    assert sorted(box.items) == ["a", "b", "b"]
    assert not ParkedEvent.objects.exists()


def test_a_replay_skips_nothing_that_the_group_has_not_handled_yet(box: Box) -> None:
    Account.objects.bulk_create([Account(owner="waits"), Account(owner="too")])
    moment = timezone.now()
    Account.objects.create(owner="since")
    assert control.replay("default", "billing", moment) == 1
    drained("billing")
    assert sorted(box.items) == ["since", "too", "waits"]


def test_a_replay_of_one_model_is_of_what_was_handled_for_the_rest_comes_anyway(box: Box) -> None:
    moment = timezone.now() - timedelta(minutes=1)
    Account.objects.create(owner="handled")
    drained("billing")
    Account.objects.create(owner="waits")
    assert "1 events" in manage(
        "replay", "--group", "billing", "--since", moment.isoformat(), "--model", "ledger.Account", "--dry-run"
    )
    assert control.replay("default", "billing", moment, model="ledger.Account") == 1
    drained("billing")
    assert sorted(box.items) == ["handled", "handled", "waits"]


def test_a_running_worker_goes_back_too(box: Box) -> None:
    moment = timezone.now() - timedelta(minutes=1)
    with working("billing", LEASE=1.0):
        Account.objects.create(owner="a")
        box.wait(1)
        control.replay("default", "billing", moment)
        assert box.wait(2) == ["a", "a"]


def test_a_paused_group_waits_and_goes_on_where_it_was(box: Box) -> None:
    manage("group", "pause", "billing")
    Account.objects.create(owner="a")
    drained("billing")
    assert box.items == []
    manage("group", "resume", "billing")
    drained("billing")
    assert box.items == ["a"]


def test_a_group_that_skips_goes_on_from_now(box: Box) -> None:
    Account.objects.create(owner="a")
    manage("group", "skip", "billing")
    Account.objects.create(owner="b")
    drained("billing")
    assert box.items == ["b"]
    manage("group", "reset", "billing", "--to", "beginning")
    drained("billing")
    assert box.items == ["b", "a", "b"]


def test_a_group_that_is_forgotten_is_gone(box: Box) -> None:
    manage("group", "forget", "billing")
    assert control.status("default") == []


def test_a_forgotten_group_begins_anew_where_a_worker_runs(box: Box) -> None:
    with working("billing", LEASE=0.5):
        control.forget("default", "billing")
        until(lambda: [one.leased for one in control.status("default")] == [8], "the group")
        Account.objects.create(owner="a")
        assert box.wait(1) == ["a"]


def test_the_status_counts_what_a_transaction_wrote_that_committed_late(box: Box) -> None:
    with connect() as slow:
        slow.autocommit = False
        slow.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('slow', 0, '')")
        Account.objects.create(owner="fast")
        drained("billing")
        assert control.status("default")[0].lag == 0
        slow.commit()
    assert control.status("default")[0].lag == 1
    drained("billing")
    assert control.status("default")[0].lag == 0


def test_a_group_that_is_not_there_is_an_error_with_those_there_are(box: Box) -> None:
    with pytest.raises(CommandError, match=r"no group 'biling'.*There are: billing"):
        manage("group", "pause", "biling")


def test_the_status_says_how_far_a_group_is(box: Box) -> None:
    Account.objects.bulk_create(Account() for _ in range(7))
    (one,) = control.status("default")
    assert (one.name, one.lag, one.partitions, one.workers, one.paused) == ("billing", 7, 8, 0, False)
    assert one.seconds > 0
    assert not one.holds_up
    said = json.loads(manage("status", "--json"))
    assert said["groups"][0]["lag"] == 7
    assert "billing" in manage("status")
    drained("billing")
    assert control.status("default")[0].lag == 0


def test_a_dead_letter_is_tried_again_or_given_up() -> None:
    box, well = Box(), []

    @on_pg_event(Account, "insert", group="billing", max_attempts=1)
    def fails(event: PgEvent) -> None:
        if not well:
            raise RuntimeError("no")
        box.put(event.new["owner"])

    drained("billing")
    Account.objects.bulk_create([Account(owner="a"), Account(owner="b")])
    drained("billing")
    until(lambda: DeadLetter.objects.count() == 2, "the dead letters")
    first, second = DeadLetter.objects.order_by("pk").values_list("pk", flat=True)
    well.append(True)
    assert control.requeue("default", [first]) == 1
    assert control.discard("default", [second]) == 1
    drained("billing")
    assert len(box.items) == 1
    assert not DeadLetter.objects.exists()
