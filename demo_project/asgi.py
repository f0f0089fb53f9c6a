"""Pages, WebSockets and the relay, in one process.

`with_relay` is what makes a `listen` process unnecessary for live pages: the relay runs beside them and feeds the layer
in this process's memory. Receivers are called where `listen` runs, and here those with everywhere=True.
"""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo_project.settings")
pages = get_asgi_application()

# What follows imports models, and these need the apps that the line above has loaded.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import path  # noqa: E402

from pgsignals.asgi import with_relay  # noqa: E402
from pgsignals.live.consumer import PgEventConsumer  # noqa: E402

sockets = URLRouter([path("ws/pg/", PgEventConsumer.as_asgi())])

application = with_relay(
    ProtocolTypeRouter(
        {
            "http": ASGIStaticFilesHandler(pages),
            "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(sockets)),
        }
    ),
)
