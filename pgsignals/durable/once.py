"""Not to do a thing twice for an event, where the thing is not in the log's own database transaction."""

from __future__ import annotations

from django.db import connections

from ..event import LogEvent, PgEvent
from ..tables import PROCESSED


def processed_once(event: PgEvent, name: str | None = None) -> bool:
    """Whether this is the first time for an event and a name: `if not processed_once(event): return`.

    It is remembered in the caller's transaction, in the event's database, and forgotten if that rolls back. Another
    transaction that asks the same meanwhile waits for it. Kept for twice as long as the log keeps events, and for two
    weeks at least.

    name: of what is done; the group by default.

    Raises LookupError for a fast event, which has no id.
    """
    if not isinstance(event, LogEvent):
        raise LookupError(f"{event!r} is no durable event: it has no id to remember it by.")
    with connections[event.database].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {PROCESSED} (name, event_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [event.group or "" if name is None else name, event.id],
        )
        return bool(cursor.rowcount)
