"""The log is kept from growing without end, and nobody waits for that."""

from __future__ import annotations

import io
import sys
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.test import override_settings

from pgsignals import on_pg_event, publish
from pgsignals.durable.housekeeping import Housekeeping
from pgsignals.durable.reading import connect as own_connection
from pgsignals.models import DelayedMessage, LogEntry

from .conftest import connect
from .ledger.models import Account
from .relaying import Box
from .servers import running
from .working import alone, drained, rows, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

__all__ = ["alone"]

INSERT = "INSERT INTO ledger_account (owner, balance, note) VALUES (%s, 0, '')"


def clean(keep: float = 0.001) -> int:
    """How many rows were deleted."""
    housekeeping = Housekeeping("default")
    with override_settings(PGSIGNALS={"LOG_KEEP": keep}), own_connection("default", "pgsignals test") as own:
        while housekeeping.delete(own):
            pass
    return housekeeping.deleted


def test_what_a_slow_transaction_wrote_stays_until_it_was_handled() -> None:
    box = Box()
    on_pg_event(Account, group="billing")(lambda event: box.put(event.new["owner"]))
    drained("billing")
    with connect() as slow:
        slow.autocommit = False
        slow.execute(INSERT, ["slow"])
        Account.objects.create(owner="fast")
        drained("billing")
        slow.commit()
    assert clean() == 1, "the one that was handled"
    drained("billing")
    assert box.items == ["fast", "slow"]
    assert clean() == 1


def test_no_writer_waits_while_a_transaction_is_open_and_old_events_are_deleted() -> None:
    for number in range(100):
        Account.objects.create(owner=str(number))
    with connect() as hours, connect() as cleaner, connect() as writer:
        hours.autocommit = False
        hours.execute(INSERT, ["open"])
        writer.execute("SET lock_timeout = '200ms'")
        cleaner.autocommit = False
        # What a step does, while its transaction is not over yet; and what it does after that.
        with override_settings(PGSIGNALS={"LOG_KEEP": 0.001}):
            assert Housekeeping("default")._delete_some(cleaner, 0.001)
        writer.execute(INSERT, ["beside the deleting transaction"])
        cleaner.commit()
        cleaner.autocommit = True
        cleaner.execute("SET lock_timeout = '200ms'")
        cleaner.execute("VACUUM (SKIP_LOCKED, TRUNCATE off) pgsignals_log")
        writer.execute(INSERT, ["after it"])
        hours.commit()
    assert LogEntry.objects.count() == 3


def test_a_group_that_holds_the_log_up_is_named_in_the_log_and_in_the_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_pg_event(Account, group="billing")(lambda event: None)
    on_pg_event(Account, group="search")(lambda event: None)
    drained()
    call_command("pgsignals", "group", "pause", "billing", stdout=io.StringIO())
    Account.objects.create()
    drained("search")
    assert clean() == 0
    assert "have not handled them: billing." in caplog.text
    out = io.StringIO()
    with override_settings(PGSIGNALS={"LOG_KEEP": 0.001}):
        call_command("pgsignals", "status", stdout=out)
    assert "because of 'billing'" in out.getvalue()
    assert "because of 'search'" not in out.getvalue()
    call_command("pgsignals", "group", "forget", "billing", stdout=io.StringIO())
    assert clean() == 1


def test_a_drain_appends_what_is_due_and_deletes_what_is_old() -> None:
    box = Box()
    on_pg_event("app_events", group="billing", start="beginning")(lambda event: box.put(event.payload))
    publish("app_events", "due", durable=True, delay=timedelta(milliseconds=1))
    publish("app_events", "tomorrow", durable=True, delay=timedelta(days=1))
    until(lambda: rows("SELECT 1 FROM pgsignals_delayed WHERE due_at < clock_timestamp()"), "its time")
    assert drained("billing", LOG_KEEP=0.001) == 1
    assert box.items == ["due"]
    assert not LogEntry.objects.exists()
    assert DelayedMessage.objects.get().payload == '"tomorrow"'


WITH_A_GROUP = """
import django
django.setup()
from django.core.management import call_command
from pgsignals import on_pg_event
from tests.ledger.models import Account
on_pg_event(Account, group="ready")(lambda event: None)
call_command("listen", "--no-relay", "--groups", "ready")
"""


@pytest.mark.parametrize("arguments", [["-m", "django", "listen", "--no-groups"], ["-c", WITH_A_GROUP]])
def test_who_listens_keeps_house_whether_it_works_for_groups_or_not(
    child_environment: dict[str, str], arguments: list[str]
) -> None:
    with running([sys.executable, *arguments], child_environment):
        publish("app_events", "soon", durable=True, delay=timedelta(milliseconds=10))
        until(lambda: LogEntry.objects.filter(op="m").exists(), "the message")
