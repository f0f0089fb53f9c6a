"""The tests' settings with an app whose receivers an environment variable chooses, and PGSIGNALS from another."""

import json
import os

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.listeners", *os.environ.get("PGSIGNALS_TEST_APPS", "").split()]

PGSIGNALS = json.loads(os.environ.get("PGSIGNALS_TEST_SETTINGS", "{}"))
DEBUG = bool(os.environ.get("PGSIGNALS_TEST_DEBUG"))
