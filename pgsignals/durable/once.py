"""Not to do a thing twice for an event, where the thing is not in the log's own database transaction."""

from __future__ import annotations

from django.db import connections
from django.db.transaction import TransactionManagementError

from ..event import LogEvent, PgEvent
from ..tables import PROCESSED


def processed_once(event: PgEvent, name: str | None = None) -> bool:
    """Whether this is the first time for an event and a name. Asked in a transaction, together with what is done:

        with transaction.atomic():
            if processed_once(event):
                send_mail(...)

    It is remembered in that transaction, in the event's database, and forgotten if it rolls back: what failed is done
    at the next attempt. Another transaction that asks the same meanwhile waits for it. Kept for twice as long as the
    log keeps events, and for two weeks at least.

    name: of what is done; the group by default.

    Raises LookupError for a fast event, which has no id; TransactionManagementError outside of a transaction, where
    what then fails would count as done.
    """
    if not isinstance(event, LogEvent):
        raise LookupError(f"{event!r} is no durable event: it has no id to remember it by.")
    connection = connections[event.database]
    if not connection.in_atomic_block:
        raise TransactionManagementError(
            "processed_once() is called outside of a transaction, and would remember what may still fail. Call it, and "
            f"do the thing, within transaction.atomic(using={event.database!r})."
        )
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {PROCESSED} (name, event_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [event.group or "" if name is None else name, event.id],
        )
        return bool(cursor.rowcount)
