"""The relay inside a web server's process, with the in-memory layer: no Redis, no second process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from pgsignals.asgi import with_relay

from .postgres import Server
from .servers import Browser, Process, browse, daphne, uvicorn
from .test_headline import log_in, write

pytestmark = pytest.mark.django_db(transaction=True)

Serve = Callable[[str, dict[str, str]], AbstractContextManager[tuple[Process, int]]]
SERVERS = pytest.mark.parametrize("serve", [daphne, uvicorn])


@pytest.fixture
def memory(child_environment: dict[str, str]) -> dict[str, str]:
    return {
        **child_environment,
        "PGSIGNALS_TEST_LAYER": "memory",
        "DJANGO_SETTINGS_MODULE": "tests.settings_web",
    }


def one_event(process: Process, port: int, session: str, statement: str) -> dict[str, Any]:
    async def work(browser: Browser) -> dict[str, Any]:
        # The relay starts with this connection, so the page may be there before it listens.
        await sync_to_async(process.wait_for)("Listening to")
        await sync_to_async(write)(statement)
        return await browser.until(lambda message: message["type"] == "event")

    return dict(asyncio.run(browse(port, session, ["shop.order"], work)))


INSERT = "INSERT INTO shop_order (id, state, total, note) VALUES (5, 'new', 1, '')"


@SERVERS
def test_an_event_reaches_a_websocket_and_the_end_is_clean(serve: Serve, memory: dict[str, str]) -> None:
    """SIGINT ends the server within seconds, with no traceback and no complaint of asyncio."""
    session = log_in("view_order")
    with serve("with_relay_everywhere", memory) as (process, port):
        assert one_event(process, port, session, INSERT)["events"] == [["insert", 5, []]]
        process.end(signal.SIGINT)
        assert "Traceback" not in process.text
        assert "was destroyed" not in process.text
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals%'")
            assert cursor.fetchone() == (0,)


@SERVERS
def test_sigterm_ends_it_too(serve: Serve, memory: dict[str, str]) -> None:
    session = log_in("view_order")
    with serve("with_relay_everywhere", memory) as (process, port):
        one_event(process, port, session, INSERT)
        process.end(signal.SIGTERM)
        assert "Traceback" not in process.text


@pytest.mark.parametrize(
    ("application", "expected"),
    [("with_relay_everywhere", {"everywhere"}), ("with_relay_all", {"everywhere", "ordinary"})],
)
def test_which_receivers_run(application: str, expected: set[str], memory: dict[str, str]) -> None:
    """Those with everywhere=True always, the others only with receivers="all"."""
    session = log_in("view_order")
    with daphne(application, memory) as (process, port):
        one_event(process, port, session, INSERT)
        for word in expected:
            process.wait_for(f"receiver {word}: insert 5")
        # The ordinary one would have run first: it stands first in the file.
        assert ("receiver ordinary" in process.text) == ("ordinary" in expected)


@pytest.fixture
def second_server() -> Iterator[Server]:
    server = Server(loopback=False).start()
    yield server
    server.close()


@SERVERS
def test_a_restart_of_the_database_is_survived(serve: Serve, memory: dict[str, str], second_server: Server) -> None:
    """The page stays open all the while, and hears of the loss, of the gap, and of what comes after."""
    place = second_server.django()
    environment = {key: value for key, value in memory.items() if key != "PGSIGNALS_TEST_DATABASE"}
    environment |= {"PGHOST": place["HOST"], "PGPORT": place["PORT"], "PGUSER": "postgres", "PGDATABASE": "postgres"}
    make = "from tests.test_headline import log_in; print(log_in('view_order'))"
    for command in (["migrate", "--run-syncdb", "-v", "0"], ["shell", "-v", "0", "-c", make]):
        done = subprocess.run(
            [sys.executable, "-m", "django", *command], env=environment, capture_output=True, text=True, check=True
        )
    session = done.stdout.strip()

    def execute(statement: str) -> None:
        with psycopg.connect(host=place["HOST"], user="postgres", dbname="postgres", autocommit=True) as writer:
            writer.execute(statement)

    def restart() -> None:
        second_server.stop("immediate")
        second_server.start()

    with serve("with_relay_everywhere", environment) as (process, port):

        async def work(browser: Browser) -> dict[str, Any]:
            await sync_to_async(process.wait_for)("Listening to")
            await sync_to_async(restart)()
            await browser.until(lambda message: message["type"] == "lost")
            await browser.until(lambda message: message["type"] == "gap")
            await sync_to_async(execute)(INSERT)
            return await browser.until(lambda message: message["type"] == "event")

        event = asyncio.run(browse(port, session, ["shop.order"], work))
        assert event["events"] == [["insert", 5, []]]
        process.end()


def test_a_refused_set_up_takes_no_page_down(memory: dict[str, str]) -> None:
    """A database alias that is none: one error in the log, and pages as ever."""
    session = log_in("view_order")
    with daphne("with_relay_nowhere", memory) as (process, port):

        async def work(browser: Browser) -> str:
            return "served"

        assert asyncio.run(browse(port, session, ["shop.order"], work)) == "served"
        process.wait_for("The relay does not run in this process: There is no database 'nowhere'")
        process.end()


def test_a_lifespan_that_the_application_answers_is_left_to_it(settings: Any) -> None:
    """Django and Channels refuse the lifespan; an application that takes part in it must hear of it."""
    settings.CHANNEL_LAYERS = {}
    heard: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for kind in ("startup", "shutdown"):
            heard.append((await receive())["type"])
            await send({"type": f"lifespan.{kind}.complete"})

    async def serve() -> list[str]:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        sent: list[str] = []

        async def receive() -> dict[str, str]:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await with_relay(application)({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(serve()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert heard == ["lifespan.startup", "lifespan.shutdown"]


def test_another_word_for_receivers_is_refused() -> None:
    with pytest.raises(ValueError, match="'everywhere' and 'all'"):
        with_relay(lambda scope, receive, send: None, receivers="some")  # type: ignore[arg-type, return-value]
