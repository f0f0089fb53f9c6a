"""What will not pass by waiting, and is refused at the start: everything else is tried again, for ever."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

# Libpq gives no SQLSTATE for a login that is refused, only the server's text, which may be in any language: whatever is
# not known here is tried again.
_FINAL = re.compile(
    r"password authentication failed|no pg_hba\.conf entry|(role|database) \S+ does not exist|"
    r"permission denied for database|is not permitted to log in|"
    # What libpq itself says, without asking a server.
    r"no password supplied|invalid \S+ value|invalid port number|invalid integer value|definition of service|"
    r"certificate file|does not support SSL"
)

# Of LISTEN itself: no right, no such thing (42), a standby (25006).
_FINAL_STATES = ("42", "25006")

_STANDBY = "25006"


class RelayRefused(Exception):
    """A set-up that will not do, told at the start: not PostgreSQL, no such alias, a refused login, a pooler."""


def refuse(database: str, error: BaseException) -> None:
    """Raise RelayRefused for what waiting will not mend."""
    text = one_line(error)
    if isinstance(error, ConnectionDoesNotExist):
        known = ", ".join(connections)
        raise RelayRefused(f"There is no database {database!r} in settings.DATABASES; there are: {known}.") from error
    state = (error.sqlstate or "") if isinstance(error, psycopg.Error) else ""
    if state == _STANDBY:
        text += " (it is a standby, which can neither LISTEN nor NOTIFY: name the primary, in PGSIGNALS['LISTEN'] say)"
    refused_login = isinstance(error, psycopg.OperationalError) and _FINAL.search(text)
    wrong_settings = isinstance(error, ImproperlyConfigured | psycopg.ProgrammingError)
    if refused_login or state.startswith(_FINAL_STATES) or wrong_settings:
        raise RelayRefused(f"The database {database!r} refuses to be listened to: {text}") from error


def one_line(error: BaseException) -> str:
    """What an error says, or its kind where it says nothing."""
    said: Any = " ".join(str(error).split())
    return said or type(error).__name__
