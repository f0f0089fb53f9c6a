"""`manage.py listen`: relay what PostgreSQL announces, until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from argparse import ArgumentParser
from contextlib import ExitStack
from typing import Any

import psycopg
from django.conf import settings as django_settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import autoreload
from django.utils.translation import gettext as _

from pgsignals import conf
from pgsignals.durable import control
from pgsignals.durable.housekeeping import Housekeeper
from pgsignals.durable.workers import Workers, chosen_groups
from pgsignals.listening.health import HealthFile, HealthServer
from pgsignals.listening.printing import PrintSink
from pgsignals.listening.relay import Relay, RelayRefused
from pgsignals.listening.running import build, choose, make_room, spare_the_collector
from pgsignals.publishing import PublishError, check_channel
from pgsignals.receivers import registry

logger = logging.getLogger("pgsignals")

_LEVELS = {0: logging.ERROR, 1: logging.INFO, 2: logging.INFO, 3: logging.DEBUG}


class OfflineChecks(BaseCommand):
    """A command whose system checks ask no database: one that is not up yet is to be waited for, not a traceback.

    From Django 6.1 on the check of a GeneratedField connects.
    """

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        """As BaseCommand's, with no database."""
        given: Any = super().get_check_kwargs(options)
        return {**given, "databases": []}


