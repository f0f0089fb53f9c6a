"""The day's clock: it runs at some speed, stands still, and can be set. It tells the replay what time it is.

Several threads use it: the replay waits for it, and the visitors' requests turn its hands.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

SPEED = 300.0
"""Simulated minutes in a real minute, unless told otherwise: the day in less than six."""

SPEEDS = (60, 300, 1200, 3600)
"""What the page offers."""

FASTEST = 100_000.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the clock shows."""

    at: datetime
    speed: float
    """Simulated seconds in a real second."""
    paused: bool
    set_at: int
    """How often the hands were moved by somebody."""


class Clock:
    """Runs from `begin` to `end`, and stops there."""

    def __init__(self, begin: datetime, end: datetime, speed: float = SPEED, *, paused: bool = False) -> None:
        self.begin, self.end = begin, end
        self._at = begin
        self._since = time.monotonic()
        self._speed = speed
        self._paused = paused
        self._set_at = 0
        self._changed = threading.Condition()

    def read(self) -> Reading:
        """What it shows now."""
        with self._changed:
            return self._read()

    def pause(self) -> None:
        """Stand still."""
        self._turn(self._read().at, paused=True)

    def resume(self) -> None:
        """Go on; at the end of the day, begin it again."""
        now = self._read().at
        if now >= self.end:
            self.jump(self.begin)
        self._turn(self._read().at, paused=False)

    def run_at(self, speed: float) -> None:
        """Simulated seconds in a real second: above 0, at most FASTEST. Raises ValueError for others."""
        if not 0 < speed <= FASTEST:
            raise ValueError(f"The speed is {speed}, and must be above 0 and at most {FASTEST:.0f}.")
        self._turn(self._read().at, speed=speed)

    def jump(self, at: datetime) -> None:
        """Set the hands; beyond the day's ends, to these."""
        self._set_at += 1
        self._turn(min(max(at, self.begin), self.end))

    def wait(self, seconds: float, last: Reading | None = None) -> Reading:
        """What it shows in so many seconds, or as soon as somebody has touched it since `last`."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_other(last), seconds)
            return self._read()

    def _is_other(self, last: Reading | None) -> bool:
        now = self._read()
        return last is not None and (now.set_at, now.paused, now.speed) != (last.set_at, last.paused, last.speed)

    def _read(self) -> Reading:
        passed = 0.0 if self._paused else (time.monotonic() - self._since) * self._speed
        return Reading(min(self._at + timedelta(seconds=passed), self.end), self._speed, self._paused, self._set_at)

    def _turn(self, at: datetime, *, paused: bool | None = None, speed: float | None = None) -> None:
        with self._changed:
            self._at, self._since = at, time.monotonic()
            self._paused = self._paused if paused is None else paused
            self._speed = speed or self._speed
            self._changed.notify_all()
