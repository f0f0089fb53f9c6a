"""The demo in a process of its own, and a Chromium to look at it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from .servers import Process

PROJECT = Path(__file__).resolve().parent.parent
OURS = ("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE", "PGSIGNALS_DEMO_DATA")
"""What decides which database the demo takes."""


def environment(**more: str) -> dict[str, str]:
    """A newcomer's environment: nothing names a database or settings."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    return {**kept, "DJANGO_SETTINGS_MODULE": "demo_project.settings", "PYTHONUNBUFFERED": "1", **more}


def manage(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One command of the demo project, to its end."""
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)


class Demo(Process):
    """`manage.py demo`, as a terminal would run it: in a process group that Ctrl-C goes to."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self.env = env
        super().__init__([sys.executable, "manage.py", "demo", *arguments], env, own_group=True)

    @property
    def output(self) -> str:
        return self.text

    def url(self) -> str:
        """The address that it prints, when it has."""
        return self.wait_for(r"http://", within=60).split()[-1]

    def interrupt(self) -> int:
        """Ctrl-C. Its status."""
        os.killpg(self.process.pid, signal.SIGINT)
        status = self.process.wait(20)
        super().close()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            try:
                self.interrupt()
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise


def connect(database: str = "") -> psycopg.Connection[Any]:
    """A connection to a database of the tests' server, in autocommit."""
    place = settings.DATABASES["default"]
    return psycopg.connect(
        dbname=database or "postgres",
        host=place["HOST"],
        port=place["PORT"] or None,
        user=place["USER"],
        password=place["PASSWORD"] or None,
        autocommit=True,
    )


@contextmanager
def own_database() -> Iterator[str]:
    """The name of an empty database on the tests' server."""
    name = f"demo_{uuid.uuid4().hex[:8]}"
    with connect() as server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(database: str) -> str:
    """DATABASE_URL for a database of the tests' server."""
    place = settings.DATABASES["default"]
    password = f":{place['PASSWORD']}" if place["PASSWORD"] else ""
    port = f":{place['PORT']}" if place["PORT"] else ""
    return f"postgres://{place['USER']}{password}@{port}/{database}?host={place['HOST']}"


def chromium() -> str:
    """The path of Chromium. Without one the test is reported as not run, never passed over in silence."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("NOT RUN: the browser tests need Chromium: apt-get install chromium")


def node_module(path: str) -> Path:
    """A file of a package from npm. Without it the test is reported as not run."""
    found = PROJECT / "tests/npm/node_modules" / path
    if not found.exists():
        pytest.skip(f"NOT RUN: {path} is not there. Install it: npm install --prefix tests/npm --no-package-lock")
    return found


ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


PAGE_WAIT = 20_000
"""Milliseconds that a page of the demo may take to show what it must."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def database(browser: Browser) -> Iterator[str]:
    with own_database() as name:
        yield name


@pytest.fixture(scope="module")
def demo(database: str) -> Iterator[Demo]:
    """The demo on a database of the tests' server; its clock stands still: all that happens is the test's doing."""
    running = Demo("--speed", "0", env=environment(DATABASE_URL=url_of(database)))
    running.address = running.url()
    yield running
    said = running.output
    running.close()
    # Before it was ended: what pages still ask for then may fail.
    assert "Traceback" not in said


@pytest.fixture
def sql(demo: Demo, database: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody at psql. The day is put back first."""
    with connect(database) as connection:
        connection.execute(
            "UPDATE flights_flight SET status = 'scheduled', departure_delay = NULL, news_at = NULL, departure = NULL"
        )
        yield connection


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    fresh = browser.new_context(viewport={"width": 1440, "height": 900})
    fresh.set_default_timeout(PAGE_WAIT)
    yield fresh
    fresh.close()
