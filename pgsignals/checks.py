"""System checks: what can be told before anything runs. Each names the places, the value, and the remedy."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.core.management import get_commands
from django.db import DatabaseError, connections, router
from django.db.migrations.exceptions import BadMigrationError, CircularDependencyError, NodeNotFoundError
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Model
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _

from . import conf
from .event import OPERATIONS, TRUNCATE, UPDATE
from .listening.connection import listening_parameters
from .publishing import PublishError, check_channel
from .receivers import Condition, Receiver, registry
from .triggers import sync, tracked
from .triggers.columns import ALL, columns, find_field, travelling
from .triggers.condition import ask
from .triggers.declaration import MAX_NAME, Notify, declarations, name_problem
from .triggers.rows import MAX_NAMES, names_fit


@checks.register(checks.Tags.models)
def check_declarations(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Declarations that Django would accept, and that would announce nothing, or break."""
    every = list(_every_declaration())
    asked = [
        (model, declaration)
        for model, declaration in every
        if app_configs is None or model._meta.app_config in app_configs
    ]
    return [
        *(message for model, declaration in asked for message in _declaration_problems(model, declaration)),
        *_twice_announced(every),
    ]


def _every_declaration() -> Iterator[tuple[type[Model], Notify]]:
    """Those of models, and those that stand in migrations."""
    for model in apps.get_models(include_auto_created=True):
        for declaration in declarations(model):
            yield model, declaration
    for label, declaration in _tracked().values():
        if (found := _model(label)) is not None:
            yield found, declaration


def _tracked() -> tracked.Tracked:
    try:
        return tracked.on_disk()
    except (BadMigrationError, NodeNotFoundError, CircularDependencyError):
        # Django's own commands say so, with what helps; a check must not stand in their way.
        return {}


def _twice_announced(every: list[tuple[type[Model], Notify]]) -> Iterator[checks.CheckMessage]:
    names: dict[str, type[Model]] = {}
    said: dict[tuple[Any, str], Notify] = {}
    for model, declaration in every:
        if (other := names.setdefault(declaration.name, model)) is not model or (
            # Of one model Django refuses equal names, but for those that stand in a migration.
            sum(one.name == declaration.name for of, one in every if of is model) > 1
        ):
            yield checks.Error(
                _("Notify %(name)r is declared twice: on %(first)s and on %(second)s.")
                % {"name": declaration.name, "first": other._meta.label, "second": model._meta.label},
                hint=_("The name is that of a function in the database: give each its own."),
                obj=model,
                id="pgsignals.E007",
            )
            continue
        for operation in declaration.on:
            # A truncate knows no rows, so no condition narrows it.
            if (declaration.when and operation != TRUNCATE) or (operation == UPDATE and declaration.watch):
                continue
            first = said.setdefault((model, operation), declaration)
            if first is not declaration:
                yield checks.Error(
                    _("%(model)s announces every %(operation)s twice: by Notify %(first)r and by Notify %(second)r.")
                    % {
                        "model": model._meta.label,
                        "operation": operation,
                        "first": first.name,
                        "second": declaration.name,
                    },
                    hint=_("Take it from on=... of one of them, or say with when or watch what each is for."),
                    obj=model,
                    id="pgsignals.E006",
                )
                break


