"""One column of every kind that Django and django.contrib.postgres have."""

from __future__ import annotations

from typing import Any

from django.contrib.postgres import fields as pg
from django.contrib.postgres.search import SearchVectorField
from django.db import models
from django.db.models.functions import Upper

from pgsignals import Notify


class Celsius(models.DecimalField):  # type: ignore[type-arg]
    """A field of a project's own, with from_db_value: what a query gives is text with a unit."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return None if value is None else f"{value} °C"


class Mood(models.TextField):  # type: ignore[type-arg]
    """A type that PostgreSQL has only because this project made it."""

    def db_type(self, connection: Any) -> str:
        return "mood"


class Code(models.Model):
    """Referred to by a key that is no integer."""

    code = models.UUIDField(primary_key=True)


EVERY_FIELD = {
    "big": models.BigIntegerField(null=True),
    "binary": models.BinaryField(null=True),
    "boolean": models.BooleanField(null=True),
    "char": models.CharField(max_length=200, null=True),
    "date": models.DateField(null=True),
    "datetime": models.DateTimeField(null=True),
    "decimal": models.DecimalField(max_digits=30, decimal_places=10, null=True),
    "duration": models.DurationField(null=True),
    "email": models.EmailField(null=True),
    "file": models.FileField(null=True),
    "file_path": models.FilePathField(path="/", null=True),
    "float": models.FloatField(null=True),
    "generated": models.GeneratedField(
        expression=Upper("char"), output_field=models.CharField(max_length=200), db_persist=True
    ),
    "ip": models.GenericIPAddressField(null=True),
    "image": models.ImageField(null=True),
    "integer": models.IntegerField(null=True),
    "json": models.JSONField(null=True),
    "positive_big": models.PositiveBigIntegerField(null=True),
    "positive": models.PositiveIntegerField(null=True),
    "positive_small": models.PositiveSmallIntegerField(null=True),
    "slug": models.SlugField(null=True),
    "small": models.SmallIntegerField(null=True),
    "text": models.TextField(null=True),
    "time": models.TimeField(null=True),
    "url": models.URLField(null=True),
    "uuid": models.UUIDField(null=True),
    "foreign": models.ForeignKey(Code, models.CASCADE, null=True, related_name="+"),
    "one_to_one": models.OneToOneField(Code, models.CASCADE, null=True, related_name="+"),
    "hstore": pg.HStoreField(null=True),
    "search": SearchVectorField(null=True),
    "integer_range": pg.IntegerRangeField(null=True),
    "big_range": pg.BigIntegerRangeField(null=True),
    "decimal_range": pg.DecimalRangeField(null=True),
    "datetime_range": pg.DateTimeRangeField(null=True),
    "date_range": pg.DateRangeField(null=True),
    "integers": pg.ArrayField(models.IntegerField(), null=True),
    "texts": pg.ArrayField(models.TextField(), null=True),
    "decimals": pg.ArrayField(models.DecimalField(max_digits=10, decimal_places=3), null=True),
    "booleans": pg.ArrayField(models.BooleanField(), null=True),
    "floats": pg.ArrayField(models.FloatField(), null=True),
    "datetimes": pg.ArrayField(models.DateTimeField(), null=True),
    "durations": pg.ArrayField(models.DurationField(), null=True),
    "uuids": pg.ArrayField(models.UUIDField(), null=True),
    "jsons": pg.ArrayField(models.JSONField(), null=True),
    "ranges": pg.ArrayField(pg.DateTimeRangeField(), null=True),
    "grid": pg.ArrayField(pg.ArrayField(models.IntegerField(), size=2), null=True),
    "cube": pg.ArrayField(pg.ArrayField(pg.ArrayField(models.CharField(max_length=5))), null=True),
    "celsius": Celsius(max_digits=5, decimal_places=1, null=True),
    "temperatures": pg.ArrayField(Celsius(max_digits=5, decimal_places=1), null=True),
    "mood": Mood(null=True),
}


class Everything(models.Model):
    locals().update(EVERY_FIELD)

    class Meta:
        constraints = [Notify(name="everything_events", fields=list(EVERY_FIELD))]


class SmallKey(models.Model):
    id = models.SmallAutoField(primary_key=True)

    class Meta:
        constraints = [Notify(name="small_key_events")]


class PlainKey(models.Model):
    id = models.AutoField(primary_key=True)

    class Meta:
        constraints = [Notify(name="plain_key_events")]


class DecimalKey(models.Model):
    id = models.DecimalField(primary_key=True, max_digits=20, decimal_places=5)

    class Meta:
        constraints = [Notify(name="decimal_key_events")]


class DateTimeKey(models.Model):
    id = models.DateTimeField(primary_key=True)

    class Meta:
        constraints = [Notify(name="datetime_key_events")]


class Number(models.Field):  # type: ignore[type-arg]
    """numeric without bounds, so that NaN and infinity fit."""

    def db_type(self, connection: Any) -> str:
        return "numeric"


class Measurement(models.Model):
    value = Number(null=True)

    class Meta:
        constraints = [Notify(name="measurement_events", fields=["value"])]
