"""The app: finds receivers, keeps triggers up to date after `migrate`, registers checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.db import connections
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate, pre_migrate
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class PgSignalsConfig(AppConfig):
    """pgsignals in INSTALLED_APPS."""

    name = "pgsignals"
    verbose_name = _("PostgreSQL events")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import every app's `receivers.py`, and register what Django is to call."""
        from . import checks  # noqa: F401
        from .context import install
        from .durable import schema
        from .triggers import sync

        # Once for each `migrate`, not once for each app: the sender is this app alone.
        post_migrate.connect(sync.after_migrate, sender=self, dispatch_uid="pgsignals.sync")
        pre_migrate.connect(schema.before_migrate, sender=self, dispatch_uid="pgsignals.log")
        connection_created.connect(install, dispatch_uid="pgsignals.context")
        for connection in connections.all(initialized_only=True):
            install(connection)
        autodiscover_modules("receivers")
