"""Messages of the application's own, sent inside its transaction.

A fast message is a plain `NOTIFY channel, 'json'`: psql and every other client can listen to it, and can send one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections
from django.db.utils import NotSupportedError

from . import conf, wire

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

    `using` is the alias of the database; PGSIGNALS["DATABASE"] by default.

    Raises PublishError where the channel's name is empty or longer than 63 bytes, is pgsignals' own, or where the
    payload is not JSON or is 8,000 bytes or longer; NotSupportedError on a database that is not PostgreSQL.
    `durable`, `key` and `delay` need the log, which this version does not have: NotImplementedError.
    """
    _refuse_later(durable=durable, key=key, delay=delay)
    check_channel(channel)
    text = to_json(channel, payload)
    connection = connections[using or conf.get().DATABASE]
    if connection.vendor != "postgresql":
        raise NotSupportedError(
            f"publish() needs PostgreSQL, and the database {connection.alias!r} is {connection.display_name}. "
            "Name another alias with using=, or in settings.PGSIGNALS['DATABASE']."
        )
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_notify(%s, %s)", [channel, text])
        if connection in captured:
            cursor.execute(_CAPTURE, [_unit(connection), channel, text])


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


def to_json(channel: str, payload: Any) -> str:
    """The payload as it travels. Raises PublishError where it is not JSON, or too big."""
    try:
        # NaN and infinity are no JSON, whatever Python writes.
        text = json.dumps(payload, cls=DjangoJSONEncoder, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise PublishError(f"The payload for {channel!r} cannot be written as JSON: {error}.") from error
    if size > wire.MAX_PAYLOAD:
        raise PublishError(
            f"The payload for {channel!r} has {size} bytes; PostgreSQL allows {wire.MAX_PAYLOAD}. "
            "Send a key, and let the receiver fetch the rest."
        )
    try:
        wire.parse_json(text)
    except wire.WireError as error:
        raise PublishError(f"The payload for {channel!r} could not be read by a listener: {error}.") from error
    return text


def _refuse_later(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"publish({name}={value!r}) needs the log, which this version does not have yet.")
