"""Receivers that are ready for the usual jobs: drop the entries of a cache, enqueue a background task.

    on_pg_event(Flight, everywhere=True)(invalidate("flight:{pk}"))
    on_pg_event(Flight, "update", changed="status", once=True)(enqueue(send_board))

Each is an object that is called with an event, or, under `batch=True`, with a list of them.
"""

from __future__ import annotations

import json
import logging
import string
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction
from django.core.cache import DEFAULT_CACHE_ALIAS, InvalidCacheKey, caches

from .event import INSERT, MESSAGE, TRUNCATE, UPDATE, PgEvent, Values
from .listening.printing import to_line
from .receivers import name_of
from .values import key_fields

if TYPE_CHECKING:
    from django.core.cache import BaseCache

logger = logging.getLogger("pgsignals.ready")

_REMIND = 60.0
"""Seconds between two warnings about the same template and model."""


class invalidate:
    """A receiver that drops cache entries of the rows that events are about.

    keys: the entries' keys, with names of fields in braces: `"flight:{pk}"` is the key that f"flight:{flight.pk}"
        makes. A field stands for its old and its new value, and both entries are dropped. The primary key always
        travels, as `{pk}` and by the names of its fields; other fields where `Notify(fields=...)` names them.
    cache: the cache's alias in CACHES.
    version: the version of the keys, where it is not the cache's own.
    clear: clear the whole cache where an event does not tell the keys: a truncate names no rows, and values may not
        have travelled. Without it such entries stay until they time out. Either is a WARNING in the log, for each
        template and model at most once a minute.

    Raises ValueError for a template that is more than text and names of fields, and for an alias that CACHES lacks;
    TypeError where there is no template, or one that is no text. When called it raises what the cache raises.
    """

    def __init__(
        self, *keys: str, cache: str = DEFAULT_CACHE_ALIAS, version: int | None = None, clear: bool = False
    ) -> None:
        if not keys:
            raise TypeError("invalidate() needs the key of an entry, such as 'flight:{pk}'.")
        if cache not in caches:
            raise ValueError(f"invalidate(cache={cache!r}): CACHES has no such alias; it has {', '.join(caches)}.")
        self.templates = tuple(_Template(key) for key in keys)
        self.cache = cache
        self.version = version
        self.clear = clear
        self._warned: dict[tuple[str | None, str], float] = {}
        self.__qualname__ = repr(self)

    @property
    def fields(self) -> frozenset[str]:
        """The names of fields in the templates, but for `pk`. Those that are no part of the key must travel."""
        return frozenset(name for template in self.templates for name in template.names) - {"pk"}

    def __call__(self, events: PgEvent | Sequence[PgEvent]) -> None:
        """Drop the entries of one event, or of several at once."""
        keys: set[str] = set()
        all_told = True
        for event in [events] if isinstance(events, PgEvent) else events:
            for template in self.templates:
                try:
                    keys.update(template.keys(event))
                except _Untold as why:
                    all_told = False
                    self._warn(event, template, why)
        cache = caches[self.cache]
        if self.clear and not all_told:
            cache.clear()
        elif keys:
            _delete(cache, keys, self.version)

    def _warn(self, event: PgEvent, template: _Template, why: _Untold) -> None:
        about = (event.label, template.text)
        now = time.monotonic()
        if now - self._warned.get(about, -_REMIND) < _REMIND:
            return
        self._warned[about] = now
        logger.warning(
            "%r cannot tell which entries under %r belong to %r: %s. %s (Said once in %d s at most.)",
            self,
            template.text,
            event,
            why,
            f"The cache {self.cache!r} is cleared."
            if self.clear
            else "They stay until they time out; with clear=True the whole cache would be cleared.",
            _REMIND,
        )

    def __repr__(self) -> str:
        said = [repr(template.text) for template in self.templates]
        if self.cache != DEFAULT_CACHE_ALIAS:
            said.append(f"cache={self.cache!r}")
        if self.version is not None:
            said.append(f"version={self.version}")
        if self.clear:
            said.append("clear=True")
        return f"invalidate({', '.join(said)})"


def _delete(cache: BaseCache, keys: Collection[str], version: int | None) -> None:
    try:
        cache.delete_many(keys, version=version)
    except InvalidCacheKey:
        # Memcached takes no key with a space in it, for one: no entry is there, and the others must go all the same.
        for key in keys:
            try:
                cache.delete(key, version=version)
            except InvalidCacheKey:
                continue


class _Untold(Exception):
    """An event does not tell a key; the text says why, and what helps."""


