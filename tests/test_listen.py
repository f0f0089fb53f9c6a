"""The commands, each in a process of its own: what they print, how they end, and with which status."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from pgsignals import publish
from pgsignals.listening.printing import to_line

from .conftest import Listener, connect
from .making import made
from .postgres import binaries
from .relaying import WITHIN, Box
from .servers import ROOT
from .shop.models import Article, Customer, Order

pytestmark = pytest.mark.django_db(transaction=True)

Start = Callable[..., Any]


class Command:
    """A management command in a process of its own; its two streams are kept apart, and read as they come."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "django", *arguments]
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )
        self.out, self.err = Box(), Box()
        self._readers = [self._read(self.process.stdout, self.out), self._read(self.process.stderr, self.err)]

    @staticmethod
    def _read(stream: Any, box: Box) -> threading.Thread:
        def read() -> None:
            for line in stream:
                box.put(line.rstrip("\n"))
            stream.close()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def says(self, pattern: str) -> str:
        """The first line on standard error with the pattern, when it is there."""
        return str(self.err.wait_for(lambda line: re.search(pattern, line)))

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """The exit status."""
        status = self.process.wait(WITHIN)
        for reader in self._readers:
            reader.join(WITHIN)
        return status

    def close(self) -> None:
        # With the process that a reloader has started: it would go on, and be found by the tests that follow.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ended()
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def start(child_environment: dict[str, str]) -> Iterator[Start]:
    """Starts commands, and ends what is left of them."""
    started: list[Command] = []
    environment = {**child_environment, "DJANGO_SETTINGS_MODULE": "tests.settings_listeners"}

    def start_one(*arguments: str, receivers: str = "", **more: str) -> Command:
        command = Command(list(arguments), {**environment, "PGSIGNALS_TEST_RECEIVERS": receivers, **more})
        started.append(command)
        return command

    yield start_one
    for command in started:
        command.close()


LISTENS = "Listening to"


def execute(statement: str) -> None:
    with connect() as writer:
        writer.execute(statement)


# --print.


def test_print_writes_an_update_of_psql_as_one_json_line(start: Start) -> None:
    """Real psql, raw SQL; and nothing but events on standard output."""
    order = Order.objects.create(pk=7, status="new", total=5)
    listen = start("listen", "--print")
    listen.says(LISTENS)
    place = connection.settings_dict
    psql = shutil.which("psql", path=f"{binaries()}:{os.environ['PATH']}")
    assert psql
    subprocess.run(
        [psql, "-qX", "-h", place["HOST"], "-p", str(place["PORT"]), "-U", place["USER"], "-d", place["NAME"]],
        input="UPDATE shop_order SET state = 'paid';",
        text=True,
        check=True,
    )
    (line,) = listen.out.wait()
    listen.send(signal.SIGINT)
    assert listen.ended() == 0
    said = json.loads(line)
    assert isinstance(said.pop("transaction"), int)
    assert re.fullmatch(r"20\d\d-.*(Z|\+00:00)", said.pop("at"))
    assert said == {
        "op": "update",
        "model": "shop.order",
        "pk": order.pk,
        "changed": ["status"],
        "old": {"status": "new", "total": "5.00", "customer": None},
        "new": {"status": "paid", "total": "5.00", "customer": None},
        "channel": "pgsignals",
        "database": "default",
        "schema": "public",
    }
    assert listen.out.items == [line]


def test_print_is_a_tail_for_any_channel_without_a_receiver(start: Start) -> None:
    """Of several channels, each line names its own."""
    listen = start("listen", "--print", "app_events", "Other Channel")
    listen.says(LISTENS)
    publish("app_events", {"type": "user.created"})
    publish("Other Channel", None)
    execute("""NOTIFY app_events, 'it''s "plain" é🛫'""")
    lines = [json.loads(line) for line in listen.out.wait(3)]
    common = {"op": "message", "database": "default"}
    assert lines == [
        {**common, "channel": "app_events", "payload": {"type": "user.created"}},
        {**common, "channel": "Other Channel", "payload": None},
        {**common, "channel": "app_events", "payload": 'it\'s "plain" é🛫'},
    ]
    assert any("No receivers" in line for line in listen.err.items)


def test_print_goes_on_after_a_lost_connection(start: Start) -> None:
    """The loss and the return are said on standard error."""
    listen = start("listen", "--print", "app_events")
    listen.says(LISTENS)
    execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals%'")
    listen.says("No connection to the database 'default': terminating connection")
    listen.says("Connected again")
    publish("app_events", 1)
    (line,) = listen.out.wait()
    assert json.loads(line)["payload"] == 1


