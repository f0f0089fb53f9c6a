"""The WSGI application that the tests serve with real servers; it runs the relay."""

import os

from django.core.wsgi import get_wsgi_application

from pgsignals.wsgi import with_relay

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings_wsgi")
pages = get_wsgi_application()
application = with_relay(pages)
nowhere = with_relay(pages, database="nowhere")
