"""The tests' settings, with pages. PGSIGNALS_TEST_DATABASE names the database."""

from ..settings import *  # noqa: F403
from ..settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.staticfiles", "tests.live"]
MIDDLEWARE = [
    "demo_project.csp.content_security_policy",
    *MIDDLEWARE[:1],
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    *MIDDLEWARE[1:],
]
ROOT_URLCONF = "tests.live.urls"
LOGIN_URL = "admin:login"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {
        "pgsignals": {"handlers": ["console"], "level": "INFO"},
        "django.request": {"handlers": ["console"], "level": "ERROR", "propagate": False},
    },
}
PGSIGNALS = {"LIVE_ACCESS": "tests.live.access.Access"}
