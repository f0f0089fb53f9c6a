"""The application with the relay, which says in each WebSocket's handshake which process serves it."""

import os

from .asgi import with_relay_everywhere


async def application(scope, receive, send):
    async def tell(message):
        if message["type"] == "websocket.accept":
            message = {**message, "headers": [*message.get("headers", []), (b"x-process", b"%d" % os.getpid())]}
        await send(message)

    await with_relay_everywhere(scope, receive, tell)
