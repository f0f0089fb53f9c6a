"""`manage.py pgsignals ...`: everything of ours under a name that nobody else has."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import connections
from django.db.utils import DatabaseError, NotSupportedError
from django.utils.connection import ConnectionDoesNotExist
from django.utils.translation import gettext as _

from pgsignals import conf
from pgsignals.publishing import PublishError, publish
from pgsignals.triggers import sync

from .listen import Command as Listen
from .listen import OfflineChecks


class Command(OfflineChecks):
    """The subcommands listen, publish and sync."""

    help = "Listen to PostgreSQL, publish a message, repair triggers."

    def add_arguments(self, parser: CommandParser) -> None:
        """One parser for each subcommand."""
        commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)
        listen = commands.add_parser("listen", help=Listen.help)
        Listen().add_arguments(listen)
        publishing = commands.add_parser("publish", help=_("Send a message to all who listen to a channel."))
        publishing.add_argument("channel")
        publishing.add_argument("payload", help=_('JSON, such as \'{"type": "user.created"}\'.'))
        syncing = commands.add_parser("sync", help=_("Create missing triggers, and renew outdated ones."))
        for one in (publishing, syncing):
            one.add_argument("--database", help=_("Alias of the database; PGSIGNALS['DATABASE'] by default."))

    def handle(self, *args: Any, command: str, **options: Any) -> None:
        """Call the subcommand."""
        if command == "listen":
            listen = Listen()
            listen.stdout, listen.stderr = self.stdout, self.stderr
            listen.handle(**options)
            return
        try:
            getattr(self, f"_{command}")(**options)
        except (PublishError, NotSupportedError, ConnectionDoesNotExist, DatabaseError) as error:
            raise CommandError(" ".join(str(error).split())) from error

    def _publish(self, *, channel: str, payload: str, database: str | None, **options: Any) -> None:
        try:
            message = json.loads(payload)
        except ValueError as error:
            raise CommandError(
                _("The payload is not JSON: %(error)s. Text is written in double quotes: '\"text\"'.")
                % {"error": error}
            ) from error
        publish(channel, message, using=database)

    def _sync(self, *, database: str | None, verbosity: int, **options: Any) -> None:
        alias = database or conf.get().DATABASE
        if connections[alias].vendor != "postgresql":
            raise NotSupportedError(_("The database %(alias)r is not PostgreSQL.") % {"alias": alias})
        done = sync.repair(alias)
        if verbosity >= 1:
            for row in done:
                verb = _("renewed") if row.state == "outdated" else _("created")
                self.stdout.write(f"{verb}: {row.declaration.name} ({row.model._meta.label})")
            if not done:
                self.stdout.write(_("Every declaration has its triggers, and they are up to date."))
