"""The relay inside a web server's process, with the in-memory layer: no Redis, no second process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack
from contextvars import ContextVar
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_browser

from pgsignals.asgi import with_relay
from pgsignals.listening import inprocess
from pgsignals.listening.relay import RelayRefused

from .postgres import Server
from .servers import Browser, Process, browse, daphne, free_port, running, uvicorn
from .test_headline import log_in, write
from .waiting import listening, sessions, until

pytestmark = pytest.mark.django_db(transaction=True)

Serve = Callable[[str, dict[str, str]], AbstractContextManager[tuple[Process, int]]]
QUICKLY = 30
"""Seconds in which an idle server ends; a relay that holds it up says so sooner."""

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
        process.end(signal.SIGINT, within=QUICKLY)
        assert "Traceback" not in process.text
        assert "The relay has not ended" not in process.text
        assert "was destroyed" not in process.text
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals%'")
            assert cursor.fetchone() == (0,)


@SERVERS
def test_a_receiver_that_runs_may_finish(serve: Serve, memory: dict[str, str]) -> None:
    """Daphne has no lifespan, and would end in the middle of it."""
    session = log_in("view_order")
    with serve("with_relay_everywhere", memory) as (process, port):
        one_event(process, port, session, INSERT)
        write("INSERT INTO shop_customer (id, name) VALUES (7, 'Ada')")
        process.wait_for("receiver begins: insert 7")
        process.end(signal.SIGINT)
        assert "receiver has finished: insert 7" in process.text
        assert "Traceback" not in process.text


@SERVERS
def test_sigterm_ends_it_too(serve: Serve, memory: dict[str, str]) -> None:
    session = log_in("view_order")
    with serve("with_relay_everywhere", memory) as (process, port):
        one_event(process, port, session, INSERT)
        process.end(signal.SIGTERM, within=QUICKLY)
        assert "Traceback" not in process.text
        assert "The relay has not ended" not in process.text


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


@SERVERS
def test_a_refused_set_up_takes_no_page_down(serve: Serve, memory: dict[str, str]) -> None:
    """A database alias that is none: one error in the log, pages and WebSockets as ever, and a quick end."""
    session = log_in("view_order")
    with serve("with_relay_nowhere", memory) as (process, port):

        async def work(browser: Browser) -> str:
            return "served"

        assert asyncio.run(browse(port, session, ["shop.order"], work)) == "served"
        with pytest.raises(HTTPError) as served:
            urlopen(f"http://127.0.0.1:{port}/nothing", timeout=10)
        served.value.close()
        assert served.value.code == 404
        process.wait_for("The relay does not run in this process: There is no database 'nowhere'")
        process.end(within=QUICKLY)
        assert sum(line.startswith("The relay does not run in this process") for line in process.lines) == 1
        assert "Traceback" not in process.text


def test_with_several_processes_every_browser_hears_without_a_layer_that_crosses_them(memory: dict[str, str]) -> None:
    """Each process has a relay of its own, which feeds the layer in its memory."""
    session = log_in("view_order")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--workers", "2", "tests.telling:application"]
    address, cookie = f"ws://127.0.0.1:{port}/ws/pg/", {"Cookie": f"sessionid={session}"}

    async def all_hear() -> set[str]:
        browsers: dict[str, ClientConnection] = {}
        async with AsyncExitStack() as open_ones, asyncio.timeout(20):
            while len(browsers) < 2:
                browser = await open_ones.enter_async_context(connect_browser(address, additional_headers=cookie))
                assert browser.response is not None
                browsers[browser.response.headers["x-process"]] = browser
            for browser in browsers.values():
                await browser.send('{"subscribe": ["shop.order"]}')
                await heard(browser, "subscribed")
            await sync_to_async(write)(INSERT)
            for browser in browsers.values():
                assert (await heard(browser, "event"))["events"] == [["insert", 5, []]]
        return set(browsers)

    with running(command, memory) as process:
        process.wait_for("Application startup complete", count=2)
        processes = until(listening, lambda found: len(found) == 2)
        assert {int(one) for one in asyncio.run(all_hear())} == set(processes)
        process.end(signal.SIGTERM, within=QUICKLY)
        assert "Traceback" not in process.text
    until(sessions, lambda found: not found)


async def heard(browser: ClientConnection, kind: str) -> dict[str, Any]:
    """The first message of a kind."""
    while (message := json.loads(await browser.recv()))["type"] != kind:
        pass
    return dict(message)


# What needs no server.


class Stand:
    """In the relay's place: counts its starts, and fails as it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.starts = 0
        self.running = asyncio.Event()
        self.stopped = asyncio.Event()

    def build(self, *args: Any, **options: Any) -> Stand:
        self.starts += 1
        return self

    async def run(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.running.set()
        await self.stopped.wait()

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stand]:
    def make(*errors: Exception) -> Stand:
        made = Stand(*errors)
        monkeypatch.setattr(inprocess, "build", made.build)
        return made

    return make


