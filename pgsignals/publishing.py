"""Messages of the application's own, sent inside its transaction.

A fast message is a plain `NOTIFY channel, 'json'`: psql and every other client can listen to it, and can send one.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections
from django.db.utils import NotSupportedError, ProgrammingError

from . import conf, wire
from .context import current_text
from .tables import PUBLISH

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


class PublishError(ValueError):
    """A message that PostgreSQL would refuse, or that a listener could not read. Nothing was sent."""


def publish(
    channel: str,
    payload: Any,
    *,
    durable: bool = False,
    key: Any = None,
    delay: Any = None,
    using: str | None = None,
) -> None:
    """Send `payload` as JSON to all who listen to `channel`, when the transaction commits; never if it rolls back.

    Dates, decimals, UUIDs and lazy strings become text as DjangoJSONEncoder makes them. Whoever listens at the
    commit receives it, nobody later. Equal messages of one transaction arrive once: PostgreSQL folds them.

    durable: append it to the log instead, where groups find it; of any size, and never folded.
    key: of a durable message, what orders it: messages of a channel with equal keys are handled one after the other.
    delay: a timedelta, for which a durable message waits after the commit before it is appended.
    using: the alias of the database; PGSIGNALS["DATABASE"] by default.

    Raises PublishError where the channel's name is empty or longer than 63 bytes, is pgsignals' own, or where the
    payload is not JSON or, unless durable, is 8,000 bytes or longer; TypeError for a key or a delay that is not
    durable; NotSupportedError on a database that is not PostgreSQL.
    """
    if not durable and (key is not None or delay is not None):
        raise TypeError(f"publish({channel!r}): key and delay need durable=True.")
    check_channel(channel)
    text = to_json(channel, payload, None if durable else wire.MAX_PAYLOAD)
    connection = connections[using or conf.get().DATABASE]
    if connection.vendor != "postgresql":
        raise NotSupportedError(
            f"publish() needs PostgreSQL, and the database {connection.alias!r} is {connection.display_name}. "
            "Name another alias with using=, or in settings.PGSIGNALS['DATABASE']."
        )
    if durable:
        _append(connection, channel, text, key, delay)
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_notify(%s, %s)", [channel, text])
        if connection in captured:
            cursor.execute(_CAPTURE, [_unit(connection), channel, text])


def _append(connection: BaseDatabaseWrapper, channel: str, text: str, key: Any, delay: Any) -> None:
    if delay is not None and not isinstance(delay, timedelta):
        raise TypeError(f"publish({channel!r}): delay is {delay!r}, and must be a timedelta.")
    given: list[Any] = [channel, text, to_json(channel, key, _MAX_KEY), current_text(), delay]
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {PUBLISH}(%s, %s, %s, %s, %s)",
                given,
            )
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", "") != _UNDEFINED_FUNCTION:
            raise
        raise PublishError(
            f"The database {connection.alias!r} has no log to put a durable message into. Run "
            f'"manage.py migrate --database {connection.alias}".'
        ) from error


_MAX_KEY = 2000
"""Bytes of a key as JSON: it stands in an index."""

_UNDEFINED_FUNCTION = "42883"

captured: WeakSet[BaseDatabaseWrapper] = WeakSet()
"""The connections whose messages pgsignals.testing reads."""

_CAPTURE = """
WITH given (unit, channel, payload) AS (VALUES (%s, %s, %s)), message AS (
    SELECT CASE unit WHEN 'transaction' THEN pg_current_xact_id()::text ELSE unit END AS unit, channel, payload
    FROM given
)
INSERT INTO pg_temp.pgsignals_captured (unit, channel, payload) SELECT unit, channel, payload FROM message
WHERE NOT EXISTS (SELECT FROM pg_temp.pgsignals_captured AS earlier NATURAL JOIN message)
"""


def _unit(connection: BaseDatabaseWrapper) -> str | None:
    """What would be a transaction if this were no test, in which equal messages are one; None where it is autocommit.

    The blocks that a TestCase opens are not counted.
    """
    for place, block in enumerate(connection.atomic_blocks):
        if not block._from_testcase:  # type: ignore[attr-defined]
            return connection.savepoint_ids[place - 1] if place else "transaction"
    return None


async def apublish(
    channel: str,
    payload: Any,
    *,
    durable: bool = False,
    key: Any = None,
    delay: Any = None,
    using: str | None = None,
) -> None:
    """`publish()` for asynchronous code."""
    await sync_to_async(publish)(channel, payload, durable=durable, key=key, delay=delay, using=using)


def check_channel(channel: str) -> None:
    """Raise PublishError unless an application may use the name for a channel of its own."""
    if not isinstance(channel, str) or not channel or "\0" in channel:
        raise PublishError(f"A channel's name is text of 1 to {wire.MAX_CHANNEL} bytes, and not {channel!r}.")
    try:
        size = len(channel.encode())
    except UnicodeEncodeError as error:
        raise PublishError(f"The channel name {channel!r} is no text that UTF-8 can write ({error.reason}).") from error
    if size > wire.MAX_CHANNEL:
        raise PublishError(
            f"The channel name {channel!r} has {size} bytes; PostgreSQL allows {wire.MAX_CHANNEL}. Shorten it."
        )
    if channel == wire.CHANNEL:
        raise PublishError(f"The channel {channel!r} carries pgsignals' own row events. Choose another name.")


def to_json(channel: str, payload: Any, limit: int | None = wire.MAX_PAYLOAD) -> str:
    """The payload as it travels, or a key. Raises PublishError where it is not JSON, or too big."""
    try:
        # NaN and infinity are no JSON, whatever Python writes.
        text = json.dumps(payload, cls=DjangoJSONEncoder, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise PublishError(f"The payload for {channel!r} cannot be written as JSON: {error}.") from error
    if limit is not None and size > limit:
        if limit == _MAX_KEY:
            raise PublishError(f"The key for {channel!r} has {size} bytes; {limit} are allowed.")
        raise PublishError(
            f"The payload for {channel!r} has {size} bytes; PostgreSQL allows {wire.MAX_PAYLOAD}. "
            "Send a key, and let the receiver fetch the rest; or give durable=True."
        )
    try:
        wire.parse_json(text)
    except wire.WireError as error:
        raise PublishError(f"The payload for {channel!r} could not be read by a listener: {error}.") from error
    return text
