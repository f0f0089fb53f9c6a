"""Settings of the relays that the fault suite starts: what they listen to, and how soon they notice, is in JSON."""

import json
import os

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.faults"]

PGSIGNALS = {
    "PROBE_EVERY": 0.5,
    "PROBE_WITHIN": 1,
    "CONNECT_TIMEOUT": 2,
    "RECONNECT_MAX": 0.5,
    **json.loads(os.environ.get("PGSIGNALS_TEST_SETTINGS", "{}")),
}
