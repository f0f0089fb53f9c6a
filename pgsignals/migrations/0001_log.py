"""The log. Its tables are made by durable/schema.py, before every `migrate`; here Django is told of them."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

import pgsignals.models
from pgsignals.durable import schema


def make(apps: Any, editor: Any) -> None:
    """For who runs this migration alone, without the signal before it."""
    if editor.connection.vendor == "postgresql":
        schema.ensure(editor.connection)


def drop(apps: Any, editor: Any) -> None:
    """Refused while durable triggers would fail without the log."""
    if editor.connection.vendor == "postgresql":
        schema.remove(editor.connection)


class Migration(migrations.Migration):
    """Only PostgreSQL has the tables."""

    initial = True

    dependencies = []

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(make, drop, hints={"model_name": "logentry"})],
            state_operations=[
                migrations.CreateModel(
                    name="DeadLetter",
                    fields=[
                        ("xid", pgsignals.models.TransactionField(verbose_name="transaction")),
                        ("at", models.DateTimeField(verbose_name="at")),
                        (
                            "source",
                            models.CharField(
                                help_text="The model's label, or the channel.", max_length=255, verbose_name="source"
                            ),
                        ),
                        (
                            "op",
                            models.CharField(
                                choices=[
                                    ("i", "insert"),
                                    ("u", "update"),
                                    ("d", "delete"),
                                    ("t", "truncate"),
                                    ("m", "message"),
                                ],
                                max_length=1,
                                verbose_name="operation",
                            ),
                        ),
                        (
                            "key",
                            models.TextField(
                                help_text="As JSON; events of a key are handled in order.", verbose_name="key"
                            ),
                        ),
                        ("slot", models.SmallIntegerField(verbose_name="slot")),
                        ("head", models.TextField(verbose_name="head")),
                        ("body", models.TextField(verbose_name="body")),
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("group_name", models.CharField(max_length=100, verbose_name="group")),
                        ("event_id", models.BigIntegerField(verbose_name="event")),
                        ("attempts", models.IntegerField(verbose_name="attempts")),
                        ("error", models.TextField(verbose_name="error")),
                        ("traceback", models.TextField(verbose_name="traceback")),
                        ("died_at", models.DateTimeField(verbose_name="died at")),
                    ],
                    options={
                        "verbose_name": "dead letter",
                        "verbose_name_plural": "dead letters",
                        "db_table": "pgsignals_dead",
                    },
                ),
                migrations.CreateModel(
                    name="DelayedMessage",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("due_at", models.DateTimeField(verbose_name="due at")),
                        ("channel", models.CharField(max_length=63, verbose_name="channel")),
                        ("key", models.TextField(verbose_name="key")),
                        ("context", models.TextField(blank=True, verbose_name="context")),
                        ("payload", models.TextField(verbose_name="payload")),
                    ],
                    options={
                        "verbose_name": "delayed message",
                        "verbose_name_plural": "delayed messages",
                        "db_table": "pgsignals_delayed",
                    },
                ),
                migrations.CreateModel(
                    name="Group",
                    fields=[
                        (
                            "name",
                            models.CharField(max_length=100, primary_key=True, serialize=False, verbose_name="name"),
                        ),
                        ("partitions", models.SmallIntegerField(verbose_name="partitions")),
                        ("atomic", models.BooleanField(verbose_name="atomic")),
                        ("paused_at", models.DateTimeField(blank=True, null=True, verbose_name="paused at")),
                        ("created_at", models.DateTimeField(verbose_name="created at")),
                    ],
                    options={
                        "verbose_name": "group",
                        "verbose_name_plural": "groups",
                        "db_table": "pgsignals_group",
                    },
                ),
                migrations.CreateModel(
                    name="Identity",
                    fields=[
                        ("id", models.SmallIntegerField(primary_key=True, serialize=False)),
                        ("system_identifier", models.CharField(max_length=40, verbose_name="system identifier")),
                        ("since", models.DateTimeField(verbose_name="since")),
                    ],
                    options={
                        "verbose_name": "identity",
                        "verbose_name_plural": "identities",
                        "db_table": "pgsignals_identity",
                    },
                ),
                migrations.CreateModel(
                    name="LogEntry",
                    fields=[
                        ("xid", pgsignals.models.TransactionField(verbose_name="transaction")),
                        ("at", models.DateTimeField(verbose_name="at")),
                        (
                            "source",
                            models.CharField(
                                help_text="The model's label, or the channel.", max_length=255, verbose_name="source"
                            ),
                        ),
                        (
                            "op",
                            models.CharField(
                                choices=[
                                    ("i", "insert"),
                                    ("u", "update"),
                                    ("d", "delete"),
                                    ("t", "truncate"),
                                    ("m", "message"),
                                ],
                                max_length=1,
                                verbose_name="operation",
                            ),
                        ),
                        (
                            "key",
                            models.TextField(
                                help_text="As JSON; events of a key are handled in order.", verbose_name="key"
                            ),
                        ),
                        ("slot", models.SmallIntegerField(verbose_name="slot")),
                        ("head", models.TextField(verbose_name="head")),
                        ("body", models.TextField(verbose_name="body")),
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("rings", models.BooleanField(verbose_name="rings")),
                    ],
                    options={
                        "verbose_name": "event",
                        "verbose_name_plural": "log",
                        "db_table": "pgsignals_log",
                    },
                ),
                migrations.CreateModel(
                    name="Worker",
                    fields=[
                        (
                            "name",
                            models.CharField(max_length=200, primary_key=True, serialize=False, verbose_name="name"),
                        ),
                        ("group_name", models.CharField(max_length=100, verbose_name="group")),
                        ("started_at", models.DateTimeField(verbose_name="started at")),
                        ("seen_at", models.DateTimeField(verbose_name="seen at")),
                    ],
                    options={
                        "verbose_name": "worker",
                        "verbose_name_plural": "workers",
                        "db_table": "pgsignals_worker",
                    },
                ),
                migrations.CreateModel(
                    name="ParkedEvent",
                    fields=[
                        ("xid", pgsignals.models.TransactionField(verbose_name="transaction")),
                        ("at", models.DateTimeField(verbose_name="at")),
                        (
                            "source",
                            models.CharField(
                                help_text="The model's label, or the channel.", max_length=255, verbose_name="source"
                            ),
                        ),
                        (
                            "op",
                            models.CharField(
                                choices=[
                                    ("i", "insert"),
                                    ("u", "update"),
                                    ("d", "delete"),
                                    ("t", "truncate"),
                                    ("m", "message"),
                                ],
                                max_length=1,
                                verbose_name="operation",
                            ),
                        ),
                        (
                            "key",
                            models.TextField(
                                help_text="As JSON; events of a key are handled in order.", verbose_name="key"
                            ),
                        ),
                        ("slot", models.SmallIntegerField(verbose_name="slot")),
                        ("head", models.TextField(verbose_name="head")),
                        ("body", models.TextField(verbose_name="body")),
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("group_name", models.CharField(max_length=100, verbose_name="group")),
                        ("event_id", models.BigIntegerField(verbose_name="event")),
                        ("attempts", models.IntegerField(verbose_name="attempts")),
                        ("next_at", models.DateTimeField(verbose_name="next attempt")),
                        ("error", models.TextField(blank=True, verbose_name="error")),
                    ],
                    options={
                        "verbose_name": "parked event",
                        "verbose_name_plural": "parked events",
                        "db_table": "pgsignals_parked",
                        "unique_together": {("group_name", "event_id")},
                    },
                ),
                migrations.CreateModel(
                    name="Partition",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("group_name", models.CharField(max_length=100, verbose_name="group")),
                        ("number", models.SmallIntegerField(verbose_name="number")),
                        ("since", pgsignals.models.SnapshotField(verbose_name="handled up to")),
                        ("until", pgsignals.models.SnapshotField(verbose_name="being handled up to")),
                        ("since_floor", models.BigIntegerField()),
                        ("until_floor", models.BigIntegerField()),
                        ("until_ceiling", models.BigIntegerField()),
                        ("last_id", models.BigIntegerField(verbose_name="last event")),
                        ("owner", models.CharField(max_length=200, null=True, verbose_name="worker")),
                        ("epoch", models.BigIntegerField(verbose_name="epoch")),
                        ("leased_until", models.DateTimeField(null=True, verbose_name="leased until")),
                        ("claimed_id", models.BigIntegerField(null=True, verbose_name="claimed up to")),
                        ("claims", models.IntegerField(verbose_name="claims")),
                        ("careful_id", models.BigIntegerField(null=True)),
                        ("waits_until", models.DateTimeField(null=True, verbose_name="waits until")),
                        ("failures", models.IntegerField(verbose_name="failures in a row")),
                        ("handled", models.BigIntegerField(verbose_name="handled")),
                        ("moved_at", models.DateTimeField(verbose_name="moved at")),
                    ],
                    options={
                        "verbose_name": "partition",
                        "verbose_name_plural": "partitions",
                        "db_table": "pgsignals_partition",
                        "unique_together": {("group_name", "number")},
                    },
                ),
                migrations.CreateModel(
                    name="Processed",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("name", models.CharField(max_length=200, verbose_name="name")),
                        ("event_id", models.BigIntegerField(verbose_name="event")),
                        ("at", models.DateTimeField(verbose_name="at")),
                    ],
                    options={
                        "verbose_name": "processed event",
                        "verbose_name_plural": "processed events",
                        "db_table": "pgsignals_processed",
                        "unique_together": {("name", "event_id")},
                    },
                ),
            ],
        ),
    ]
