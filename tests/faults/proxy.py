"""A TCP proxy on loopback that can be told to misbehave."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Any

PASS, TO_SERVER, TO_CLIENT, BOTH = "pass", "to the server", "to the client", "in both directions"


class Proxy:
    """Passes bytes on. `swallow(direction)` keeps sockets open and passes nothing that way, for those connections
    that are there, or also for new ones; `slow(seconds)` delays each little piece."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._hole = PASS
        self._only_old: set[int] | None = None
        self._delay = 0.0
        self._count = 0
        self._open: list[socket.socket] = []
        self._ended = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self, direction: str, only_old: bool = False) -> None:
        self._only_old = set(range(self._count)) if only_old else None
        self._hole = direction

    def slow(self, seconds: float) -> None:
        self._delay = seconds

    def heal(self) -> None:
        """Pass everything again. What was swallowed is gone, so the old connections are of no use any more."""
        self._hole = PASS

    def close(self) -> None:
        self._ended.set()
        self._server.close()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, self._count), daemon=True).start()
            self._count += 1

    def _serve(self, client: socket.socket, number: int) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        self._open += [client, server]
        broken = False
        selector = selectors.DefaultSelector()
        selector.register(client, selectors.EVENT_READ, (server, TO_SERVER))
        selector.register(server, selectors.EVENT_READ, (client, TO_CLIENT))
        try:
            while not self._ended.is_set():
                for key, _ in selector.select(0.1):
                    source: Any = key.fileobj
                    other, direction = key.data
                    data = source.recv(64 if self._delay else 65536)
                    if not data:
                        return
                    swallowed = self._hole in (direction, BOTH) and (self._only_old is None or number in self._only_old)
                    broken = broken or swallowed
                    if self._delay:
                        time.sleep(self._delay)
                    # A stream with a hole in it is never whole again.
                    if not swallowed and not (broken and self._hole == PASS):
                        other.sendall(data)
        except OSError:
            pass
        finally:
            selector.close()
            client.close()
            server.close()
