"""What writers say that they did, in the same transaction; and what receivers saw."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Journal(models.Model):
    """The truth: a row for each event that its transaction must lead to. In the order of writes, for each key."""

    op = models.CharField(max_length=10)
    key = models.BigIntegerField()
    tag = models.BigIntegerField()


class Seen(models.Model):
    """An event that a group's receiver has handled."""

    group = models.CharField(max_length=20)
    event_id = models.BigIntegerField()
    op = models.CharField(max_length=10)
    key = models.BigIntegerField()
    tag = models.BigIntegerField()
    pid = models.IntegerField()
    at = models.DateTimeField(db_default=Now())
