"""The sink of Channels, where Channels is installed. Importing this does not need it."""

from __future__ import annotations

from ..sink import Sink


def channels_sinks() -> list[Sink]:
    """The sink that feeds the configured layer; none without Channels, or without a layer."""
    try:
        from .sink import configured_sink
    except ModuleNotFoundError as error:
        if error.name != "channels":
            raise
        return []
    sink = configured_sink()
    return [] if sink is None else [sink]
