"""The relay inside an ASGI server's process: `application = with_relay(application)` in asgi.py.

It feeds this process's channel layer, so that the in-memory layer serves browsers without Redis and without a second
process, and runs the receivers that must run everywhere. It starts with the first scope, because daphne knows no
lifespan, and ends with the server: at the lifespan's shutdown under uvicorn, before the reactor's under daphne.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .listening.inprocess import Supervisor, check_receivers
from .live.installed import channels_sinks

logger = logging.getLogger("pgsignals.asgi")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_STOP_WITHIN = 2.0
"""Seconds that a running receiver may hold up the server's end."""


def with_relay(application: Application, receivers: str = "everywhere", database: str | None = None) -> Application:
    """Run the relay in the process that serves `application`.

    receivers: `everywhere` runs those with everywhere=True; `all` runs all, so that a small project needs no
        `manage.py listen`. (With several server processes each of them runs them.)
    database: alias; PGSIGNALS["DATABASE"] by default.

    A set-up that is refused is logged as an error, and pages are served all the same. Raises ValueError for another
    word than these two.
    """
    check_receivers("with_relay", receivers)
    return _WithRelay(application, receivers, database)


class _WithRelay:
    def __init__(self, application: Application, receivers: str, database: str | None) -> None:
        self.application = application
        self._supervisor = Supervisor(receivers, database, channels_sinks, _STOP_WITHIN)
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._start()
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self.application(scope, receive, send)

    def _start(self) -> None:
        # No await between the question and the answer: two first requests cannot start two relays.
        if self._task is None:
            # In a context of its own: what the first request has in its context is not for receivers.
            relaying = self._supervisor.run()
            self._task = asyncio.create_task(relaying, name="pgsignals-relay", context=contextvars.Context())
            _before_daphne_ends(self._stop)

    async def _stop(self) -> None:
        self._supervisor.stop()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=2 * _STOP_WITHIN)
            if late:
                logger.warning("The relay has not ended in %g s, and is cut off.", 2 * _STOP_WITHIN)
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


def _before_daphne_ends(stop: Callable[[], Awaitable[None]]) -> None:
    """Have Twisted's reactor wait for `stop` before it ends, where it is what runs this event loop."""
    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is None or not getattr(reactor, "running", False):
        return
    from twisted.internet.defer import Deferred

    def ending() -> Any:
        return Deferred.fromFuture(asyncio.ensure_future(stop()))

    reactor.addSystemEventTrigger("before", "shutdown", ending)