def test_when_the_reader_of_the_lines_goes_the_command_ends_in_peace(child_environment: dict[str, str]) -> None:
    """`listen --print | head -1`: status 0, and no complaint of a broken pipe."""
    script = f"{sys.executable} -m django listen --print app_events | head -n 1; exit ${{PIPESTATUS[0]}}"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["bash", "-c", script], env=child_environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, process_group=0
    ) as shell:
        assert shell.stderr is not None
        said = ""
        while LISTENS not in said:
            line = shell.stderr.readline()
            assert line, said
            said += line
        # It is only by writing that a program learns of a pipe that nobody reads.
        deadline = time.monotonic() + WITHIN
        while shell.poll() is None and time.monotonic() < deadline:
            publish("app_events", 1)
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
        output, errors = shell.communicate()
    assert json.loads(output)["payload"] == 1
    assert shell.returncode == 0
    assert "Broken" not in errors
    assert "Traceback" not in errors


def test_a_value_that_cannot_be_read_is_printed_as_an_error_and_the_next_as_ever(start: Start) -> None:
    listen = start("listen", "--print")
    listen.says(LISTENS)
    header = '{"v":1,"d":"d","s":"public","x":1,"t":0,"m":"shop.order","o":"i","n":1,'
    execute(f"""NOTIFY pgsignals, '{header}"f":["total"],"r":[[9,["no number"]]]}}'""")
    Customer.objects.create(pk=3, name="a")
    forged, real = (json.loads(line) for line in listen.out.wait(2))
    assert (forged["pk"], forged["model"]) == (9, "shop.order")
    assert "shop.order.total: the value 'no number' cannot be read" in forged["error"]
    assert real["pk"] == 3


def test_every_line_is_json_whatever_the_values() -> None:
    """NaN, infinity, bytes, what JSON has no form for: a tool that reads the lines must not stumble."""
    odd = [float("nan"), float("inf"), b"\x00", {1: {2, 3}}, Decimal("NaN"), timedelta(days=1), uuid.UUID(int=1)]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    event = made(odd, op="message", channel="app_events")
    said = json.loads(to_line(event), parse_constant=refuse)["payload"]
    assert said == ["nan", "inf", "00", {"1": "{2, 3}"}, "NaN", "P1DT00H00M00S", str(uuid.UUID(int=1))]


# What it says.


def test_it_says_what_it_listens_to_and_which_receivers_it_found(start: Start) -> None:
    listen = start("listen", "more", receivers="say")
    listen.says(LISTENS)
    text = "\n".join(listen.out.items)
    assert "Relaying database 'default', channels pgsignals, app_events, more." in text
    place = ROOT / "tests" / "listeners" / "receivers.py"
    assert f"tests.listeners.receivers.says [shop.order update; changed: status] ({place}:" in text
    assert "tests.listeners.receivers.says_later [channel 'app_events'; type: 'user.created']" in text


def test_receivers_of_an_app_run(start: Start) -> None:
    Order.objects.create(pk=7)
    listen = start("listen", receivers="say")
    listen.says(LISTENS)
    execute("UPDATE shop_order SET state = 'paid'")
    publish("app_events", {"type": "user.created", "id": 5})
    listen.says("receiver says 7 paid")
    listen.says("receiver says user.created 5")


def test_a_receiver_that_raises_ends_nothing_and_is_in_the_log_with_its_traceback(start: Start) -> None:
    listen = start("listen", receivers="raise say")
    listen.says(LISTENS)
    publish("app_events", {"type": "user.created", "id": 5})
    listen.says("The receiver tests.listeners.receivers.raises raised SystemExit for <PgEvent message on 'app_events'")
    listen.says("receiver says user.created 5")
    publish("app_events", {"type": "user.created", "id": 6})
    listen.says("receiver says user.created 6")
    assert any("Traceback" in line for line in listen.err.items)
    listen.send(signal.SIGTERM)
    assert listen.ended() == 0


def said_in_all(listen: Any) -> tuple[str, str]:
    """What a run with one event and one lost connection says, by stream."""
    publish("app_events", {"type": "user.created", "id": 5})
    listen.says("receiver says user.created 5")
    listen.send(signal.SIGINT)
    assert listen.ended() == 0
    return "\n".join(listen.out.items), "\n".join(listen.err.items)


