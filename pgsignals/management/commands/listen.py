"""`manage.py listen`: relay what PostgreSQL announces, until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.translation import gettext as _

from pgsignals import conf
from pgsignals.listening.printing import PrintSink
from pgsignals.listening.relay import Relay, RelayRefused
from pgsignals.listening.running import build, spare_the_collector
from pgsignals.publishing import PublishError, check_channel
from pgsignals.receivers import registry
from pgsignals.sink import Sink

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

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until SIGINT or SIGTERM; a second one ends at once."""
        for channel in options["channels"]:
            try:
                check_channel(channel)
            except PublishError as error:
                raise CommandError(str(error)) from error
        self._verbosity = int(options["verbosity"])
        self._printing = bool(options["print_events"])
        handler = self._show_log()
        try:
            asyncio.run(self._run(options["database"], options["channels"]))
        except RelayRefused as error:
            raise CommandError(str(error)) from error
        finally:
            if handler is not None:
                logger.removeHandler(handler)
        self._say(_("Stopped."))

    async def _run(self, database: str | None, channels: list[str]) -> None:
        sinks: list[Sink] = []
        if channels_sink := _channels_sink(channels):
            sinks.append(channels_sink)
        relay = build(database, channels=channels, more=sinks)
        if self._printing:
            relay.sinks = [*relay.sinks, PrintSink(relay.database, _write_line, lambda: _nobody_reads(relay))]
        elif self._verbosity >= 2:
            relay.sinks = [*relay.sinks, PrintSink(relay.database, self._say, relay.stop)]
        self._end_on_signals(relay)
        self._introduce(relay, bool(channels_sink))
        spare_the_collector()
        await relay.run()

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

        for number in (signal.SIGINT, signal.SIGTERM):
            # The loop's way to be woken by a signal that another thread took. Its handler alone would not do: a
            # receiver that blocks the loop would keep it from ever being called.
            loop.add_signal_handler(number, lambda: None)
            signal.signal(number, end)

    def _introduce(self, relay: Relay, forwards: bool) -> None:
        self._say(
            _("Relaying database %(alias)r, channels %(channels)s.")
            % {"alias": relay.database, "channels": ", ".join(relay.channels)}
        )
        for receiver in registry:
            conditions = "; ".join(f"[{condition}]" for condition in receiver.conditions)
            self._say(f"  {receiver.name} {conditions} ({receiver.place})")
        if not len(registry):
            self._say(_("  No receivers: no app's receivers.py has a function under @on_pg_event."))
        if forwards:
            self._say(_("  Channels: forwarding to the layer %(alias)r.") % {"alias": conf.get().CHANNEL_LAYER})

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


def _channels_sink(channels: list[str]) -> Any:
    """The sink that feeds Channels groups, where Channels is installed and a layer is configured."""
    try:
        from pgsignals.live.sink import configured_sink
    except ImportError:
        return None
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
