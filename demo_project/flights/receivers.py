"""What happens when a flight changes. Django finds this file by itself, as it finds models.py.

To see these lines while the day runs: FLIGHTS_LOG=INFO python manage.py demo
"""

from __future__ import annotations

import logging

from pgsignals import PgEvent, on_pg_event

from .models import Flight, Status

log = logging.getLogger("flights")


@on_pg_event(Flight, "update", changed="status")
def tell_the_desk(event: PgEvent) -> None:
    """Called for every flight whose status changed, whoever wrote it.

    What the declaration names travels with the event and costs nothing to read; the rest is loaded on demand.
    """
    if event.new is None or event.new["status"] != Status.CANCELLED:
        return
    if flight := event.instance():
        log.info("%s is cancelled: its passengers need a hotel.", flight)
