"""What the log has to live through: restored dumps, retention, tests of its users."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from django.test import override_settings

from pgsignals import PgEvent, Retry, on_pg_event, processed_once, publish
from pgsignals.durable import control
from pgsignals.durable.housekeeping import Housekeeping
from pgsignals.durable.reading import connect
from pgsignals.models import Identity, LogEntry
from pgsignals.testing import capture_events

from .ledger.models import Account, Entry
from .relaying import Box
from .shop.models import Customer
from .working import alone, drained, rows, until, working

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]


def test_a_log_from_another_cluster_is_recognised_and_continued_without_loss(caplog: pytest.LogCaptureFixture) -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put(event.new["owner"]))
    drained("billing")
    Account.objects.create(owner="handled")
    drained("billing")
    Account.objects.create(owner="waits")
    # As a restore leaves it: ids of a cluster that had counted further, and positions in terms of these.
    with connection.cursor() as cursor:
        cursor.execute("UPDATE pgsignals_log SET xid = (xid::text::bigint + 1000000000)::text::xid8")
        cursor.execute("SELECT DISTINCT since::text FROM pgsignals_partition")
        ((snapshot,),) = cursor.fetchall()
        xmin, xmax, running = snapshot.split(":")
        moved = [str(int(one) + 1_000_000_000) for one in running.split(",") if one]
        later = f"{int(xmin) + 1_000_000_000}:{int(xmax) + 1_000_000_000}:{','.join(moved)}"
        cursor.execute("UPDATE pgsignals_partition SET since = %s, until = %s", [later, later])
        cursor.execute("DELETE FROM pgsignals_identity")
        cursor.execute("INSERT INTO pgsignals_identity (system_identifier) VALUES ('another')")
    Account.objects.create(owner="new")
    drained("billing")
    assert box.items == ["handled", "waits", "new"]
    assert "came from another cluster" in caplog.text
    assert Identity.objects.get().system_identifier != "another"
    Account.objects.create(owner="newer")
    drained("billing")
    assert box.items[3:] == ["newer"]


def test_old_events_are_deleted_when_every_group_has_passed_them() -> None:
    on_pg_event(Account, group="billing")(lambda event: None)
    drained("billing")
    Account.objects.bulk_create(Account() for _ in range(20))
    with override_settings(PGSIGNALS={"LOG_KEEP": 0.001}), connect("default", "pgsignals pulse") as own:
        keeping = Housekeeping("default")
        keeping.delete(own)
        assert LogEntry.objects.count() == 20, "the group has not handled them"
        drained("billing")
        keeping.delete(own)
    assert LogEntry.objects.count() == 0
    assert keeping.deleted == 20


def test_young_events_stay() -> None:
    Account.objects.create()
    with connect("default", "pgsignals pulse") as own:
        keeping = Housekeeping("default")
        keeping.delete(own)
    assert LogEntry.objects.count() == 1


def test_a_thing_is_done_once_for_an_event_and_a_name() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    @on_pg_event(Account, group="billing")
    def remember(event: PgEvent) -> None:
        with transaction.atomic():
            seen.append((processed_once(event), processed_once(event), processed_once(event, "mail")))

    drained("billing")
    Account.objects.create()
    drained("billing")
    assert seen == [(True, False, True)]


def test_what_failed_was_not_done_and_is_done_at_the_next_attempt() -> None:
    done: list[str] = []

    @on_pg_event(Account, group="billing")
    def remember(event: PgEvent) -> None:
        with transaction.atomic():
            if processed_once(event):
                done.append("tried")
                if len(done) == 1:
                    raise Retry(after=0.01)
                done.append("done")

    drained("billing")
    with working("billing"):
        Account.objects.create()
        until(lambda: done[2:] == ["done"], "the second attempt")


def test_outside_of_a_transaction_nothing_is_remembered_for_what_follows_may_fail() -> None:
    raised: list[BaseException] = []

    @on_pg_event(Account, group="billing")
    def remember(event: PgEvent) -> None:
        try:
            processed_once(event)
        except TransactionManagementError as error:
            raised.append(error)

    drained("billing")
    Account.objects.create()
    drained("billing")
    assert "within transaction.atomic(using='default')" in str(raised[0])
    assert rows("SELECT * FROM pgsignals_processed") == []


def test_a_users_test_captures_durable_events_among_the_fast_ones() -> None:
    with transaction.atomic():
        with capture_events() as events:
            Customer.objects.create(name="fast")
            account = Account.objects.create(owner="durable")
            publish("app_events", 1)
            publish("app_events", 2, durable=True)
            with transaction.atomic():
                Account.objects.create(owner="gone")
                transaction.set_rollback(True)
        transaction.set_rollback(True)
    assert [event.label or event.payload for event in events] == ["shop.customer", "ledger.account", 1, 2]
    assert events[1].pk == account.pk


def test_a_users_test_runs_the_receivers_of_groups() -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put(event.new["owner"]))
    with transaction.atomic():
        with capture_events(run=True):
            Account.objects.create(owner="ada")
        transaction.set_rollback(True)
    assert box.items == ["ada"]


def test_listen_drain_handles_what_is_there_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    box = Box()
    on_pg_event("app_events", group="billing", start="beginning")(lambda event: box.put(event.payload))
    publish("app_events", "now", durable=True)
    publish("app_events", "tomorrow", durable=True, delay=timedelta(days=1))
    call_command("listen", drain=True)
    assert box.items == ["now"]
    assert "Handled 1 events." in capsys.readouterr().out


def test_listen_works_for_the_groups_that_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    boxes = {name: Box() for name in ("billing", "mail", "search")}
    for name, box in boxes.items():
        on_pg_event(Account, group=name, start="beginning")(lambda event, box=box: box.put(event.pk))
    Account.objects.bulk_create(Account() for _ in range(20))
    call_command("listen", drain=True, groups="billing, search", workers=2)
    assert {name: len(box.items) for name, box in boxes.items()} == {"billing": 20, "mail": 0, "search": 20}
    assert "Handled 40 events" in capsys.readouterr().out
    with pytest.raises(CommandError, match=r"group 'biling'. There are: billing, mail, search"):
        call_command("listen", drain=True, groups="biling")
    with pytest.raises(CommandError, match="no groups"):
        call_command("listen", drain=True, no_groups=True)


def test_a_drain_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    @on_pg_event(Account, group="billing", start="beginning")
    def later(event: PgEvent) -> None:
        raise Retry(after=3600)

    Account.objects.create()
    call_command("listen", drain=True)
    assert "'billing' goes on; it has 1 events that wait for another attempt" in capsys.readouterr().out
    control.pause("default", "billing")
    call_command("listen", drain=True)
    assert "'billing' is paused" in capsys.readouterr().out


def test_a_check_finds_a_durable_declaration_where_no_log_will_be(settings: Any) -> None:
    from pgsignals.checks import check_declarations

    class NoLog:
        def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool | None:
            return False if app_label == "pgsignals" or db == "sqlite" else None

    settings.DATABASE_ROUTERS = [NoLog()]
    found = [one for one in check_declarations(None) if one.id == "pgsignals.E016"]
    assert {one.obj for one in found} == {Account, Entry}
    assert "the database 'default' has the table but no log" in found[0].msg


def test_checks_find_a_group_without_a_log_and_receivers_that_disagree() -> None:
    from pgsignals.checks import check_receivers

    on_pg_event(Customer, group="billing")(lambda event: None)
    on_pg_event(Account, group="mail")(lambda event: None)
    on_pg_event(Account, group="mail", atomic=True)(lambda event: None)
    assert [one.id for one in check_receivers(None)] == ["pgsignals.E014", "pgsignals.E015"]


def test_the_log_is_not_dropped_while_triggers_write_to_it() -> None:
    assert rows("SELECT 1 FROM pg_proc WHERE proname = 'pgsignals_account_log'")
    with pytest.raises(RuntimeError, match="pgsignals_account_log"):
        call_command("migrate", "pgsignals", "zero", verbosity=0)
