"""Brings what some of the kinds need into the database before their tables."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.contrib.postgres.signals import get_hstore_oids, register_type_handlers
from django.db import connections
from django.db.models.signals import pre_migrate


def create_types(using: str, **kwargs: Any) -> None:
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
        cursor.execute("SELECT to_regtype('mood') IS NULL")
        if cursor.fetchone()[0]:
            cursor.execute("CREATE TYPE mood AS ENUM ('calm', 'stormy')")
    get_hstore_oids.cache_clear()
    register_type_handlers(connection)


class KindsConfig(AppConfig):
    name = "tests.kinds"

    def ready(self) -> None:
        pre_migrate.connect(create_types, sender=self, dispatch_uid="tests.kinds")
