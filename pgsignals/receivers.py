"""`@on_pg_event`: which function is to be called for which events. This room calls nothing.

A receiver is a function with one or more conditions; it is called once for an event that meets any of them. The
registry compiles the conditions into a table by model and operation, and one by channel, so that an event which
nobody waits for costs one look-up.
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import iscoroutinefunction

from .event import MESSAGE, OPERATIONS, UPDATE, PgEvent
from .publishing import PublishError, check_channel
from .wire import CHANNEL

if TYPE_CHECKING:
    from django.db.models import Model

Function = TypeVar("Function", bound=Callable[..., Any])


MAX_ATTEMPTS = 10
"""Of a durable event, where its receivers say nothing else."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What one decorator said: rows of a model, or messages of a channel."""

    model: type[Model] | str | None
    """The model, or its label where it was named before it existed; None for a channel."""
    channel: str | None
    operations: tuple[str, ...]
    changed: frozenset[str] = frozenset()
    type: str | None = None

    @property
    def label(self) -> str | None:
        """The label, in lower case, of the model whose table it is: a proxy stands for its concrete model."""
        if self.model is None or isinstance(self.model, str):
            return self.model and _concrete_label(self.model)
        concrete: Any = self.model._meta.concrete_model or self.model
        return str(concrete._meta.label_lower)

    def admits(self, event: PgEvent) -> bool:
        """Whether an event of the right model and operation, or channel, meets the rest of the condition."""
        if self.type is not None:
            return isinstance(event.payload, dict) and event.payload.get("type") == self.type
        if not self.changed or event.op != UPDATE:
            return True
        # Nobody can tell what an incomplete event changed, so nobody may leave it out.
        return event.incomplete or not self.changed.isdisjoint(event.changed)

    def __str__(self) -> str:
        words = [f"channel {self.channel!r}" if self.channel else f"{self.label} {', '.join(self.operations)}"]
        if self.changed:
            words.append(f"changed: {', '.join(sorted(self.changed))}")
        if self.type is not None:
            words.append(f"type: {self.type!r}")
        return "; ".join(words)


def _concrete_label(label: str) -> str:
    from django.apps import apps

    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):  # a system check says so, with the place
        return label.lower()
    return str((model._meta.concrete_model or model)._meta.label_lower)


@dataclass(frozen=True, slots=True)
class Options:
    """How a function is called; the same for all its conditions."""

    everywhere: bool = False
    """In web processes too."""
    once: bool = False
    """In one process alone."""
    batch: bool = False
    """With a list of the events that came together."""
    timeout: float | None = None
    """Seconds after which a call counts as failed."""
    group: str | None = None
    """Which consumer of the log calls it; None for whoever listens."""
    atomic: bool = False
    """Whether the group's position commits together with what its receivers write."""
    start: str = "now"
    """Where a new group begins: `now`, or at the log's `beginning`."""
    max_attempts: int = MAX_ATTEMPTS
    """Of a durable event, until it is a dead letter."""

    def __str__(self) -> str:
        said = [f"group: {self.group}"] if self.group else []
        said += [name for name in ("everywhere", "once", "batch", "atomic") if getattr(self, name)]
        return ", ".join([*said, *([f"timeout: {self.timeout:g} s"] if self.timeout else [])])


@dataclass(slots=True)
class Counts:
    """What a receiver has done in this process since the start."""

    events: int = 0
    calls: int = 0
    failures: int = 0
    seconds: float = 0.0
    """Spent in its calls."""


