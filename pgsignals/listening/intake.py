"""What arrived becomes events; what cannot be read is left out, said, and counted.

Whoever can connect to the database can send anything, as often as he likes: it must fill neither log nor memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from .. import wire
from ..decode import Decoder, UnknownLabel
from ..event import PgEvent
from ..sink import Gap
from .connection import Notification

logger = logging.getLogger("pgsignals.relay")

_GAP_EVERY = 1.0
"""Seconds between two gaps for events of an unknown version."""

_SAID_AT_FIRST = 5
_SAY_EVERY = 60.0
"""Notifications that cannot be read are said one by one at first, and then counted, once in so many seconds."""

_MOST_LABELS = 100
"""Unknown labels that are told apart."""

_OTHERS = ""


class Intake:
    """Decodes notifications of one database.

    put: called with the events that came together, and the bytes of their payloads. gap: called where events were left
    out that this project should have had. aside: what is called with the payloads of channels that carry no events.
    """

    def __init__(
        self,
        database: str,
        put: Callable[[Sequence[PgEvent], int], None],
        gap: Callable[[Gap], None],
        aside: Mapping[bytes, Callable[[bytes], None]],
    ) -> None:
        self.database = database
        self.events = 0
        """Events that were decoded."""
        self.unreadable = 0
        """Notifications that could not be read."""
        self.unknown: dict[str, int] = {}
        """Events about models that this project does not have, by label."""
        self._put = put
        self._gap = gap
        self._aside = aside
        self._names: dict[bytes, str] = {}
        self._decoder = Decoder(database)
        self._newer_version_said = False
        self._newer_waits = False
        self._newer_timer: asyncio.TimerHandle | None = None
        self._unreadable_said = datetime.now(UTC)

    def take(self, notifications: Sequence[Notification]) -> None:
        """Decode, and hand on."""
        decode, names, aside = self._decoder.decode, self._names, self._aside
        events: list[PgEvent] = []
        size = 0
        for encoded, pid, payload in notifications:
            channel = names.get(encoded)
            if channel is None:
                if encoded in aside:
                    aside[encoded](payload)
                    continue
                channel = self._name(encoded)
            size += len(payload)
            try:
                events += decode(channel, payload)
            except wire.WireError as error:
                self._leave_out(channel, payload, pid, error)
        if events:
            self.events += len(events)
            self._put(events, size)

    def _name(self, encoded: bytes) -> str:
        # We hear only of channels that we listen to, so these are few.
        name = self._names[encoded] = encoded.decode(errors="replace")
        return name

    def close(self) -> None:
        """Nothing more will come."""
        if self._newer_timer is not None:
            self._newer_timer.cancel()

    def _leave_out(self, channel: str, payload: bytes, pid: int, error: wire.WireError) -> None:
        if isinstance(error, UnknownLabel):
            self._count_unknown(error)
        elif isinstance(error, wire.UnknownVersion):
            self._newer(error)
        else:
            self._say_unreadable(channel, payload, pid, error)

    def _say_unreadable(self, channel: str, payload: bytes, pid: int, error: wire.WireError) -> None:
        self.unreadable += 1
        now = datetime.now(UTC)
        if self.unreadable > _SAID_AT_FIRST and (now - self._unreadable_said).total_seconds() < _SAY_EVERY:
            return
        self._unreadable_said = now
        later = (
            "" if self.unreadable < _SAID_AT_FIRST else f"; later ones are counted, and said every {_SAY_EVERY:.0f} s"
        )
        logger.warning(
            "A notification on %r from process %d was left out: %s. It began %.80r. It is number %d since the start%s.",
            channel,
            pid,
            error,
            payload[:320].decode(errors="replace"),
            self.unreadable,
            later,
        )

    def _count_unknown(self, error: UnknownLabel) -> None:
        full = error.label not in self.unknown and len(self.unknown) >= _MOST_LABELS
        label = _OTHERS if full else error.label
        self.unknown[label] = self.unknown.get(label, 0) + 1
        if self.unknown[label] == 1:
            what = "Further labels are counted together, and not said" if full else "It is counted, and not said again"
            logger.warning("An event was left out: %s. %s.", error, what)

    def _newer(self, error: wire.UnknownVersion) -> None:
        if not self._newer_version_said:
            self._newer_version_said = True
            logger.error("Events are lost: %s.", error)
        # The first at once, and then one a second for all that came meanwhile.
        if self._newer_timer is None:
            self._newer_gap()
        else:
            self._newer_waits = True

    def _newer_gap(self) -> None:
        now = datetime.now(UTC)
        self._gap(Gap(self.database, now, now, "an event of an unknown version", connected=False))
        self._newer_waits = False
        self._newer_timer = asyncio.get_running_loop().call_later(_GAP_EVERY, self._newer_later)

    def _newer_later(self) -> None:
        self._newer_timer = None
        if self._newer_waits:
            self._newer_gap()
