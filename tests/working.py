"""Groups at work in this process, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import connection
from django.test import override_settings

from pgsignals.durable.housekeeping import Housekeeper
from pgsignals.durable.workers import Workers, chosen_groups
from pgsignals.receivers import registry
from pgsignals.tables import DEAD, DELAYED, GROUP, LOG, PARKED, PARTITION, PROCESSED, WORKER

from .conftest import Listener
from .ledger.models import Account
from .relaying import only_receivers_of_this_test

WITHIN = 60.0


def clear_log() -> None:
    """As after the first `migrate`."""
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {LOG}, {GROUP}, {PARTITION}, {WORKER}, {PARKED}, {DEAD}, {DELAYED}, {PROCESSED}")


@pytest.fixture
def alone(transactional_db: object) -> Iterator[None]:
    """An empty log, and no receivers but the test's own."""
    clear_log()
    with only_receivers_of_this_test():
        yield
    clear_log()


@pytest.fixture
def bell(transactional_db: object) -> Iterator[Listener]:
    """Who listens to the bell of a log that is empty."""
    clear_log()
    listening = Listener(LOG)
    yield listening
    listening.connection.close()


def owners(*names: str) -> None:
    Account.objects.bulk_create(Account(owner=name) for name in names)


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait for a moment."""
    end = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < end, f"waited {WITHIN} s for {what}"
        time.sleep(0.005)


@contextmanager
def working(*names: str, count: int = 1, **settings: object) -> Iterator[Workers]:
    """The workers of these groups, or of all, which start before the block and end after it."""
    with override_settings(PGSIGNALS={"LOG_POLL": 0.05, **settings}):
        workers, keeper = Workers("default", chosen_groups(names, registry), count), Housekeeper("default")
        workers.start()
        keeper.start()
        try:
            until(lambda: all(held(worker.group) for worker in workers.workers), "the partitions")
            yield workers
        finally:
            workers.stop()
            keeper.stop()


def held(group: str) -> bool:
    """Whether all partitions of a group are leased."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) > 0 AND bool_and(owner IS NOT NULL) FROM {PARTITION} WHERE group_name = %s", [group]
        )
        return bool(cursor.fetchone()[0])


def drained(*names: str, count: int = 1, **settings: object) -> int:
    """Handle all that is there, and end. How many events that were."""
    with override_settings(PGSIGNALS={"LOG_POLL": 0.05, **settings}):
        workers = Workers("default", chosen_groups(names, registry), count)
        workers.drain()
        return workers.handled


def rows(query: str, *arguments: object) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, arguments)
        return cursor.fetchall()
