"""The connections of those who read the log."""

from __future__ import annotations

import gc
import os
import socket

import psycopg
import pytest

from pgsignals.durable.line import open_line


def test_an_attempt_that_nobody_answers_leaves_no_socket_open() -> None:
    """`listen` spares the collector, which would otherwise come for what the error refers to."""
    with socket.create_server(("127.0.0.1", 0)) as swallows:
        given = {"host": "127.0.0.1", "port": swallows.getsockname()[1], "user": "x", "dbname": "x"}
        gc.disable()
        try:
            before = len(os.listdir("/dev/fd"))
            with pytest.raises(psycopg.OperationalError, match="timeout"):
                open_line(10, **given, connect_timeout=2)
            assert len(os.listdir("/dev/fd")) <= before
        finally:
            gc.enable()
