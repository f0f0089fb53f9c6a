"""Settings of a project that is migrated for the first time."""

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS = ["tests.early", *INSTALLED_APPS]