@contextmanager
def nobody_listening_yet() -> Iterator[Callable[[], None]]:
    """Waits until a relay listens, whatever it says or not: the server knows."""
    with connect() as other:

        def wait() -> None:
            # When delivery was proven, it shows so in its name.
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals listen%' "
                "AND application_name LIKE '%healthy%' AND state = 'idle'"
            )
            deadline = time.monotonic() + WITHIN
            while other.execute(query).fetchone() == (0,):
                assert time.monotonic() < deadline, "nobody listens"

        yield wait


@pytest.mark.parametrize("verbosity", [0, 1, 2, 3])
def test_verbosity_means_what_django_users_expect(start: Start, verbosity: int) -> None:
    """0: nothing but errors; 1: what it does; 2: each event too; 3: what there is for debugging."""
    with nobody_listening_yet() as wait:
        listen = start("listen", "-v", str(verbosity), receivers="say")
        wait()
        out, err = said_in_all(listen)
    assert (out == "") == (verbosity == 0)
    assert ("Relaying database" in out) == (verbosity >= 1)
    assert (LISTENS in err) == (verbosity >= 1)
    assert ('"payload": {"type": "user.created", "id": 5}' in out) == (verbosity >= 2)
    if verbosity == 0:
        assert err == "receiver says user.created 5"


# How it ends.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_a_second_when_idle(start: Start, number: int) -> None:

    def seconds() -> float:
        listen = start("listen", receivers="say")
        listen.says(LISTENS)
        before = time.monotonic()
        listen.send(number)
        assert listen.ended() == 0
        took = time.monotonic() - before
        assert "Stopped." in listen.out.items
        assert "Traceback" not in (err := "\n".join(listen.err.items)), err
        return took

    # Others may need the machine too: it is enough to see it once.
    assert any(seconds() < 1 for _ in range(3))


def test_a_signal_lets_the_running_receiver_finish(start: Start) -> None:
    listen = start("listen", receivers="wait")
    listen.says(LISTENS)
    publish("app_events", 1)
    listen.says("receiver waits")
    listen.send(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        listen.process.wait(0.3)
    assert listen.process.stdin is not None
    listen.process.stdin.write("go on\n")
    listen.process.stdin.flush()
    assert listen.ended() == 0
    assert "receiver done" in listen.err.items


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(start: Start, number: int) -> None:
    """A receiver that never returns keeps nobody waiting."""
    listen = start("listen", receivers="hang")
    listen.says(LISTENS)
    publish("app_events", 1)
    listen.says("receiver hangs")
    listen.send(number)
    listen.out.wait_for(lambda line: "A second signal ends it at once" in line)
    listen.send(number)
    assert listen.ended() == 128 + number


def test_a_second_signal_ends_it_also_where_a_receiver_blocks_the_event_loop(start: Start) -> None:
    listen = start("listen", receivers="block")
    listen.says(LISTENS)
    publish("app_events", 1)
    listen.says("receiver blocks")
    listen.send(signal.SIGTERM)
    listen.send(signal.SIGINT)
    # Two signals may arrive as one that was not yet taken.
    while listen.process.poll() is None:
        listen.send(signal.SIGTERM)
        time.sleep(0.01)
    assert listen.ended() in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_where_nobody_reads_what_is_printed_it_goes_on_and_ends_in_order(child_environment: dict[str, str]) -> None:
    """A pipe holds 64 kB; the relay must neither wait for its reader, nor at its own end."""
    environment = {**child_environment, "DJANGO_SETTINGS_MODULE": "tests.settings_listeners"}
    environment["PGSIGNALS_TEST_RECEIVERS"] = "say"
    unread = subprocess.PIPE
    command = [sys.executable, "-m", "django", "listen", "--print"]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=unread, stderr=unread, text=True) as process:
        assert process.stderr
        assert any(LISTENS in line for line in process.stderr)
        for number in range(60):
            publish("app_events", {"number": number, "x": "y" * 7000})
        publish("app_events", {"type": "user.created", "id": "the last"})
        assert any("receiver says user.created the last" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(WITHIN) == 0
    assert "Nobody takes what is printed" in said
    assert "Stopped." in said


def test_half_a_character_is_printed_as_json_escapes_it(start: Start) -> None:
    listen = start("listen", "--print", "app_events")
    listen.says(LISTENS)
    with connect() as writer, writer.transaction():
        for payload in ("1", '"\\ud800"', '"é"'):
            writer.execute("SELECT pg_notify('app_events', %s)", [payload])
    lines = listen.out.wait(3)
    assert [json.loads(line)["payload"] for line in lines] == [1, "\ud800", "é"]


def test_a_signal_while_it_waits_to_reconnect_ends_it(start: Start) -> None:
    """Not only after the wait."""
    listen = start("listen", PGHOST="/tmp/no-such-folder")
    listen.says(r"Connecting again in ([4-9]|\d\d)\.\d s")
    listen.send(signal.SIGINT)
    before = time.monotonic()
    assert listen.ended() == 0
    assert time.monotonic() - before < 3


# What is refused: one line, status 1.


def refused(command: Any) -> str:
    assert command.ended() == 1
    assert command.out.items == [] or "Relaying" in command.out.items[0]
    lines = [line for line in command.err.items if line]
    assert len(lines) == 1, lines
    return str(lines[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--database", "nope"], "CommandError: There is no database 'nope' in settings.DATABASES"),
        (["--database", "sqlite"], "CommandError: The database 'sqlite' is SQLite; only PostgreSQL"),
        (["é" * 32], "64 bytes; PostgreSQL allows 63"),
        (["pgsignals"], "carries pgsignals' own row events"),
    ],
)
@pytest.mark.parametrize("command", [["listen"], ["pgsignals", "listen"]], ids=" ".join)
def test_what_will_not_do_is_one_line_and_status_1(
    start: Start, command: list[str], arguments: list[str], says: str
) -> None:
    assert says in refused(start(*command, *arguments))


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PGSIGNALS_TEST_DATABASE", "no_such_database", 'database "no_such_database" does not exist'),
        ("PGUSER", "no_such_role", 'role "no_such_role" does not exist'),
    ],
)
def test_a_refused_login_is_one_line_and_status_1(start: Start, variable: str, value: str, says: str) -> None:
    line = refused(start("listen", **{variable: value}))
    assert "CommandError: The database 'default' refuses to be listened to" in line
    assert says in line


