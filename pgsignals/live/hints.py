"""What a group is told next: hints, put together, and bounded whatever comes.

Hints say which rows, not what is in them: of several events about one row the last operation stays, with the names of
all fields that changed. What is too much to name, or cannot travel, becomes "refetch".

A project may have some fields go along (PGSIGNALS["LIVE_FIELDS"]), for the processes that serve browsers to decide by;
and hints about durable events say how far in the log they are.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from ..event import MESSAGE, TRUNCATE, LogEvent, PgEvent, Values
from .topics import is_channel

MAX_KEYS = 200
"""Rows, or messages of an application channel, in one message; beyond it says "refetch"."""

MAX_BYTES = 32_000
"""Bytes of the payloads, or of keys and names, in one message, roughly; beyond it says "refetch"."""


@dataclass(slots=True)
class Row:
    """What happened to one row."""

    op: str
    pk: Any
    changed: set[str]
    old: list[Any] | None = None
    """Of the fields that go along: what they were before the first event, where it says so."""
    new: list[Any] | None = None
    """And what they are after the last."""

    def message(self, with_fields: bool) -> list[Any]:
        """As it stands in a group's message."""
        said = [self.op, self.pk, sorted(self.changed)]
        return [*said, self.old, self.new] if with_fields else said


@dataclass(slots=True)
class Hints:
    """What happened to one topic since its last message."""

    fields: tuple[str, ...] = ()
    """Names of the fields that go along."""
    database: str = "default"
    """The alias of the database whose log clients are resumed from."""
    rows: dict[str, Row] = field(default_factory=dict)
    payloads: list[Any] = field(default_factory=list)
    size: int = 0
    refetch: bool = False
    touched: bool = False
    gap: str | None = None
    lost: bool = False
    position: tuple[str, str, int] | None = None
    """Of the last durable event: see `LogEvent.window`, and its number."""

    def add(self, event: PgEvent) -> None:
        """Put an event to the others."""
        self.touched = True
        if isinstance(event, LogEvent) and event.window is not None and event.database == self.database:
            self.position = (*event.window, event.number)
        if self.refetch:
            return
        if event.op == MESSAGE:
            self._add_payload(event.payload)
        elif event.op == TRUNCATE or event.raw_pk is None:
            self._give_up()
        else:
            self._add_row(event)

    def messages(self, topic: str, lost: str | None) -> list[dict[str, Any]]:
        """The group messages that say it. `lost`: why the relay has no connection now, where it has none.

        A loss is said last: whoever hears "gap" takes it that the relay listens.
        """
        said: list[dict[str, Any]] = []
        if self.gap is not None:
            said.append({"type": "pg.gap", "topic": topic, "cause": self.gap})
        if self.touched:
            at = {} if self.position is None else {"position": list(self.position)}
            said.append({"type": "pg.event", "topic": topic, "refetch": self.refetch, **self._contents(topic), **at})
        if lost is not None and (self.lost or self.gap is not None):
            said.append({"type": "pg.lost", "topic": topic, "cause": lost})
        return said

    def _contents(self, topic: str) -> dict[str, Any]:
        if is_channel(topic):
            return {"payloads": self.payloads}
        return {"events": [row.message(bool(self.fields)) for row in self.rows.values()]}

    def _add_row(self, event: PgEvent) -> None:
        key = repr(event.raw_pk)
        row = self.rows.get(key)
        if row is None:
            if not can_travel(event.raw_pk):
                self._give_up()
                return
            self.size += len(key)
            row = self.rows[key] = Row(event.op, event.raw_pk, set())
        # Forged events may name any fields, ever others: they count.
        self.size += sum(map(len, event.changed - row.changed))
        row.op = event.op
        row.changed |= event.changed
        if self.fields:
            row.old = row.old or self._values(event.old)
            row.new = self._values(event.new) or row.new
        self._limit(len(self.rows))

    def _values(self, values: Values | None) -> list[Any] | None:
        if values is None:
            return None
        raw = values.raw
        kept = [raw.get(name) for name in self.fields]
        if not can_travel(kept):
            self.size = MAX_BYTES
        self.size += len(repr(kept))
        return kept

    def _add_payload(self, payload: Any) -> None:
        if not can_travel(payload):
            self._give_up()
            return
        self.payloads.append(payload)
        self.size += len(json.dumps(payload))
        self._limit(len(self.payloads))

    def _limit(self, count: int) -> None:
        if count > MAX_KEYS or self.size > MAX_BYTES:
            self._give_up()

    def _give_up(self) -> None:
        self.refetch = True
        self.rows.clear()
        self.payloads.clear()


def can_travel(value: Any) -> bool:
    """Whether a layer and a browser can read it: JavaScript's numbers have 53 bits, JSON no NaN, UTF-8 no lone
    surrogates."""
    if isinstance(value, dict):
        return all(can_travel(name) and can_travel(one) for name, one in value.items())
    if isinstance(value, list):
        return all(map(can_travel, value))
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= one <= "\udfff" for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < 2**53