@dataclass(eq=False, slots=True)
class Receiver:
    """A function, and the conditions under which it is called."""

    function: Callable[..., Any]
    options: Options = field(default_factory=Options)
    conditions: list[Condition] = field(default_factory=list)
    is_async: bool = False
    """Whether it is a coroutine function."""
    counts: Counts = field(default_factory=Counts)

    @property
    def duty(self) -> str | None:
        """What only one relay may do, where it is to be called in one process alone."""
        return f"call the receiver {self.name}" if self.options.once else None

    @property
    def name(self) -> str:
        """Its import path, as `name_of` says it."""
        return name_of(self.function)

    @property
    def place(self) -> str:
        """File and line, as far as Python can tell."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else "unknown place"


def name_of(function: Any) -> str:
    """The import path of what can be called, the same in every process: what one relay alone may do goes by it."""
    if isinstance(function, functools.partial):
        return f"partial of {name_of(function.func)}"
    if inspect.ismethod(function) and not inspect.isclass(function.__self__):
        return f"{name_of(function.__self__)}.{function.__name__}"
    # An object that has no name of its own goes by its class: its repr may hold an address.
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


_OPTIONS = ("everywhere", "once", "batch", "timeout", "group", "atomic", "start", "max_attempts")

Matches = list[tuple[Receiver, tuple[Condition, ...] | None]]
"""Receivers with the conditions that an event must still meet; None where nothing is left to meet."""
Tables = tuple[dict[tuple[str, str], Matches], dict[str, Matches]]
Identity = tuple[str, str, int] | int


class Registry:
    """All receivers of a process, held strongly."""

    def __init__(self) -> None:
        self.version = 0
        """Another one after each change."""
        self._receivers: dict[Identity, Receiver] = {}
        self._gap_receivers: dict[Identity, tuple[Receiver, bool]] = {}
        self._tables: Tables | None = None
        """By model and operation, and by channel; made when an event comes, and anew after a receiver did."""
        # Receivers may come while a relay runs in another thread.
        self._lock = threading.RLock()

    def add(self, function: Callable[..., Any], condition: Condition, options: Options | None = None) -> None:
        """Put a condition to a function's receiver. The same function with the same condition counts once.

        Raises TypeError where two decorators of one function disagree about its options.
        """
        options = options or Options()
        with self._lock:
            receiver = self._receivers.setdefault(_identity(function), Receiver(function, options))
            if receiver.function is function and receiver.options != options:
                different = [name for name in _OPTIONS if getattr(receiver.options, name) != getattr(options, name)]
                raise TypeError(
                    f"{receiver.name}: {', '.join(different)} must be the same in all its @on_pg_event decorators."
                )
            # A module that is imported anew (a reload) brings the function as a new object.
            receiver.function, receiver.options = function, options
            receiver.is_async = _is_async(function)
            if condition not in receiver.conditions:
                receiver.conditions.append(condition)
            self._changed()

    def add_gap(self, function: Callable[..., Any], options: Options, start: bool = False) -> None:
        """Have a function called with gaps. The same function counts once."""
        with self._lock:
            receiver = Receiver(function, options, is_async=_is_async(function))
            self._gap_receivers[_identity(function)] = receiver, start

    def of_gaps(self, start: bool = False) -> list[Receiver]:
        """The receivers of gaps; of that of the start, only those that want it."""
        with self._lock:
            return [receiver for receiver, wants_start in self._gap_receivers.values() if wants_start or not start]

    def __iter__(self) -> Iterator[Receiver]:
        with self._lock:
            return iter(list(self._receivers.values()))

    def __len__(self) -> int:
        return len(self._receivers)

    def clear(self) -> None:
        """Forget all receivers."""
        with self._lock:
            self._receivers.clear()
            self._gap_receivers.clear()
            self._changed()

    def _changed(self) -> None:
        self._tables = None
        self.version += 1

    def groups(self) -> dict[str, Options]:
        """The groups that receivers name, with the options of the first receiver of each."""
        found: dict[str, Options] = {}
        for receiver in self:
            if receiver.options.group is not None:
                found.setdefault(receiver.options.group, receiver.options)
        return found

    def channels(self) -> set[str]:
        """The channels that receivers name."""
        return {one.channel for receiver in self for one in receiver.conditions if one.channel is not None}

    def matching(self, event: PgEvent) -> list[Receiver]:
        """The receivers to be called for an event, in the order in which they were registered.

        They are the same for all rows of one notification.
        """
        rows, channels = self._tables or self._compile()
        if event.op == MESSAGE:
            return _admitted(channels.get(event.channel), event)
        found = _admitted(rows.get((event.label or "", event.op)), event)
        if event.channel != CHANNEL:
            return _once_each([*found, *_admitted(channels.get(event.channel), event)])
        return found

    def depends_on_more(self, event: PgEvent) -> bool:
        """Whether another event of the same model, operation and channel may have other receivers."""
        rows, channels = self._tables or self._compile()
        found = [*rows.get((event.label or "", event.op), ()), *channels.get(event.channel, ())]
        return any(conditions is not None for _, conditions in found)

    def _compile(self) -> Tables:
        """Lazy labels are resolved here: by the time an event comes, all models exist."""
        with self._lock:
            rows: dict[tuple[str, str], Matches] = defaultdict(list)
            channels: dict[str, Matches] = defaultdict(list)
            for receiver in self._receivers.values():
                by_place: dict[tuple[str, str] | str, list[Condition]] = defaultdict(list)
                for condition in receiver.conditions:
                    for place in _places(condition):
                        by_place[place].append(condition)
                for place, conditions in by_place.items():
                    table: Any = channels if isinstance(place, str) else rows
                    open_to_all = any(not one.changed and one.type is None for one in conditions)
                    table[place].append((receiver, None if open_to_all else tuple(conditions)))
            self._tables = (dict(rows), dict(channels))
            return self._tables


def _admitted(found: Matches | None, event: PgEvent) -> list[Receiver]:
    if not found:
        return []
    return [
        receiver for receiver, conditions in found if conditions is None or any(one.admits(event) for one in conditions)
    ]


def _once_each(receivers: list[Receiver]) -> list[Receiver]:
    """Rows on a channel of their own reach those who wait for the model, and those who wait for the channel."""
    return list(dict.fromkeys(receivers))


def _is_async(function: Callable[..., Any]) -> bool:
    """What the function itself is, not what it wraps: async_to_sync and its like turn one kind into the other."""
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def _identity(function: Callable[..., Any]) -> Identity:
    """By place and name for what a module defines, so that a reload replaces it; by object for all else.

    The line is in it because several receivers of a module may share a name, such as `_`.
    """
    name = getattr(function, "__qualname__", "<lambda>")
    code = getattr(inspect.unwrap(function), "__code__", None)
    # Wrappers that functools.wraps made of one function share all names with it.
    if "<" in name or code is None or inspect.ismethod(function) or hasattr(function, "__wrapped__"):
        return id(function)
    return (function.__module__, name, code.co_firstlineno)


def _places(condition: Condition) -> Iterable[tuple[str, str] | str]:
    if condition.channel is not None:
        return [condition.channel]
    return [(condition.label or "", operation) for operation in condition.operations]


registry = Registry()
"""The receivers that @on_pg_event registers."""


def on_pg_event(
    source: type[Model] | str | None = None,
    *ops: str,
    model: type[Model] | str | None = None,
    changed: str | Collection[str] | None = None,
    type: str | None = None,  # noqa: A002 - the payload's key is called so
    everywhere: bool = False,
    once: bool = False,
    batch: bool = False,
    group: str | None = None,
    atomic: bool = False,
    start: str = "now",
    key: str | None = None,
    max_attempts: int = MAX_ATTEMPTS,
    timeout: float | None = None,
) -> Callable[[Function], Function]:
    """Call the decorated function, sync or async, with each PgEvent that fits.

    source: a model class, or a channel's name: then the messages of that channel, and the rows of declarations that
        name it. A model that is not there yet: `model="flights.Flight"`.
    ops: of `insert`, `update`, `delete`, `truncate`; all of them where none is named.
    changed: a field's name, or several: of updates, only those that changed one of them. Other operations are not
        narrowed by it, and an event that is `incomplete` passes, because nobody can tell.
    type: of a channel's messages, only those whose payload is an object with this `type`.
    everywhere: run in web processes too (see pgsignals.asgi), for what each process must do for itself.
    once: run in one `listen` process alone, however many there are. When that process ends another takes over within
        seconds; around that moment an event may be missed, or come twice.
    batch: call it with a list of the events that came together, at most PGSIGNALS["BATCH"]. `event.instance()` of one
        of them then loads the rows of all, with one query.
    timeout: seconds after which a call counts as failed. An asynchronous one is cancelled. A synchronous one cannot be
        ended: it is left behind in its thread, and the next event is handled in a new one.
    group: the name of a consumer of the log. The events of durable declarations and messages then come once for each
        group, whatever process runs it, also those that were written while nobody ran; a receiver that raises is
        tried again. See docs/durable.md.
    atomic: of a group: what its receivers write through Django's connection to the log's database commits together
        with the group's position, so it is done exactly once. For synchronous receivers.
    start: of a group that is new: `now`, or the log's `beginning`.
    max_attempts: of a group's receiver, until an event that fails becomes a dead letter.

    Decorators can be stacked: the function is called once for an event that meets any of them.

    Raises ValueError or TypeError for what can never fit. `key` belongs to a later version and raises
    NotImplementedError. A model without a declaration and an unknown field are found by `manage.py check`.
    """
    _refuse_later(key=key)
    condition = _condition(source, ops, model, changed, type)
    options = _options(everywhere, once, batch, timeout)
    options = _of_group(options, group, atomic, start, max_attempts)

    def register(function: Function) -> Function:
        if not callable(function):
            raise TypeError(f"@on_pg_event decorates a function, and not {function!r}.")
        _check_kind(function, options)
        registry.add(function, condition, options)
        return function

    return register


def on_pg_gap(function: Function | None = None, *, everywhere: bool = False, start: bool = False) -> Any:
    """Call the decorated function, sync or async, with each Gap: a stretch in which fast events may have been lost.

    For what must be thrown away, or made anew, when nobody knows what was missed: a cache, a total. The gap has
    `database`, `since`, `until` (aware datetimes by this machine's clock) and `cause`.

    everywhere: in web processes too.
    start: also when the relay starts, before which nobody listened here; the cause is then "start".

    Used as `@on_pg_gap` or `@on_pg_gap(everywhere=True)`.
    """

    def register(function: Function) -> Function:
        if not callable(function):
            raise TypeError(f"@on_pg_gap decorates a function, and not {function!r}.")
        registry.add_gap(function, Options(everywhere=everywhere), start)
        return function

    return register if function is None else register(function)


def _options(everywhere: bool, once: bool, batch: bool, timeout: float | None) -> Options:
    if once and everywhere:
        raise ValueError("on_pg_event(once=True, everywhere=True): it runs either in one process or in all.")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise ValueError(f"on_pg_event(timeout={timeout!r}): seconds are meant, more than 0.")
    return Options(everywhere, once, batch, timeout)


def _of_group(options: Options, group: str | None, atomic: bool, start: str, max_attempts: int) -> Options:
    if start not in ("now", "beginning"):
        raise ValueError(f"on_pg_event(start={start!r}): a group starts at 'now' or at the log's 'beginning'.")
    if not isinstance(max_attempts, int) or isinstance(max_attempts, bool) or max_attempts < 1:
        raise ValueError(f"on_pg_event(max_attempts={max_attempts!r}): a number is meant, at least 1.")
    if group is None:
        if atomic or start != "now" or max_attempts != MAX_ATTEMPTS:
            raise TypeError("on_pg_event: atomic, start and max_attempts are of a group's receivers; name group=.")
        return options
    if not isinstance(group, str) or not _GROUP.fullmatch(group):
        raise ValueError(
            f"on_pg_event(group={group!r}): a group's name is 1 to 100 letters, digits, dots, dashes and underscores."
        )
    if options.everywhere or options.once:
        raise TypeError(
            f"on_pg_event(group={group!r}): a group has each event once, so neither everywhere nor once fit."
        )
    return replace(options, group=group, atomic=atomic, start=start, max_attempts=max_attempts)


_GROUP = re.compile(r"[\w.-]{1,100}")


def _check_kind(function: Callable[..., Any], options: Options) -> None:
    if options.group is None:
        return
    if options.atomic and _is_async(function):
        raise TypeError(f"{name_of(function)}: a receiver of an atomic group cannot be a coroutine function.")
    if options.timeout is not None and not _is_async(function):
        raise TypeError(
            f"{name_of(function)}: timeout fits no synchronous receiver of a group: it cannot be ended, and while it "
            "runs the event must not be given to another. Give what it waits for a timeout."
        )


def _condition(
    source: type[Model] | str | None,
    ops: tuple[str, ...],
    model: type[Model] | str | None,
    changed: str | Collection[str] | None,
    kind: str | None,
) -> Condition:
    if (source is None) == (model is None):
        raise TypeError("on_pg_event needs one source: a model class or a channel's name first, or model='app.Model'.")
    if isinstance(source, str):
        return _channel_condition(source, ops, changed, kind)
    named = source if model is None else model
    if kind is not None:
        raise TypeError(f"on_pg_event(type={kind!r}): only messages of a channel have a type, rows do not.")
    if isinstance(named, str) and named.count(".") != 1:
        raise ValueError(f"on_pg_event(model={named!r}): a label is meant, such as 'flights.Flight'.")
    if not isinstance(named, str) and not hasattr(named, "_meta"):
        raise TypeError(f"on_pg_event({named!r}): the source is a model class or a channel's name.")
    _check_operations(ops)
    narrowed = frozenset([changed] if isinstance(changed, str) else changed or ())
    if narrowed and ops and UPDATE not in ops:
        raise ValueError(f"on_pg_event(changed={changed!r}): only updates change fields, and 'update' is not named.")
    return Condition(named, None, _in_order(ops), narrowed)


def _channel_condition(channel: str, ops: tuple[str, ...], changed: object, kind: str | None) -> Condition:
    try:
        check_channel(channel)
    except PublishError as error:
        raise ValueError(str(error)) from None
    if ops or changed:
        given = f"{ops[0]!r}" if ops else f"changed={changed!r}"
        raise TypeError(
            f"on_pg_event({channel!r}): {channel!r} is a channel's name, whose messages know no {given}. "
            f"For a model by its label write model={channel!r}."
        )
    return Condition(None, channel, (MESSAGE,), frozenset(), kind)


def _check_operations(ops: tuple[str, ...]) -> None:
    for one in ops:
        if one not in OPERATIONS:
            near = get_close_matches(str(one).lower(), OPERATIONS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"on_pg_event: {one!r} is no operation; they are {', '.join(OPERATIONS)}.{meant}")


def _in_order(ops: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in OPERATIONS if one in ops) if ops else OPERATIONS


def _refuse_later(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"on_pg_event({name}={value!r}) is not in this version of pgsignals yet.")
