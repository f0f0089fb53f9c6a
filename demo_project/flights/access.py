"""Who may hear of what in the browser: PGSIGNALS["LIVE_ACCESS"]."""

from __future__ import annotations

from typing import Any

from pgsignals.live.access import Access

SHOP_TALK = ("channel:flights_clock", "channel:flights_worker")
"""What the pages tell each other: somebody has touched the clock, or killed the worker."""


class StaffAccess(Access):
    """Staff only, and of these only who may view the model: the same conditions under which the pages are shown."""

    def admits(self, user: Any) -> bool:
        """Who has left the staff hears no more."""
        return super().admits(user) and bool(user.is_staff)

    def can_subscribe(self, user: Any, topic: str) -> bool:
        """Who sees the pages hears what they tell each other."""
        return super().can_subscribe(user, "flights.flight" if topic in SHOP_TALK else topic)