class Command(OfflineChecks):
    """Runs one relay in this process."""

    help = "Listens to PostgreSQL and calls receivers, sends Django signals, and feeds Channels groups."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """--database, --print, and channels."""
        parser.add_argument("channels", nargs="*", help=_("Further channels, besides those that receivers name."))
        parser.add_argument("--database", help=_("Alias of the database; PGSIGNALS['DATABASE'] by default."))
        parser.add_argument(
            "--print", action="store_true", dest="print_events", help=_("Write each event as one JSON line.")
        )
        parser.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="NAME",
            help=_("Call only this receiver, or those of this module or app; may be repeated."),
        )
        parser.add_argument("--no-receivers", action="store_true", help=_("Call no receivers, and send no signals."))
        parser.add_argument(
            "--groups", metavar="NAMES", help=_("Of these groups only, with commas between; all of them by default.")
        )
        parser.add_argument("--no-groups", action="store_true", help=_("Handle no group's events."))
        parser.add_argument(
            "--workers", type=int, default=1, metavar="N", help=_("Threads for each group in this process; 1.")
        )
        parser.add_argument("--drain", action="store_true", help=_("Handle what the groups have waiting now, and end."))
        parser.add_argument(
            "--no-relay",
            action="store_true",
            help=_("Work for groups only, and look into the log now and then: where a pooler is the only way."),
        )
        parser.add_argument("--no-channels", action="store_true", help=_("Feed no channel layer."))
        parser.add_argument(
            "--health-file", metavar="PATH", help=_("A file to touch each time when delivery has been proven.")
        )
        parser.add_argument(
            "--http", metavar="[HOST:]PORT", help=_("Serve /healthz and /metrics there; the host is 127.0.0.1.")
        )
        parser.add_argument(
            "--no-reload", action="store_true", help=_("With DEBUG: do not start anew when code changes.")
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until SIGINT or SIGTERM; a second one ends at once. With DEBUG, start anew when code changes."""
        if options["workers"] < 1:
            raise CommandError(f"--workers is {options['workers']}, and must be at least 1.")
        if options["drain"]:
            self._drain(**options)
            return
        # Whoever pipes the output somewhere wants an end of file at the end.
        watched = sys.stdout.isatty() or not options["print_events"]
        if django_settings.DEBUG and watched and not options["no_reload"]:
            autoreload.run_with_reloader(self._listen_under_reloader, **options)
        else:
            self._listen(**options)

    def _drain(self, **options: Any) -> None:
        self._verbosity, self._printing = int(options["verbosity"]), False
        handler = self._show_log()
        try:
            workers = self._workers(options)
            if workers is None:
                raise CommandError("--drain: there are no groups to handle events for.")
            workers.drain()
        except psycopg.errors.UndefinedTable as error:
            raise CommandError(
                f"There is no log in this database; migrate first ({error.diag.message_primary})."
            ) from error
        except (LookupError, psycopg.Error) as error:
            raise CommandError(" ".join(str(error).split())) from error
        finally:
            if handler is not None:
                logger.removeHandler(handler)
        self._say(_("Handled %(count)d events.") % {"count": workers.handled})
        self._say_what_is_left(workers)

    def _say_what_is_left(self, workers: Workers) -> None:
        mine = {worker.group for worker in workers.workers}
        for one in control.status(workers.database):
            if one.name in mine and (one.parked or one.paused or one.waits):
                why = _("is paused") if one.paused else _("waits, because everything failed")
                state = why if one.paused or one.waits else _("goes on")
                self._say(
                    _("The group %(name)r %(state)s; it has %(parked)d events that wait for another attempt.")
                    % {"name": one.name, "state": state, "parked": one.parked}
                )

    def _workers(self, options: dict[str, Any]) -> Workers | None:
        """Part of a group's receivers cannot handle its events, so --only leaves the groups to --groups."""
        if options["no_groups"] or options["no_receivers"] or (options["only"] and not options["groups"]):
            return None
        names = [name.strip() for name in (options["groups"] or "").split(",") if name.strip()]
        found = chosen_groups(names)
        return Workers(options["database"] or conf.get().DATABASE, found, options["workers"]) if found else None

    def _listen_under_reloader(self, **options: Any) -> None:
        """In a thread that is left when the process ends. What is refused waits for a change of the code."""
        try:
            self._listen(**options)
        except CommandError as error:
            self.stderr.write(str(error))

    def _listen(self, **options: Any) -> None:
        for channel in options["channels"]:
            try:
                check_channel(channel)
            except PublishError as error:
                raise CommandError(str(error)) from error
        self._verbosity = int(options["verbosity"])
        self._printing = bool(options["print_events"])
        handler = self._show_log()
        try:
            if options["no_relay"]:
                self._work(options)
            else:
                asyncio.run(self._run(options))
        except (RelayRefused, LookupError) as error:
            raise CommandError(str(error)) from error
        finally:
            if handler is not None:
                logger.removeHandler(handler)
        self._say(_("Stopped."))

    def _work(self, options: dict[str, Any]) -> None:
        """Groups alone: nothing is listened to."""
        workers = self._workers(options)
        if workers is None:
            raise CommandError("--no-relay: there are no groups to handle events for.")
        ended = threading.Event()

        def end(number: int, frame: object) -> None:
            if ended.is_set():
                os._exit(128 + number)
            ended.set()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, end)
        self._introduce_groups(workers)
        keeper = Housekeeper(workers.database)
        keeper.start()
        workers.start()
        try:
            while not ended.wait(1.0):  # a wait without end would keep Python from handling signals
                pass
        finally:
            self._say(_("Stopping; a running receiver may finish. A second signal ends it at once."))
            workers.stop()
            keeper.stop()

    async def _run(self, options: dict[str, Any]) -> None:
        channels: list[str] = options["channels"]
        sink = None if options["no_channels"] else channels_sink(channels)
        workers = self._workers(options)
        relay = build(
            options["database"],
            receivers="none" if options["no_receivers"] else "all",
            only=options["only"],
            channels=channels,
            more=[sink] if sink else [],
            companions=[workers] if workers else [],
        )
        if self._printing:
            relay.sinks = [*relay.sinks, PrintSink(relay.database, _write_line, lambda: _nobody_reads(relay))]
        elif self._verbosity >= 2:
            relay.sinks = [*relay.sinks, PrintSink(relay.database, self._say, relay.stop)]
        with ExitStack() as until_the_end:
            self._be_watched(relay, options["health_file"], options["http"], until_the_end)
            self._end_on_signals(relay)
            self._introduce(relay, sink is not None, options)
            spare_the_collector()
            make_room()
            await relay.run()

    def _be_watched(self, relay: Relay, path: str | None, address: str | None, until_the_end: ExitStack) -> None:
        try:
            if path:
                file = HealthFile(path)
                relay.on_proven = file.touch
                until_the_end.callback(file.remove)
            if address:
                server = HealthServer(relay, address)
                until_the_end.callback(server.close)
                self._say(_("Serving http://%(address)s/healthz and /metrics.") % {"address": server.address})
        except (OSError, ValueError) as error:
            raise CommandError(f"--{'http' if address else 'health-file'}: {error}") from error

    def _end_on_signals(self, relay: Relay) -> None:
        loop = asyncio.get_running_loop()
        stopping = _("Stopping; a running receiver may finish. A second signal ends it at once.")
        ended = False

        def end(number: int, frame: object) -> None:
            nonlocal ended
            if ended:
                os._exit(128 + number)
            ended = True
            relay.stop()
            # Here something else may just be writing.
            loop.call_soon_threadsafe(self._say, stopping)

        if threading.current_thread() is not threading.main_thread():
            return  # under the reloader, which has the signals
        for number in (signal.SIGINT, signal.SIGTERM):
            # The loop's way to be woken by a signal that another thread took. Its handler alone would not do: a
            # receiver that blocks the loop would keep it from ever being called.
            loop.add_signal_handler(number, lambda: None)
            signal.signal(number, end)

    def _introduce(self, relay: Relay, forwards: bool, options: dict[str, Any]) -> None:
        self._say(
            _("Relaying database %(alias)r, channels %(channels)s.")
            % {"alias": relay.database, "channels": ", ".join(relay.channels)}
        )
        receivers = choose(options["only"]) if options["only"] else list(registry)
        for receiver in [] if options["no_receivers"] else receivers:
            conditions = "; ".join(f"[{condition}]" for condition in receiver.conditions)
            how = f" ({receiver.options})" if str(receiver.options) else ""
            self._say(f"  {receiver.name} {conditions}{how} ({receiver.place})")
        if options["no_receivers"]:
            self._say(_("  No receivers and no signals, as asked for."))
        elif not receivers:
            self._say(_("  No receivers: no app's receivers.py has a function under @on_pg_event."))
        for companion in relay.companions:
            if isinstance(companion, Workers):
                self._introduce_groups(companion)
        if forwards:
            self._say(_("  Channels: forwarding to the layer %(alias)r.") % {"alias": conf.get().CHANNEL_LAYER})

    def _introduce_groups(self, workers: Workers) -> None:
        names = ", ".join(sorted({worker.group for worker in workers.workers}))
        said = {"names": names, "count": len(workers.workers)}
        self._say(_("  Groups: %(names)s; %(count)d workers.") % said)

    def _say(self, text: str) -> None:
        # Where events are printed, standard output is theirs alone.
        if self._verbosity >= 1:
            stream = self.stderr if self._printing else self.stdout
            stream.write(text, style_func=str)
            stream.flush()

    def _show_log(self) -> logging.Handler | None:
        """Show the library's log lines, unless the project shows them already."""
        level = _LEVELS.get(self._verbosity, logging.DEBUG)
        if logger.level == logging.NOTSET or logger.level > level:
            logger.setLevel(level)
        if logger.handlers or logging.getLogger().handlers:
            return None
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.setLevel(level)
        logger.addHandler(handler)
        return handler


def channels_sink(channels: list[str]) -> Any:
    """The sink that feeds Channels groups, where Channels is installed and a layer is configured."""
    try:
        from pgsignals.live.sink import configured_sink
    except ModuleNotFoundError as error:
        if error.name != "channels":
            raise
        return None  # without the extra `channels` there is nothing to forward to
    return configured_sink(channels)


def _write_line(line: str) -> None:
    # Past Python's own buffer, whose lock would hold up the end of the process while nobody reads. What is no Unicode
    # (half of a pair) is written as JSON escapes it.
    data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def _nobody_reads(relay: Relay) -> None:
    """`listen --print | head`: the reader has gone, so end, and keep Python from complaining about it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    relay.stop()
