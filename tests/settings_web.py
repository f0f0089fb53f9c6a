"""The tests' settings with an app that has receivers."""

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.web"]

# The tests wait for what the relay says.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"pgsignals": {"handlers": ["console"], "level": "INFO"}},
}
