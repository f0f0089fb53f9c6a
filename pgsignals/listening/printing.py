"""A sink that writes each event as one JSON line: `listen --print`."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from .. import conf
from ..dispatch.buffer import Buffer
from ..event import PgEvent
from ..sink import Gap, Sink

logger = logging.getLogger("pgsignals.listen")

_STOP_WITHIN = 2.0
"""Seconds that the reader may take for the last lines."""


class PrintSink(Sink):
    """Writes a line for each event, from a thread of its own: whoever reads them may be slow, or stop reading.

    `on_closed` is called, in that thread, when nobody reads any more.
    """

    def __init__(self, database: str, write: Callable[[str], object], on_closed: Callable[[], None]) -> None:
        self._write = write
        self._on_closed = on_closed
        self._buffer = Buffer(database, conf.get().BUFFER)
        self._wake = threading.Semaphore(0)
        self._stopping = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="pgsignals-print", daemon=True)

    async def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        """One line each."""
        self._buffer.put(events, size)
        self._wake.release()

    async def stop(self) -> None:
        """Write what waits, unless nobody takes it."""
        self._stopping = True
        self._wake.release()
        await asyncio.to_thread(self._thread.join, _STOP_WITHIN)
        if self._thread.is_alive():
            logger.warning("Nobody takes what is printed: the last events are left out.")

    def _work(self) -> None:
        while not self._closed:
            self._wake.acquire()
            last = self._stopping
            for item in self._buffer.take():
                if not isinstance(item, Gap):
                    self._write_all(item)
            if last:
                return

    def _write_all(self, events: Sequence[PgEvent]) -> None:
        for event in events:
            if self._closed:
                return
            try:
                self._write(to_line(event))
            except BrokenPipeError:
                self._closed = True
                self._on_closed()
            except Exception:
                logger.exception("An event could not be printed: %r", event)


def to_line(event: PgEvent) -> str:
    """One JSON object, whatever the values are."""
    try:
        said = event.as_dict()
    except ValueError as error:  # a value that its field cannot read
        said = {"op": event.op, "model": event.label, "pk": event.raw_pk, "error": str(error)}
    return json.dumps(_plain(said), cls=_Encoder, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """NaN and infinity have no JSON, and keys must be text."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


class _Encoder(DjangoJSONEncoder):
    """Text for what JSON has no form for."""

    def default(self, o: Any) -> Any:
        if isinstance(o, bytes | memoryview):
            return bytes(o).hex()
        try:
            return super().default(o)
        except TypeError:
            return str(o)
