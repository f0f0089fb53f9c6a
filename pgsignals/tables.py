"""The names of what pgsignals keeps in the database. They hold no quote and need none."""

from __future__ import annotations

LOG = "pgsignals_log"
"""The log's table, and the channel on which it rings."""
IDS = "pgsignals_log_id_seq"
RANG = "pgsignals.rang"
"""The setting that holds the transaction which has a row that rings."""

GROUP = "pgsignals_group"
PARTITION = "pgsignals_partition"
WORKER = "pgsignals_worker"
PARKED = "pgsignals_parked"
DEAD = "pgsignals_dead"
DELAYED = "pgsignals_delayed"
PROCESSED = "pgsignals_processed"
IDENTITY = "pgsignals_identity"

RING = "pgsignals_ring"
"""The function and the trigger that wake whoever reads the log."""
PUBLISH = "pgsignals_publish"
"""The function that appends a message to the log."""

SLOTS = 1024
"""Into how many slots keys are hashed. A group's partitions share the slots among them."""


def slot_of(key: str) -> str:
    """The SQL of a key's slot, from the SQL of the key's text."""
    return f"(pg_catalog.hashtextextended({key}, 0) & {SLOTS - 1})::smallint"
