"""What is around each call of a receiver, whatever kind it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from django.db import close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..event import PgEvent
from ..receivers import Receiver
from ..signals import EventSignal, pg_event, receiver_failed, relay_connected, relay_gap
from ..sink import START, Gap

logger = logging.getLogger("pgsignals.dispatch")

Argument = PgEvent | list[PgEvent] | Gap
"""What a receiver is called with."""

BRIEF = 20e-6
"""Seconds of a call that cannot have used a database: nobody looks at connections after it."""

_WARN_EVERY = 60.0
"""Seconds between two warnings about the same slow receiver."""

_IDLE = 0
"""libpq's PQTRANS_IDLE."""


class Slowness:
    """Warns of receivers that take their time; of each once a minute."""

    def __init__(self) -> None:
        self.limit = conf.get().SLOW_RECEIVER
        self._said: dict[Receiver, float] = {}

    def running(self, receiver: Receiver, seconds: float, waiting: int) -> None:
        """A call has not ended yet."""
        if seconds > self.limit and self._may_say(receiver):
            logger.warning(
                "The receiver %s has been running for %.1f s, and %d events wait for receivers of its kind (%s).",
                receiver.name,
                seconds,
                waiting,
                receiver.place,
            )

    def ended(self, receiver: Receiver, seconds: float, argument: Argument) -> None:
        """A call has ended."""
        if seconds > self.limit and self._may_say(receiver):
            logger.warning(
                "The receiver %s took %.1f s for %s (%s).", receiver.name, seconds, about(argument), receiver.place
            )

    def _may_say(self, receiver: Receiver) -> bool:
        now = time.monotonic()
        if now - self._said.get(receiver, -_WARN_EVERY) < _WARN_EVERY:
            return False
        self._said[receiver] = now
        return True


def count(receiver: Receiver, argument: Argument, seconds: float, failed: bool) -> None:
    """Note a call that has ended."""
    counts = receiver.counts
    counts.calls += 1
    counts.events += len(argument) if isinstance(argument, list) else 1
    counts.seconds += seconds
    counts.failures += failed


def count_brief(receiver: Receiver, calls: int, seconds: float) -> None:
    """Note calls with one event each, none of which failed."""
    counts = receiver.counts
    counts.calls += calls
    counts.events += calls
    counts.seconds += seconds


def about(argument: Argument) -> str:
    """What a call was about, for the log."""
    if isinstance(argument, list):
        return f"a batch of {len(argument)} events, the first of them {argument[0]!r}"
    return repr(argument)


def report(function: Callable[..., Any], name: str, argument: Argument, error: BaseException) -> None:
    """Say that a receiver raised: a log line with the traceback, and the signal `receiver_failed`. Never raises."""
    try:
        logger.error(
            "The receiver %s raised %s for %s. Other receivers and later events are not affected.",
            name,
            type(error).__name__,
            about(argument),
            exc_info=error,
        )
        receiver_failed.send_robust(sender=function, receiver=function, event=argument, exception=error)
    except BaseException:
        logger.exception("That a receiver failed could not be reported to all who wait for it.")


# The library's own signals, which are called as receivers are.


def send_pg_event(event: PgEvent) -> None:
    """Send the signal `pg_event`."""
    sender = pg_event.sender(event.model or event.channel)
    if not pg_event.has_listeners(sender):
        return
    try:
        for receiver, answer in pg_event.send_robust(sender=sender, event=event):
            if isinstance(answer, Exception):
                report(receiver, repr(receiver), event, answer)
    except BaseException as error:  # what send_robust lets through, such as SystemExit
        report(pg_event.send_robust, "a receiver of the signal pg_event", event, error)


def send_gap(gap: Gap) -> None:
    """Send the signals `relay_connected` and `relay_gap`."""
    renew(gap)
    if gap.connected:
        _tell(relay_connected, database=gap.database)
    if gap.cause != START:
        _tell(relay_gap, database=gap.database, since=gap.since, until=gap.until, cause=gap.cause)


def _tell(signal: EventSignal, database: str, **arguments: Any) -> None:
    try:
        signal.send_robust(sender=signal.sender(database), database=database, **arguments)  # logs what raises
    except BaseException:
        logger.exception("A receiver of a signal of the relay ended with more than an exception.")


SIGNAL_PG_EVENT = Receiver(send_pg_event)
SIGNAL_GAP = Receiver(send_gap)


# Django's connections, which belong to the thread that runs this.


def refresh() -> None:
    """As around a request: a connection that died, or is too old, is not handed to the next receiver."""
    close_old_connections()


def renew(gap: Gap) -> None:
    """When the relay's connection was lost, so were ours, and Django notices only when a query has failed.

    Whoever makes anew what he knows, as he must at a gap, would be the first to ask.
    """
    if not gap.connected or gap.cause == START:
        return
    for connection in connections.all(initialized_only=True):
        if connection.alias == gap.database and not connection.in_atomic_block:
            connection.close()


def tidy(receiver: Receiver) -> None:
    """After a call: the next one gets neither a dead connection nor somebody's open transaction."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None:
            continue
        if _in_transaction(connection):
            logger.warning(
                "The receiver %s left a transaction open on the database %r. It is rolled back: nothing would ever "
                "commit it. Use transaction.atomic() as a context manager or decorator.",
                receiver.name,
                connection.alias,
            )
            _drop(connection)
        else:
            connection.close_if_unusable_or_obsolete()


def _in_transaction(connection: BaseDatabaseWrapper) -> bool:
    if connection.in_atomic_block or not connection.autocommit:
        return True
    # BEGIN in raw SQL, of which Django knows nothing.
    info = getattr(connection.connection, "info", None)
    return getattr(info, "transaction_status", _IDLE) != _IDLE and not connection.errors_occurred


def _drop(connection: BaseDatabaseWrapper) -> None:
    try:
        connection.connection.close()
    except Exception:
        logger.exception("The connection to the database %r could not be closed.", connection.alias)
    # Django cannot close a wrapper inside of its atomic block; the next receiver makes a new one.
    del connections[connection.alias]
