"""Puts a relay together from settings: for `listen`, and for web processes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from .. import conf
from ..dispatch import ReceiversSink
from ..durable.housekeeping import Housekeeper
from ..durable.tail import Tail
from ..receivers import Receiver, registry
from ..sink import Companion, Sink
from ..triggers.sync import declared_channels
from .relay import Relay


def spare_the_collector() -> None:
    """For a process that does nothing but relay: have Python's garbage collector look at it less often.

    What the project consists of lives until the end. Events are many, short-lived and without cycles; at the usual
    threshold of 700 objects a burst of them is looked through again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


_SPARE_THREADS = 8


def make_room() -> None:
    """Have the running event loop, which is the relay's own, more threads than receivers can hang in.

    asyncio looks up the names of hosts in the same threads as `asyncio.to_thread` calls what it is given. By default
    these are few, and receivers that hang in all of them would keep the relay from ever connecting again.
    """
    most = conf.get().CONCURRENCY + _SPARE_THREADS
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(most, thread_name_prefix="pgsignals-asyncio"))


def build(
    database: str | None = None,
    *,
    receivers: str = "all",
    only: Collection[str] = (),
    channels: Collection[str] = (),
    more: Sequence[Sink] = (),
    stop_within: float | None = None,
    companions: Sequence[Companion] = (),
) -> Relay:
    """A relay with its receivers and further sinks; not running yet.

    receivers: `all` of them, those with `everywhere`, or `none`, and then no signal either.
    only: names of receivers, or of modules and packages in which they are: of `all`, only these.
    companions: besides those that read the log for receivers without a group, and keep it from growing without end;
        the latter not where only `everywhere` receivers run, which is in web processes.

    It listens to the channels that receivers and declarations name, to those of PGSIGNALS["CHANNELS"], and to
    `channels`.
    """
    settings = conf.get()
    database = database or settings.DATABASE
    which: str | Callable[[Receiver], bool] = receivers
    if only:
        chosen = choose(only)
        which = chosen.__contains__
    own: list[Sink] = [] if receivers == "none" else [ReceiversSink(database, registry, which, stop_within)]
    sinks = [*own, *more]
    named = {*settings.CHANNELS, *channels, *registry.channels(), *declared_channels()}
    keepers = [] if receivers == "everywhere" else [Housekeeper(database)]
    tail = Tail(database, lambda: any(sink.takes() for sink in sinks))
    return Relay(database, sinks, sorted(named), [tail, *keepers, *companions])


def choose(names: Collection[str]) -> list[Receiver]:
    """The receivers of these names, or in these modules or packages.

    Raises LookupError for a name that fits none, with those there are.
    """
    chosen: list[Receiver] = []
    for name in names:
        found = [one for one in registry if f"{one.name}.".startswith(f"{name}.")]
        if not found:
            known = ", ".join(sorted(one.name for one in registry)) or "none"
            raise LookupError(f"No receiver is called {name!r}, or is in a module of that name. There are: {known}.")
        chosen += found
    return chosen
