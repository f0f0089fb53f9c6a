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
import logging
import re
from itertools import chain
from typing import Any, Literal

import msgspec

from .event import DELETE, INSERT, NOTHING, TRUNCATE, UPDATE, Statement

logger = logging.getLogger("pgsignals")

CHANNEL = "pgsignals"
"""The channel on which row events travel, but for declarations that name one of their own."""

VERSION = 1

MAX_PAYLOAD = 7999
"""Bytes. PostgreSQL refuses a payload of 8,000 (NOTIFY_PAYLOAD_MAX_LENGTH, async.c)."""

MAX_CHANNEL = 63
"""Bytes of a channel's name (NAMEDATALEN - 1)."""

MAX_DEPTH = 100
"""Levels of lists and objects in a message, or in a value of a row."""

LAST_MOMENT = 253_402_300_800_000_000
"""Microseconds from 1970 to the year 10000, which Python's dates do not reach."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)

OPERATION_CODES = {INSERT: "i", UPDATE: "u", DELETE: "d", TRUNCATE: "t"}
OPERATIONS = {code: operation for operation, code in OPERATION_CODES.items()}
_HEAD = {"v", "d", "s", "x", "t", "m", "o", "n", "r"}
_ONE = {1}
_KEY_ONLY = frozenset((0, 1))
_ROW_LENGTHS = {"i": 2, "d": 2, "u": 3}
_ALLOWED_LENGTHS = {code: _KEY_ONLY | {length} for code, length in _ROW_LENGTHS.items()}
_NESTED = frozenset((list, dict))


class WireError(ValueError):
    """A payload that is none of ours: not JSON, not of the format, or nested too deeply to be read."""


class NotJSON(WireError):
    """Text that is no JSON at all."""


class UnknownVersion(WireError):
    """A payload of a format that this version of pgsignals does not know: a newer deploy writes already."""


class RowsPayload(Statement, frozen=True, eq=False, gc=False, kw_only=True):
    """A checked payload: what its rows have in common, and the rows, which are still raw."""

    version: Literal[1] = msgspec.field(name="v")
    declaration: str = msgspec.field(name="d")
    schema: str = msgspec.field(name="s")
    transaction: int = msgspec.field(name="x")
    microseconds: int = msgspec.field(name="t")
    label: str = msgspec.field(name="m")
    code: Literal["i", "u", "d", "t"] = msgspec.field(name="o")
    rows: list[list[Any]] = msgspec.field(name="r", default_factory=list)
    fields: tuple[str, ...] = msgspec.field(name="f", default=())
    changed: frozenset[str] | None = msgspec.field(name="c", default=NOTHING)
    context: dict[str, Any] = msgspec.field(name="k", default_factory=dict)
    behind: bool | int = msgspec.field(name="i", default=False)


class LogHead(Statement, frozen=True, eq=False, gc=False, kw_only=True):
    """What the log holds of an event besides its row."""

    version: int = msgspec.field(name="v")
    declaration: str = msgspec.field(name="d", default="")
    schema: str | None = msgspec.field(name="s", default=None)
    label: str | None = msgspec.field(name="m", default=None)
    channel: str | None = msgspec.field(name="ch", default=None)
    code: Literal["i", "u", "d", "t", "m"] = msgspec.field(name="o", default="m")
    fields: tuple[str, ...] = msgspec.field(name="f", default=())
    changed: frozenset[str] | None = msgspec.field(name="c", default=NOTHING)
    context: dict[str, Any] = msgspec.field(name="k", default_factory=dict)
    behind: bool | int = msgspec.field(name="i", default=False)


_decode_head = msgspec.json.Decoder(LogHead).decode


def parse_head(text: str) -> LogHead:
    """Read the head of a log row. Raises WireError, or UnknownVersion for one that a newer pgsignals wrote."""
    try:
        head = _decode_head(text)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        document = parse_json(text)
        if _has_unreadable_context(document):
            return parse_head(json.dumps({**document, "k": {}}))
        raise _fault(document, error) from None
    if head.version != VERSION:
        raise _version_error(head.version)
    return head


parse_body = msgspec.json.Decoder().decode
"""Read the row, or the payload, of a log row. Only our functions write there."""

_decode = msgspec.json.Decoder(RowsPayload).decode


def parse_rows(payload: str | bytes) -> RowsPayload:
    """Read a payload that came on CHANNEL. Raises WireError, or UnknownVersion, with what is wrong."""
    try:
        parsed = _decode(payload)
        rows = parsed.rows
        # The usual case, looked through here because a call costs as much as the look: one key, and nothing else.
        if (
            len(rows) == 1
            and len(rows[0]) == 1
            and type(rows[0][0]) not in _NESTED
            and not parsed.context
            and 0 <= parsed.microseconds < LAST_MOMENT
        ):
            return parsed
        return _checked(parsed)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        # What is wrong with it is worked out here, where time does not count.
        document = parse_json(payload)
        if _has_unreadable_context(document):
            return read_rows({**document, "k": {}})
        raise _fault(document, error) from None


def looks_like_rows(document: object) -> bool:
    """Whether the JSON of a channel that is not ours was written by a trigger, and is no message.

    A declaration may name a channel on which the application also publishes.
    """
    return isinstance(document, dict) and document.keys() >= _HEAD


def read_rows(document: object) -> RowsPayload:
    """What the JSON of a payload says. Raises as `parse_rows` does."""
    try:
        return _checked(msgspec.convert(document, RowsPayload))
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _fault(document, error) from None


def _fault(document: object, error: Exception) -> WireError:
    if isinstance(error, WireError):
        return error
    if not isinstance(document, dict):
        return WireError("it is not a JSON object")
    version = document.get("v")
    if version != VERSION or isinstance(version, bool):
        return _version_error(version)
    # msgspec says what it expected, what it found, and where in the payload.
    return WireError(f"it has not the form of ours: {error}")


def _has_unreadable_context(document: object) -> bool:
    """Whether the context is JSON to PostgreSQL and not to msgspec: half of a surrogate pair, 1e999.

    Any role may set it. An event is not lost because of it: it is left out, with a warning.
    """
    if not isinstance(document, dict) or "k" not in document:
        return False
    context = json.dumps(document["k"])
    try:
        msgspec.json.decode(context)
    except msgspec.DecodeError as error:
        logger.warning(
            "The context of an event of %s cannot be read (%s), and is left out: %s", document.get("m"), error, context
        )
        return True
    return False


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


def _checked(parsed: RowsPayload) -> RowsPayload:
    """Raises WireError for what types cannot say: lengths of rows, depths of values, moments that are no date."""
    if not 0 <= parsed.microseconds < LAST_MOMENT:
        raise WireError(f"its time is {parsed.microseconds} microseconds since 1970, which is no date of ours")
    if parsed.context:
        _check_depth(parsed.context)
    # One key is the usual case.
    rows = parsed.rows
    if (len(rows) != 1 or len(rows[0]) != 1 or type(rows[0][0]) in _NESTED) and parsed.code != "t":
        _check_rows(rows, parsed.code, len(parsed.fields))
    return parsed


def _check_rows(rows: list[list[Any]], code: str, width: int) -> None:
    # Sets of what there is, made at the speed of C: a payload may hold a thousand rows, and nearly all are as they
    # should be.
    lengths = set(map(len, rows))
    if not lengths <= _ALLOWED_LENGTHS[code]:
        raise WireError(f"one of its rows is {_short(next(row for row in rows if _is_odd(row, code)))}")
    if lengths == _ONE:
        nested = not _NESTED.isdisjoint(map(type, chain.from_iterable(rows)))
    else:
        nested = _check_values(rows, width)
    if nested:
        _check_depth(rows)


def _check_values(rows: list[list[Any]], width: int) -> bool:
    """Whether keys or values hold lists or objects. Raises WireError for values that are not as many as the fields."""
    nested = False
    for row in rows:
        nested = nested or (bool(row) and type(row[0]) in _NESTED)
        for values in row[1:]:
            if type(values) is not list or len(values) != width:
                raise WireError(f"one of its rows has {_short(values)} for {width} fields")
            nested = nested or not _NESTED.isdisjoint(map(type, values))
    return nested


def _is_odd(row: list[Any], code: str) -> bool:
    return len(row) not in _ALLOWED_LENGTHS[code]


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise WireError(f"its JSON is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return
    for one in value:
        if type(one) in _NESTED:
            _check_depth(one, depth + 1)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
