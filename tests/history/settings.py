"""Settings of the checker and of its workers: short leases, small batches, and everything else as users have it."""

import json
import os

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.history"]
MIGRATION_MODULES = {"ledger": None, "history": None}

PGSIGNALS = {
    "LEASE": 2.0,
    "LOG_POLL": 0.2,
    "LOG_BATCH": 50,
    "CONNECT_TIMEOUT": 3,
    "RECONNECT_MAX": 0.5,
    "PROBE_EVERY": 1,
    "PROBE_WITHIN": 2,
    **json.loads(os.environ.get("PGSIGNALS_TEST_SETTINGS", "{}")),
}
