"""When whoever reads the log looks again.

Of writers that commit together one rings, and the others' events are visible a moment later; so a reader that found
nothing looks again a few times before it sleeps. Where many write at once somebody rings always: a reader that went
after each ring would cost them more than their own work, so between two looks there is a pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LINGER = (0.001, 0.002, 0.005, 0.02, 0.05)
"""Seconds after which a reader that has run out of events looks again, before it sleeps."""

PACE = 0.001
"""Seconds, for each event that a look found, from then to the next one: few events come soon, many in few pieces."""

SHORTEST, LONGEST = 0.005, 0.04
"""Seconds, the bounds of that."""


class Bell:
    """Wakes a thread. Thread-safe."""

    def __init__(self) -> None:
        self._rang = threading.Event()

    def ring(self) -> None:
        """Wake it, or keep it from falling asleep."""
        self._rang.set()

    def wait(self, seconds: float) -> bool:
        """Whether it rang within so many seconds."""
        rang = self._rang.wait(seconds)
        self._rang.clear()
        return rang


class Rhythm:
    """Of one reader, in its thread."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._linger = 0
        self._began = 0.0

    def begin(self) -> None:
        """It looks."""
        self._began = time.monotonic()

    def found(self, events: int, *, more: bool) -> None:
        """It found some. Returns when it is to look again: at once, where it knows that there is more."""
        self._linger = 0
        pause = min(max(events * PACE, SHORTEST), LONGEST)
        left = self._began + pause - time.monotonic()
        if not more and left > 0:
            time.sleep(left)

    def found_nothing(self, nap: Callable[[], float]) -> None:
        """Returns when it is to look again, after so many seconds at the latest."""
        if self._linger < len(LINGER):
            self._linger = 0 if self._bell.wait(LINGER[self._linger]) else self._linger + 1
        elif self._bell.wait(nap()):
            self._linger = 0
