"""Events that no database sent."""

from __future__ import annotations

from typing import Any

from pgsignals import PgEvent
from pgsignals.event import Source, Statement


def made(row: Any, **about: Any) -> PgEvent:
    """An event about a row, or a message, of whose source and statement something is said."""
    of_source = {"channel": "pgsignals", "database": "default"}
    of_source |= {name: about.pop(name) for name in Source.__struct_fields__ if name in about}
    return PgEvent(Source(**of_source), Statement(**about), row)
