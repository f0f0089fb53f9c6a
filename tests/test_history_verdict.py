"""What the history checker calls a broken promise, by histories of one event."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from .history.checker import Fault, History, Verdict

BEGAN = 1_800_000_000.0
LOST = "The worker here:7:plain:1f of the group 'plain' goes on in 0.2 s with a new connection: it was terminated"


class Written(History):
    """One insert was committed; nothing else happened but what a test says."""

    def __init__(self, log: Any, seen: list[tuple[str, int, float]], faults: list[Fault]) -> None:
        self.log = log
        self.faults = faults
        self._seen = [(group, 1, "insert", 5, 6, pid, BEGAN + at) for group, pid, at in seen]

    def execute(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        if "history_journal" in query:
            return [("insert", 5, 6)]
        return self._seen if "history_seen" in query else []

    def with_line(self, text: str, at: float) -> Written:
        self.log.write(f"{datetime.fromtimestamp(BEGAN + at):%Y-%m-%d %H:%M:%S},000 WARNING {text}\n".encode())
        self.log.flush()
        return self


@pytest.fixture
def log(tmp_path: Any) -> Iterator[Any]:
    with open(tmp_path / "workers.log", "wb") as file:
        yield file


def of_plain(history: History) -> list[str]:
    return [one for one in Verdict(history).check() if one.startswith("plain")]


TWICE = [("plain", 7, 0.0), ("plain", 7, 3.0)]


def test_an_event_that_nobody_saw_is_lost(log: Any) -> None:
    (broken,) = of_plain(Written(log, [], []))
    assert "was committed and never seen" in broken


def test_an_event_that_came_twice_without_a_fault_breaks_a_promise(log: Any) -> None:
    (broken,) = of_plain(Written(log, TWICE, []))
    assert "event 1 came twice" in broken


def test_what_befell_the_process_in_between_explains_it(log: Any) -> None:
    assert not of_plain(Written(log, TWICE, [Fault(BEGAN + 1, BEGAN + 1, "worker_killed", 7)]))


def test_what_befell_another_process_does_not_explain_it(log: Any) -> None:
    assert of_plain(Written(log, TWICE, [Fault(BEGAN + 1, BEGAN + 1, "worker_killed", 8)]))


ENDED = Fault(BEGAN - 2, BEGAN - 2, "backends_killed")


def test_a_session_that_was_ended_before_explains_it_where_the_worker_noticed_after(log: Any) -> None:
    assert not of_plain(Written(log, TWICE, [ENDED]).with_line(LOST, 2))


def test_a_session_that_was_ended_before_explains_nothing_where_the_worker_noticed_nothing(log: Any) -> None:
    assert of_plain(Written(log, TWICE, [ENDED]))


def test_a_session_that_was_ended_before_explains_nothing_where_the_worker_noticed_before(log: Any) -> None:
    assert of_plain(Written(log, TWICE, [ENDED]).with_line(LOST, -1))


def test_what_another_groups_worker_noticed_explains_nothing(log: Any) -> None:
    assert of_plain(Written(log, TWICE, [ENDED]).with_line(LOST.replace("plain", "entries"), 2))


def test_an_atomic_group_may_see_nothing_twice_whatever_befell_it(log: Any) -> None:
    twice = [("atomic", 7, 0.0), ("atomic", 7, 3.0)]
    found = Verdict(Written(log, twice, [Fault(BEGAN + 1, BEGAN + 1, "server_crashed")])).check()
    assert "atomic: event 1 was done twice" in found
