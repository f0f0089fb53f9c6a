"""Models that the tests declare, each with something that a declaration may stumble over."""

from __future__ import annotations

import uuid

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager
from django.contrib.postgres import fields as pg
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Upper

from pgsignals import Notify


class Maker(models.Model):
    """What a foreign key refers to."""

    name = models.TextField(default="")


class Thing(models.Model):
    """Declares nothing itself: each test declares what it needs."""

    class Colour(models.TextChoices):
        RED = "r", "red"
        BLUE = "b", "blue"

    title = models.TextField(default="", null=True)
    status = models.CharField(max_length=20, default="new", db_column="state of it")
    number = models.IntegerField(default=0, null=True)
    other = models.IntegerField(default=0)
    price = models.DecimalField(max_digits=12, decimal_places=2, default=0, null=True)
    day = models.DateField(null=True)
    moment = models.DateTimeField(null=True)
    lasts = models.DurationField(null=True)
    active = models.BooleanField(default=False, null=True)
    colour = models.CharField(max_length=1, choices=Colour.choices, default=Colour.RED)
    token = models.UUIDField(default=uuid.UUID(int=0))
    data = models.JSONField(null=True)
    blob = models.BinaryField(null=True)
    address = models.GenericIPAddressField(null=True)
    numbers = pg.ArrayField(models.IntegerField(), null=True)
    maker = models.ForeignKey(Maker, models.CASCADE, null=True, db_column="made by")
    parent = models.ForeignKey("self", models.CASCADE, null=True, related_name="children")
    tags = models.ManyToManyField(Maker, related_name="+")
    upper = models.GeneratedField(expression=Upper("title"), output_field=models.TextField(), db_persist=True)


class Nickname(Thing):
    """Another name for the same table."""

    class Meta:
        proxy = True


class Cell(models.Model):
    """A composite key."""

    pk = models.CompositePrimaryKey("row", "column")
    row = models.IntegerField()
    column = models.TextField()
    value = models.IntegerField(default=0)


class Place(models.Model):
    """A parent with a table of its own."""

    name = models.TextField(default="")

    class Meta:
        constraints = [Notify(name="place_events", fields=["name"])]


class Restaurant(Place):
    """Its table has the columns that it adds, and the way to the parent."""

    stars = models.IntegerField(default=0)

    class Meta:
        constraints = [Notify(name="restaurant_events", fields="__all__", watch=["stars"])]


class Ledger(models.Model):
    """Two declarations, each with its own fields, watch and condition."""

    account = models.TextField(default="")
    amount = models.IntegerField(default=0)
    comment = models.TextField(default="")

    class Meta:
        constraints = [
            Notify(name="ledger_all", fields="__all__", exclude=["comment"]),
            Notify(name="ledger_large", on=["insert", "update"], watch=["amount"], when=Q(amount__gt=F("id") + 100)),
        ]


class Named(models.Model):
    """Each child declares under a name of its own."""

    title = models.TextField(default="")

    class Meta:
        abstract = True
        constraints = [Notify(name="%(app_label)s_%(class)s", fields="__all__", when=Q(title__gt=""))]


class Book(Named):
    class Meta(Named.Meta):
        pass


class Film(Named):
    minutes = models.IntegerField(default=0)

    class Meta(Named.Meta):
        pass


class Member(AbstractBaseUser):
    """May stand in for auth.User."""

    name = models.TextField(unique=True)
    objects = BaseUserManager["Member"]()

    USERNAME_FIELD = "name"

    class Meta:
        constraints = [Notify(name="member_events", exclude=["password"])]


class Sample(models.Model):
    """A column of each kind that travels in a way of its own."""

    integer = models.IntegerField(null=True)
    boolean = models.BooleanField(null=True)
    float = models.FloatField(null=True)
    decimal = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    char = models.CharField(max_length=20, null=True)
    text = models.TextField(null=True)
    uuid = models.UUIDField(null=True)
    date = models.DateField(null=True)
    time = models.TimeField(null=True)
    moment = models.DateTimeField(null=True)
    duration = models.DurationField(null=True)
    binary = models.BinaryField(null=True)
    json = models.JSONField(null=True)
    address = models.GenericIPAddressField(null=True)
    numbers = pg.ArrayField(models.IntegerField(), null=True)
    texts = pg.ArrayField(models.TextField(), null=True)
    range = pg.IntegerRangeField(null=True)
    days = pg.DateRangeField(null=True)


class Tagged(models.Model):
    """A key that is no number."""

    slug = models.UUIDField(primary_key=True)

    class Meta:
        constraints = [Notify(name="tagged_events")]
