"""Whether a relay delivers, for whoever watches it from outside: a file, `/healthz`, Prometheus metrics.

prometheus_client, the extra `metrics`, writes the metrics; without it `/healthz` is served all the same.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from .. import conf
from ..dispatch import ReceiversSink
from ..receivers import Counts, registry
from .relay import HEALTHY, STATES, Relay

logger = logging.getLogger("pgsignals.health")

_REQUEST_WITHIN = 10.0
"""Seconds that somebody who asks may take to do so."""


def is_healthy(relay: Relay) -> bool:
    """Whether delivery was proven, and not longer ago than it may be."""
    return relay.state == HEALTHY and relay.seconds_since_proof < longest_without_proof()


def longest_without_proof() -> float:
    """Seconds after which the next proof is overdue."""
    said = conf.get()
    return said.PROBE_EVERY + said.CONNECT_TIMEOUT + said.PROBE_WITHIN


class HealthFile:
    """A file that is touched each time when delivery has been proven, and is not there before the first proof.

    Raises OSError where the file cannot be written: better at the start than never healthy.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        # One of an earlier run says nothing of this one.
        self.path.touch()
        self.path.unlink()
        self._failed = False

    def touch(self) -> None:
        """Delivery has been proven."""
        try:
            self.path.touch()
        except OSError as error:
            if not self._failed:
                logger.error("The health file %s cannot be touched any more: %s. This is said once.", self.path, error)
            self._failed = True

    def remove(self) -> None:
        """The relay has ended."""
        self.path.unlink(missing_ok=True)


# HTTP.


class HealthServer:
    """Answers GET /healthz and GET /metrics from threads of its own: also when the relay hangs, and then with 503.

    address: `port` (on 127.0.0.1) or `host:port`. Raises ValueError for another text, OSError where it is taken.
    """

    def __init__(self, relay: Relay, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or not 0 <= int(port) < 65536:
            raise ValueError(f"{address!r} is no address; write a port, such as 9187, or host:port.")
        self._relay = relay
        self._server = make_server(host.strip("[]") or "127.0.0.1", int(port), self._answer, _Server, _Handler)
        self.address = "{}:{}".format(*self._server.server_address[:2])
        """Where it listens."""
        threading.Thread(target=self._server.serve_forever, name="pgsignals-health", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"GET\n"
        elif environ["PATH_INFO"] == "/healthz":
            status = "200 OK" if is_healthy(self._relay) else "503 Service Unavailable"
            kind, body = "application/json", json.dumps(health(self._relay)).encode()
        elif environ["PATH_INFO"] == "/metrics":
            status, kind, body = self._metrics()
        else:
            status, kind, body = "404 Not Found", "text/plain", b"/healthz, /metrics\n"
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    def _metrics(self) -> tuple[str, str, bytes]:
        try:
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
        except ImportError:
            return "501 Not Implemented", "text/plain", b"pip install django-pgsignals[metrics]\n"
        collectors = CollectorRegistry(auto_describe=False)
        collectors.register(_Metrics(self._relay))
        return "200 OK", CONTENT_TYPE_LATEST, generate_latest(collectors)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the DNS for the name of the address.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_WITHIN

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        """Not a line for each probe."""


def health(relay: Relay) -> dict[str, Any]:
    """What /healthz says."""
    waiting, lag = relay.waiting()
    return {
        "healthy": is_healthy(relay),
        "state": relay.state,
        "database": relay.database,
        "proven": relay.proven and relay.proven.isoformat(),
        "waiting": waiting,
        "lag": round(lag, 3),
        "reconnects": relay.reconnects,
        "gaps": relay.gaps,
        "leads": sorted(relay.leadership.held),
    }


class _Metrics:
    """What /metrics says, gathered when somebody asks."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def collect(self) -> Iterator[Any]:
        """The metrics, for prometheus_client."""
        relay = self._relay
        waiting, lag = relay.waiting()
        proven = 0.0 if relay.proven is None else relay.proven.timestamp()
        dropped = sum(sink.dropped for sink in relay.sinks if isinstance(sink, ReceiversSink))
        yield self._gauge("healthy", "1 while delivery is proven, else 0.", is_healthy(relay))
        state = self._family("gauge", "state", "1 for the relay's present state.", "state")
        for one in STATES:
            state.add_metric([relay.database, one], float(relay.state == one))
        yield state
        yield self._gauge("proven_timestamp_seconds", "When delivery was proven last, Unix time; 0: never.", proven)
        yield self._gauge("waiting_events", "Events that wait for receivers.", waiting)
        yield self._gauge("lag_seconds", "How long the oldest of them has waited.", lag)
        yield self._counter("events", "Events that arrived.", relay.intake.events)
        yield self._counter("dropped_events", "Events that gave way in a full buffer.", dropped)
        yield self._counter("unreadable_notifications", "Notifications that were left out.", relay.intake.unreadable)
        yield self._counter(
            "unknown_events", "Events of models that this project lacks.", sum(relay.intake.unknown.values())
        )
        yield self._counter("reconnects", "Lost connections that were replaced.", relay.reconnects)
        yield self._counter("gaps", "Gaps that the relay announced.", relay.gaps)
        leads = self._family("gauge", "leads", "1 for what this relay alone does.", "duty")
        for duty in sorted(relay.leadership.held):
            leads.add_metric([relay.database, duty], 1.0)
        yield leads
        yield from self._of_receivers()

    def _of_receivers(self) -> Iterator[Any]:
        told: list[tuple[str, str, Callable[[Counts], float]]] = [
            ("receiver_calls", "Calls of a receiver that have ended.", lambda counts: counts.calls),
            ("receiver_events", "Events that a receiver was called with.", lambda counts: counts.events),
            ("receiver_failures", "Calls that raised, or took too long.", lambda counts: counts.failures),
            ("receiver_seconds", "Time that a receiver's calls took.", lambda counts: counts.seconds),
        ]
        # Two receivers may share a name, and Prometheus takes each name once.
        by_name: dict[str, list[Counts]] = {}
        for receiver in registry:
            by_name.setdefault(receiver.name, []).append(receiver.counts)
        for name, text, read in told:
            family = self._family("counter", name, text, "receiver")
            for receiver_name, counts in by_name.items():
                family.add_metric([self._relay.database, receiver_name], sum(map(read, counts)))
            yield family

    def _family(self, kind: str, name: str, text: str, *labels: str) -> Any:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        family = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}[kind]
        return family(f"pgsignals_{name}", text, labels=["database", *labels])

    def _gauge(self, name: str, text: str, value: float) -> Any:
        family = self._family("gauge", name, text)
        family.add_metric([self._relay.database], float(value))
        return family

    def _counter(self, name: str, text: str, value: float) -> Any:
        family = self._family("counter", name, text)
        family.add_metric([self._relay.database], float(value))
        return family
