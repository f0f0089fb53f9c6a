"""Models whose events are kept in the log."""

from __future__ import annotations

from django.db import models

from pgsignals import Notify


class Account(models.Model):
    """Ordered by its own key, all values."""

    owner = models.CharField(max_length=100, default="")
    balance = models.IntegerField(default=0)
    note = models.TextField(default="")

    class Meta:
        constraints = [Notify(name="account_log", fields="__all__", durable=True)]


class Entry(models.Model):
    """Ordered by the account that it is about."""

    account = models.ForeignKey(Account, on_delete=models.CASCADE)
    amount = models.IntegerField(default=0)

    class Meta:
        constraints = [Notify(name="entry_log", fields=["amount"], durable=True, key="account")]


class Effect(models.Model):
    """What receivers do for an event."""

    group = models.CharField(max_length=100)
    event_id = models.BigIntegerField()
    key = models.TextField(default="")
    said = models.TextField(default="")
