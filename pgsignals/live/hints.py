"""What a group is told next: hints, put together, and bounded whatever comes.

Hints say which rows, not what is in them: of several events about one row the last operation stays, with the names of
all fields that changed. What is too much to name, or cannot travel, becomes "refetch".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from ..event import MESSAGE, TRUNCATE, PgEvent
from .topics import is_channel

MAX_KEYS = 200
"""Rows, or messages of an application channel, in one message; beyond it says "refetch"."""

MAX_BYTES = 32_000
"""Bytes of the payloads, or of keys and names, in one message, roughly; beyond it says "refetch"."""


@dataclass(slots=True)
class Hints:
    """What happened to one topic since its last message."""

    rows: dict[str, tuple[str, Any, set[str]]] = field(default_factory=dict)
    payloads: list[Any] = field(default_factory=list)
    size: int = 0
    refetch: bool = False
    touched: bool = False
    gap: str | None = None
    lost: bool = False

    def add(self, event: PgEvent) -> None:
        """Put an event to the others."""
        self.touched = True
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
            said.append({"type": "pg.event", "topic": topic, "refetch": self.refetch, **self._contents(topic)})
        if lost is not None and (self.lost or self.gap is not None):
            said.append({"type": "pg.lost", "topic": topic, "cause": lost})
        return said

    def _contents(self, topic: str) -> dict[str, Any]:
        if is_channel(topic):
            return {"payloads": self.payloads}
        return {"events": [[operation, key, sorted(changed)] for operation, key, changed in self.rows.values()]}

    def _add_row(self, event: PgEvent) -> None:
        key = repr(event.raw_pk)
        before = self.rows.get(key)
        if before is None:
            if not can_travel(event.raw_pk):
                self._give_up()
                return
            self.size += len(key)
        known: set[str] = before[2] if before else set()
        # Forged events may name any fields, ever others: they count.
        self.size += sum(map(len, event.changed - known))
        self.rows[key] = (event.op, event.raw_pk, known | event.changed)
        self._limit(len(self.rows))

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
