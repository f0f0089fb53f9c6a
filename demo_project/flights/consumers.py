"""Who gets events in the browser."""

from __future__ import annotations

from typing import Any

from pgsignals.live.consumer import PgEventConsumer

CLOCK = "channel:flights_clock"
"""The topic on which it is announced that somebody has touched the clock."""


class StaffConsumer(PgEventConsumer):
    """Staff only, and of these only who may view the model: the pages that listen are in the admin."""

    def can_subscribe(self, user: Any, topic: str) -> bool:
        """The same two conditions under which the pages are shown; who sees them hears of the day's clock too."""
        if topic == CLOCK:
            topic = "flights.flight"
        return bool(user.is_staff) and super().can_subscribe(user, topic)
