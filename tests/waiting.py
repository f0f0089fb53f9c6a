"""Waits for what other processes do, by asking again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

from .conftest import connect
from .relaying import WITHIN

Result = TypeVar("Result")


def until(look: Callable[[], Result], fits: Callable[[Result], object] = bool) -> Result:
    """What `look` finds, as soon as it fits."""
    deadline = time.monotonic() + WITHIN
    while not fits(found := look()):
        assert time.monotonic() < deadline, f"waited {WITHIN} s, and there is still {found!r}"
        time.sleep(0.02)
    return found


def sessions() -> dict[int, int | None]:
    """The server's sessions that listen here: the process that each says it belongs to, once it says so."""
    query = (
        "SELECT pid, application_name FROM pg_stat_activity "
        "WHERE application_name LIKE 'pgsignals listen%' AND datname = current_database()"
    )
    with connect() as other:
        rows = other.execute(query).fetchall()
    told = {pid: re.search(r":(\d+) ", name) for pid, name in rows}
    return {pid: int(process[1]) if process else None for pid, process in told.items()}


def listening() -> list[int]:
    """The processes that listen, and have proven that they hear."""
    return sorted(process for process in sessions().values() if process is not None)
