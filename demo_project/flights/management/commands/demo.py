"""`manage.py demo`: a database, a server, and a day of flights, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connection
from django.utils.translation import gettext as _

from demo_project import server

LOOPBACK = "127.0.0.1"
PORT = 8000
SPEED = 300.0
"""Simulated minutes in a real minute: the day, to the landing of its last flight, in six."""
FASTEST = 100_000


class Command(BaseCommand):
    help = "Replay a stormy day at New York's airports, live in the admin. Ctrl-C ends everything."
    # They would look into a database that is not started yet; `migrate` runs them.
    requires_system_checks = []
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--speed", type=float, default=SPEED, help=_speed_help())
        parser.add_argument("--port", type=int, help=f"the page's port; {PORT}, or a free one, by default")
        parser.add_argument("--loop", action="store_true", help="begin the day again when it is over")

    def handle(self, *args: Any, speed: float, port: int | None, loop: bool, **options: Any) -> None:
        if not 0 <= speed <= FASTEST:
            said = {"speed": speed, "fastest": FASTEST}
            raise CommandError(_("--speed is %(speed)s, and must be from 0 (paused) to %(fastest)d.") % said)
        self.verbosity = options["verbosity"]
        port = _port(port)
        with _until_interrupted(), self._database():
            self._prepare()
            self._serve(speed, port, loop)
        self._say(_("Everything has ended."))

    @contextmanager
    def _database(self) -> Iterator[None]:
        """The embedded server, or the database that the environment names."""
        if server.configured():
            self._say(_("Using the PostgreSQL that the environment names."))
            yield
            return
        self._say(_("Starting PostgreSQL ..."))
        ours = server.Server()
        try:
            ours.start()
            self._say(_("PostgreSQL runs, with its data in %(folder)s.") % {"folder": server.folder()}, level=2)
            if "DJANGO_SECRET_KEY" not in os.environ:
                settings.SECRET_KEY = ours.secret()
            yield
        except server.ServerError as error:
            raise CommandError(str(error)) from None
        finally:
            with _undisturbed():
                connection.close()
                ours.stop()

    def _prepare(self) -> None:
        from demo_project.flights import loading

        try:
            call_command("migrate", verbosity=max(self.verbosity - 1, 0), interactive=False)
        except OperationalError as error:
            raise CommandError(_("The database cannot be used: %(error)s") % {"error": str(error).strip()}) from None
        if added := loading.load():
            self._say(_("Loaded %(count)d flights.") % {"count": added})
        loading.open_hotel()
        loading.make_visitor()
        # For this process only: whoever serves the project otherwise logs nobody in.
        settings.DEMO_VISITOR = loading.VISITOR
        connection.close()

    def _serve(self, speed: float, port: int, loop: bool) -> None:
        from daphne.server import Server

        from demo_project import worker
        from demo_project.asgi import application
        from demo_project.flights import replay

        clock = replay.day_clock(speed or SPEED, paused=not speed)
        replay.current = replay.Replay(clock, loop=loop, report=lambda text: self.stderr.write(text))
        worker.current = worker.Worker()

        def announce() -> None:
            self._announce(port)
            replay.current.start()
            worker.current.start()

        def ready() -> None:
            # Daphne calls this inside a Deferred, before the reactor takes the signals over. An interrupt that came
            # here would be kept by the Deferred, and nobody would end.
            from twisted.internet import reactor

            reactor.callWhenRunning(announce)

        page = Server(
            application,
            endpoints=[f"tcp:port={port}:interface={LOOPBACK}"],
            ready_callable=ready,
            verbosity=0,
            # Twisted's own handlers take SIGINT and SIGTERM, and let daphne and the relay end.
            signal_handlers=True,
            application_close_timeout=2,
        )
        # Twisted takes SIGINT over only from Python's own handler. Ours would raise inside one of its callbacks, which
        # keep what is raised in them, and nobody would end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            page.run()
        finally:
            with _undisturbed():
                self._say(_("Ending ..."))
                replay.current.stop()
                worker.current.stop()

    def _announce(self, port: int) -> None:
        self._say("")
        self._say(self.style.SUCCESS("  " + _("The board: %(url)s") % {"url": f"http://{LOOPBACK}:{port}/"}))
        self._say("")
        self._say(_("Ctrl-C ends everything. Meanwhile, in a second terminal: manage.py listen --print, or dbshell."))

    def _say(self, text: str, level: int = 1) -> None:
        if self.verbosity >= level:
            self.stdout.write(text)
            self.stdout.flush()


def _speed_help() -> str:
    return f"simulated minutes in a real minute; {SPEED:.0f} by default, with 0 its clock is paused"


def _port(asked: int | None) -> int:
    """The port asked for, which must be free, or 8000, or whichever is free."""
    if asked is not None:
        if not 0 < asked < 65536 or not _is_free(asked):
            raise CommandError(_("Port %(port)s cannot be used; choose another with --port.") % {"port": asked})
        return asked
    if _is_free(PORT):
        return PORT
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return False
    return True


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C, the terminal's end and `kill` are all the wished end, before the page is up as after."""

    def interrupt(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        pass


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave a server behind: ending takes a second, and is bounded."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    yield
