"""Puts a relay together from settings: for `listen`, and for web processes."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence

from .. import conf
from ..dispatch import ReceiversSink
from ..receivers import registry
from ..sink import Sink
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


def build(
    database: str | None = None,
    *,
    receivers: str = "all",
    channels: Collection[str] = (),
    more: Sequence[Sink] = (),
    stop_within: float | None = None,
) -> Relay:
    """A relay with its receivers and further sinks; not running yet.

    It listens to the channels that receivers and declarations name, to those of PGSIGNALS["CHANNELS"], and to
    `channels`.
    """
    settings = conf.get()
    database = database or settings.DATABASE
    sink = ReceiversSink(database, registry, receivers, stop_within)
    named = {*settings.CHANNELS, *channels, *registry.channels(), *declared_channels()}
    return Relay(database, [sink, *more], sorted(named))
