"""The relay in a thread of a process that has other work: starts, stops, forks, and the interpreter's end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from pgsignals import on_pg_event, on_pg_gap
from pgsignals.listening import inprocess
from pgsignals.listening.inprocess import RelayThread, Supervisor
from pgsignals.listening.relay import RelayRefused
from pgsignals.receivers import Registry

from .conftest import connect
from .relaying import Box, only_receivers_of_this_test
from .servers import Process
from .shop.models import Order
from .waiting import listening, sessions, until

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = "INSERT INTO shop_order (id, state, total, note) VALUES (%s, 'new', 1, '')"


def write(statement: str, *values: object) -> None:
    with connect() as writer:
        writer.execute(statement, values)


@pytest.fixture
def registry() -> Iterator[Registry]:
    """Whatever a test has started is stopped."""
    with only_receivers_of_this_test() as empty:
        yield empty
        assert inprocess.stop()


def listens(receivers: str = "everywhere") -> RelayThread:
    """A relay in a thread, which listens already."""
    started = Box()

    def told(gap: object) -> None:
        started.put(gap)

    on_pg_gap(told, everywhere=True, start=True)
    thread = inprocess.start(receivers)
    assert thread is not None
    started.wait()
    return thread


# Start and stop.


def test_it_calls_the_receivers_that_run_everywhere_and_no_others(registry: Registry) -> None:
    calls = Box()
    on_pg_event(Order)(lambda event: calls.put(("ordinary", event.pk)))
    on_pg_event(Order, everywhere=True)(lambda event: calls.put(("everywhere", event.pk)))
    listens()
    write(INSERT, 5)
    write(INSERT, 6)
    assert calls.wait(2) == [("everywhere", 5), ("everywhere", 6)]


def test_with_all_it_calls_the_others_too(registry: Registry) -> None:
    calls = Box()
    on_pg_event(Order)(lambda event: calls.put(event.pk))
    listens("all")
    write(INSERT, 5)
    assert calls.wait() == [5]


def test_many_threads_that_start_it_at_once_start_one(registry: Registry) -> None:
    together = threading.Barrier(8)

    def start(number: int) -> RelayThread | None:
        together.wait()
        return inprocess.start(database=None if number % 2 else "default")

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(start, range(8)))
    assert len(found) == 1
    until(listening, lambda found: found == [os.getpid()])
    assert len(sessions()) == 1


def test_a_second_start_with_other_receivers_is_told_that_it_is_not_heeded(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    first = inprocess.start()
    assert inprocess.start("all") is first
    assert "receivers='all' is not heeded" in caplog.text


def test_another_word_for_receivers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start\(receivers='some'\): the choices are 'everywhere' and 'all'"):
        inprocess.start("some")


def test_after_stop_its_session_is_gone_and_it_can_be_started_again(registry: Registry) -> None:
    first = listens()
    assert inprocess.stop()
    until(sessions, lambda found: not found)
    assert listens() is not first
    assert list(sessions()) != []


def test_a_handle_stops_its_own_relay(registry: Registry) -> None:
    thread = listens()
    assert thread.stop()
    assert thread.stop(), "a second time does no harm"
    until(sessions, lambda found: not found)
    assert inprocess.start() is not thread


def test_it_can_be_stopped_before_it_has_begun(registry: Registry) -> None:
    for _ in range(20):
        inprocess.start()
        assert inprocess.stop()
    until(sessions, lambda found: not found)


def test_stop_waits_no_longer_than_it_is_told(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @on_pg_event(Order, everywhere=True)
    def hangs(event: Any) -> None:
        begun.set()
        go_on.wait()

    thread = listens()
    write(INSERT, 5)
    assert begun.wait(60)
    before = time.monotonic()
    assert not inprocess.stop(within=0.2)
    assert time.monotonic() - before < 10
    assert "The relay of the database 'default' has not ended in 0.2 s" in caplog.text
    go_on.set()
    assert thread.stop(within=60)


def test_in_a_process_whose_threads_are_green_it_does_not_run(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """gevent's threads share one thread of the system, so a loop in one of them would be everybody's."""
    monkeypatch.setattr(threading, "get_native_id", lambda: 1)
    thread = inprocess.start()
    assert thread is not None
    assert thread.stop(within=60)
    assert "its threads are green ones" in caplog.text
    assert thread.relay is None


# Django's reloader.


@pytest.mark.parametrize(
    ("arguments", "run_main", "starts"),
    [
        (["manage.py", "runserver", "8000"], None, False),
        (["manage.py", "runserver", "8000"], "true", True),
        (["manage.py", "runserver", "--noreload"], None, True),
        (["manage.py", "shell", "runserver"], None, True),
    ],
)
def test_the_process_that_only_watches_the_code_gets_no_relay(
    arguments: list[str],
    run_main: str | None,
    starts: bool,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "pgsignals.inprocess")
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delenv("RUN_MAIN", raising=False)
    if run_main is not None:
        monkeypatch.setenv("RUN_MAIN", run_main)
    assert (inprocess.start() is not None) is starts
    said = [record.levelname for record in caplog.records if "No relay is started" in record.message]
    assert said == ([] if starts else ["DEBUG"])


# What goes wrong.


class Stand:
    """In the relay's place: counts its starts, and fails as it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.starts = 0
        self.running = threading.Event()
        self.stopped = asyncio.Event()

    def build(self, *args: Any, **options: Any) -> Stand:
        self.starts += 1
        return self

    async def run(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.running.set()
        await self.stopped.wait()

    def stop(self) -> None:
        self.stopped.set()

    def fileno(self) -> None:
        return None


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of a supervisor, which are none now."""
    made: list[float] = []

    async def pause(self: Any, seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(Supervisor, "_pause", pause)
    return made


def supervise(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread whose relay is the stand, until that runs without an error."""
    monkeypatch.setattr(inprocess, "build", stand.build)
    inprocess.start()
    assert stand.running.wait(60)
    assert inprocess.stop()


def test_a_refused_set_up_is_tried_again_ever_more_rarely_and_said_once_for_each_reason(
    registry: Registry, waits: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When somebody has corrected the password, the relay runs without a restart of the server."""
    stand = Stand(
        RelayRefused("wrong password"),
        RelayRefused("wrong password"),
        RelayRefused("no such database"),
        ImproperlyConfigured("settings.PGSIGNALS is 5, and must be a dict."),
    )
    supervise(stand, monkeypatch)
    assert waits[:4] == [5, 10, 20, 40]
    assert stand.starts == 5
    said = [record.getMessage() for record in caplog.records if record.name == "pgsignals.inprocess"]
    reasons = [line.split(": ")[1].split(". ")[0] for line in said]
    assert reasons == ["wrong password", "no such database", "settings.PGSIGNALS is 5, and must be a dict"]


def test_a_relay_that_fails_as_nobody_foresaw_is_reported_and_started_again(
    registry: Registry, waits: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand = Stand(*[RuntimeError("a bug")] * 9)
    supervise(stand, monkeypatch)
    assert "RuntimeError: a bug" in caplog.text
    assert waits[:9] == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_an_event_loop_that_a_receiver_has_ended_is_replaced(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """By a task of its own that exits: of asynchronous code asyncio lets that through, and a thread ends in silence."""
    calls, starts, tasks = Box(), Box(), []

    async def exits() -> None:
        raise SystemExit(3)

    @on_pg_event(Order, everywhere=True)
    async def starts_a_task(event: Any) -> None:
        calls.put(event.pk)
        if event.pk == 5:
            tasks.append(asyncio.create_task(exits()))

    on_pg_gap(everywhere=True, start=True)(starts.put)
    thread = listens()
    write(INSERT, 5)
    starts.wait(2)
    write(INSERT, 6)
    assert calls.wait(2) == [5, 6]
    assert thread.stop()
    assert isinstance(tasks[0].exception(), SystemExit)
    assert "The relay's event loop was ended. Another one begins" in caplog.text


def test_settings_that_are_wrong_are_said_and_end_nothing(
    registry: Registry, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PGSIGNALS = {"DATABSE": "default"}
    assert inprocess.start() is not None
    until(lambda: caplog.text, lambda text: "The relay does not run in this process" in text)
    assert "'DATABSE'" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_system_that_gives_no_thread_is_said(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert inprocess.start() is None
    assert "can't start new thread" in caplog.text
    assert inprocess.start() is not None


def test_a_system_that_gives_no_file_is_said(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(inprocess.selectors, "DefaultSelector", refuse)
        assert inprocess.start() is None
    assert "Too many open files" in caplog.text
    assert inprocess.start() is not None


# Processes of their own: each runs a script, and says what it does.

PRELUDE = """
import asyncio, gc, os, signal, sys, threading, time
import django
django.setup()
from django.db import connection
from pgsignals import on_pg_event, on_pg_gap
from pgsignals.listening import inprocess
from tests.shop.models import Order

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

@on_pg_gap(everywhere=True, start=True)
def starts(gap):
    say("listens", os.getpid())

"""

Script = Callable[..., Process]


@pytest.fixture
def script(child_environment: dict[str, str]) -> Iterator[Script]:
    """Runs a script, and kills what is left of it and its children."""
    started: list[Process] = []

    def start(text: str, **environment: str) -> Process:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + textwrap.dedent(text)]
        process = Process(command, {**child_environment, **environment}, own_group=True)
        started.append(process)
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.process.wait(60)
        process.close()


def ended(process: Process) -> float:
    """The seconds until a process ends by itself, in order."""
    before = time.monotonic()
    assert process.process.wait(60) == 0, process.text
    assert "Traceback" not in process.text
    assert "Warning:" not in process.text
    return time.monotonic() - before


def test_at_the_interpreters_end_it_ends_in_order(script: Script) -> None:
    process = script("""
        inprocess.start()
        listens = threading.Event()
        on_pg_gap(everywhere=True, start=True)(lambda gap: listens.set())
        listens.wait()
        say("ends")
    """)
    process.wait_for("^ends")
    ended(process)
    assert "has not ended" not in process.text
    until(sessions, lambda found: not found)


def test_at_the_interpreters_end_one_that_could_not_connect_ends_at_once(script: Script) -> None:
    process = script('inprocess.start(database="nowhere"); inprocess.start(); say("ends")')
    process.wait_for("^ends")
    ended(process)
    assert "has not ended" not in process.text


def test_at_the_interpreters_end_a_running_receiver_may_finish(script: Script) -> None:
    process = script("""
        begun = threading.Event()

        @on_pg_event(Order, everywhere=True)
        def slow(event):
            begun.set()
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.7)")
            say("finished")

        inprocess.start()
        begun.wait()
        say("ends")
    """)
    process.wait_for("^listens")
    write(INSERT, 5)
    process.wait_for("^ends")
    ended(process)
    assert "finished" in process.lines


HANGING = {
    "a thread": "def hangs(event): begun.set(); threading.Event().wait()",
    "an await": "async def hangs(event): begun.set(); await asyncio.Event().wait()",
    "the event loop itself": "async def hangs(event): begun.set(); threading.Event().wait()",
}


@pytest.mark.parametrize("receiver", HANGING.values(), ids=HANGING)
def test_at_the_interpreters_end_a_receiver_that_hangs_holds_it_up_for_two_seconds(
    receiver: str, script: Script
) -> None:
    process = script(f"""
        begun = threading.Event()
        {receiver}
        on_pg_event(Order, everywhere=True)(hangs)
        inprocess.start()
        begun.wait()
        say("ends")
    """)
    process.wait_for("^listens")
    write(INSERT, 5)
    process.wait_for("^ends")
    assert 1 < ended(process) < 20
    until(sessions, lambda found: not found)


def test_at_the_interpreters_end_none_is_started(script: Script) -> None:
    process = script("""
        import atexit, logging
        logging.basicConfig(level=logging.DEBUG)
        inprocess.start()
        atexit.register(lambda: say("late", inprocess.start()))
    """)
    ended(process)
    assert "late None" in process.lines
    assert "the process ends" in process.text


# Forks.


def test_a_child_gets_a_relay_of_its_own_and_leaves_the_parents_alone(script: Script) -> None:
    """The child's end, with all that Python collects at it, does not end the parent's session."""
    process = script("""
        @on_pg_event(Order, everywhere=True)
        def receiver(event):
            say("event", event.pk, os.getpid())

        listens = threading.Event()
        on_pg_gap(everywhere=True, start=True)(lambda gap: listens.set())
        inprocess.start()
        listens.wait()
        child = os.fork()
        if child == 0:
            say("child", os.getpid())
            gc.collect()
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            signal.pause()
        os.waitpid(child, 0)
        gc.collect()
        say("child has ended")
        signal.pause()
    """)
    parent = process.process.pid
    child = int(process.wait_for("^child").split()[1])
    process.wait_for(f"^listens {child}")
    (of_parent,) = [session for session, one in until(sessions, lambda found: len(found) == 2).items() if one == parent]
    write(INSERT, 5)
    process.wait_for(f"^event 5 {parent}")
    process.wait_for(f"^event 5 {child}")
    os.kill(child, signal.SIGTERM)
    process.wait_for("^child has ended")
    assert until(sessions, lambda found: len(found) == 1) == {of_parent: parent}
    write(INSERT, 6)
    process.wait_for(f"^event 6 {parent}")
    assert "Traceback" not in process.text


def test_a_child_that_gets_none_by_itself_can_start_one(script: Script) -> None:
    """It takes neither the parent's relay for its own, nor a lock that a thread of the parent's had."""
    process = script("""
        inprocess.start(in_children=False)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        say("waits")
        signal.pause()
        inprocess._lock.acquire()
        if os.fork() == 0:
            say("child", os.getpid())
            inprocess.start()
        signal.pause()
    """)
    process.wait_for("^waits")
    process.wait_for(f"^listens {process.process.pid}")
    process.process.send_signal(signal.SIGUSR1)
    child = int(process.wait_for("^child").split()[1])
    process.wait_for(f"^listens {child}")
    until(listening, lambda found: found == sorted([process.process.pid, child]))


def test_a_child_does_not_keep_the_session_of_a_parent_that_was_killed(script: Script) -> None:
    """A copy of the socket would keep it, with what only this relay may do, as long as the child lives."""
    process = script("""
        listens = threading.Event()
        on_pg_gap(everywhere=True, start=True)(lambda gap: listens.set())
        inprocess.start(in_children=False)
        listens.wait()
        if os.fork() == 0:
            say("child", os.getpid())
            signal.pause()
        signal.pause()
    """)
    child = int(process.wait_for("^child").split()[1])
    until(listening, lambda found: found == [process.process.pid])
    process.process.kill()
    until(sessions, lambda found: not found)
    os.kill(child, 0)


def test_a_child_does_not_keep_a_connection_that_was_being_made(script: Script) -> None:
    """A server loads its pages, and forks at once."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        process = script(
            """
            thread = inprocess.start(in_children=False)
            told = []
            signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
            say("waits")
            while not told:
                time.sleep(0.01)
            # Its own wake-up, and the connection.
            while len(thread._descriptors()) < 2:
                time.sleep(0.01)
            if os.fork() == 0:
                say("child", os.getpid())
            signal.pause()
            """,
            PGHOST="127.0.0.1",
            PGPORT=str(silent.getsockname()[1]),
        )
        process.wait_for("^waits")
        accepted, _ = silent.accept()
        with accepted:
            accepted.settimeout(20)
            assert accepted.recv(1000), "the relay asks for a session"
            process.process.send_signal(signal.SIGUSR1)
            child = int(process.wait_for("^child").split()[1])
            process.process.kill()
            while accepted.recv(1000):
                pass
            os.kill(child, 0)


