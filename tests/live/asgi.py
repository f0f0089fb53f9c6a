"""Pages, WebSockets and, in `with_relay`, the relay."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.live.settings")
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import path  # noqa: E402

from pgsignals.asgi import with_relay as in_process  # noqa: E402
from pgsignals.live.consumer import PgEventConsumer  # noqa: E402

sockets = URLRouter([path("ws/pg/", PgEventConsumer.as_asgi())])
application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(get_asgi_application()),
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(sockets)),
    }
)
with_relay = in_process(application)
