"""The relay inside a WSGI server's processes: `application = with_relay(application)` in wsgi.py.

It runs the receivers that must run everywhere, such as those that keep a cache in the process's memory up to date, in
a thread beside those that serve pages. It starts with a process's first request, so that a server which loads the
application before it forks (gunicorn --preload) has a relay in each worker, and none in the process that forked them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .listening import inprocess
from .live.installed import channels_sinks
from .sink import Sink


def with_relay(
    application: WSGIApplication, receivers: str = "everywhere", database: str | None = None
) -> WSGIApplication:
    """Run the relay in each process that serves `application`.

    receivers: `everywhere` runs those with everywhere=True; `all` runs all, so that a small project needs no
        `manage.py listen`. (With several server processes each of them runs them.)
    database: alias; PGSIGNALS["DATABASE"] by default.

    A set-up that is refused is logged as an error, and pages are served all the same. Raises ValueError for another
    word than these two.
    """
    inprocess.check_receivers("with_relay", receivers)
    return _WithRelay(application, receivers, database)


class _WithRelay:
    def __init__(self, application: WSGIApplication, receivers: str, database: str | None) -> None:
        self.application = application
        self.receivers = receivers
        self.database = database
        self._process: int | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._process != os.getpid():
            self._process = os.getpid()
            # A child of a worker serves no pages, unless it is asked for one.
            inprocess.start(self.receivers, self.database, further=_sinks, in_children=False)
        return self.application(environ, start_response)


def _sinks() -> list[Sink]:
    # A layer in memory has its readers in this process's event loop, and here is none.
    return [sink for sink in channels_sinks() if sink.duties()]
