"""A small shop: the models that most tests write to."""

from __future__ import annotations

import uuid

from django.db import models

from pgsignals import Notify


class Customer(models.Model):
    """Announces its keys only."""

    name = models.CharField(max_length=100)

    class Meta:
        constraints = [Notify(name="customer_events")]


class Order(models.Model):
    """Announces values, a foreign key among them, from columns with names of their own."""

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, null=True)
    status = models.CharField(max_length=20, default="new", db_column="state")
    total = models.DecimalField(max_digits=12, decimal_places=2, default=0)
    note = models.TextField(default="", blank=True)
    placed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [Notify(name="order_events", fields=["status", "total", "customer"])]


class Stamped(models.Model):
    """An abstract base: each child declares under a name of its own."""

    title = models.TextField(default="")

    class Meta:
        abstract = True
        constraints = [Notify(name="%(app_label)s_%(class)s_events", fields=["title"])]


class Article(Stamped):
    class Meta(Stamped.Meta):
        pass


class Page(Stamped):
    slug = models.TextField(primary_key=True)

    class Meta(Stamped.Meta):
        pass


class Token(models.Model):
    """A UUID as its key; announces inserts and deletes only."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    label = models.TextField(default="")

    class Meta:
        constraints = [Notify(name="token_events", on=("insert", "delete"), fields=["label"])]


class Line(models.Model):
    """A composite key."""

    pk = models.CompositePrimaryKey("order_number", "position")
    order_number = models.IntegerField()
    position = models.TextField()
    quantity = models.IntegerField(default=1)

    class Meta:
        constraints = [Notify(name="line_events", fields=["quantity"])]


class Silent(models.Model):
    """Announces nothing."""

    name = models.TextField(default="")
