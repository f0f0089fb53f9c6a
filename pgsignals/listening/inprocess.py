"""The relay inside a process that has other work: a web server's. In its event loop, or in a thread of its own.

Such a process differs from `listen` in three ways. A set-up that is refused must take no page down: it is logged, and
tried again. The process may fork, and a child must neither use nor keep its parent's connection. And it ends when its
server says so, whatever a receiver does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - see _at_exit
import contextvars
import logging
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from asgiref.sync import ThreadSensitiveContext
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS

from .. import conf
from ..sink import Sink
from .relay import Relay, RelayRefused
from .running import build, make_room

logger = logging.getLogger("pgsignals.inprocess")

Further = Callable[[], Sequence[Sink]]
"""Makes the sinks that a relay has besides that of receivers."""

_RECEIVERS = ("everywhere", "all")

_FIRST_RETRY = 5.0
"""Seconds until a refused set-up is tried again, at first: somebody may have corrected a password meanwhile."""

_LAST_RETRY = 300.0
"""Seconds to which that wait grows."""

_BEGIN_ANEW = 1.0
"""Seconds until there is another event loop in place of one that was ended."""

_LOOK_FOR_APPS = 0.05
"""Seconds between two looks whether Django has loaded all apps, and with them all receivers."""

_EXIT_WITHIN = 2.0
"""Seconds for which the interpreter's exit waits."""

_FINISH_WITHIN = 1.5
"""Seconds that a running receiver may take of them."""


class Supervisor:
    """Keeps a relay going until it is stopped, in the event loop that runs it.

    receivers: `everywhere` or `all`.
    database: alias; None stands for PGSIGNALS["DATABASE"].
    further: makes further sinks, anew for each relay.
    stop_within: seconds that a running receiver may hold up the end.
    """

    def __init__(self, receivers: str, database: str | None, further: Further, stop_within: float) -> None:
        self.receivers = receivers
        self.database = database
        self.further = further
        self.stop_within = stop_within
        self.relay: Relay | None = None
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Relay until `stop()`. Whatever goes wrong is logged, and tried again ever more rarely."""
        _supervising.add(self)
        try:
            while not apps.ready and not self._ending.is_set():
                await self._pause(_LOOK_FOR_APPS)
            await self._keep_relaying()
        finally:
            _supervising.discard(self)

    def stop(self) -> None:
        """End `run()`. To be called in its event loop."""
        self._ending.set()
        if self.relay is not None:
            self.relay.stop()

    def fileno(self) -> int | None:
        """The socket of the relay's connection, while there is one."""
        return None if self.relay is None else self.relay.fileno()

    async def _keep_relaying(self) -> None:
        said, wait = "", _FIRST_RETRY
        while not self._ending.is_set():
            try:
                self.relay = build(
                    self.database, receivers=self.receivers, more=self.further(), stop_within=self.stop_within
                )
                await self.relay.run()
            except (RelayRefused, ImproperlyConfigured) as error:
                if str(error) != said:
                    logger.error(
                        "The relay does not run in this process: %s. Pages are served without it. Trying again in "
                        "%.0f s, then ever more rarely; said again when the reason is another.",
                        str(error).rstrip("."),
                        wait,
                    )
                said = str(error)
            except Exception:
                logger.exception("The relay ended. Pages are served without it. Trying again in %.0f s.", wait)
            await self._pause(wait)
            wait = min(2 * wait, _LAST_RETRY)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), seconds)
        except TimeoutError:
            pass


class RelayThread:
    """A relay in a daemon thread, with an event loop of its own. `start()` makes it."""

    def __init__(self, supervisor: Supervisor, in_children: bool) -> None:
        self.supervisor = supervisor
        self.in_children = in_children
        self._process = os.getpid()
        self._starter = threading.get_native_id()
        self._stopping = threading.Event()
        self._new_loop()
        self._thread = threading.Thread(target=self._work, name="pgsignals-relay", daemon=True)

    @property
    def relay(self) -> Relay | None:
        """The relay, once there is one."""
        return self.supervisor.relay

    def stop(self, within: float = _EXIT_WITHIN) -> bool:
        """Stop it, and wait for its end, but no longer than `within` seconds. Whether it has ended.

        A receiver that runs may take 1.5 s to finish, and is then left behind.
        """
        with _lock:
            for alias in [alias for alias, one in _running.items() if one is self]:
                del _running[alias]
        return _end([self], within)

    def _start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def _new_loop(self) -> None:
        # Of our own making, so that a child can tell which sockets the loop waits for.
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)

    def _work(self) -> None:
        if threading.get_native_id() == self._starter:
            # Where asyncio runs a loop, Django keeps what else runs in the same thread of the system from the database.
            logger.error(
                "The relay does not run in the process %d: its threads are green ones (gevent, eventlet), and with an "
                "event loop among them every page would fail. Use workers with real threads (gunicorn -k gthread).",
                self._process,
            )
            self._loop.close()
            return
        while True:
            try:
                self._run()
            except BaseException:  # asyncio lets a task's SystemExit end the loop: of one that a receiver has started
                logger.exception("The relay's event loop was ended. Another one begins in %g s.", _BEGIN_ANEW)
            if self._stopping.wait(_BEGIN_ANEW):
                return
            old = self.supervisor
            self.supervisor = Supervisor(old.receivers, old.database, old.further, old.stop_within)
            self._new_loop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._supervise(), context=contextvars.Context())

    async def _supervise(self) -> None:
        with suppress(ImproperlyConfigured):  # which the supervisor says
            make_room()
        # The executor that asgiref keeps for a whole process does not work in a child, where its thread is missing:
        # asynchronous receivers would wait for the database for ever.
        async with ThreadSensitiveContext():
            await self.supervisor.run()

    def _tell_to_stop(self) -> None:
        self._stopping.set()
        try:
            self._loop.call_soon_threadsafe(self.supervisor.stop)
        except RuntimeError:  # the loop is closed: it has ended
            pass

    def _has_ended_by(self, deadline: float) -> bool:
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        return not self._thread.is_alive()

    def _descriptors(self) -> set[int]:
        return {key.fd for key in (self._selector.get_map() or {}).values()}


