from __future__ import annotations

from django.db import models

from pgsignals import Notify


class Bird(models.Model):
    name = models.CharField(max_length=20)

    class Meta:
        constraints = [Notify(name="bird_log", fields=["name"], durable=True)]
