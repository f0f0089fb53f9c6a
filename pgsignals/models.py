"""What the durable side keeps, as Django's admin and queries see it. The tables are made by durable/schema.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from .tables import DEAD, DELAYED, GROUP, IDENTITY, LOG, PARKED, PARTITION, PROCESSED, WORKER

if TYPE_CHECKING:
    _Integer = models.BigIntegerField[int, int]
    _Text = models.TextField[str, str]
else:
    _Integer, _Text = models.BigIntegerField, models.TextField


class TransactionField(_Integer):
    """A transaction's id (xid8), which PostgreSQL gives as text."""

    def db_type(self, connection: Any) -> str:
        """xid8."""
        return "xid8"

    def rel_db_type(self, connection: Any) -> str:
        """xid8."""
        return "xid8"

    def from_db_value(self, value: Any, *args: Any) -> int | None:
        """The number."""
        return None if value is None else int(value)


class SnapshotField(_Text):
    """Which transactions were over at a moment (pg_snapshot)."""

    def db_type(self, connection: Any) -> str:
        """pg_snapshot."""
        return "pg_snapshot"


class Stored(models.Model):
    """An event as the log, and what is copied from it, keep it."""

    xid = TransactionField(_("transaction"))
    at = models.DateTimeField(_("at"))
    source = models.CharField(_("source"), max_length=255, help_text=_("The model's label, or the channel."))
    op = models.CharField(
        _("operation"),
        max_length=1,
        choices=[("i", "insert"), ("u", "update"), ("d", "delete"), ("t", "truncate"), ("m", "message")],
    )
    key = models.TextField(_("key"), help_text=_("As JSON; events of a key are handled in order."))
    slot = models.SmallIntegerField(_("slot"))
    head = models.TextField(_("head"))
    body = models.TextField(_("body"))

    class Meta:
        abstract = True


class LogEntry(Stored):
    """An event in the log."""

    id = models.BigAutoField(primary_key=True)
    rings = models.BooleanField(_("rings"))

    class Meta:
        db_table = LOG
        verbose_name = _("event")
        verbose_name_plural = _("log")

    def __str__(self) -> str:
        return f"{self.pk}: {self.get_op_display()} {self.source} {self.key}"


class Group(models.Model):
    """A named consumer of the log."""

    name = models.CharField(_("name"), max_length=100, primary_key=True)
    partitions = models.SmallIntegerField(_("partitions"))
    atomic = models.BooleanField(_("atomic"))
    paused_at = models.DateTimeField(_("paused at"), null=True, blank=True)
    created_at = models.DateTimeField(_("created at"))

    class Meta:
        db_table = GROUP
        verbose_name = _("group")
        verbose_name_plural = _("groups")

    def __str__(self) -> str:
        return self.name


class Partition(models.Model):
    """A share of a group's keys: its position in the log, and who works on it."""

    id = models.BigAutoField(primary_key=True)
    group_name = models.CharField(_("group"), max_length=100)
    number = models.SmallIntegerField(_("number"))
    since = SnapshotField(_("handled up to"))
    until = SnapshotField(_("being handled up to"))
    since_floor = models.BigIntegerField()
    until_floor = models.BigIntegerField()
    until_ceiling = models.BigIntegerField()
    last_id = models.BigIntegerField(_("last event"))
    owner = models.CharField(_("worker"), max_length=200, null=True)  # noqa: DJ001 - nobody is not a name
    epoch = models.BigIntegerField(_("epoch"))
    leased_until = models.DateTimeField(_("leased until"), null=True)
    claimed_id = models.BigIntegerField(_("claimed up to"), null=True)
    claims = models.IntegerField(_("claims"))
    careful_id = models.BigIntegerField(null=True)
    waits_until = models.DateTimeField(_("waits until"), null=True)
    failures = models.IntegerField(_("failures in a row"))
    handled = models.BigIntegerField(_("handled"))
    moved_at = models.DateTimeField(_("moved at"))

    class Meta:
        db_table = PARTITION
        verbose_name = _("partition")
        verbose_name_plural = _("partitions")
        unique_together = [("group_name", "number")]

    def __str__(self) -> str:
        return f"{self.group_name}/{self.number}"


class Worker(models.Model):
    """A process's thread that works for a group."""

    name = models.CharField(_("name"), max_length=200, primary_key=True)
    group_name = models.CharField(_("group"), max_length=100)
    started_at = models.DateTimeField(_("started at"))
    seen_at = models.DateTimeField(_("seen at"))

    class Meta:
        db_table = WORKER
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return self.name


class ParkedEvent(Stored):
    """An event that failed in a group, or waits behind one of its key that did."""

    id = models.BigAutoField(primary_key=True)
    group_name = models.CharField(_("group"), max_length=100)
    event_id = models.BigIntegerField(_("event"))
    attempts = models.IntegerField(_("attempts"))
    next_at = models.DateTimeField(_("next attempt"))
    error = models.TextField(_("error"), blank=True)

    class Meta:
        db_table = PARKED
        verbose_name = _("parked event")
        verbose_name_plural = _("parked events")
        unique_together = [("group_name", "event_id")]

    def __str__(self) -> str:
        return f"{self.group_name}: {self.event_id}"


class DeadLetter(Stored):
    """An event that a group gave up."""

    id = models.BigAutoField(primary_key=True)
    group_name = models.CharField(_("group"), max_length=100)
    event_id = models.BigIntegerField(_("event"))
    attempts = models.IntegerField(_("attempts"))
    error = models.TextField(_("error"))
    traceback = models.TextField(_("traceback"))
    died_at = models.DateTimeField(_("died at"))

    class Meta:
        db_table = DEAD
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")

    def __str__(self) -> str:
        return f"{self.group_name}: {self.event_id}"


class DelayedMessage(models.Model):
    """A message that is not due yet."""

    id = models.BigAutoField(primary_key=True)
    due_at = models.DateTimeField(_("due at"))
    channel = models.CharField(_("channel"), max_length=63)
    key = models.TextField(_("key"))
    context = models.TextField(_("context"), blank=True)
    payload = models.TextField(_("payload"))

    class Meta:
        db_table = DELAYED
        verbose_name = _("delayed message")
        verbose_name_plural = _("delayed messages")

    def __str__(self) -> str:
        return f"{self.channel} at {self.due_at}"


class Processed(models.Model):
    """That something was done for an event; see durable.processed_once."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(_("name"), max_length=200)
    event_id = models.BigIntegerField(_("event"))
    at = models.DateTimeField(_("at"))

    class Meta:
        db_table = PROCESSED
        verbose_name = _("processed event")
        verbose_name_plural = _("processed events")
        unique_together = [("name", "event_id")]

    def __str__(self) -> str:
        return f"{self.name}: {self.event_id}"


class Identity(models.Model):
    """Which server the log's transaction ids are of."""

    id = models.SmallIntegerField(primary_key=True)
    system_identifier = models.CharField(_("system identifier"), max_length=40)
    since = models.DateTimeField(_("since"))

    class Meta:
        db_table = IDENTITY
        verbose_name = _("identity")
        verbose_name_plural = _("identities")

    def __str__(self) -> str:
        return self.system_identifier
