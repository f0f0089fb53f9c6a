"""The server that most faults share, and what the table at the end is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import FAULT
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


@pytest.fixture(autouse=True)
def row(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test has added to the table goes along with its report, from whichever process."""
    before = len(TABLE)
    yield
    for one in TABLE[before:]:
        text = f"| {one.fault} | {one.recovered:.2f} | {one.lost} | {one.gaps} | {one.memory:.1f} |"
        request.node.user_properties.append((FAULT, text))
