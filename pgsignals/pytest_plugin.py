"""The fixture `capture_pg_events`, for pytest. The package's installation makes it known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import capture_events


@pytest.fixture
def capture_pg_events() -> type[capture_events]:
    """`pgsignals.testing.capture_events`: `with capture_pg_events() as events:`.

    The test needs a database by `db`, `transactional_db` or the mark `django_db`.
    """
    # Django's settings are there by now.
    from .testing import capture_events

    return capture_events
