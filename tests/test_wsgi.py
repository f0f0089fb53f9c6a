"""The relay inside WSGI servers' processes, with the documented cache: gunicorn in its ways to work, and runserver."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from asgiref.sync import sync_to_async

from pgsignals.listening import inprocess
from pgsignals.wsgi import with_relay

from .servers import ROOT, Browser, Process, browse, daphne, free_port, redis_server, running
from .shop.models import Order
from .test_headline import log_in, write
from .waiting import listening, sessions, until

pytestmark = pytest.mark.django_db(transaction=True)

QUICKLY = 30
"""Seconds in which a server with all its workers ends; a relay that holds it up says so sooner."""


@dataclass
class Page:
    """What a page said."""

    process: int
    status: str
    cached: bool


class Site:
    """A server whose pages show an order, and say which process served them."""

    def __init__(self, server: Process, port: int) -> None:
        self.server = server
        self.port = port

    def get(self, path: str) -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=60) as answer:
            return dict(json.load(answer))

    def page(self) -> Page:
        told = self.get("orders/5")
        return Page(told["pid"], told["status"], told["cached"])

    def pages(self) -> list[Page]:
        """Several at the same time, so that more than one process is busy."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: self.page(), range(8)))

    def processes(self, count: int) -> list[int]:
        """The processes that serve, once so many have."""
        found: set[int] = set()

        def look() -> set[int]:
            found.update(page.process for page in self.pages())
            return found

        return sorted(until(look, lambda found: len(found) == count))

    def all_say(self, processes: Collection[int], fits: Callable[[Page], bool]) -> None:
        """Wait until each of these processes has served a page that fits."""
        fitting: set[int] = set()

        def look() -> set[int]:
            fitting.update(page.process for page in self.pages() if fits(page))
            return fitting

        until(look, lambda fitting: fitting >= set(processes))


@pytest.fixture
def environment(child_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """gunicorn puts a socket for its control into one of these folders."""
    Order.objects.create(pk=5, status="new")
    folders = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    return {**child_environment, **folders, "DJANGO_SETTINGS_MODULE": "tests.settings_wsgi"}


@contextmanager
def gunicorn(environment: dict[str, str], *options: str, application: str = "application") -> Iterator[Site]:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *options, f"tests.wsgi:{application}"]
    with running(command, environment) as process:
        process.wait_for("Listening at")
        yield Site(process, port)


WAYS = {
    "workers": ("--workers", "3"),
    "preload": ("--workers", "3", "--preload"),
    "threads": ("--workers", "3", "--worker-class", "gthread", "--threads", "4"),
    "threads and preload": ("--workers", "3", "--worker-class", "gthread", "--threads", "4", "--preload"),
}
EACH_WAY = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


def old_entries_go(site: Site, processes: list[int], status: str) -> None:
    """Every process has the order in its memory, somebody changes it, and every process shows the change."""
    site.all_say(processes, lambda page: page.cached)
    write(f"UPDATE shop_order SET state = '{status}'")
    site.all_say(processes, lambda page: page.status == status)
    assert {page.status for page in site.pages()} == {status}


@EACH_WAY
def test_every_worker_drops_what_changed(options: tuple[str, ...], environment: dict[str, str]) -> None:
    """Each has one relay, however many threads; the process that forked them has none. SIGTERM ends all of it."""
    with gunicorn(environment, *options) as site:
        workers = site.processes(3)
        assert until(listening, lambda found: len(found) >= 3) == workers
        old_entries_go(site, workers, "paid")
        old_entries_go(site, workers, "sent")
        assert sorted(sessions().values()) == workers
        site.server.end(signal.SIGTERM, within=QUICKLY)
        assert "Traceback" not in site.server.text
        assert "has not ended" not in site.server.text
    until(sessions, lambda found: not found)


@pytest.mark.parametrize("options", [WAYS["workers"], WAYS["preload"]], ids=["workers", "preload"])
def test_a_worker_that_is_killed_is_replaced_and_the_new_one_listens_too(
    options: tuple[str, ...], environment: dict[str, str]
) -> None:
    with gunicorn(environment, *options) as site:
        workers = site.processes(3)
        until(listening, lambda found: found == workers)
        os.kill(workers[0], signal.SIGKILL)
        until(listening, lambda found: found == workers[1:])
        now = site.processes(3)
        assert set(workers[1:]) < set(now)
        until(listening, lambda found: found == now)
        old_entries_go(site, now, "paid")
        site.server.end(signal.SIGTERM, within=QUICKLY)
    until(sessions, lambda found: not found)


