"""Calls receivers, and keeps the failure of one from everything else.

buffer      what waits for receivers, bounded by bytes
feed        which receiver is called with what, and in which order
calling     what is around each call: counts, reports of failures, warnings of slowness, Django's connections
threaded    synchronous receivers, in one worker thread, in the order of events
looped      asynchronous receivers, several at a time, in the relay's event loop
sink        all of it together, as a sink of the relay
"""

from .sink import ReceiversSink

__all__ = ["ReceiversSink"]
