"""What becomes of an event that a group could not handle: it is parked, tried again, and at last a dead letter.

Parked events are copies, in a small table of their own: the log is only appended to. Those behind it of the same key
are parked too, so that order is kept and nothing else waits.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from ..tables import DEAD, PARKED, PARTITION
from .groups import Fenced, Lease
from .reading import Row

FIRST_WAIT = 1.0
"""Seconds before the second attempt, at most; doubled for each further one."""
LONGEST_WAIT = 3600.0


class Retry(Exception):
    """Raise it in a group's receiver to have the event again: `raise Retry(after=60)`, in seconds or as a timedelta.

    It counts as an attempt.
    """

    def __init__(self, *args: object, after: float | timedelta | None = None) -> None:
        super().__init__(*args)
        self.after = after.total_seconds() if isinstance(after, timedelta) else after


class Discard(Exception):
    """Raise it in a group's receiver to give the event up for the group, without further attempts or a dead letter."""


class Died(Exception):
    """The process that handled an event ended in the middle of it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row of the log could not be handled. Without an error it waits behind one of its key."""

    row: Row
    error: BaseException | None
    attempts: int = 0
    max_attempts: int = 1

    @property
    def is_final(self) -> bool:
        """Whether there is no further attempt."""
        return self.error is not None and self.attempts >= self.max_attempts

    @property
    def wait(self) -> float:
        """Seconds until the next attempt: exponential, with full jitter, so that failures do not come back in step."""
        if self.error is None:
            return 0.0
        if isinstance(self.error, Retry) and self.error.after is not None:
            return max(self.error.after, 0.0)
        return backoff(self.attempts)

    @property
    def summary(self) -> str:
        """The error in a line."""
        return "" if self.error is None else f"{type(self.error).__name__}: {self.error}"[:2000].replace("\0", "")

    @property
    def traceback(self) -> str:
        """The error with where it was raised."""
        if self.error is None:
            return ""
        return "".join(traceback.format_exception(self.error))[-20_000:].replace("\0", "")


def backoff(attempts: int) -> float:
    """Seconds to wait after so many attempts."""
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempts - 1, 20)))  # noqa: S311 - no secret


_EVENT = "event_id, xid, at, source, key, head, body, slot, op"

_GIVEN = "%s, %s, %s::text::xid8, %s, %s, %s, %s, %s, %s, %s, %s"
_PARK = f"""
INSERT INTO {PARKED} (group_name, {_EVENT}, attempts, error, next_at)
VALUES ({_GIVEN}, %s, clock_timestamp() + %s * interval '1 second') ON CONFLICT (group_name, event_id) DO NOTHING
"""
_BURY = f"INSERT INTO {DEAD} (group_name, {_EVENT}, attempts, error, traceback) VALUES ({_GIVEN}, %s, %s)"


def park(cursor: Any, group: str, failures: Iterable[Failure]) -> None:
    """Keep events for later; those without a further attempt as dead letters."""
    for one in failures:
        given = [group, *one.row, one.attempts, one.summary]
        if one.is_final:
            cursor.execute(_BURY, [*given, one.traceback])
        else:
            cursor.execute(_PARK, [*given, one.wait])


@dataclass(frozen=True, slots=True)
class Parked:
    """A parked event that is due."""

    id: int
    attempts: int
    """Before this one."""
    row: Row


# Those that wait behind an earlier one of their key are due at once; but not before that one is.
_FREE = f"""NOT EXISTS (
        SELECT FROM {PARKED} AS earlier WHERE earlier.group_name = one.group_name AND earlier.source = one.source
            AND earlier.key = one.key AND earlier.event_id < one.event_id AND earlier.next_at > clock_timestamp()
    )"""
_DUE = f"""
SELECT id, attempts, event_id, xid::text, at, source, key, head, body, slot, op FROM {PARKED} AS one
WHERE group_name = %(group)s AND slot %% %(partitions)s = ANY (%(numbers)s) AND next_at <= clock_timestamp()
    AND {_FREE}
ORDER BY event_id LIMIT %(limit)s
"""
_NEXT = f"""
SELECT extract(epoch FROM min(next_at) - clock_timestamp())::float8 FROM {PARKED} AS one
WHERE group_name = %(group)s AND slot %% %(partitions)s = ANY (%(numbers)s) AND {_FREE}
"""
_BLOCKED = f"""
SELECT DISTINCT source, key FROM {PARKED}
WHERE group_name = %(group)s AND slot %% %(partitions)s = ANY (%(numbers)s)
"""


def due(
    connection: psycopg.Connection[Any], group: str, partitions: int, numbers: Sequence[int], limit: int
) -> list[Parked]:
    """Parked events whose time has come, none of them behind one of its key that has to wait."""
    given = {"group": group, "partitions": partitions, "numbers": list(numbers), "limit": limit}
    return [Parked(row[0], row[1], row[2:]) for row in connection.execute(_DUE, given).fetchall()]


def blocked(
    connection: psycopg.Connection[Any], group: str, partitions: int, numbers: Sequence[int]
) -> set[tuple[str, str]]:
    """The keys that have parked events, with their sources."""
    given = {"group": group, "partitions": partitions, "numbers": list(numbers)}
    return set(connection.execute(_BLOCKED, given).fetchall())


def next_due(connection: psycopg.Connection[Any], group: str, partitions: int, numbers: Sequence[int]) -> float | None:
    """Seconds until a parked event is due; None where there is none."""
    given = {"group": group, "partitions": partitions, "numbers": list(numbers)}
    row = connection.execute(_NEXT, given).fetchone()
    return None if row is None else row[0]


def has_due(connection: psycopg.Connection[Any], group: str) -> bool:
    """Whether a parked event of the group is due."""
    wait = next_due(connection, group, 1, [0])
    return wait is not None and wait <= 0


_HELD = f"EXISTS (SELECT FROM {PARTITION} AS held WHERE held.id = %s AND held.epoch = %s AND held.owner IS NOT NULL)"


def begin(connection: psycopg.Connection[Any], one: Parked, lease: Lease) -> None:
    """Count an attempt before it is made, so that one which ends the process counts. Raises Fenced."""
    cursor = connection.execute(
        f"UPDATE {PARKED} SET attempts = attempts + 1 WHERE id = %s AND {_HELD}", [one.id, lease.id, lease.epoch]
    )
    if cursor.rowcount != 1:
        raise Fenced


def forget(cursor: Any, one: Parked, lease: Lease) -> None:
    """The event has been handled. Raises Fenced where that is not this worker's to say any more.

    cursor: Django's, or one of psycopg's.
    """
    cursor.execute(f"DELETE FROM {PARKED} WHERE id = %s AND {_HELD}", [one.id, lease.id, lease.epoch])
    if cursor.rowcount != 1:
        raise Fenced


def postpone(connection: psycopg.Connection[Any], one: Parked, lease: Lease, group: str, failure: Failure) -> None:
    """The attempt has failed: try later, or make it a dead letter. Raises Fenced."""
    if not failure.is_final:
        cursor = connection.execute(
            f"UPDATE {PARKED} SET next_at = clock_timestamp() + %s * interval '1 second', error = %s "
            f"WHERE id = %s AND {_HELD}",
            [failure.wait, failure.summary, one.id, lease.id, lease.epoch],
        )
        if cursor.rowcount != 1:
            raise Fenced
        return
    with connection.transaction():
        forget(connection.cursor(), one, lease)
        park(connection, group, [failure])
