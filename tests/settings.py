"""Settings of the tests, and of the commands that tests run in processes of their own."""

import os

from .postgres import main_server

_place = main_server()
# A child process of a test works in the test's database; the test says so in PGSIGNALS_TEST_DATABASE.
_place["NAME"] = os.environ.get("PGSIGNALS_TEST_DATABASE", _place["NAME"])

DATABASES = {
    "default": {"ENGINE": "django.db.backends.postgresql", **_place},
    "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
DATABASE_ROUTERS = ["tests.routers.OneAppOnSQLite"]

SECRET_KEY = "of no use outside the tests"
DEBUG = False
USE_TZ = True
TIME_ZONE = "UTC"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.postgres",
    "channels",
    "pgsignals",
    "tests.shop",
    "tests.declaring",
    "tests.ledger",
    "tests.kinds.apps.KindsConfig",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
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
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# The URL of a Redis server, where a test has started one.
if _redis := os.environ.get("PGSIGNALS_TEST_REDIS"):
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [_redis]}}}
elif os.environ.get("PGSIGNALS_TEST_LAYER") == "memory":
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

# The tests read what an ImageField stores, which needs no Pillow.
SILENCED_SYSTEM_CHECKS = ["fields.E210"]

PGSIGNALS: dict[str, object] = {}