def test_a_worker_that_lost_its_connection_drops_everything(environment: dict[str, str]) -> None:
    """What it did not hear meanwhile must not stay."""
    with gunicorn(environment) as site:
        site.processes(1)
        (session,) = until(listening) and sessions()
        until(site.page, lambda page: page.cached)
        # Without triggers nobody hears of it: only the gap can tell.
        write("SET session_replication_role = replica; UPDATE shop_order SET state = 'paid'")
        assert site.page().status == "new"
        write(f"SELECT pg_terminate_backend({session})")
        until(site.page, lambda page: page.status == "paid")
        site.server.end(signal.SIGTERM, within=QUICKLY)


def test_a_refused_set_up_takes_no_page_down(environment: dict[str, str]) -> None:
    """A database alias that is none: one error in the log of each worker, pages as ever, and a quick end."""
    with gunicorn(environment, "--workers", "2", application="nowhere") as site:
        assert site.page().status == "new"
        workers = site.processes(2)
        site.server.wait_for("The relay does not run in this process: There is no database 'nowhere'", count=2)
        site.server.end(signal.SIGTERM, within=QUICKLY)
        said = [line for line in site.server.lines if "The relay does not run" in line]
        assert sorted(int(line.split()[0]) for line in said) == workers
        assert "Traceback" not in site.server.text


def test_green_workers_serve_pages_without_it(environment: dict[str, str]) -> None:
    """An event loop in gevent's one thread of the system would make every query of every page fail."""
    if find_spec("gevent") is None:
        pytest.skip("NOT RUN: gunicorn with gevent's workers. Install it: pip install gevent")
    with gunicorn(environment, "--worker-class", "gevent") as site:
        assert [page.status for page in site.pages()] == ["new"] * 8
        site.server.wait_for("ERROR The relay does not run in the process .*its threads are green ones")
        assert [page.status for page in site.pages()] == ["new"] * 8
        assert sessions() == {}
        site.server.end(signal.SIGTERM, within=QUICKLY)


def test_it_takes_part_in_feeding_a_layer_that_crosses_processes(environment: dict[str, str]) -> None:
    """The WebSocket is daphne's, which has no relay here."""
    session = log_in("view_order")
    with redis_server() as url:
        with_redis = {**environment, "PGSIGNALS_TEST_REDIS": url}
        with gunicorn(with_redis) as site, daphne("application", {**with_redis, **SERVES_SOCKETS}) as (_, port):
            site.processes(1)
            site.server.wait_for("This relay alone has now: feed the channel layer")

            async def work(browser: Browser) -> dict[str, Any]:
                await sync_to_async(write)("UPDATE shop_order SET state = 'paid'")
                return await browser.until(lambda message: message["type"] == "event")

            event = asyncio.run(browse(port, session, ["shop.order"], work))
            assert event["events"] == [["update", 5, ["status"]]]
            site.server.end(signal.SIGTERM, within=QUICKLY)


SERVES_SOCKETS = {"DJANGO_SETTINGS_MODULE": "tests.settings"}


def test_it_does_not_feed_a_layer_in_memory_that_nobody_here_reads(environment: dict[str, str]) -> None:
    with gunicorn({**environment, "PGSIGNALS_TEST_LAYER": "memory"}) as site:
        site.processes(1)
        site.server.wait_for("Listening to")
        assert site.get("sinks")["sinks"] == ["ReceiversSink"]
        # Killed, it would leave its worker behind.
        site.server.end(signal.SIGTERM, within=QUICKLY)


# runserver.

RECEIVER = """
import os
from pgsignals import on_pg_event
from tests.shop.models import Order


@on_pg_event(Order, everywhere=True)
def receiver(event):
    os.write(1, f"{version} in {{os.getpid()}}: {{event.pk}}\\n".encode())
"""