def _declaration_problems(model: type[Model], declaration: Notify) -> Iterator[checks.CheckMessage]:
    named = {"name": declaration.name, "model": model._meta.label}
    if model._meta.proxy:
        yield checks.Error(
            _("Notify %(name)r is declared on %(model)s, a proxy: it has no table, so nothing would be announced.")
            % named,
            hint=_("Declare it on %(model)s, whose table it is; or, where that model is not yours, in a migration: ")
            % {"model": _label(model._meta.concrete_model)}
            + _add_notify(model._meta.concrete_model, declaration),
            obj=model,
            id="pgsignals.E001",
        )
    elif not model._meta.managed and declaration in declarations(model):
        yield checks.Error(
            _("Notify %(name)r is declared on %(model)s, which is not managed: migrations would create no trigger.")
            % named,
            hint=_("Declare it on the model that manages the table; or, where no model does, in a migration: ")
            + _add_notify(model, declaration),
            obj=model,
            id="pgsignals.E002",
        )
    if problem := name_problem(declaration.name):
        yield checks.Error(
            _("Notify %(name)r on %(model)s: the name does not do; %(problem)s.") % {**named, "problem": problem},
            hint=_("Choose a name of at most %(limit)d bytes.") % {"limit": MAX_NAME},
            obj=model,
            id="pgsignals.E003",
        )
    values = () if declaration.fields == ALL else declaration.fields
    key = [declaration.key] if declaration.key else []
    for field in dict.fromkeys([*values, *declaration.exclude, *declaration.watch, *key]):
        if find_field(model, field) is None:
            yield checks.Error(
                _("Notify %(name)r on %(model)s names the field %(field)r, which is no column of its table.")
                % {**named, "field": field},
                hint=_field_hint(model, field),
                obj=model,
                id="pgsignals.E004",
            )
    if not names_fit(declaration, model):
        yield checks.Error(
            _("Notify %(name)r on %(model)s: the names of the fields whose values travel leave no room for the values.")
            % named,
            hint=_("Name fewer fields: their names may have %(limit)d bytes together.") % {"limit": MAX_NAMES},
            obj=model,
            id="pgsignals.E008",
        )
    if problem := _condition_problem(model, declaration):
        yield checks.Error(
            _("Notify %(name)r on %(model)s: its when cannot be asked of a row: %(problem)s.")
            # Not the condition itself: the text of a QuerySet in it would be a query.
            % {**named, "problem": problem},
            hint=_("A condition compares the columns of the row itself, and looks into no other table."),
            obj=model,
            id="pgsignals.E005",
        )
    for alias in _without_log(model) if declaration.durable else ():
        yield checks.Error(
            _("Notify %(name)r on %(model)s is durable, and the database %(alias)r has the table but no log.")
            % {**named, "alias": alias},
            hint=_("Let your router's allow_migrate allow the app pgsignals there: every write would fail."),
            obj=model,
            id="pgsignals.E016",
        )


def _without_log(model: type[Model]) -> list[str]:
    """The databases to which migrations bring the model's table and not the log."""
    return [
        alias
        for alias in connections
        if connections[alias].vendor == "postgresql"
        and router.allow_migrate_model(alias, model)
        and not router.allow_migrate(alias, "pgsignals", model_name="logentry")
    ]


def _condition_problem(model: type[Model], declaration: Notify) -> str | None:
    if declaration.when is None:
        return None
    # Whichever database it is for: the checks of models come without one, and connect to none.
    try:
        ask(declaration.when, model)
    except Exception as error:
        return str(error).rstrip(".") or type(error).__name__
    return None


def _field_hint(model: type[Model], name: str) -> str:
    try:
        owner = model._meta.get_field(name).model
    except FieldDoesNotExist:
        owner = model
    if owner in model._meta.get_parent_list():
        return _("It is a column of %(parent)s, whose table announces it: declare it there.") % {
            "parent": owner._meta.label
        }
    return _("The fields are: %(fields)s.") % {"fields": ", ".join(_field_names(model))}


def _add_notify(model: Any, declaration: Notify) -> str:
    return f"pgsignals.AddNotify({_label(model)!r}, Notify(name={declaration.name!r}, ...))"


def _label(model: Any) -> str:
    return str(model._meta.label) if model is not None else "?"


def _field_names(model: type[Model]) -> list[str]:
    return [field.name for field in columns(model)]


