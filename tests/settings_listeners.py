"""The tests' settings with an app whose receivers an environment variable chooses."""

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.listeners"]
