"""Rows of the log as the events of a group."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from .. import wire
from ..decode import Decoder, UnknownLabel
from ..event import PgEvent
from .handling import Handler
from .reading import Row, as_log_row

logger = logging.getLogger("pgsignals.durable")

_SAY_AGAIN = 60.0
"""Seconds after which the same is said again."""

Wanted = tuple[Row, PgEvent]
"""A row whose event some receiver of the group wants."""


class Decoding:
    """For one worker, in its thread."""

    def __init__(self, database: str, group: str, handler: Handler) -> None:
        self._group = group
        self._handler = handler
        self._decoder = Decoder(database)
        self._said: dict[str, float] = {}

    def event(self, row: Row) -> PgEvent:
        """The event of a row. Raises WireError."""
        return self._decoder.logged(as_log_row(row), self._group)

    def wanted(self, rows: Sequence[Row]) -> tuple[list[Wanted], int | None]:
        """Those that receivers want; and the place of the first of a format that only newer code knows.

        What is of a model that this project has not, or cannot be read, is left out.
        """
        wanted: list[Wanted] = []
        decode, group, receivers = self._decoder.logged, self._group, self._handler.receivers
        # Each function that is called here is called for every event of every group.
        for place, row in enumerate(rows):
            try:
                event = decode(as_log_row(row), group)
            except UnknownLabel:
                continue
            except wire.UnknownVersion as error:
                self.say_once("The group %r waits at event %d: %s.", group, row[0], error)
                return wanted, place
            except wire.WireError as error:
                logger.error("The log's row %d cannot be read, and is left out for group %r: %s", row[0], group, error)
                continue
            if receivers(event):
                wanted.append((row, event))
        return wanted, None

    def say_once(self, text: str, *arguments: object) -> None:
        """An error that would be said in each round."""
        said = text % arguments
        now = time.monotonic()
        if now - self._said.get(said, -1e9) > _SAY_AGAIN:
            self._said = {said: now}
            logger.error(said)