async def live_through(wrapped: Any, between: Callable[[], Any] | None = None) -> list[str]:
    """A server's lifespan, from startup to shutdown. What was answered."""
    sent: list[str] = []
    steps = iter(["startup", "shutdown"])

    async def receive() -> dict[str, str]:
        step = next(steps)
        if step == "shutdown" and between is not None:
            await between()
        return {"type": f"lifespan.{step}"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await wrapped({"type": "lifespan"}, receive, send)
    return sent


BOTH = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_lifespan_that_the_application_answers_is_left_to_it(stand: Callable[..., Stand]) -> None:
    """Django and Channels refuse the lifespan; an application that takes part in it must hear of it."""
    heard: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for kind in ("startup", "shutdown"):
            heard.append((await receive())["type"])
            await send({"type": f"lifespan.{kind}.complete"})

    relay = stand()
    assert asyncio.run(live_through(with_relay(application), relay.running.wait)) == BOTH
    assert heard == ["lifespan.startup", "lifespan.shutdown"]
    assert relay.stopped.is_set()


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError(f"can only handle HTTP, not {scope['type']}")


async def ignores(scope: Any, receive: Any, send: Any) -> None:
    return


@pytest.mark.parametrize("application", [refuses, ignores])
def test_a_lifespan_that_the_application_does_not_know_is_answered_for_it(
    application: Any, stand: Callable[..., Stand]
) -> None:
    relay = stand()
    assert asyncio.run(live_through(with_relay(application), relay.running.wait)) == BOTH
    assert relay.stopped.is_set()


def test_an_application_that_fails_in_its_startup_is_the_servers_to_know(stand: Callable[..., Stand]) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no cache")

    stand()
    with pytest.raises(RuntimeError, match="no cache"):
        asyncio.run(live_through(with_relay(application)))


def test_first_requests_that_come_together_start_one_relay(stand: Callable[..., Stand]) -> None:
    relay = stand()

    async def main() -> None:
        wrapped: Any = with_relay(ignores)
        await asyncio.gather(*(wrapped({"type": "http"}, None, None) for _ in range(5)))
        await live_through(wrapped)

    asyncio.run(main())
    assert relay.starts == 1


def test_the_relay_does_not_run_in_the_context_of_the_first_request(
    stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who that request's user is, say, must not stay with receivers for ever."""
    who: ContextVar[str] = ContextVar("who", default="nobody")
    relay = stand()
    seen: list[str] = []

    def build(*args: Any, **options: Any) -> Stand:
        seen.append(who.get())
        return relay

    monkeypatch.setattr(inprocess, "build", build)

    async def main() -> None:
        who.set("ada")
        await live_through(with_relay(ignores), relay.running.wait)

    asyncio.run(main())
    assert seen == ["nobody"]


def test_a_relay_that_is_refused_does_not_hold_up_the_end(stand: Callable[..., Stand]) -> None:
    """It pauses between two attempts."""
    relay = stand(RelayRefused("wrong password"))

    async def tried() -> None:
        while not relay.starts:
            await asyncio.sleep(0)

    async def main() -> list[str]:
        async with asyncio.timeout(3):
            return await live_through(with_relay(ignores), tried)

    assert asyncio.run(main()) == BOTH


def test_another_word_for_receivers_is_refused() -> None:
    with pytest.raises(ValueError, match="'everywhere' and 'all'"):
        with_relay(lambda scope, receive, send: None, receivers="some")  # type: ignore[arg-type, return-value]
