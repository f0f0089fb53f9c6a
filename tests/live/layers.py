"""The settings of live pages, with the channel layer that PGSIGNALS_TEST_LAYER holds as JSON, or one in memory."""

import json
import os

from .settings import *  # noqa: F403
from .settings import DATABASES, INSTALLED_APPS

_said = os.environ.get("PGSIGNALS_TEST_LAYER")
CHANNEL_LAYERS = {
    "default": json.loads(_said) if _said else {"BACKEND": "channels.layers.InMemoryChannelLayer"},
}
if "channels_postgres" in CHANNEL_LAYERS["default"]["BACKEND"]:
    INSTALLED_APPS = [*INSTALLED_APPS, "channels_postgres"]
    CHANNEL_LAYERS["default"]["CONFIG"] = DATABASES["default"]
