"""Real programs for the tests: Redis, daphne, uvicorn, on loopback, ended by their process id."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .postgres import Server

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A child process whose output is read as it comes, so that a test can wait for a line."""

    def __init__(
        self, command: list[str], environment: dict[str, str], own_group: bool = False, pass_fds: Sequence[int] = ()
    ) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=own_group,
            pass_fds=tuple(pass_fds),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, pattern: str, count: int = 1, within: float = 60) -> str:
        """The count-th line that the pattern is found in."""

        def found() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._news:
            arrived = self._news.wait_for(lambda: len(found()) >= count or not self._reader.is_alive(), within)
            assert arrived, f"no {pattern!r} within {within} s in:\n{self.text}"
            assert len(found()) >= count, f"ended without {pattern!r}:\n{self.text}"
            return found()[count - 1]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def end(self, number: int = signal.SIGINT, within: float = 30) -> int:
        """Send a signal, and wait for the end. The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"still running {within} s after signal {number}:\n{self.text}")
        self.close()
        return status

    def close(self) -> None:
        """Give back the pipe of a process that has ended."""
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[Process]:
    process = Process(command, environment)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.end(signal.SIGKILL)
        process.close()


@contextmanager
def redis_server(port: int | None = None) -> Iterator[str]:
    """The URL of a Redis server of this test's own; on a given port where it is started again."""
    if not (program := shutil.which("redis-server")):
        pytest.skip("NOT RUN: tests with a real Redis server. Install it: apt-get install redis-server")
    port = port or free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
    with running([program, *options], {"PATH": "/usr/bin:/bin"}) as process:
        process.wait_for("Ready to accept connections")
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def pgbouncer(server: Server, mode: str, folder: Path, pool: int = 20) -> Iterator[int]:
    """The port of a PgBouncer before the server."""
    if not (program := shutil.which("pgbouncer", path=f"/usr/sbin:{os.environ['PATH']}")):
        pytest.skip("NOT RUN: tests with a real PgBouncer. Install it: apt-get install pgbouncer")
    port = free_port()
    lines = [
        "[databases]",
        f"postgres = host=127.0.0.1 port={server.port} user=postgres",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "auth_type = any",
        f"pool_mode = {mode}",
        f"default_pool_size = {pool}",
        "unix_socket_dir =",
        "ignore_startup_parameters = extra_float_digits",
    ]
    folder.chmod(0o755)
    (folder / "pgbouncer.ini").write_text("\n".join(lines))
    # It refuses to run as root.
    become = ["-u", server.user] if server.user else []
    with running([program, *become, str(folder / "pgbouncer.ini")], {"PATH": "/usr/bin:/bin"}) as process:
        process.wait_for("process up")
        yield port


@contextmanager
def daphne(application: str, environment: dict[str, str], module: str = "tests.asgi") -> Iterator[tuple[Process, int]]:
    port = free_port()
    command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port), f"{module}:{application}"]
    with running(command, environment) as process:
        process.wait_for("Listening on TCP address")
        yield process, port


@contextmanager
def uvicorn(application: str, environment: dict[str, str]) -> Iterator[tuple[Process, int]]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), f"tests.asgi:{application}"]
    with running(command, environment) as process:
        process.wait_for("Uvicorn running on")
        yield process, port


class Browser:
    """A WebSocket client with a session's cookie."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def send(self, message: Any) -> None:
        await self._socket.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        return dict(json.loads(await asyncio.wait_for(self._socket.recv(), 60)))

    async def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message that fits; what comes before is passed over."""
        while not fits(message := await self.receive()):
            pass
        return message


async def browse(port: int, session_key: str, topics: list[str], work: Callable[[Browser], Any]) -> Any:
    """Open a WebSocket, subscribe, and do the work with it."""
    from websockets.asyncio.client import connect

    cookie = {"Cookie": f"sessionid={session_key}"}
    async with connect(f"ws://127.0.0.1:{port}/ws/pg/", additional_headers=cookie) as socket:
        browser = Browser(socket)
        await browser.send({"subscribe": topics})
        await browser.until(lambda message: message["type"] == "subscribed")
        return await work(browser)
