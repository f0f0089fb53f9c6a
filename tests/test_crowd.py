"""The load test, small: a few clients for two seconds. The real one is `python -m tests.load`."""

from __future__ import annotations

import asyncio

from .crowd import Client, Result, run, site
from .load import faults


def test_every_client_of_a_crowd_ends_in_the_right_state() -> None:
    """Whatever rows were written: each has heard of the last write of each, or was told to fetch anew."""
    with site() as where:
        result = asyncio.run(run(where, 20, 100, 2))
    assert faults(result) == []
    assert result.written == 200
    assert len(result.latencies) >= 20 * 200 / 2 - 20 * result.refetches


def test_the_load_test_knows_a_client_that_is_wrong() -> None:
    """Otherwise it would pass whatever happens."""
    last = {1: 10.0, 2: 20.0}
    assert Client([(11.0, [1]), (21.0, [2])]).is_right(last)
    assert not Client([(11.0, [1]), (19.0, [2])]).is_right(last)
    assert not Client([(11.0, [1])]).is_right(last)
    assert Client([], [20.5]).is_right(last)
    assert not Client([], [19.5]).is_right(last)


def test_the_load_test_names_its_faults() -> None:
    good = Result(2, 0, 0, 0, 1, 1, [0.1], 0.1, [100.0, 100.0, 101.0])
    assert faults(good) == []
    bad = Result(2, 1, 1, 0, 1, 1, [0.1], 0.1, [100.0, 100.0, 130.0])
    assert [text.split(":")[0] for text in faults(bad)] == ["FAULT"] * 3
