"""Watching a relay from outside, choosing what it does, and its restart when code changes: with the real command."""

from __future__ import annotations

import json
import re
import signal
import socket
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from pgsignals import publish

from .conftest import connect
from .servers import free_port
from .test_listen import LISTENS, Command, Start, start
from .waiting import until

__all__ = ["start"]

pytestmark = pytest.mark.django_db(transaction=True)

OFTEN = json.dumps({"PROBE_EVERY": 0.1, "RECONNECT_MAX": 0.1})


@contextmanager
def database_closed(also_to_relays: bool = True) -> Iterator[psycopg.Connection]:
    """Nobody gets a new connection, and those of relays are ended, or left."""
    said = connection.settings_dict
    place = {"host": said["HOST"], "port": said["PORT"] or None, "user": said["USER"], "dbname": "postgres"}
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    name = sql.Identifier(str(said["NAME"]))
    with psycopg.connect(**place, autocommit=True) as admin:
        admin.execute(allow.format(name, sql.Literal(False)))
        try:
            if also_to_relays:
                admin.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name ~ '^pgsignals'"
                )
            yield admin
        finally:
            admin.execute(allow.format(name, sql.Literal(True)))


def get(address: str, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# The file.


def test_the_health_file_is_touched_while_delivery_is_proven_and_only_then(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "healthy"
    path.write_text("of an earlier run")
    command = start("listen", "--health-file", str(path), PGSIGNALS_TEST_SETTINGS=OFTEN)
    command.says(LISTENS)

    def touched() -> int:
        return path.stat().st_mtime_ns

    before = touched()
    until(touched, lambda now: now > before)
    with database_closed():
        command.says("No connection to the database")
        stands = touched()
        # Several attempts to connect later it is still as old.
        tries = len([line for line in command.err.items if "Connecting again" in line])
        until(
            lambda: [line for line in command.err.items if "Connecting again" in line], lambda now: len(now) > tries + 3
        )
        assert touched() == stands
    until(touched, lambda now: now > stands)
    with database_closed(also_to_relays=False) as admin:
        # It is connected, and that it hears cannot be proven.
        proving = "SELECT query_start FROM pg_stat_activity WHERE application_name ~ '^pgsignals listen.* proving '"
        began = until(lambda: admin.execute(proving).fetchone())
        stands = touched()
        until(lambda: admin.execute(proving).fetchone(), lambda now: now is not None and now > began)
        assert touched() == stands
    until(touched, lambda now: now > stands)
    command.send(signal.SIGTERM)
    assert command.ended() == 0
    assert not path.exists()


def test_a_health_file_that_cannot_be_written_is_refused_at_the_start(start: Start, tmp_path: Path) -> None:
    command = start("listen", "--health-file", str(tmp_path / "no folder" / "healthy"))
    assert command.ended() == 1
    command.says(r"--health-file: .*No such file or directory")


# HTTP.


@pytest.fixture
def served(start: Start) -> tuple[Command, str]:
    address = f"127.0.0.1:{free_port()}"
    command = start("listen", "--no-channels", "--http", address, receivers="say fail", PGSIGNALS_TEST_SETTINGS=OFTEN)
    command.says(LISTENS)
    return command, address


def test_healthz_is_200_while_delivery_is_proven_and_503_when_it_is_not(served: tuple[Command, str]) -> None:
    command, address = served
    _, body = until(lambda: get(address, "/healthz"), lambda answer: answer[0] == 200)
    said = json.loads(body)
    assert said["healthy"] is True
    assert said["state"] == "healthy"
    assert said["reconnects"] == 0
    with database_closed():
        command.says("No connection to the database")
        _, body = until(lambda: get(address, "/healthz"), lambda answer: answer[0] == 503)
        assert json.loads(body)["healthy"] is False
    until(lambda: get(address, "/healthz"), lambda answer: answer[0] == 200)
    assert json.loads(get(address, "/healthz")[1])["reconnects"] == 1


def metrics(address: str) -> dict[tuple[str, str], float]:
    """Values by name, and by the label besides the database's."""
    families = text_string_to_metric_families(get(address, "/metrics")[1])
    return {
        (sample.name, "".join(value for key, value in sample.labels.items() if key != "database")): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_events_calls_and_failures(served: tuple[Command, str]) -> None:
    _, address = served
    for number in range(3):
        publish("app_events", {"type": "user.created", "id": number})
    fails, says = "tests.listeners.receivers.fails", "tests.listeners.receivers.says_later"
    found = until(lambda: metrics(address), lambda now: now.get(("pgsignals_receiver_calls_total", fails)) == 3)
    found = until(lambda: metrics(address), lambda now: now.get(("pgsignals_receiver_calls_total", says)) == 3)
    assert found["pgsignals_receiver_failures_total", fails] == 3
    assert found["pgsignals_receiver_failures_total", says] == 0
    assert found["pgsignals_receiver_events_total", fails] == 3
    assert found["pgsignals_receiver_seconds_total", fails] > 0
    assert found["pgsignals_events_total", ""] == 3
    assert found["pgsignals_healthy", ""] == 1
    assert found["pgsignals_state", "healthy"] == 1
    assert found["pgsignals_state", "deaf"] == 0
    assert found["pgsignals_waiting_events", ""] == 0
    assert found["pgsignals_gaps_total", ""] == found["pgsignals_reconnects_total", ""] == 0
    assert found["pgsignals_proven_timestamp_seconds", ""] > 1e9
    with connect() as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^pgsignals listen'"
        )
    until(lambda: metrics(address)["pgsignals_gaps_total", ""], lambda gaps: gaps == 1)
    assert metrics(address)["pgsignals_reconnects_total", ""] == 1


def test_other_paths_and_methods_are_refused_and_rubbish_harms_nobody(served: tuple[Command, str]) -> None:
    command, address = served
    assert get(address, "/")[0] == 404
    host, port = address.split(":")
    silent = socket.create_connection((host, int(port)))
    with socket.create_connection((host, int(port))) as rude:
        rude.sendall(b"\x00\xff rubbish \r\n\r\n")
        rude.recv(1000)
    with socket.create_connection((host, int(port))) as posting:
        posting.sendall(b"POST /metrics HTTP/1.0\r\n\r\n")
        assert b"405" in posting.recv(1000)
    assert get(address, "/healthz")[0] == 200
    silent.close()
    assert command.process.poll() is None


@pytest.mark.parametrize(("address", "says"), [("nonsense", "is no address; write a port"), ("taken", "in use")])
def test_an_address_that_will_not_do_is_one_line(start: Start, address: str, says: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        given = f"127.0.0.1:{other.getsockname()[1]}" if address == "taken" else address
        command = start("listen", "--http", given)
        assert command.ended() == 1
        command.says(f"--http: .*{says}")


# Which receivers.


def test_only_those_that_are_named_are_called(start: Start) -> None:
    command = start("listen", "--only", "tests.listeners.receivers.fails", receivers="say fail")
    command.says(LISTENS)
    publish("app_events", {"type": "user.created", "id": 7})
    command.says("fails raised ValueError")
    assert not any("receiver says" in line for line in command.err.items)
    assert not any("says_later" in line for line in command.out.items)


def test_a_module_stands_for_its_receivers_and_an_unknown_name_is_refused_with_those_there_are(start: Start) -> None:
    command = start("listen", "--only", "tests.listeners", receivers="say")
    command.says(LISTENS)
    publish("app_events", {"type": "user.created", "id": 7})
    command.says("receiver says user.created 7")
    refused = start("listen", "--only", "tests.listeners.receivers.nobody", receivers="say")
    assert refused.ended() == 1
    refused.says(r"No receiver is called 'tests\.listeners\.receivers\.nobody'.*tests\.listeners\.receivers\.says")


def test_without_receivers_events_are_still_printed(start: Start) -> None:
    command = start("listen", "app_events", "--no-receivers", "--print", receivers="say fail")
    command.says(LISTENS)
    publish("app_events", {"type": "user.created", "id": 7})
    (line,) = command.out.wait()
    assert json.loads(line)["payload"]["id"] == 7
    assert any("No receivers and no signals, as asked for" in one for one in command.err.items)
    command.send(signal.SIGTERM)
    assert command.ended() == 0
    assert not any("receiver says" in one or "raised" in one for one in command.err.items)


# Code that changes.


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The receivers of an app that may be edited."""
    folder = tmp_path / "edited"
    folder.mkdir()
    (folder / "__init__.py").touch()
    file = folder / "receivers.py"
    write(file, "first")
    return file


def write(file: Path, text: str) -> None:
    code = """
        import sys
        from pgsignals import on_pg_event

        @on_pg_event("app_events")
        def edited(event):
            sys.stderr.write("{} {}\\n".format(TEXT, event.payload))
            sys.stderr.flush()
    """
    file.write_text(textwrap.dedent(code).replace("TEXT", repr(text)))


def started(start: Start, app: Path, *options: str) -> Command:
    more: dict[str, Any] = {
        "PGSIGNALS_TEST_DEBUG": "1",
        "PGSIGNALS_TEST_APPS": "edited",
        "PYTHONPATH": str(app.parent.parent),
    }
    command = start("listen", "--no-channels", *options, **more)
    command.says(LISTENS)
    return command


def test_with_debug_it_starts_anew_when_code_changes(start: Start, app: Path) -> None:
    command = started(start, app)
    publish("app_events", 1)
    command.says("first 1")
    # Once a second the reloader looks at the files, and only at those that it has seen before.
    until(lambda: _edited(app, "second", command))
    # The new process may be replaced once more, where it saw the file before it was written for the last time.
    until(lambda: (publish("app_events", 2), [line for line in command.err.items if line == "second 2"])[1])
    command.send(signal.SIGTERM)
    command.ended()
    with connect() as other:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^pgsignals listen'"
        until(lambda: other.execute(query).fetchone() == (0,))


def _edited(app: Path, text: str, command: Command) -> bool:
    write(app, text)
    return any("changed, reloading" in line for line in command.err.items)


def test_no_reload_keeps_it_as_it_is(start: Start, app: Path) -> None:
    command = started(start, app, "--no-reload")
    write(app, "second")
    for number in range(3):
        publish("app_events", number)
        command.says(f"first {number}")
    assert len([line for line in command.err.items if LISTENS in line]) == 1
    command.send(signal.SIGTERM)
    assert command.ended() == 0


# status.


def status() -> dict[str, Any]:
    from io import StringIO

    out = StringIO()
    call_command("pgsignals", "status", "--json", stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_status_shows_who_listens_how_it_fares_and_what_it_alone_does(start: Start) -> None:
    from io import StringIO

    assert status()["listeners"] == []
    one = start("listen", "--no-channels", receivers="once", PGSIGNALS_TEST_SETTINGS=OFTEN)
    one.says(LISTENS)
    other = start("listen", "--no-channels", receivers="hang", PGSIGNALS_TEST_SETTINGS=OFTEN)
    other.says(LISTENS)
    for number in range(4):
        publish("app_events", number)
    other.says("receiver hangs")
    said = until(status, lambda now: [found["waiting"] for found in now["listeners"]] == [0, 3])
    first, second = said["listeners"]
    assert re.fullmatch(rf"\S+:{one.process.pid}", first["process"])
    assert re.fullmatch(rf"\S+:{other.process.pid}", second["process"])
    assert (first["state"], second["state"]) == ("healthy", "healthy")
    assert (len(first["leads"]), second["leads"]) == (1, [])
    assert until(status, lambda now: now["listeners"][1]["lag"] > 0)
    assert 0 <= said["notification_queue_usage"] < 0.01
    out = StringIO()
    call_command("pgsignals", "status", stdout=out)
    assert first["process"] in out.getvalue()
    assert "The server's queue of notifications is 0.0 % full." in out.getvalue()
