"""The library's own Django signals.

Signals are called in the process that runs the relay. `pg_event` costs nothing while nobody is connected to it.
Arguments come by keyword; connect with `**kwargs`, later versions may send more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.dispatch import Signal


class EventSignal(Signal):
    """A signal whose sender may be a name: a channel's, or a database's alias.

    Django tells senders apart by identity, and two equal strings need not be one object. So each name is kept once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, str] = {}

    def sender(self, sender: Any) -> Any:
        """The one object that stands for this sender."""
        return self._names.setdefault(sender, sender) if isinstance(sender, str) else sender

    def connect(
        self,
        receiver: Callable[..., Any],
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Any = None,
    ) -> None:
        """As Signal.connect; `sender` is a model class or a name."""
        super().connect(receiver, sender=self.sender(sender), weak=weak, dispatch_uid=dispatch_uid)

    def disconnect(
        self,
        receiver: Callable[..., Any] | None = None,
        sender: Any = None,
        dispatch_uid: Any = None,
    ) -> bool:
        """As Signal.disconnect."""
        return super().disconnect(receiver, sender=self.sender(sender), dispatch_uid=dispatch_uid)


pg_event = EventSignal()
"""Every event. sender: the model, or the channel's name; event: the PgEvent."""

relay_connected = EventSignal()
"""The relay listens (again). sender, database: the database's alias."""

relay_gap = EventSignal()
"""Fast events may have been lost. sender, database: the database's alias; since, until: aware datetimes by this
machine's clock; cause: str. Not sent for a start, before which nobody could have heard anything."""

receiver_failed = Signal()
"""A receiver raised. sender: the receiver's function; receiver: the same; event: the PgEvent; exception."""

event_dead = Signal()
"""A group gave an event up after its last attempt, and keeps it as a dead letter. sender, group: the group's name;
event: the PgEvent, or None where it cannot be read; exception: of the last attempt. Sent in the worker's process."""
