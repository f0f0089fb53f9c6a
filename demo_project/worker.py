"""A `listen` process beside the one that serves the pages: it calls receivers and works for groups.

The page about groups kills it and starts it again, to show what becomes of their events. It ends with the process that
started it, however that ends: it holds one end of a pipe, and finds it closed.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

_END_WITHIN = 5.0
"""Seconds that a receiver may take to finish."""


class Worker:
    """The process, as long as there is one. Several requests may ask for it at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Its number; None where it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it, unless it runs."""
        with self._lock:
            if self.pid is None:
                self._forget()
                # A session of its own: Ctrl-C is for the demo, which ends it in its turn.
                command = [sys.executable, "-m", "demo_project.worker"]
                self._process = subprocess.Popen(  # noqa: S603 - our own words
                    command, cwd=PROJECT, stdin=subprocess.PIPE, start_new_session=True
                )

    def kill(self) -> None:
        """As `kill -9` does: whatever it was doing, it does no more of it."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._forget()

    def stop(self) -> None:
        """Let it finish, and wait for that."""
        with self._lock:
            if self._process is None:
                return
            self._process.terminate()
            try:
                self._process.wait(_END_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None


current: Worker | None = None
"""Of this process: only `manage.py demo` has one."""


def _unless_on_purpose(record: logging.LogRecord) -> bool:
    """The hotel refuses guests because the visitor wants to see what follows; that needs no traceback each time."""
    from demo_project.flights.receivers import HotelFull

    return not (record.exc_info and isinstance(record.exc_info[1], HotelFull))


def _end_with_parent() -> None:
    # Until the other end is closed. Past Python's own buffer, whose lock would hold up the end of the process.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run `listen` until the process that started this one says so, or is gone."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo_project.settings")
    import django
    from django.core.management import call_command

    django.setup()
    logging.getLogger("pgsignals.dispatch").addFilter(_unless_on_purpose)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    # Channels' groups are fed beside the pages, where the layer in memory is.
    call_command("listen", "--no-channels", verbosity=0)


if __name__ == "__main__":
    main()
