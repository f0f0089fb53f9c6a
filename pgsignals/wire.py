"""The payload of a notification about rows: its format, its version, its limit.

One payload says what a statement did to rows of one table::

    {"v": 1,                      the format's version
     "d": "flight_events",        the declaration whose trigger wrote it
     "s": "public",               the table's schema
     "x": 7731,                   the writing transaction (xid8)
     "t": 1763914000123456,       the database's clock, microseconds since 1970
     "m": "flights.flight",       the model's label
     "o": "u",                    i, u, d or t
     "k": {"actor": 7},           the context of the transaction, where one was set
     "f": ["status"],             the fields whose values travel, where any do
     "c": ["status", "gate"],     the fields that an update changed; null where they cannot be told
     "i": 1,                      only where the trigger was behind its table
     "n": 3,                      the payload's number in its statement: PostgreSQL folds equal payloads into one
     "r": [[17, ["late"], ["gone"]], ...]}

A row of an insert is `[pk, [new...]]`, of a delete `[pk, [old...]]`, of an update `[pk, [old...], [new...]]`. A row
whose values were too big, or a declaration without fields, leaves `[pk]`; a key that was itself too big leaves `[]`.
A composite key is a list.

Whoever can connect to the database can send anything on our channel (LISTEN and NOTIFY know no privileges), so
what comes in is checked for its shape, and refused with `WireError` where it has none.

This module knows no connection and no table.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from .event import DELETE, INSERT, TRUNCATE, UPDATE

CHANNEL = "pgsignals"
"""The channel on which row events travel, but for declarations that name one of their own."""

VERSION = 1

MAX_PAYLOAD = 7999
"""Bytes. PostgreSQL refuses a payload of 8,000 (NOTIFY_PAYLOAD_MAX_LENGTH, async.c)."""

MAX_CHANNEL = 63
"""Bytes of a channel's name (NAMEDATALEN - 1)."""

MAX_DEPTH = 100
"""Levels of lists and objects in a payload."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)

OPERATION_CODES = {INSERT: "i", UPDATE: "u", DELETE: "d", TRUNCATE: "t"}
_OPERATIONS = {code: operation for operation, code in OPERATION_CODES.items()}
_HEAD = {"v", "d", "s", "x", "t", "m", "o", "n", "r"}
_ROW_LENGTHS = {INSERT: 2, DELETE: 2, UPDATE: 3}


class WireError(ValueError):
    """A payload that is none of ours: not JSON, not of the format, or nested too deeply to be read."""


class NotJSON(WireError):
    """Text that is no JSON at all."""


class UnknownVersion(WireError):
    """A payload of a format that this version of pgsignals does not know: a newer deploy writes already."""


@dataclass(frozen=True, slots=True)
class RowsPayload:
    """A checked payload: a header, and rows that are still raw."""

    operation: str
    label: str
    declaration: str
    schema: str
    transaction: int
    microseconds: int
    fields: tuple[str, ...]
    changed: tuple[str, ...]
    context: dict[str, Any]
    incomplete: bool
    rows: list[list[Any]]


def parse_rows(payload: str | bytes) -> RowsPayload:
    """Read a payload that came on CHANNEL. Raises WireError, or UnknownVersion, with what is wrong."""
    return read_rows(parse_json(payload))


def looks_like_rows(document: object) -> bool:
    """Whether the JSON of a channel that is not ours was written by a trigger, and is no message.

    A declaration may name a channel on which the application also publishes.
    """
    return isinstance(document, dict) and document.keys() >= _HEAD


def read_rows(document: object) -> RowsPayload:
    """What the JSON of a payload says. Raises as `parse_rows` does."""
    if not isinstance(document, dict):
        raise WireError("it is not a JSON object")
    version = document.get("v")
    if version != VERSION or isinstance(version, bool):
        raise _version_error(version)
    operation = _OPERATIONS.get(document["o"]) if isinstance(document.get("o"), str) else None
    if operation is None:
        raise WireError(f"its operation is {_short(document.get('o'))}, and not one of i, u, d, t")
    fields = _names(document.get("f", []), "f")
    changed = document.get("c", [])
    context = document.get("k", {})
    if not isinstance(context, dict):
        raise WireError(f"its context is {_short(context)}, and not an object")
    return RowsPayload(
        operation=operation,
        label=_typed(document, "m", str),
        declaration=_typed(document, "d", str),
        schema=_typed(document, "s", str),
        transaction=_typed(document, "x", int),
        microseconds=_typed(document, "t", int),
        fields=fields,
        changed=() if changed is None else _names(changed, "c"),
        context=context,
        incomplete=bool(document.get("i")) or changed is None,
        rows=_rows(document.get("r", []), operation, len(fields)),
    )


def parse_json(payload: str | bytes) -> Any:
    """`json.loads` for what strangers sent: every way to fail is a WireError."""
    text = payload.decode(errors="replace") if isinstance(payload, bytes) else payload
    # Some versions of Python read thousands of levels and others do not; whoever walks through them may fail.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise WireError(f"its JSON is nested more than {MAX_DEPTH} levels deep")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise NotJSON(f"it is not JSON ({error})") from None
    except ValueError as error:  # a number of more digits than Python turns into an int
        raise WireError(f"its JSON cannot be read ({error})") from None


def _depth(text: str) -> int:
    """How deep brackets and braces are nested, outside of strings."""
    depth = deepest = 0
    for one in _STRING.sub("", text):
        if one in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif one in "]}":
            depth -= 1
    return deepest


def _version_error(version: object) -> WireError:
    if isinstance(version, int) and version > VERSION:
        return UnknownVersion(
            f"its format is version {version}, and this pgsignals reads version {VERSION}: "
            "a newer pgsignals wrote the trigger; deploy the same version here"
        )
    return WireError(f"its format version is {_short(version)}, and not {VERSION}")


def _typed(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise WireError(f"its {key!r} is {_short(value)}, and not {kind.__name__}")
    return value


def _names(value: object, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise WireError(f"its {key!r} is {_short(value)}, and not a list of names")
    return tuple(value)


def _rows(rows: object, operation: str, width: int) -> list[list[Any]]:
    if not isinstance(rows, list):
        raise WireError(f"its rows are {_short(rows)}, and not a list")
    # A truncate is one event about the table.
    if operation == TRUNCATE:
        return [[]]
    full = _ROW_LENGTHS[operation]
    for row in rows:
        if not isinstance(row, list) or len(row) not in (0, 1, full):
            raise WireError(f"one of its rows is {_short(row)}")
        for values in row[1:]:
            if not isinstance(values, list) or len(values) != width:
                raise WireError(f"one of its rows has {_short(values)} for {width} fields")
    return rows


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
