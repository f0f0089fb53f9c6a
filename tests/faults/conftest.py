"""The server that most faults share, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.postgres import Server

from .proxy import Proxy
from .staging import TABLE, migrate, own_server, place_of


@pytest.fixture(scope="session")
def shared() -> Iterator[Server]:
    """A server that no test stops."""
    server = own_server().start()
    migrate(place_of(server))
    yield server
    server.close()


@pytest.fixture
def place(shared: Server) -> dict[str, Any]:
    return place_of(shared)


@pytest.fixture
def proxy(shared: Server) -> Iterator[Proxy]:
    """Between the relay and the shared server."""
    proxy = Proxy(shared.port)
    yield proxy
    proxy.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TABLE:
        return
    terminalreporter.section("faults")
    terminalreporter.line("| fault | recovered after, s | lost, inside announced gaps | gaps | MB more |")
    terminalreporter.line("|---|---:|---:|---:|---:|")
    for one in TABLE:
        terminalreporter.line(f"| {one.fault} | {one.recovered:.2f} | {one.lost} | {one.gaps} | {one.memory:.1f} |")