def test_asynchronous_receivers_work_in_a_child_as_they_did_in_the_parent(script: Script) -> None:
    """They ask the database in another thread, which the child has not inherited."""
    process = script("""
        @on_pg_event(Order, everywhere=True)
        async def receiver(event):
            say("event", event.pk, (await event.ainstance()).status, os.getpid())

        inprocess.start()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        say("waits")
        signal.pause()
        if os.fork() == 0:
            say("child", os.getpid())
        while True:
            signal.pause()
    """)
    parent = process.process.pid
    process.wait_for("^waits")
    process.wait_for(f"^listens {parent}")
    write(INSERT, 5)
    process.wait_for(f"^event 5 new {parent}")
    process.process.send_signal(signal.SIGUSR1)
    child = int(process.wait_for("^child").split()[1])
    process.wait_for(f"^listens {child}")
    write(INSERT, 6)
    process.wait_for(f"^event 6 new {parent}")
    process.wait_for(f"^event 6 new {child}")


# AppConfig.ready().


def test_started_while_apps_load_it_waits_for_their_receivers(script: Script, tmp_path: Path) -> None:
    """It is not how the documentation says it, but it must not listen to half of the channels."""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "__init__.py").write_text("")
    (tmp_path / "early" / "apps.py").write_text(
        textwrap.dedent("""
            import time
            from django.apps import AppConfig

            class Early(AppConfig):
                name = "early"

                def ready(self):
                    from pgsignals.listening import inprocess
                    inprocess.start("all")
                    time.sleep(0.3)  # other apps take their time
        """)
    )
    (tmp_path / "early_settings.py").write_text(
        "from tests.settings_listeners import *\nINSTALLED_APPS = ['early', *INSTALLED_APPS]\n"
    )
    process = script(
        "signal.pause()",
        DJANGO_SETTINGS_MODULE="early_settings",
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        PGSIGNALS_TEST_RECEIVERS="say",
    )
    process.wait_for("^listens")
    write("""NOTIFY app_events, '{"type": "user.created", "id": 9}'""")
    process.wait_for("receiver says user.created 9")
