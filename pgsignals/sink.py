"""What takes events from the relay: receivers, groups of Channels, a terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from .event import PgEvent

START = "start"
"""The cause of the gap before the first connection: whatever happened earlier was not heard."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of time in which fast events may have been lost. Aware datetimes by this machine's clock."""

    database: str
    since: datetime
    until: datetime
    cause: str
    connected: bool = True
    """Whether the relay listens (again) since its end; False where something was left out while it listened."""


class Sink:
    """Called in the relay's event loop. No method may block, or raise. Override what is of interest."""

    async def start(self) -> None:
        """Before the relay connects."""

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        """Events that came together; their payloads had `size` bytes in all."""

    def takes(self) -> bool:
        """Whether events are of any use to it now. May be called in any thread."""
        return True

    def lost(self, cause: str) -> None:
        """The connection is gone; a gap follows when it is back."""

    def gap(self, gap: Gap) -> None:
        """The relay listens (again), or had to leave something out. A start is a gap too."""

    def duties(self) -> Collection[str]:
        """What only one of several relays may do, by names that are the same in all of them."""
        return ()

    def lead(self, held: frozenset[str]) -> None:
        """These duties are this relay's now, of those that any sink named."""

    def waiting(self) -> tuple[int, float]:
        """How many events wait, and for how many seconds the oldest has waited."""
        return 0, 0.0

    async def stop(self) -> None:
        """Finish what is running, and drop the rest."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """The moment in the database from which on a relay listens."""

    snapshot: str
    """As pg_current_snapshot() has it: what was over then is not told."""
    at: datetime
    """By the database's clock."""


Deliver = Callable[[Sequence[PgEvent], int], None]
"""Gives events, whose payloads had so many bytes, to the relay's sinks. May be called in any thread."""


class Companion:
    """What goes along with a relay, in threads of its own, and is woken when the log has something new."""

    def start(self, deliver: Deliver, beginning: Beginning) -> None:
        """Begin. May not block."""
        raise NotImplementedError

    def ring(self) -> None:
        """The log has something new, or it is not known whether it has. May not block."""
        raise NotImplementedError

    def stop(self) -> None:
        """Finish what is running. Blocks as long as that takes."""
        raise NotImplementedError