_lock = threading.Lock()
_running: dict[str, RelayThread] = {}
"""The threads of this process, by the alias of the database."""
_supervising: set[Supervisor] = set()
"""Those that run in this process, in a thread of ours or in a server's event loop."""
_exit_is_hooked = False
_exiting = False


def check_receivers(caller: str, receivers: str) -> None:
    """Raise ValueError for another word than these two."""
    if receivers not in _RECEIVERS:
        raise ValueError(f"{caller}(receivers={receivers!r}): the choices are 'everywhere' and 'all'.")


def start(
    receivers: str = "everywhere", database: str | None = None, *, further: Further = tuple, in_children: bool = True
) -> RelayThread | None:
    """Run a relay in this process, in a daemon thread; where one of this database runs already, that is it.

    receivers: `everywhere` runs those with everywhere=True; `all` runs all.
    database: alias; PGSIGNALS["DATABASE"] by default.
    further: makes further sinks.
    in_children: whether a process that is forked off this one starts a relay too, at once. Without it the child has
        none until it calls this.

    It returns at once: the relay listens some moments later, and receivers under `@on_pg_gap(start=True)` are told.
    What it is refused is logged as an error, and tried again.
    None where no relay is started: in the process of `runserver` that only watches the code and starts the other one,
    at the interpreter's end, and where the system gives no thread or file. Raises ValueError for other `receivers`.

    `pgsignals.wsgi.with_relay` calls this when the first page is asked for. Called in AppConfig.ready() it would start
    a relay in every management command as well.
    """
    check_receivers("start", receivers)
    if why_not := _why_not():
        logger.debug("No relay is started in the process %d: %s.", os.getpid(), why_not)
        return None
    alias = database or _default_alias()
    with _lock:
        running = _running.get(alias)
        if running is None:
            return _start(alias, Supervisor(receivers, database, further, _FINISH_WITHIN), in_children)
    if running.supervisor.receivers != receivers:
        logger.warning(
            "A relay of the database %r runs in this process already, with receivers=%r; receivers=%r is not heeded.",
            alias,
            running.supervisor.receivers,
            receivers,
        )
    return running


def stop(within: float = _EXIT_WITHIN) -> bool:
    """Stop what `start()` has started in this process, and wait, but no longer than `within` seconds.

    Whether all of it has ended. A receiver that runs may take 1.5 s to finish, and is then left behind.
    """
    with _lock:
        threads = list(_running.values())
        _running.clear()
    return _end(threads, within)


def _start(alias: str, supervisor: Supervisor, in_children: bool) -> RelayThread | None:
    try:
        _hook_exit()
        thread = RelayThread(supervisor, in_children)
        thread._start()
    except (RuntimeError, OSError) as error:  # no thread, no file: that fails no page
        logger.error("The relay does not run in the process %d: %s.", os.getpid(), error)
        return None
    _running[alias] = thread
    return thread


def _end(threads: Iterable[RelayThread], within: float) -> bool:
    deadline = time.monotonic() + within
    # A child has only the parent's objects, and must not touch what they share.
    own = [thread for thread in threads if thread._process == os.getpid()]
    for thread in own:
        thread._tell_to_stop()
    late = [thread for thread in own if not thread._has_ended_by(deadline)]
    for thread in late:
        logger.warning(
            "The relay of the database %r has not ended in %g s: a receiver does not end. It is left behind.",
            thread.supervisor.database or _default_alias(),
            within,
        )
    return not late


def _default_alias() -> str:
    try:
        return conf.get().DATABASE
    except ImproperlyConfigured:  # the relay itself says what is wrong
        return DEFAULT_DB_ALIAS


def _why_not() -> str:
    if _exiting:
        return "the process ends"
    # Django's reloader sets up all apps in the process that watches, too; the other one serves.
    reloads = sys.argv[1:2] == ["runserver"] and "--noreload" not in sys.argv
    if reloads and os.environ.get("RUN_MAIN") != "true":
        return "it is the one that restarts runserver when code changes"
    return ""


def _hook_exit() -> None:
    global _exit_is_hooked
    if not _exit_is_hooked:
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
        _exit_is_hooked = True


def _at_exit() -> None:
    """Before concurrent.futures ends its threads, as it does when atexit calls: a relay needs them to end in order.

    These functions are called in reverse order; concurrent.futures has registered its own when it was imported.
    """
    global _exiting
    _exiting = True
    stop()


# Forks.


def _in_child() -> None:
    """Forget the parent's relays, let go of their sockets, and start those anew that are wanted here too.

    A copy of a socket would keep the server's session open, with its locks, when the parent is gone; but to close it
    as libpq does would end the parent's session. So its number is given to /dev/null: whatever object of the parent's
    still has it can do no harm.
    """
    global _lock
    _lock = threading.Lock()
    threads, supervising = dict(_running), list(_supervising)
    _running.clear()
    _supervising.clear()
    found = {one.fileno() for one in supervising}.union(*(thread._descriptors() for thread in threads.values()))
    _let_go(fd for fd in found if fd is not None)
    for alias, thread in threads.items():
        if thread.in_children:
            old = thread.supervisor
            _start(alias, Supervisor(old.receivers, old.database, old.further, old.stop_within), in_children=True)


def _let_go(descriptors: Iterable[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_in_child)
