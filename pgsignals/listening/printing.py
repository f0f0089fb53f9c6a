"""A sink that writes each event as one JSON line: `listen --print`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from ..event import PgEvent
from ..sink import Gap


class PrintSink:
    """Writes a line for each event. `on_closed` is called when nobody reads any more."""

    def __init__(self, write: Callable[[str], object], on_closed: Callable[[], None]) -> None:
        self._write = write
        self._on_closed = on_closed

    async def start(self) -> None:
        """Nothing to do."""

    def put(self, events: Sequence[PgEvent], size: int) -> None:
        """One line each."""
        try:
            for event in events:
                self._write(to_line(event))
        except BrokenPipeError:
            self._on_closed()

    def lost(self, cause: str) -> None:
        """The log says it."""

    def gap(self, gap: Gap) -> None:
        """The log says it."""

    async def stop(self) -> None:
        """Nothing to do."""


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