# manage.py pgsignals.


def test_pgsignals_listen_is_the_same_command(start: Start) -> None:
    """Under a name that no other app has; --print and channels included."""
    listen = start("pgsignals", "listen", "--print", "app_events")
    listen.says(LISTENS)
    publish("app_events", {"a": 1})
    assert json.loads(listen.out.wait()[0])["payload"] == {"a": 1}
    listen.send(signal.SIGTERM)
    assert listen.ended() == 0


def test_pgsignals_publish_reaches_a_listener(start: Start) -> None:
    listener = Listener("app_events")
    try:
        command = start("pgsignals", "publish", "app_events", '{"type": "user.created"}')
        assert command.ended() == 0
        assert command.err.items == []
        assert listener.event().payload == {"type": "user.created"}
    finally:
        listener.connection.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["app_events", "{type: user}"], "The payload is not JSON"),
        (["é" * 32, "1"], "64 bytes"),
        (["app_events", json.dumps("x" * 8000)], "PostgreSQL allows 7999"),
        (["app_events", "1", "--database", "sqlite"], "needs PostgreSQL"),
        (["app_events", "1", "--database", "nope"], "nope"),
        (["app_events", "NaN"], "cannot be written as JSON"),
    ],
)
@pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])
def test_pgsignals_publish_refuses_what_would_not_arrive(arguments: list[str], says: str) -> None:
    with pytest.raises(CommandError, match=re.escape(says)):
        call_command("pgsignals", "publish", *arguments)


def test_pgsignals_sync_repairs_what_is_missing(capsys: pytest.CaptureFixture[str], listener: Listener) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop_article'::regclass AND NOT tgisinternal")
        for (name,) in cursor.fetchall():
            cursor.execute(f'DROP TRIGGER "{name}" ON shop_article')
    Article.objects.create(title="unheard")
    call_command("pgsignals", "sync")
    assert capsys.readouterr().out == "created: shop_article_events (shop.Article)\n"
    Article.objects.create(title="heard")
    assert [event.new for event in listener.events()] == [{"title": "heard"}]
    call_command("pgsignals", "sync")
    assert "up to date" in capsys.readouterr().out


def test_a_server_that_cannot_be_reached_is_one_line_for_pgsignals_publish(start: Start) -> None:
    line = refused(start("pgsignals", "publish", "app_events", "1", PGHOST="/tmp/no-such-folder"))
    assert line.startswith("CommandError: ")
    assert "No such file or directory" in line


@pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])
def test_pgsignals_sync_on_another_vendors_database_says_so() -> None:
    with pytest.raises(CommandError, match="'sqlite' is not PostgreSQL"):
        call_command("pgsignals", "sync", "--database", "sqlite")
