"""A relay and clients in one event loop, for tests of what streams say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from asgiref.sync import sync_to_async

from pgsignals.listening.running import build
from pgsignals.live.installed import channels_sinks
from pgsignals.live.outbox import Frame
from pgsignals.live.stream import stream
from pgsignals.sink import Gap, Sink

from .conftest import connect

WITHIN = 20


class _Moment(Sink):
    def __init__(self) -> None:
        self.listens = asyncio.Event()

    def gap(self, gap: Gap) -> None:
        self.listens.set()


@asynccontextmanager
async def relay() -> AsyncIterator[None]:
    """A relay that listens, and feeds the channel layer."""
    moment = _Moment()
    running = build("default", receivers="none", more=[*channels_sinks(), moment])
    task = asyncio.create_task(running.run())
    try:
        await asyncio.wait_for(moment.listens.wait(), WITHIN)
        yield
    finally:
        running.stop()
        await task


class Client:
    """Somebody who reads a stream."""

    def __init__(self, frames: AsyncIterator[Frame]) -> None:
        self._frames = frames
        self.ids: dict[str, str] = {}

    async def next(self) -> Frame:
        frame = await asyncio.wait_for(anext(self._frames), WITHIN)
        self.ids.update(frame.said.get("ids", {}))
        if frame.id is not None and frame.topic is not None:
            self.ids[frame.topic] = frame.id
        return frame

    async def until(self, fits: Callable[[Frame], bool]) -> Frame:
        while not fits(frame := await self.next()):
            pass
        return frame

    async def event(self) -> Frame:
        """The next event; what else there is has been said before."""
        return await self.until(lambda frame: frame.type == "event")


@asynccontextmanager
async def client(user: Any, *topics: str, **options: Any) -> AsyncIterator[Client]:
    """A client that is subscribed. Its first frame is still to be read."""
    async with aclosing(stream(user, topics, **options)) as frames:
        yield Client(frames)


@sync_to_async
def write(statement: str, *values: Any) -> None:
    """Somebody writes, and commits."""
    with connect() as connection:
        connection.execute(statement, values)
