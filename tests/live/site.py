"""The project served by daphne, on a database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from ..browser import PROJECT, connect, own_database
from ..servers import Process, daphne

# In one process: each start of Django takes a second.
PREPARE = """
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
call_command("migrate", run_syncdb=True, verbosity=0, skip_checks=True)
for user in (User.objects.create_superuser("ada"), User.objects.create_user("bob", is_staff=True)):
    client = Client()
    client.force_login(user)
    print(user.username, client.session.session_key)
"""


class Site:
    """Where it is, who may come in, and whose output is read."""

    def __init__(self, database: str, environment: dict[str, str]) -> None:
        self.database = database
        self.environment = environment
        self.servers: list[Process] = []
        self.addresses: list[str] = []
        self.sessions: dict[str, str] = {}
        """Keys by users: ada may do everything, bob is of the staff and may do nothing."""

    @property
    def address(self) -> str:
        return self.addresses[0]

    def prepare(self) -> None:
        command = [sys.executable, "-c", PREPARE]
        done = subprocess.run(command, cwd=PROJECT, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        self.sessions = dict(line.split() for line in done.stdout.splitlines())

    def sql(self) -> psycopg.Connection[Any]:
        return connect(self.database)


@contextmanager
def site(*applications: str, **environment: str) -> Iterator[Site]:
    """A daphne for each of these applications of tests/live/asgi.py."""
    with own_database() as name:
        ours = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.live.settings",
            "PGSIGNALS_TEST_DATABASE": name,
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        made = Site(name, ours)
        made.prepare()
        with serving(made, list(applications)):
            yield made
        for server in made.servers:
            _, found, what = server.text.partition("Traceback")
            assert not found, what[:4000]


@contextmanager
def serving(made: Site, applications: list[str]) -> Iterator[None]:
    if not applications:
        yield
        return
    with daphne(applications[0], made.environment, "tests.live.asgi") as (server, port):
        made.servers.append(server)
        made.addresses.append(f"http://127.0.0.1:{port}")
        with serving(made, applications[1:]):
            yield
