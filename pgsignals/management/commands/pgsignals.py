"""`manage.py pgsignals ...`: everything of ours under a name that nobody else has."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import DatabaseError, NotSupportedError
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _

from pgsignals import conf
from pgsignals.durable import control
from pgsignals.event import OPERATIONS
from pgsignals.listening.listeners import Listening, listeners, queue_usage
from pgsignals.publishing import PublishError, publish
from pgsignals.receivers import registry
from pgsignals.triggers import sync, track
from pgsignals.triggers.columns import ALL
from pgsignals.triggers.declaration import Notify

from .listen import Command as Listen
from .listen import OfflineChecks, channels_sink


class Command(OfflineChecks):
    """The subcommands group, listen, publish, replay, status, sync and track."""

    help = "Listen to PostgreSQL, publish a message, look after triggers."

    def add_arguments(self, parser: CommandParser) -> None:
        """One parser for each subcommand."""
        commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)
        listen = commands.add_parser("listen", help=Listen.help)
        Listen().add_arguments(listen)
        publishing = commands.add_parser("publish", help=_("Send a message to all who listen to a channel."))
        publishing.add_argument("channel")
        publishing.add_argument("payload", help=_('JSON, such as \'{"type": "user.created"}\'.'))
        looking = commands.add_parser("status", help=_("Show every declaration and every installed trigger."))
        looking.add_argument("--json", action="store_true", help=_("Print JSON."))
        looking.add_argument("--check", action="store_true", help=_("Exit with 1 unless everything is installed."))
        syncing = commands.add_parser("sync", help=_("Create missing triggers, and renew outdated ones."))
        syncing.add_argument("--prune", action="store_true", help=_("Drop those that nothing declares, too."))
        replaying = commands.add_parser("replay", help=_("Have a group handle events of the log again."))
        replaying.add_argument("--group", required=True)
        replaying.add_argument("--since", required=True, help=_("A moment, such as 2026-11-24T06:00."))
        replaying.add_argument("--model", help=_("Only events of this model (app.Model), or messages of this channel."))
        replaying.add_argument("--key", help=_("Only events of this key, as JSON: 17, or '\"ada\"'."))
        replaying.add_argument("--dry-run", action="store_true", help=_("Say how many events these are; do nothing."))
        grouping = commands.add_parser("group", help=_("Pause a group, send it elsewhere in the log, or delete it."))
        grouping.add_argument("what", choices=["pause", "resume", "skip", "reset", "forget"])
        grouping.add_argument("name")
        grouping.add_argument("--to", choices=["now", "beginning"], default="now", help=_("Of reset; now."))
        for one in (publishing, looking, syncing, replaying, grouping):
            one.add_argument("--database", help=_("Alias of the database; PGSIGNALS['DATABASE'] by default."))
        self._add_track(commands.add_parser("track", help=_("Write the migration that announces somebody's model.")))

    def _add_track(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", help=_("Such as auth.User, or auth.User.groups for a many-to-many table."))
        parser.add_argument("--app", required=True, help=_("Label of the app of yours that gets the migration."))
        parser.add_argument("--name", help=_("Of the declaration; app_model_events by default."))
        parser.add_argument("--on", nargs="+", default=OPERATIONS, choices=OPERATIONS, help=_("Operations; all."))
        parser.add_argument("--fields", nargs="+", default=(), help=_("Whose values travel; __all__ for all."))
        parser.add_argument("--exclude", nargs="+", default=(), help=_("All values travel but those of these fields."))
        parser.add_argument("--watch", nargs="+", default=(), help=_("Updates only where one of these changed."))
        parser.add_argument("--channel", help=_("The PostgreSQL channel, where it shall be one of its own."))
        parser.add_argument("--dry-run", action="store_true", help=_("Print the migration; write nothing."))

    def handle(self, *args: Any, command: str, **options: Any) -> None:
        """Call the subcommand."""
        if command == "listen":
            listen = Listen()
            listen.stdout, listen.stderr = self.stdout, self.stderr
            listen.handle(**options)
            return
        try:
            getattr(self, f"_{command}")(**options)
        except (
            *(PublishError, NotSupportedError, ConnectionDoesNotExist, DatabaseError, track.TrackError),
            control.NoSuchGroup,
        ) as error:
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

    def _replay(self, *, group: str, since: str, database: str | None, dry_run: bool, **options: Any) -> None:
        moment = parse_datetime(since)
        if moment is None:
            raise CommandError(_("--since %(since)r is no moment; write it as 2026-11-24T06:00.") % {"since": since})
        if timezone.is_naive(moment):
            moment = timezone.make_aware(moment)
        alias = self._postgres(database)
        count = control.replay(alias, group, moment, model=options["model"], key=options["key"], dry_run=dry_run)
        said = {"count": count, "group": group}
        self.stdout.write(
            _("Dry run: %(count)d events would come again to %(group)r.") % said
            if dry_run
            else _("%(count)d events come again to %(group)r.") % said
        )

    def _group(self, *, what: str, name: str, to: str, database: str | None, **options: Any) -> None:
        alias = self._postgres(database)
        if what in ("skip", "reset"):
            control.reset(alias, name, "now" if what == "skip" else to)
        else:
            {"pause": control.pause, "resume": control.resume, "forget": control.forget}[what](alias, name)
        self.stdout.write(_("Done: %(what)s %(name)r.") % {"what": what, "name": name})

    def _status(self, *, database: str | None, check: bool, verbosity: int, **options: Any) -> None:
        alias = self._postgres(database)
        rows = sync.compare(alias)
        relays, usage = listeners(alias, _duties()), queue_usage(alias)
        groups = control.status(alias)
        if options["json"]:
            said = {
                "database": alias,
                "triggers": [_as_dict(row) for row in rows],
                "listeners": [asdict(one) for one in relays],
                "notification_queue_usage": usage,
                "groups": [asdict(one) for one in groups],
            }
            self.stdout.write(json.dumps(said, indent=2, cls=DjangoJSONEncoder))
        else:
            self._print_table([_TITLES, *(_as_texts(row) for row in rows)])
            self._print_listeners(relays, usage)
            self._print_groups(groups)
            if _waiting_migrations(alias):
                self.stdout.write(_("There are migrations that were not applied: migrate first."))
        # In a database that projects share, another's triggers are no fault.
        amiss = [row for row in rows if row.state != sync.INSTALLED and not row.foreign]
        if amiss and check:
            raise CommandError(
                _("%(count)d of %(all)d are not as declared: %(names)s. Repair with: manage.py pgsignals sync")
                % {"count": len(amiss), "all": len(rows), "names": ", ".join(f"{one} ({one.state})" for one in amiss)}
            )

    def _print_listeners(self, relays: list[Listening], usage: float) -> None:
        self.stdout.write("")
        if relays:
            self._print_table([_LISTENER_TITLES, *map(_listener_texts, relays)])
        else:
            self.stdout.write(_("Nobody listens: no `manage.py listen`, and no relay in a web process, is connected."))
        self.stdout.write(_("The server's queue of notifications is %(usage).1f %% full.") % {"usage": 100 * usage})
        if usage > _QUEUE_IS_FILLING:
            self.stdout.write(
                _("A listener does not read, or stands in a transaction. When the queue is full, commits fail.")
            )

    def _print_groups(self, groups: list[control.GroupStatus]) -> None:
        if not groups:
            return
        self.stdout.write("")
        self._print_table([_GROUP_TITLES, *map(_group_texts, groups)])
        for one in groups:
            if one.holds_up:
                self.stdout.write(
                    _(
                        "The log keeps events longer than LOG_KEEP because of %(name)r: run its workers, or delete it "
                        "with: manage.py pgsignals group forget %(name)s"
                    )
                    % {"name": one.name}
                )

    def _print_table(self, rows: list[tuple[str, ...]]) -> None:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            self.stdout.write("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())

    def _sync(self, *, database: str | None, prune: bool, verbosity: int, **options: Any) -> None:
        alias = self._postgres(database)
        done = sync.repair(alias, prune=prune)
        verbs = {sync.OUTDATED: _("renewed"), sync.MISSING: _("created"), sync.ORPHAN: _("dropped")}
        for row in done:
            if row.problem:
                self.stderr.write(_("failed: %(row)s: %(problem)s") % {"row": row, "problem": row.problem})
            elif verbosity >= 1:
                self.stdout.write(f"{verbs[row.state]}: {row.name} ({row.model or '?'})")
        left = [row for row in sync.compare(alias) if row.state != sync.INSTALLED]
        if verbosity >= 1:
            for row in left:
                self.stdout.write(f"{row.state}: {row.name} ({row.model or '?'}): {row.detail}")
            if not done and not left:
                self.stdout.write(_("Every declaration has its triggers, and they are up to date."))
        if any(row.state != sync.ORPHAN for row in left):
            raise CommandError(_("Not everything could be repaired; the lines above say what."))

    def _track(self, *, model: str, app: str, name: str | None, dry_run: bool, **options: Any) -> None:
        table = track.find_tracked(model)
        fields = ALL if options["fields"] == [ALL] else options["fields"]
        arguments = {key: options[key] for key in ("on", "exclude", "watch", "channel")}
        try:
            declaration = Notify(name=name or track.default_name(table), fields=fields, **arguments)
            path, text = track.migration(table, declaration, app)
        except (ValueError, TypeError) as error:
            raise track.TrackError(str(error)) from error
        if dry_run:
            self.stdout.write(text)
            return
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
        self.stdout.write(_("Written: %(path)s. Now: manage.py migrate %(app)s") % {"path": path, "app": app})

    def _postgres(self, database: str | None) -> str:
        alias = database or conf.get().DATABASE
        if connections[alias].vendor != "postgresql":
            raise NotSupportedError(_("The database %(alias)r is not PostgreSQL.") % {"alias": alias})
        return alias


_QUEUE_IS_FILLING = 0.1

_GROUP_TITLES = ("group", "state", "lag", "behind", "workers", "leased", "parked", "dead", "handled")


def _group_texts(one: control.GroupStatus) -> tuple[str, ...]:
    state = "paused" if one.paused else "waits, all fail" if one.waits else "works" if one.workers else "nobody works"
    return (
        one.name + (" (atomic)" if one.atomic else ""),
        state,
        f"{one.lag}{'+' if one.lag >= control.COUNTED else ''}",
        f"{one.seconds:.1f} s",
        str(one.workers),
        f"{one.leased}/{one.partitions}",
        str(one.parked),
        str(one.dead),
        str(one.handled),
    )


_LISTENER_TITLES = ("listener", "state", "waiting", "lag", "user", "from", "since", "does alone")


def _listener_texts(one: Listening) -> tuple[str, ...]:
    return (
        one.process or f"backend {one.pid}",
        one.state or "connecting",
        "?" if one.waiting is None else str(one.waiting),
        "?" if one.lag is None else f"{one.lag:.1f} s",
        one.user,
        one.address or "local socket",
        f"{one.since:%Y-%m-%d %H:%M:%S %Z}",
        "; ".join(one.leads),
    )


def _duties() -> set[str]:
    """The duties that relays of this project have."""
    duties = {one.duty for one in registry if one.duty is not None}
    if (sink := channels_sink([])) is not None:
        duties.update(sink.duties())
    return duties


_TITLES = ("state", "declaration", "model", "table", "announces", "")


def _as_texts(row: sync.Status) -> tuple[str, ...]:
    return (row.state, row.name, row.model, row.table, ", ".join(row.operations), row.detail)


def _as_dict(row: sync.Status) -> dict[str, Any]:
    return {
        "name": row.name,
        "model": row.model,
        "table": row.table,
        "operations": list(row.operations),
        "state": row.state,
        "detail": row.detail,
        "partitioned": row.partitioned,
    }


def _waiting_migrations(alias: str) -> bool:
    executor = MigrationExecutor(connections[alias])
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
