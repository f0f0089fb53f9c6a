"""A parcel, whose events are fast, and a letter, whose events are kept."""

from __future__ import annotations

import uuid

from django.db import models
from django.utils import timezone

from pgsignals import Notify


class Parcel(models.Model):
    class Status(models.TextChoices):
        HERE = "here", "here"
        GONE = "gone", "gone"
        LOST = "lost", "lost"

    name = models.CharField(max_length=100)
    status = models.CharField(max_length=10, choices=Status, default=Status.HERE)
    weight = models.IntegerField(default=1)
    owner = models.CharField(max_length=100, default="", blank=True)
    read_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]
        constraints = [Notify(name="parcel_events", fields=["status", "owner"])]

    def __str__(self) -> str:
        return self.name


class Delivery(Parcel):
    """A parcel as its carrier sees it."""

    class Meta:
        proxy = True


class Stop(models.Model):
    """What a new one would hold differs each time that it is asked."""

    parcel = models.ForeignKey(Parcel, models.CASCADE, db_constraint=False)
    code = models.UUIDField(default=uuid.uuid4)
    at = models.DateTimeField(default=timezone.now)


class Letter(models.Model):
    text = models.CharField(max_length=100)
    stamps = models.IntegerField(default=1)
    owner = models.CharField(max_length=100, default="")

    class Meta:
        ordering = ["pk"]
        constraints = [Notify(name="letter_log", fields=["text", "owner"], durable=True)]

    def __str__(self) -> str:
        return self.text


class Tag(models.Model):
    """A key that is the user's own text."""

    name = models.CharField(max_length=100, primary_key=True)

    class Meta:
        constraints = [Notify(name="tag_events")]

    def __str__(self) -> str:
        return self.name
