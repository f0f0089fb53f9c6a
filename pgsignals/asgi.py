"""The relay inside an ASGI server's process: `application = with_relay(application)` in asgi.py.

It feeds this process's channel layer, so that the in-memory layer serves browsers without Redis and without a second
process, and runs the receivers that must run everywhere. It starts with the first scope, because daphne knows no
lifespan, and ends with the server: at the lifespan's shutdown under uvicorn, before the reactor's under daphne.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .listening.relay import Relay, RelayRefused
from .listening.running import build
from .sink import Sink

logger = logging.getLogger("pgsignals.asgi")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_STOP_WITHIN = 2.0
"""Seconds that a running receiver may hold up the server's end."""

_FIRST_RETRY = 5.0
"""Seconds until a refused set-up is tried again, at first: somebody may have corrected a password meanwhile."""

_LAST_RETRY = 300.0
"""Seconds to which that wait grows."""


def with_relay(application: Application, receivers: str = "everywhere", database: str | None = None) -> Application:
    """Run the relay in the process that serves `application`.

    receivers: `everywhere` runs those with everywhere=True; `all` runs all, so that a small project needs no
        `manage.py listen`. (With several server processes each of them runs them.)
    database: alias; PGSIGNALS["DATABASE"] by default.

    A set-up that is refused is logged as an error, and pages are served all the same. Raises ValueError for another
    word than these two.
    """
    if receivers not in ("everywhere", "all"):
        raise ValueError(f"with_relay(receivers={receivers!r}): the choices are 'everywhere' and 'all'.")
    return _WithRelay(application, receivers, database)


class _WithRelay:
    def __init__(self, application: Application, receivers: str, database: str | None) -> None:
        self.application = application
        self.receivers = receivers
        self.database = database
        self._task: asyncio.Task[None] | None = None
        self._relay: Relay | None = None
        self._ending = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._start()
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self.application(scope, receive, send)

    def _start(self) -> None:
        # No await between the question and the answer: two first requests cannot start two relays.
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="pgsignals-relay")
            _before_daphne_ends(self._stop)

    async def _run(self) -> None:
        said, wait = "", _FIRST_RETRY
        while not self._ending.is_set():
            try:
                await self._relay_until_stopped()
            except RelayRefused as error:
                if str(error) != said:
                    logger.error(
                        "The relay does not run in this process: %s. Pages are served without it. Trying again in "
                        "%.0f s, then ever more rarely; said again when the reason is another.",
                        str(error).rstrip("."),
                        wait,
                    )
                said = str(error)
            except Exception:
                logger.exception("The relay ended. Pages are served without it. Trying again in %.0f s.", wait)
            await self._pause(wait)
            wait = min(2 * wait, _LAST_RETRY)

    async def _relay_until_stopped(self) -> None:
        more: list[Sink] = [] if (sink := _channels_sink()) is None else [sink]
        self._relay = build(self.database, receivers=self.receivers, more=more, stop_within=_STOP_WITHIN)
        await self._relay.run()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), seconds)
        except TimeoutError:
            pass

    async def _stop(self) -> None:
        self._ending.set()
        if self._relay is not None:
            self._relay.stop()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=2 * _STOP_WITHIN)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the lifespan on; Django and Channels refuse it, others ignore it, and both are answered for."""
        heard = False

        async def receive_first() -> MutableMapping[str, Any]:
            nonlocal heard
            heard = True
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._stop()
            return message

        try:
            await self.application(scope, receive_first, send)
        except Exception:
            if heard:  # it took part, and failed: that is the server's to know
                raise
        if not heard:
            await self._answer_lifespan(receive, send)

    async def _answer_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._stop()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def _channels_sink() -> Sink | None:
    try:
        from .live.sink import configured_sink
    except ModuleNotFoundError as error:
        if error.name != "channels":
            raise
        return None  # without the extra `channels` there is nothing to forward to
    return configured_sink()


def _before_daphne_ends(stop: Callable[[], Awaitable[None]]) -> None:
    """Have Twisted's reactor wait for `stop` before it ends, where it is what runs this event loop."""
    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is None or not getattr(reactor, "running", False):
        return
    from twisted.internet.defer import Deferred

    def ending() -> Any:
        return Deferred.fromFuture(asyncio.ensure_future(stop()))

    reactor.addSystemEventTrigger("before", "shutdown", ending)
