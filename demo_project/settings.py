"""Settings of the demo. It serves one visitor on the machine itself; nothing here is meant for a server."""

import os
import sys
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.management.utils import get_random_secret_key

from . import server

BASE_DIR = Path(__file__).resolve().parent


def _from_url(url: str) -> dict[str, object]:
    """postgres://user:password@host:port/name?sslmode=require, as Django spells it."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    return {
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": options.pop("host", unquote(parts.hostname or "")),
        "PORT": str(parts.port or ""),
        "OPTIONS": options,
    }


def _from_environment() -> dict[str, object]:
    """libpq reads PGHOST, PGPORT, PGUSER and PGPASSWORD by itself; Django insists on a name."""
    if service := os.environ.get("PGSERVICE"):
        return {"OPTIONS": {"service": service}}
    return {"NAME": os.environ.get("PGDATABASE") or os.environ.get("PGUSER") or "postgres"}


def _database() -> dict[str, object]:
    if url := os.environ.get("DATABASE_URL"):
        return _from_url(url)
    if server.configured():
        return _from_environment()
    _insist_on_running()
    return dict(server.place())


def _insist_on_running() -> None:
    """Whoever opens a second terminal before the first should read what to do, not a traceback about a socket."""
    needs_none = {"demo", "help", "check", "makemigrations", "version", "test", "makemessages", "compilemessages"}
    command = sys.argv[1] if Path(sys.argv[0]).name == "manage.py" and len(sys.argv) > 1 else "help"
    if command in needs_none or command.startswith("-") or {"-h", "--help"} & set(sys.argv) or server.is_running():
        return
    raise SystemExit(
        f"The demo's PostgreSQL is not running, and `manage.py {command}` needs it. "
        "Start it with `python manage.py demo` in another terminal, or name a database in DATABASE_URL."
    )


DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **_database()}}
server.offer_psql()

# Signs the session of one visitor; `manage.py demo` puts in a key that it keeps. A project's own is in its environment.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY") or get_random_secret_key()
DEBUG = False
# These names only, so that no other site can reach the page through a name of its own that leads here.
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]

DEMO_VISITOR: str | None = None
"""Name of the user who is logged in on the front page, from this machine. `manage.py demo` sets it for its process."""

INSTALLED_APPS = [
    "demo_project.flights.apps.FlightsConfig",  # before the admin: it adds to the admin's index
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",
    "django.contrib.staticfiles",
    "channels",
    "pgsignals",
]
MIDDLEWARE = [
    "demo_project.csp.content_security_policy",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "demo_project.urls"
ASGI_APPLICATION = "demo_project.asgi.application"

# One process serves the page and runs the relay (see asgi.py), so that a layer in its memory is enough.
# A `manage.py listen` in a process of its own needs one that crosses processes: channels_redis.
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
SILENCED_SYSTEM_CHECKS = ["pgsignals.W031"]  # which says just this

PGSIGNALS: dict[str, object] = {
    "CHANNELS": ["flights_clock", "flights_worker"],
    "LIVE_ACCESS": "demo_project.flights.access.StaffAccess",
    # Seconds. The visitor who kills a worker wants to see its partitions taken over, and not to wait for that.
    "LEASE": 3.0,
    "LOG_KEEP": 3600.0,
}

LANGUAGE_CODE = "en-us"
USE_TZ = True
TIME_ZONE = "America/New_York"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
LOGIN_URL = "admin:login"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"short": {"format": "{asctime} {message}", "datefmt": "%H:%M:%S", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "short"}},
    "loggers": {
        "pgsignals": {"handlers": ["console"], "level": "INFO", "propagate": False},
        "django.request": {"handlers": ["console"], "level": "ERROR", "propagate": False},
        "flights": {"handlers": ["console"], "level": os.environ.get("FLIGHTS_LOG", "WARNING")},
    },
}