@pytest.fixture
def reloading(environment: dict[str, str], tmp_path: Path) -> tuple[dict[str, str], Path]:
    """A project with an app whose receivers can be rewritten, and whose ready() starts a relay as well."""
    app = tmp_path / "reloading"
    app.mkdir()
    (app / "__init__.py").write_text("")
    (app / "receivers.py").write_text(RECEIVER.format(version="first"))
    (app / "apps.py").write_text(
        textwrap.dedent("""
            import os
            from django.apps import AppConfig

            class Reloading(AppConfig):
                name = "reloading"

                def ready(self):
                    if "START_IN_READY" in os.environ:
                        from pgsignals.listening import inprocess
                        inprocess.start()
        """)
    )
    (tmp_path / "reloading_settings.py").write_text(
        "from tests.settings_wsgi import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'reloading']\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**environment, "DJANGO_SETTINGS_MODULE": "reloading_settings", "PYTHONPATH": path}, app


@contextmanager
def runserver(environment: dict[str, str], port: int) -> Iterator[Process]:
    """Two processes: the one that watches the code, and the one that serves."""
    process = Process([sys.executable, "-m", "django", "runserver", f"127.0.0.1:{port}"], environment, own_group=True)
    try:
        yield process
    finally:
        try:
            os.killpg(process.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.process.wait(QUICKLY)
        process.close()


@pytest.mark.parametrize("start_in_ready", [False, True], ids=["the wrapper alone", "started in ready() too"])
def test_runserver_has_one_relay_also_after_the_code_has_changed(
    start_in_ready: bool, reloading: tuple[dict[str, str], Path]
) -> None:
    """It is that of the process which serves; the one that watches the code has none."""
    environment, app = reloading
    port = free_port()
    if start_in_ready:
        environment = {**environment, "START_IN_READY": "1"}
    with runserver(environment, port) as process:
        process.wait_for("Quit the server")
        site = Site(process, port)
        first = site.page().process
        until(listening, lambda found: found == [first])
        write("UPDATE shop_order SET total = 1")
        process.wait_for(f"^first in {first}: 5")

        (app / "receivers.py").write_text(RECEIVER.format(version="second"))
        process.wait_for("Quit the server", count=2)
        until(lambda: first not in listening())
        second = site.page().process
        assert second != first
        until(listening, lambda found: found == [second])
        assert process.process.pid not in (first, second)
        write("UPDATE shop_order SET total = 2")
        process.wait_for(f"^second in {second}: 5")

        os.killpg(process.process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        assert process.process.wait(QUICKLY) == 0
        until(sessions, lambda found: not found)
        watching = f"DEBUG No relay is started in the process {process.process.pid}"
        assert (watching in process.text) is start_in_ready
        assert "Traceback" not in process.text


# What needs no server.


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a relay would have been started with."""
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(inprocess, "start", lambda *arguments, **options: made.append(arguments))
    return made


def pages(environ: Any, start_response: Any) -> list[bytes]:
    return [b"page"]


def nothing(*arguments: Any) -> Any:
    raise AssertionError("not to be called here")


def test_it_starts_with_the_first_request_and_once_in_each_process(
    starts: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    application = with_relay(pages, "all", "other")
    assert starts == []
    for _ in range(3):
        assert list(application({}, nothing)) == [b"page"]
    assert starts == [("all", "other")]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    application({}, nothing)
    assert len(starts) == 2


def test_another_word_for_receivers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with_relay\(receivers='some'\): the choices are 'everywhere' and 'all'"):
        with_relay(pages, receivers="some")


# The documentation.

GUIDE = (ROOT / "docs" / "web-processes.md").read_text()


@pytest.mark.parametrize("name", ["receivers.py", "orders.py"])
def test_the_documented_cache_is_the_tested_one(name: str) -> None:
    documented = re.search(rf"```python\n# shop/{name}\n(.*?)```", GUIDE, re.DOTALL)
    assert documented
    tested = (ROOT / "tests" / "cached" / name).read_text()
    without_docstring = re.sub(r'\A""".*?"""\n\n', "", tested, flags=re.DOTALL)
    assert documented[1].replace("from shop.", "from tests.shop.") == without_docstring


def test_the_documented_settings_are_the_tested_ones() -> None:
    documented = re.search(r"# settings.py\n(CACHES = .*?\n}\n)", GUIDE, re.DOTALL)
    assert documented
    assert documented[1] in (ROOT / "tests" / "settings_wsgi.py").read_text()
