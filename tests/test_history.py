"""The promises of docs/durable.md, against two random histories with faults; see tests/history/checker.py."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from .servers import ROOT


@pytest.mark.faults
def test_every_promise_is_kept_in_random_histories() -> None:
    seed = str(random.randrange(10**6))
    command = [sys.executable, "-m", "tests.history.checker", "--seconds", "25", "--histories", "2", "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