@checks.register(checks.Tags.models)
def check_receivers(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Receivers that would never be called. Each message names the receiver's place and the model's."""
    announced: dict[type[Model], set[str]] = defaultdict(set)
    durable: dict[type[Model], set[str]] = defaultdict(set)
    for model, declaration in _every_declaration():
        announced[model].update(declaration.on)
        durable[model].update(declaration.on if declaration.durable else ())
    found = [
        message
        for receiver in registry
        for condition in receiver.conditions
        if condition.channel is None
        for message in _receiver_problems(receiver, condition, announced)
    ]
    return [*found, *_group_problems(announced, durable)]


def _group_problems(
    announced: Mapping[type[Model], set[str]], durable: Mapping[type[Model], set[str]]
) -> Iterator[checks.CheckMessage]:
    """A group reads the log, and what is in no log it would never get."""
    first: dict[str, Receiver] = {}
    for receiver in registry:
        if (group := receiver.options.group) is None:
            continue
        other = first.setdefault(group, receiver)
        for option in ("atomic", "start"):
            if getattr(other.options, option) != getattr(receiver.options, option):
                yield checks.Error(
                    _("The receivers %(first)s and %(second)s of the group %(group)r disagree about %(option)s.")
                    % {"first": other.name, "second": receiver.name, "group": group, "option": option},
                    hint=_("The receivers of a group succeed or fail together: give them the same, or two groups."),
                    obj=receiver.name,
                    id="pgsignals.E015",
                )
        for condition in receiver.conditions:
            model = None if condition.channel is not None else _find_model(condition)
            if model is None:
                continue
            table = model._meta.concrete_model or model
            wanted = {one for one in condition.operations if one in announced.get(table, ())}
            if missing := sorted(wanted - durable.get(table, set())):
                yield checks.Error(
                    _(
                        "The receiver %(receiver)s (%(place)s) is of the group %(group)r, and the log does not get "
                        "%(operations)s of %(model)s: its Notify is not durable."
                    )
                    % {
                        "receiver": receiver.name,
                        "place": receiver.place,
                        "group": group,
                        "operations": ", ".join(missing),
                        "model": model._meta.label,
                    },
                    hint=_("Write Notify(..., durable=True) there and migrate, or take group= from the receiver."),
                    obj=receiver.name,
                    id="pgsignals.E014",
                )


def _receiver_problems(
    receiver: Receiver, condition: Condition, every: Mapping[type[Model], set[str]]
) -> Iterator[checks.CheckMessage]:
    named = {"receiver": receiver.name, "place": receiver.place}
    model = _find_model(condition)
    if model is None:
        yield checks.Error(
            _("The receiver %(receiver)s (%(place)s) waits for the model %(model)r, which is not installed.")
            % {**named, "model": str(condition.model)},
            hint=_("Correct the label, or add its app to INSTALLED_APPS."),
            obj=receiver.name,
            id="pgsignals.E010",
        )
        return
    named |= {"model": model._meta.label, "where": _place_of(model)}
    announced = every.get(model._meta.concrete_model or model, set())
    if not announced:
        yield checks.Error(
            _("The receiver %(receiver)s (%(place)s) waits for %(model)s (%(where)s), which announces nothing.")
            % named,
            hint=_(
                "Add Notify(name=...) to the Meta.constraints of %(model)s and migrate; or, where the model is not "
                "yours, write a migration: manage.py pgsignals track %(model)s --app ..."
            )
            % named,
            obj=receiver.name,
            id="pgsignals.E011",
        )
        return
    for field in sorted(condition.changed):
        found = find_field(model, field)
        # An event names what changed by the fields' names, never by their columns'.
        if found is None or found.name != field:
            yield checks.Error(
                _("The receiver %(receiver)s (%(place)s) names the field %(field)r, which %(model)s (%(where)s) lacks.")
                % {**named, "field": field},
                hint=_("The fields are: %(fields)s.") % {"fields": ", ".join(_field_names(model))},
                obj=receiver.name,
                id="pgsignals.E012",
            )
    # Where no operation was named all are meant, and a declaration may well leave some out.
    missing = [one for one in condition.operations if one not in announced]
    if missing and condition.operations != OPERATIONS:
        yield checks.Error(
            _(
                "The receiver %(receiver)s (%(place)s) waits for %(operation)s, "
                "which %(model)s (%(where)s) does not announce."
            )
            % {**named, "operation": ", ".join(missing)},
            hint=_("Add it to on=... of the Notify of %(model)s, or take it from the receiver.") % named,
            obj=receiver.name,
            id="pgsignals.E013",
        )


def _find_model(condition: Condition) -> type[Model] | None:
    return _model(condition.label or "")


def _model(label: str) -> type[Model] | None:
    try:
        return apps.get_model(label)
    except (LookupError, ValueError):
        return None


def _place_of(model: type[Model]) -> str:
    try:
        return f"{inspect.getsourcefile(model)}:{inspect.getsourcelines(model)[1]}"
    except (OSError, TypeError):
        return model.__module__


@checks.register(checks.Tags.compatibility)
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """settings.PGSIGNALS: unknown keys, wrong values, an alias that is not there."""
    messages: list[checks.CheckMessage] = [
        checks.Error(problem, hint=_("The README lists every key, its unit and its default."), id="pgsignals.E020")
        for problem in conf.problems()
    ]
    if messages:
        return messages
    for channel in conf.get().CHANNELS:
        try:
            check_channel(channel)
        except PublishError as error:
            messages.append(
                checks.Error(
                    _("settings.PGSIGNALS['CHANNELS'] names a channel that will not do: %(error)s") % {"error": error},
                    hint=_("Correct it, or take it from the list."),
                    id="pgsignals.E022",
                )
            )
    messages += _live_problems()
    if conf.get().DATABASE not in settings.DATABASES:
        messages.append(
            checks.Error(
                _("settings.PGSIGNALS['DATABASE'] is %(alias)r, which is not in settings.DATABASES.")
                % {"alias": conf.get().DATABASE},
                hint=_("The aliases are: %(aliases)s.") % {"aliases": ", ".join(settings.DATABASES)},
                id="pgsignals.E021",
            )
        )
        return messages
    try:
        listening_parameters(conf.get().DATABASE)
    except ImproperlyConfigured as error:
        # Of the alias itself Django says more, where it is used.
        if "LISTEN" in str(error):
            messages.append(
                checks.Error(
                    str(error),
                    hint=_("Name an alias, or write a connection string; without LISTEN the alias DATABASE is used."),
                    id="pgsignals.E023",
                )
            )
    return messages


def _live_problems() -> Iterator[checks.CheckMessage]:
    said = conf.get()
    try:
        import_string(said.LIVE_ACCESS)
    except ImportError as error:
        yield checks.Error(
            _("settings.PGSIGNALS['LIVE_ACCESS'] is %(path)r, which cannot be imported: %(error)s.")
            % {"path": said.LIVE_ACCESS, "error": error},
            hint=_("Name a class that inherits from pgsignals.live.access.Access."),
            id="pgsignals.E053",
        )
    for label, names in said.LIVE_FIELDS.items():
        known = {
            field.name
            for model, declaration in _every_declaration()
            if model._meta.label_lower == label
            for field in travelling(declaration, model)
        }
        for name in names:
            if name not in known:
                yield checks.Error(
                    _("settings.PGSIGNALS['LIVE_FIELDS'] names %(label)s.%(name)s, whose value travels with no event.")
                    % {"label": label, "name": name},
                    hint=_("Name it in fields=[...] of the model's Notify, and migrate."),
                    id="pgsignals.E054",
                )


@checks.register(checks.Tags.compatibility)
def check_listen_command(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Of two apps with a `listen` command the first in INSTALLED_APPS has it, and nothing says so."""
    owner = get_commands().get("listen", "pgsignals")
    name = owner if isinstance(owner, str) else owner.__class__.__module__
    if name == "pgsignals":
        return []
    return [
        checks.Warning(
            _('"manage.py listen" runs the command of %(app)s, which stands before pgsignals in INSTALLED_APPS.')
            % {"app": name},
            hint=_('Put pgsignals first, or use "manage.py pgsignals listen", which is always ours.'),
            id="pgsignals.W030",
        )
    ]


@checks.register(checks.Tags.compatibility)
def check_channel_layer(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """The in-memory layer crosses no process: what `listen` puts into it reaches no browser."""
    if conf.problems() or (alias := conf.get().CHANNEL_LAYER) is None:
        return []
    layers = getattr(settings, "CHANNEL_LAYERS", {})
    if "InMemoryChannelLayer" not in str(layers.get(alias, {}).get("BACKEND", "")):
        return []
    return [
        checks.Warning(
            _(
                "The channel layer %(alias)r is the in-memory one, which crosses no process: what 'manage.py listen' "
                "puts into it reaches no browser."
            )
            % {"alias": alias},
            hint=_(
                "Run the relay inside the web process (application = pgsignals.asgi.with_relay(application)), or "
                "use channels_redis. If the relay does run in the web process, silence this with "
                "SILENCED_SYSTEM_CHECKS = ['pgsignals.W031']."
            ),
            id="pgsignals.W031",
        )
    ]


@checks.register(checks.Tags.database)
def check_databases(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """What `manage.py pgsignals status` says, for `manage.py check --database`.

    Silent while there are migrations to be applied: `migrate` runs these checks before it begins.
    """
    return [
        message
        for alias in databases or ()
        if connections[alias].vendor == "postgresql"
        for message in _database_problems(alias)
    ]


def _database_problems(alias: str) -> Iterator[checks.CheckMessage]:
    try:
        executor = MigrationExecutor(connections[alias])
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return
        rows = sync.compare(alias)
    except DatabaseError as error:
        yield checks.Warning(
            _("Whether the triggers of database %(alias)r are installed could not be seen: %(error)s")
            % {"alias": alias, "error": " ".join(str(error).split())},
            id="pgsignals.W044",
        )
        return
    for row in rows:
        named = {"row": row, "alias": alias, "detail": row.detail, "table": row.table}
        model = row.declared[0] if row.declared else None
        if row.state == sync.MISSING:
            yield checks.Warning(
                _("Notify %(row)s does not announce all that it declares, in database %(alias)r: %(detail)s.") % named,
                hint=_("Run: manage.py pgsignals sync --database %(alias)s") % named,
                obj=model,
                id="pgsignals.W040",
            )
        elif row.state == sync.OUTDATED:
            yield checks.Warning(
                _("Notify %(row)s is not as declared, in database %(alias)r: %(detail)s.") % named,
                hint=_("The next migrate renews it; or run: manage.py pgsignals sync --database %(alias)s") % named
                if row.renewable
                else _("Run: manage.py pgsignals sync --database %(alias)s") % named,
                obj=model,
                id="pgsignals.W041",
            )
        elif row.state == sync.ORPHAN:
            yield checks.Warning(
                _("Database %(alias)r has triggers of Notify %(row)s, which nothing here declares.") % named,
                hint=_(
                    "Another project's, or a leftover. If it is none of theirs: "
                    "manage.py pgsignals sync --prune --database %(alias)s"
                )
                % named,
                id="pgsignals.W043",
            )
        if not row.unique:
            yield checks.Warning(
                _(
                    "Nothing in the database keeps the key of %(table)s unique and free of NULL, which Notify %(row)s "
                    "announces."
                )
                % named,
                hint=_(
                    "Old and new rows of an update are paired by the key: each of several rows with the same key is "
                    "paired with all of them, and one without a key with none. Add a primary key, or leave updates out "
                    "of on=..."
                ),
                obj=model,
                id="pgsignals.W045",
            )
        if row.partitioned:
            yield checks.Warning(
                _("%(table)s, which Notify %(row)s announces, is partitioned: writes straight into a partition, and ")
                % named
                + _("partitions that are attached or detached, are not seen."),
                hint=_("Write through %(table)s; or see docs/limits.md for triggers on partitions.") % named,
                obj=model,
                id="pgsignals.W042",
            )