class _Template:
    """A key with names of fields in braces."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names = _names(text)

    def keys(self, event: PgEvent) -> Iterable[str]:
        """The keys by the row's old values and by its new ones, as far as the operation has both.

        Raises _Untold where the event does not carry what the template names.
        """
        if not self.names:
            return [self.text.format_map({})]
        try:
            key = _key(event)
            further = self.names - key.keys()
            if not further:
                return [self.text.format_map(key)]
            rows = [{name: _value(event, row, name) for name in further} for row in _rows(event)]
        except ValueError as error:  # what came cannot be read
            raise _Untold(str(error).rstrip(".")) from error
        return [self.text.format_map(key | row) for row in rows]


def _names(template: str) -> frozenset[str]:
    """The names in braces. Raises ValueError for anything else that str.format would understand."""
    if not isinstance(template, str):
        raise TypeError(f"invalidate({template!r}): a key is text, such as 'flight:{{pk}}'.")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"invalidate({template!r}): {error}. A brace that is meant as such is doubled.") from None
    named = [part for part in parts if part[1] is not None]
    for _, name, form, conversion in named:
        # Django allows no "__" in a field's name: that would be a way to another row.
        if form or conversion or not str(name).isidentifier() or "__" in str(name):
            raise ValueError(
                f"invalidate({template!r}): only plain names may stand in braces, {{pk}} or a field of the row, such "
                "as {status}, which stands for its old and its new value."
            )
    return frozenset(str(part[1]) for part in named)


def _key(event: PgEvent) -> dict[str, Any]:
    """The primary key as `pk`, and by the names of its fields."""
    if event.model is None or event.pk is None:
        return {}
    fields = key_fields(event.model)
    parts = event.pk if len(fields) > 1 else (event.pk,)
    by_name = {name: part for field, part in zip(fields, parts, strict=True) for name in (field.name, field.attname)}
    return {"pk": event.pk, **by_name}


def _rows(event: PgEvent) -> list[Values | None]:
    if event.op == UPDATE:
        return [event.old, event.new]
    return [event.new if event.op == INSERT else event.old]


def _value(event: PgEvent, row: Values | None, name: str) -> Any:
    if row is None or name not in row:
        raise _Untold(_why(event, name))
    return row[name]


def _why(event: PgEvent, name: str) -> str:
    if event.op == TRUNCATE:
        return "a truncate names no rows (a DELETE does)"
    if event.op == MESSAGE:
        return "a message is about no row (write a receiver of your own for it)"
    if event.incomplete:
        return "the trigger is behind its table (manage.py pgsignals sync renews it)"
    if event.truncated:
        return "the row was too big for a notification (declare fewer fields)"
    return f"{name!r} does not travel (add it to Notify(fields=...) of {event.label}, and migrate)"


class enqueue:
    """A receiver that hands each event to a background task.

    task: a task of django.tasks, whose `enqueue` is called; or anything else that can be called and puts the work
        into a queue, such as the `.delay` of a task of Celery.
    arguments: a function from what the receiver is given, an event or (under `batch=True`) a list of them, to the
        tuple of the task's arguments. Without it the task gets one argument: the object that `listen --print` writes
        for the event, which is plain JSON, or the list of these.

    Raises TypeError for what cannot be called, and for what would run the work here and now. When called it raises
    what the queue raises, and TypeError for arguments that are no tuple.
    """

    def __init__(self, task: Any, *, arguments: Callable[[Any], tuple[Any, ...]] | None = None) -> None:
        self.task = task
        self.arguments = arguments
        self._call = _caller(task)
        self.__qualname__ = repr(self)

    def __call__(self, events: PgEvent | Sequence[PgEvent]) -> None:
        """Enqueue the task, once."""
        self._call(*self._arguments(events))

    def _arguments(self, events: PgEvent | Sequence[PgEvent]) -> tuple[Any, ...]:
        if self.arguments is None:
            return (_plain(events) if isinstance(events, PgEvent) else [_plain(event) for event in events],)
        made = self.arguments(events)
        if not isinstance(made, tuple):
            raise TypeError(f"{self!r}: arguments= returned {made!r}; a tuple is needed, such as (event.pk,).")
        return made

    def __repr__(self) -> str:
        return f"enqueue({_name(self.task)})"


def _plain(event: PgEvent) -> Any:
    return json.loads(to_line(event))


def _caller(task: Any) -> Callable[..., object]:
    """What puts the task into its queue."""
    if callable(enqueues := getattr(task, "enqueue", None)):
        return enqueues  # type: ignore[no-any-return]
    if not callable(task):
        raise TypeError(f"enqueue({task!r}): a task of django.tasks is needed, or something that can be called.")
    if iscoroutinefunction(task) or iscoroutinefunction(type(task).__call__):
        raise TypeError(
            f"enqueue({_name(task)}): nobody would await this coroutine function. Put @on_pg_event on a coroutine "
            "function of your own that awaits it."
        )
    for name in ("delay", "send"):  # Celery's and RQ's tasks, Dramatiq's actors
        if callable(getattr(task, name, None)):
            raise TypeError(
                f"enqueue({_name(task)}): calling this task would run it here and now, and not in its queue. "
                f"Pass its .{name}."
            )
    return task  # type: ignore[no-any-return]


def _name(task: Any) -> str:
    if isinstance(path := getattr(task, "module_path", None), str):  # of django.tasks
        return path
    return name_of(task)
