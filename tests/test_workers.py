"""Workers as processes: what becomes of events when one dies, or stands still."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from pgsignals.models import DeadLetter, Partition

from .ledger.models import Account, Effect
from .servers import ROOT
from .working import clear_log, rows, until

pytestmark = pytest.mark.django_db(transaction=True)

WORKER = """
import os, signal, sys, time
import django
from django.conf import settings
django.setup()
settings.PGSIGNALS = {"LEASE": 1.0, "LOG_POLL": 0.05}
from pgsignals import on_pg_event
from pgsignals.durable.workers import Workers, chosen_groups
from tests.ledger.models import Account, Effect

@on_pg_event(Account, group="billing", start="beginning", max_attempts=2)
def bill(event):
    if event.op != "insert":
        return
    owner = event.new["owner"]
    if owner == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if owner == "stops" and len(sys.argv) > 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    Effect.objects.create(group="billing", event_id=event.id, said=owner, key=str(os.getpid()))

workers = Workers("default", chosen_groups([]))
workers.start()
signal.signal(signal.SIGTERM, lambda *_: (workers.stop(), sys.exit(0)))
while True:
    time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def _empty(transactional_db: object) -> Iterator[None]:
    clear_log()
    yield
    clear_log()


@contextmanager
def worker(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


def said() -> list[str]:
    return list(Effect.objects.order_by("pk").values_list("said", flat=True))


def test_an_event_that_ends_the_process_ends_as_a_dead_letter(child_environment: dict[str, str]) -> None:
    Account.objects.bulk_create([Account(owner="first"), Account(owner="kills"), Account(owner="last")])
    for _ in range(6):
        with worker(child_environment) as process:
            until(lambda process=process: process.poll() is not None or DeadLetter.objects.exists(), "an end")
            if DeadLetter.objects.exists():
                until(lambda: "last" in said(), "the last one")
                break
    dead = DeadLetter.objects.get()
    assert (dead.op, dead.attempts) == ("i", 2)
    assert "the process ended" in dead.error
    assert set(said()) == {"first", "last"}
    assert said().count("last") == 1


def test_a_dead_workers_partitions_are_taken_over_after_the_lease(child_environment: dict[str, str]) -> None:
    with worker(child_environment) as first:
        until(lambda: Partition.objects.filter(owner__isnull=False).count() == 8, "the first worker")
        with worker(child_environment) as second:
            first.kill()
            killed = time.monotonic()
            Account.objects.create(owner="x")
            until(lambda: said() == ["x"], "the takeover")
            taken = time.monotonic() - killed
            assert Effect.objects.get().key == str(second.pid)
    assert taken < 10


def test_a_worker_that_stood_still_cannot_acknowledge_what_another_took(child_environment: dict[str, str]) -> None:
    with worker(child_environment, "stops") as first:
        until(lambda: Partition.objects.filter(owner__isnull=False).count() == 8, "the first worker")
        account = Account.objects.create(owner="stops")
        until(lambda: state(first.pid) == "T", "its standing still")
        with worker(child_environment) as second:
            until(lambda: said() == ["stops"], "the takeover")
            epochs = dict(Partition.objects.values_list("number", "epoch"))
            first.send_signal(signal.SIGCONT)
            # It finishes what it was in the middle of, and no more.
            until(lambda: said() == ["stops", "stops"], "its return")
            Account.objects.filter(pk=account.pk).update(balance=5)
            Account.objects.create(owner="after")
            until(lambda: "after" in said(), "what came after")
            assert {one.key for one in Effect.objects.filter(said="stops")} == {str(first.pid), str(second.pid)}
    assert said().count("after") == 1
    assert epochs


def test_a_worker_that_is_told_to_end_gives_back_what_it_has(child_environment: dict[str, str]) -> None:
    with worker(child_environment) as process:
        until(lambda: Partition.objects.filter(owner__isnull=False).count() == 8, "the worker")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not Partition.objects.filter(owner__isnull=False).exists()
    assert rows("SELECT * FROM pgsignals_worker") == []


def test_a_session_that_is_ended_by_the_server_is_replaced(child_environment: dict[str, str]) -> None:
    with worker(child_environment):
        until(lambda: Partition.objects.filter(owner__isnull=False).count() == 8, "the worker")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals %%' "
                "AND datname = current_database() AND pid <> pg_backend_pid()"
            )
        Account.objects.create(owner="x")
        until(lambda: said() == ["x"], "the event")


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]
