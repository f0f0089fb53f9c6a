"""The tests' settings with a cache in the process's memory, and pages that show what is in it."""

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.cached"]
ROOT_URLCONF = "tests.cached.urls"
WSGI_APPLICATION = "tests.wsgi.application"
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "rows": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "rows", "TIMEOUT": 300},
}

# The tests wait for what the relay says.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"process": {"format": "%(process)d %(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "process"}},
    "loggers": {"pgsignals": {"handlers": ["console"], "level": "DEBUG"}},
}
