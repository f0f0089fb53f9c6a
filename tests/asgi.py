"""The ASGI applications that the tests serve with real servers.

`application` has a WebSocket and nothing else of ours; `with_relay_everywhere` and `with_relay_all` run the relay.
"""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import path  # noqa: E402

from pgsignals.asgi import with_relay  # noqa: E402
from pgsignals.live.consumer import PgEventConsumer  # noqa: E402


class Consumer(PgEventConsumer):
    """Lets whoever is logged in hear of the channel app_events too."""

    def can_subscribe(self, user, topic):
        return topic == "channel:app_events" or super().can_subscribe(user, topic)


application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": AuthMiddlewareStack(URLRouter([path("ws/pg/", Consumer.as_asgi())])),
    }
)
with_relay_everywhere = with_relay(application)
with_relay_all = with_relay(application, receivers="all")
with_relay_nowhere = with_relay(application, database="nowhere")
