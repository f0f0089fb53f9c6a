"""The app's configuration."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class FlightsConfig(AppConfig):
    name = "demo_project.flights"
    label = "flights"
    verbose_name = _("Flights")
    default_auto_field = "django.db.models.BigAutoField"
