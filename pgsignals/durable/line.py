"""Connections on which nobody waits for ever.

A line can die without a word: the server's machine is gone, a proxy forgot it. What was asked is then answered never,
and psycopg waits. Every call on a line therefore has a deadline of this side; a thread for all lines of the process
shuts the sockets of those that are late, which wakes whoever waits with an error. The deadline is long, for it is no
limit for queries: by then others have had the partitions for a while.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import psycopg

_LOOK = 0.5
"""Seconds between two looks for lines that are late."""


class Line(psycopg.Connection[Any]):
    """A connection whose calls end, with an error at the latest."""

    within: float | None = None
    """Seconds that a call may take; None for as long as it likes."""
    is_direct = False
    """Whether it is known that no pooler stands between, which would say a process id of its own."""
    _until: float | None = None

    def wait(self, *args: Any, **options: Any) -> Any:
        """As psycopg's, under a deadline."""
        if self.within is None:
            return super().wait(*args, **options)
        self._until = time.monotonic() + self.within
        try:
            return super().wait(*args, **options)
        finally:
            self._until = None

    @contextmanager
    def patient(self) -> Iterator[None]:
        """For what may take long for good reasons."""
        within, self.within = self.within, None
        try:
            yield
        finally:
            self.within = within

    def cut_if_late(self, now: float) -> None:
        """Called in another thread."""
        until = self._until
        if until is not None and now > until and not self.closed:
            self._until = None
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)


class _Watch:
    """Looks after the lines of this process."""

    def __init__(self) -> None:
        self._lines: WeakSet[Line] = WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def over(self, line: Line) -> None:
        with self._lock:
            self._lines.add(line)
            # A process that was forked has the object and not the thread.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="pgsignals-lines", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK)
            with self._lock:
                lines = [line for line in self._lines if not line.closed]
                if not lines:
                    self._thread = None
                    return
            for line in lines:
                try:
                    line.cut_if_late(time.monotonic())
                except (OSError, psycopg.Error):  # its owner was faster
                    continue


_watch = _Watch()


def open_line(within: float, **given: Any) -> Line:
    """A connection in autocommit, of whose calls none takes longer than so many seconds. Raises psycopg.Error."""
    try:
        line = Line.connect(**given, autocommit=True)
    except psycopg.Error as error:
        # What was raised in the middle of it holds the socket, open, until the collector comes: it ends here.
        failed: BaseException | None = error
        while failed is not None:
            failed.__traceback__, failed = None, failed.__context__
        raise
    line.within = within
    _watch.over(line)
    return line
