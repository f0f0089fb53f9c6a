"""What a declaration asks for, and what the trigger then says: watch, when, fields, exclude, channel, names, models."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, migrations, models
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.questioner import MigrationQuestioner
from django.db.migrations.state import ModelState, ProjectState
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery, Value, Window
from django.db.models.functions import Cast, Length, Lower, RowNumber
from django.db.models.lookups import Exact, GreaterThan
from django.test import override_settings
from django.test.utils import isolate_apps

from pgsignals import Notify, PgEvent, on_pg_event, wire
from pgsignals import checks as ours
from pgsignals.signals import pg_event
from pgsignals.triggers import rows as trigger_rows
from pgsignals.triggers import sql, sync
from pgsignals.triggers.declaration import declarations

from .conftest import Listener, connect
from .declaring.models import Book, Cell, Film, Ledger, Maker, Nickname, Place, Restaurant, Sample, Thing
from .fleet import Fleet, change, functions, installed, state, written
from .relaying import Box, only_receivers_of_this_test, relaying

Declare = Callable[..., None]
ByHand = Callable[[str, str], None]
Warned = tuple[psycopg.Connection, list[str]]


@pytest.fixture
def declare(listener: Listener) -> Iterator[Declare]:
    """Installs declarations as a migration does, and takes them away at the end."""
    made: list[tuple[type[models.Model], Notify]] = []

    def install(model: type[models.Model], **arguments: Any) -> None:
        declaration = Notify(**{"name": "declared_by_test", **arguments})
        with connection.schema_editor() as editor:
            editor.add_constraint(model, declaration)
        made.append((model, declaration))

    yield install
    with connection.schema_editor() as editor:
        for model, declaration in made:
            editor.remove_constraint(model, declaration)


@pytest.fixture
def by_hand(listener: Listener) -> Iterator[Callable[[str, str], None]]:
    """Changes a table behind Django's back, and changes it back at the end."""
    undo: list[str] = []

    def change(statement: str, back: str) -> None:
        with connect() as other:
            other.execute(statement)
        undo.append(back)

    yield change
    with connect() as other:
        for statement in reversed(undo):
            other.execute(statement)


@pytest.fixture
def warnings_of() -> Iterator[tuple[psycopg.Connection, list[str]]]:
    """A writer, and what the server warns it of."""
    heard: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            heard.append(f"{notice.message_primary} {notice.message_hint}")

    with connect() as writer:
        writer.add_notice_handler(hear)
        yield writer, heard


def ops(events: list[PgEvent]) -> list[tuple[str, Any]]:
    return [(event.op, event.pk) for event in events]


def announcing(listener: Listener) -> list[tuple[str, str]]:
    """Which declaration announced which operation."""
    return [(payload["d"], payload["o"]) for payload in said(listener)]


def said(listener: Listener) -> list[dict[str, Any]]:
    return [json.loads(notification.payload) for notification in listener.notifications()]


# watch.


def test_an_update_of_an_unwatched_field_is_silent(declare: Declare, listener: Listener) -> None:
    """Of one row, and of many."""
    declare(Thing, watch=["status"])
    thing, _ = Thing.objects.bulk_create([Thing(), Thing()])
    listener.notifications()
    thing.number = 5
    thing.save()
    Thing.objects.update(number=6)
    assert listener.events() == []


def test_an_update_of_a_watched_field_names_all_that_changed(declare: Declare, listener: Listener) -> None:
    declare(Thing, watch=["status", "price"])
    thing, _ = Thing.objects.bulk_create([Thing(), Thing()])
    listener.notifications()
    Thing.objects.filter(pk=thing.pk).update(status="paid", number=5)
    assert listener.event().changed == {"status", "number"}
    Thing.objects.update(price=1, title="t")
    assert [event.changed for event in listener.events()] == [{"price", "title", "upper"}] * 2


def test_rows_of_one_update_are_watched_one_by_one(declare: Declare, listener: Listener) -> None:
    declare(Thing, watch=["status"])
    kept, changed, both = Thing.objects.bulk_create([Thing(status="b"), Thing(status="a"), Thing(status="a", number=9)])
    listener.notifications()
    Thing.objects.update(status="b", number=F("number") % 9)
    assert {event.pk: event.changed for event in listener.events()} == {
        changed.pk: {"status"},
        both.pk: {"status", "number"},
    }
    assert kept.pk


def test_watch_narrows_neither_inserts_nor_deletes_nor_changes_of_the_key(declare: Declare, listener: Listener) -> None:
    """Alone, and among rows that are not announced; what is watched is NULL before and after."""
    declare(Thing, watch=["day"])
    Thing.objects.bulk_create([Thing(id=1), Thing(id=2), Thing(id=3)])
    Thing.objects.create(id=4)
    assert ops(listener.events()) == [("insert", number) for number in (1, 2, 3, 4)]
    Thing.objects.filter(id=1).update(id=11)
    assert ops(listener.events()) == [("delete", 1), ("insert", 11)]
    with connection.cursor() as cursor:
        cursor.execute("UPDATE declaring_thing SET id = CASE id WHEN 2 THEN 12 ELSE id END, number = 7")
    assert ops(listener.events()) == [("delete", 2), ("insert", 12)]
    Thing.objects.filter(id=3).delete()
    Thing.objects.all().delete()
    assert sorted(ops(listener.events())) == [("delete", number) for number in (3, 4, 11, 12)]
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE declaring_thing CASCADE")
    assert ops(listener.events()) == [("truncate", None)]


@pytest.mark.parametrize("name", ["maker", "maker_id"])
def test_a_foreign_key_is_watched_and_travels_by_its_name_or_its_attribute(
    declare: Declare, listener: Listener, name: str
) -> None:
    declare(Thing, watch=[name], fields=[name])
    maker = Maker.objects.create()
    thing = Thing.objects.create()
    listener.notifications()
    Thing.objects.update(number=3)
    Thing.objects.update(maker=maker)
    event = listener.event()
    assert (event.changed, event.pk) == ({"maker"}, thing.pk)
    assert event.old == {"maker": None}
    assert event.new is not None
    assert (event.new["maker"], event.new["maker_id"]) == (maker.pk, maker.pk)


def test_a_watched_value_that_differs_in_its_bytes_only_has_changed(declare: Declare, listener: Listener) -> None:
    """PostgreSQL takes 1.0 and 1.00 for equal; what is stored, and read, is not the same."""
    declare(Thing, watch=["data"], fields=["data"])
    Thing.objects.create(data=1.0)
    listener.notifications()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE declaring_thing SET data = '1.00'")
    assert listener.event().changed == {"data"}


# when.

A_UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
A_MOMENT = datetime(2026, 7, 10, 12, 30, tzinfo=UTC)
HOSTILE = [
    "$pgsignals$",
    "$pgsignals_ddl$",
    "$pgsignals_$",
    "'",
    "''; DROP TABLE declaring_thing; --",
    '"',
    "\\",
    "\\'",
    "%s %(a)s %% %",
    "{} {0} {ddl}",
    "$pgsignals$",
    "$old ${new} $$",
    "\n\r\t\x01",
    "é🛫",
    "_",
    "",
]

CONDITIONS: dict[str, Any] = {
    "exact": Q(number=1),
    "column": Q(status="paid"),
    "exact null": Q(number=None),
    "isnull": Q(number__isnull=True),
    "not isnull": Q(title__isnull=False),
    "in": Q(number__in=[1, 2]),
    "in with null": Q(number__in=[1, None]),
    "in nothing": Q(pk__in=[]),
    "not in nothing": ~Q(pk__in=[]),
    "gt": Q(number__gt=1),
    "range": Q(number__range=(1, 2)),
    "contains": Q(title__contains="b%"),
    "icontains": Q(title__icontains="B"),
    "startswith": Q(title__startswith="a"),
    "iexact": Q(title__iexact="A B"),
    "regex": Q(title__regex=r"^\S+\s\S+$"),
    "other column": Q(number__gt=F("other")),
    "sum": Q(number=F("other") + 1),
    "modulo": Q(number=F("other") % 2),
    "contains column": Q(title__contains=F("status")),
    "negated": ~Q(number=1),
    "negated or": ~(Q(number=1) | Q(title="a b")),
    "and": Q(number=1) & Q(status="paid"),
    "or": Q(number=1) | Q(status="paid"),
    "xor": Q(number=1) ^ Q(status="paid"),
    "empty": Q(),
    "pk": Q(pk=2),
    "pk in": Q(pk__in=[1, 3]),
    "key": Q(id__lt=3),
    "foreign key": Q(maker=1),
    "attname": Q(maker_id=1),
    "foreign keys": Q(maker__in=[1]),
    "foreign null": Q(maker__isnull=True),
    "decimal": Q(price=Decimal("1.50")),
    "date": Q(day__lte=date(2026, 7, 10)),
    "year": Q(day__year=2026),
    "moment": Q(moment__gte=A_MOMENT),
    "moment's date": Q(moment__date=date(2026, 7, 10)),
    "moment's hour": Q(moment__hour=12),
    "duration": Q(lasts__gt=timedelta(hours=-1)),
    "boolean": Q(active=True),
    "not boolean": ~Q(active=True),
    "choice": Q(colour=Thing.Colour.BLUE),
    "choices": Q(colour__in=[Thing.Colour.BLUE]),
    "uuid": Q(token=A_UUID),
    "json key": Q(data__a=1),
    "json path": Q(data__a__gt=0),
    "json null": Q(data__a=None),
    "json contains": Q(data__contains={"a": 1}),
    "json has key": Q(data__has_key="a"),
    "binary": Q(blob=b"\x00\xff'\\"),
    "address": Q(address="10.0.0.1"),
    "array": Q(numbers__contains=[1]),
    "array item": Q(numbers__0=1),
    "array length": Q(numbers__len=2),
    "generated": Q(upper="A B"),
    "lookup": GreaterThan(F("number"), F("other")),
    "function": GreaterThan(Length(Lower("title")), 3),
    "constant": Q(Value(True)),
}

ROWS: list[dict[str, Any]] = [
    {},
    {"title": None, "number": None, "price": None, "active": None},
    {
        "title": "A b%c",
        "status": "paid",
        "number": 1,
        "other": 0,
        "price": Decimal("1.50"),
        "day": date(2026, 7, 10),
        "moment": A_MOMENT,
        "lasts": timedelta(hours=-2),
        "active": True,
        "colour": "b",
        "token": A_UUID,
        "data": {"a": 1},
        "blob": b"\x00\xff'\\",
        "address": "10.0.0.1",
        "numbers": [1, 2],
    },
    {
        "title": "a b",
        "status": "b",
        "number": 2,
        "other": 3,
        "price": Decimal("1.51"),
        "day": date(2027, 1, 1),
        "moment": A_MOMENT - timedelta(days=1),
        "lasts": timedelta(minutes=-59),
        "active": False,
        "data": {"a": None},
        "blob": b"",
        "address": "::1",
        "numbers": [],
    },
]


def rows() -> list[Thing]:
    """The rows above, and the same once more, with keys from 1."""
    Maker.objects.bulk_create([Maker(id=1), Maker(id=2)])
    return [Thing(id=number, maker_id=number % 3 or None, **row) for number, row in enumerate([*ROWS, *ROWS], 1)]


@pytest.mark.parametrize("when", CONDITIONS.values(), ids=CONDITIONS)
def test_a_condition_picks_the_rows_that_a_query_picks(declare: Declare, listener: Listener, when: Any) -> None:
    """Inserted, updated and deleted, one by one and in bulk."""
    declare(Thing, when=when)
    made = rows()
    made[0].save(force_insert=True)
    made[1].save(force_insert=True)
    Thing.objects.bulk_create(made[2:])
    picked = {thing.pk for thing in Thing.objects.filter(when)}
    assert {event.pk for event in listener.events()} == picked
    Thing.objects.update(parent=1)
    for thing in made:
        Thing.objects.filter(pk=thing.pk).update(parent=2)
    assert sorted(event.pk for event in listener.events()) == sorted([*picked, *picked])
    Thing.objects.update(parent=None)
    listener.notifications()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM declaring_thing WHERE id = 1")
        cursor.execute("DELETE FROM declaring_thing WHERE id = 2")
        cursor.execute("DELETE FROM declaring_thing")
    events = listener.events()
    assert {event.pk for event in events} == picked
    assert not any(event.incomplete for event in events)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_condition_compares_with_any_text(declare: Declare, listener: Listener, value: str) -> None:
    declare(Thing, when=Q(title=value), fields=["title"])
    thing, _, alone = (
        *Thing.objects.bulk_create([Thing(title=value), Thing(title=value + "x")]),
        Thing.objects.create(title=value),
    )
    Thing.objects.create(title="another")
    assert [(event.pk, event.new) for event in listener.events()] == [
        (thing.pk, {"title": value}),
        (alone.pk, {"title": value}),
    ]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_condition_looks_for_any_text(declare: Declare, listener: Listener, value: str) -> None:
    """Where LIKE has meanings of its own for some characters."""
    declare(Thing, when=Q(title__contains=value))
    Thing.objects.bulk_create([Thing(title=f"a{value}b"), Thing(title="another"), Thing(title=f"{value}x")])
    picked = set(Thing.objects.filter(title__contains=value).values_list("pk", flat=True))
    assert {event.pk for event in listener.events()} == picked


@pytest.mark.parametrize(
    "setting", ["IntervalStyle = sql_standard", "DateStyle = 'German, DMY'", "TimeZone = 'Asia/Tokyo'"]
)
def test_a_condition_means_the_same_whatever_the_writers_session_says(
    declare: Declare, listener: Listener, setting: str
) -> None:
    when = (
        Q(lasts__gt=timedelta(hours=-1))
        & Q(moment__lte=A_MOMENT, moment__date=date(2026, 7, 9), moment__hour=12)
        & Q(day__gt=date(2026, 3, 2))
    )
    declare(Thing, when=when)
    made = Thing(**ROWS[3])
    made.lasts = timedelta(minutes=-59)
    made.save()
    assert [event.pk for event in listener.events()] == [made.pk]
    with connect() as writer:
        writer.execute(f"SET {setting}")
        writer.execute("UPDATE declaring_thing SET other = 17")
        writer.execute("UPDATE declaring_thing SET lasts = '-61 minutes'::interval")
    assert [event.changed for event in listener.events()] == [{"other"}]


def test_an_update_is_asked_by_its_new_values(declare: Declare, listener: Listener) -> None:
    """A row that comes to satisfy the condition is announced, one that ceases to is not."""
    declare(Thing, when=Q(status="paid"), fields=["status"])
    first, second = Thing.objects.bulk_create([Thing(), Thing(status="paid")])
    listener.notifications()
    Thing.objects.filter(pk=first.pk).update(status="paid")
    event = listener.event()
    assert (event.pk, event.old, event.new) == (first.pk, {"status": "new"}, {"status": "paid"})
    Thing.objects.filter(pk=first.pk).update(status="new")
    assert listener.events() == []
    Thing.objects.update(
        status=models.Case(models.When(status="paid", then=Value("new")), default=Value("paid")), number=3
    )
    assert [event.pk for event in listener.events()] == [first.pk]
    assert second.pk


def test_a_delete_is_asked_by_its_old_values(declare: Declare, listener: Listener) -> None:
    declare(Thing, when=Q(status="paid"))
    paid, *_ = Thing.objects.bulk_create([Thing(status="paid"), Thing(), Thing()])
    listener.notifications()
    Thing.objects.filter(status="new")[:1].get().delete()
    Thing.objects.all().delete()
    assert ops(listener.events()) == [("delete", paid.pk)]


def test_a_changed_key_is_asked_on_both_sides(declare: Declare, listener: Listener) -> None:
    """Its delete by the old values, its insert by the new ones; alone, and among others."""
    declare(Thing, when=Q(status="paid"))
    Thing.objects.bulk_create([Thing(id=1), Thing(id=2, status="paid"), Thing(id=3, status="paid"), Thing(id=4)])
    listener.notifications()
    Thing.objects.filter(id=1).update(id=11, status="paid")
    assert ops(listener.events()) == [("insert", 11)]
    Thing.objects.filter(id=2).update(id=12, status="new")
    assert ops(listener.events()) == [("delete", 2)]
    Thing.objects.update(id=F("id") + 100)
    assert ops(listener.events()) == [("delete", 3), ("delete", 11), ("insert", 103), ("insert", 111)]


def test_truncate_is_announced_whatever_the_condition(declare: Declare, listener: Listener) -> None:
    declare(Thing, when=Q(pk__in=[]), watch=["status"])
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE declaring_thing CASCADE")
    assert ops(listener.events()) == [("truncate", None)]


def test_watch_and_when_narrow_together(declare: Declare, listener: Listener) -> None:
    declare(Thing, watch=["number"], when=Q(status="paid"))
    one, _, three = Thing.objects.bulk_create([Thing(status="paid"), Thing(), Thing(status="paid", number=5)])
    listener.notifications()
    Thing.objects.update(number=5, other=1)
    assert [(event.pk, event.changed) for event in listener.events()] == [(one.pk, {"number", "other"})]
    Thing.objects.filter(pk=one.pk).update(title="t")
    Thing.objects.filter(pk=three.pk).update(number=6)
    assert ops(listener.events()) == [("update", three.pk)]


def test_a_statement_of_very_many_rows_is_narrowed_as_a_small_one_is(declare: Declare, listener: Listener) -> None:
    """More rows than are announced from one text."""
    declare(Thing, watch=["number"], when=Q(number__lt=50), fields=["title", "number"])
    count = 20_000
    with connection.cursor() as cursor:
        cursor.execute(INSERT_MANY, [count])
        assert {event.pk for event in listener.events()} == set(range(1, 50))
        cursor.execute(
            "UPDATE declaring_thing SET number = CASE id % 2 WHEN 0 THEN number ELSE id % 100 END, other = 1"
        )
        odd = {pk for pk in range(1, count + 1) if pk % 2 and pk % 100 < 50}
        assert {event.pk for event in listener.events()} == {pk for pk in odd if pk >= 50}
        cursor.execute("DELETE FROM declaring_thing")
    events = listener.events()
    assert {event.pk for event in events} == odd | set(range(1, 50))
    assert not any(event.incomplete for event in events)


INSERT_MANY = """
INSERT INTO declaring_thing (id, title, number, "state of it", other, colour, token)
SELECT n, 'a', n, '', 0, 'r', '12345678-1234-5678-1234-567812345678' FROM generate_series(1, %s) AS n
"""


@pytest.mark.parametrize(
    "when", [Q(pk=(1, "a")), Q(pk__in=[(1, "a"), (2, "b")]), Q(row=1, column="a"), ~Q(pk=(1, "b"))]
)
def test_a_condition_may_ask_a_composite_key(declare: Declare, listener: Listener, when: Q) -> None:
    declare(Cell, when=when)
    Cell.objects.bulk_create([Cell(row=1, column="a"), Cell(row=1, column="b")])
    Cell.objects.create(row=3, column="'")
    assert {event.pk for event in listener.events()} == {cell.pk for cell in Cell.objects.filter(when)}


# What a condition cannot ask.


def refused(model: type[models.Model], when: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the check says of the model with this condition."""
    declaration = Notify(name="refused_by_test", when=when)
    monkeypatch.setattr(model._meta, "constraints", [declaration])
    message = only(ours.check_declarations([model._meta.app_config]))
    assert (message.id, message.obj) == ("pgsignals.E005", model)
    assert f"'refused_by_test' on {model._meta.label}" in message.msg
    assert "looks into no other table" in str(message.hint)
    return message.msg


def only(messages: list[checks.CheckMessage]) -> checks.CheckMessage:
    (message,) = messages
    return message


MAKERS = Maker.objects.filter(name=OuterRef("title"))


@pytest.mark.parametrize(
    ("when", "says"),
    [
        (Q(maker__name="a"), "Joined field references are not permitted"),
        (~Q(number=1) & Q(maker__name="a"), "Joined field references are not permitted"),
        (Q(title=F("maker__name")), "Joined field references are not permitted"),
        (Q(tags=1), "no join with declaring_thing_tags"),
        (Q(tags__isnull=True), "no join with declaring_thing_tags"),
        (Q(children=1) | Q(number=1), "no join with declaring_thing"),
        (Exists(MAKERS), "no subqueries"),
        (~Exists(MAKERS), "no subqueries"),
        (Q(Exists(MAKERS)) & Q(number=1), "no subqueries"),
        (Q(maker__in=Maker.objects.all()), "no subqueries"),
        (Q(number=Subquery(Maker.objects.values("id")[:1])), "no subqueries"),
        (Q(number=OuterRef("other")), "no subqueries"),
        (Q(number=Count("maker")), "no aggregates"),
        (Q(number=Window(RowNumber())), "no window functions"),
        (Q(nothing=1), "Cannot resolve keyword 'nothing'"),
        (Q(number__nothing=1), "Unsupported lookup 'nothing'"),
        (Q(number="abc"), "expected a number but got 'abc'"),
        (Q(day="soon"), "invalid date format"),
    ],
)
def test_a_condition_that_a_row_cannot_answer_is_refused(monkeypatch: pytest.MonkeyPatch, when: Any, says: str) -> None:
    """Without asking the database anything: this test may not."""
    assert says in refused(Thing, when, monkeypatch)


@pytest.mark.parametrize("when", [Q(name="a"), Q(place_ptr__name="a"), Q(stars=F("name"))])
def test_a_condition_cannot_ask_the_parents_table(monkeypatch: pytest.MonkeyPatch, when: Q) -> None:
    refused(Restaurant, when, monkeypatch)


def test_a_condition_that_a_row_can_answer_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for model, conditions in ((Thing, CONDITIONS.values()), (Restaurant, [Q(pk=1), Q(id=1), Q(place_ptr=1)])):
        on = ("insert", "update", "delete")
        declared = [
            Notify(name=f"{model.__name__}_{number}", when=when, on=on) for number, when in enumerate(conditions)
        ]
        monkeypatch.setattr(model._meta, "constraints", declared)
        assert ours.check_declarations([model._meta.app_config]) == []


@pytest.mark.parametrize("when", ["number = 1", True, F("number"), Value(1), {"number": 1}])
def test_what_is_no_condition_is_refused_at_once(when: Any) -> None:
    with pytest.raises(TypeError, match=r"'some_events': when is .* and must be a Q or another boolean expression"):
        Notify(name="some_events", when=when)


# fields="__all__" and exclude.

ALL = [field.name for field in Thing._meta.concrete_fields]


def test_all_fields_travel(declare: Declare, listener: Listener) -> None:
    declare(Thing, fields="__all__")
    maker = Maker.objects.create()
    thing = Thing.objects.create(**{**ROWS[2], "maker": maker})
    thing.refresh_from_db()
    event = listener.event()
    assert event.new is not None
    assert list(event.new) == ALL
    assert {name: event.new[name] for name in ALL} == {
        field.name: getattr(thing, field.attname) for field in Thing._meta.concrete_fields
    }
    thing.delete()
    assert listener.event().old == dict(event.new)


@pytest.mark.parametrize("excluded", [["title", "maker"], ["title", "maker_id"]])
def test_all_but_the_excluded_fields_travel(declare: Declare, listener: Listener, excluded: list[str]) -> None:
    """An excluded field that changed is named all the same."""
    declare(Thing, exclude=excluded)
    thing = Thing.objects.create(title="secret")
    (notification,) = listener.notifications()
    assert "secret" not in notification.payload
    Thing.objects.update(title="hidden")
    event = listener.event()
    assert event.pk == thing.pk
    assert event.new is not None
    assert list(event.new) == [name for name in ALL if name not in ("title", "maker")]
    assert event.changed == {"title", "upper"}


def test_excluding_is_of_all_fields() -> None:
    """With or without saying so; together with a list of fields it is refused."""
    assert Notify(name="a", exclude=["title"]) == Notify(name="a", fields="__all__", exclude=["title"])
    with pytest.raises(ValueError, match="'a': fields and exclude are both given"):
        Notify(name="a", fields=["status"], exclude=["title"])


@pytest.mark.parametrize("argument", ["fields", "exclude", "watch"])
@pytest.mark.parametrize("name", ["titel", "made by", "tags", "children"])
def test_a_name_that_is_no_column_is_refused(monkeypatch: pytest.MonkeyPatch, argument: str, name: str) -> None:
    """Unknown, a column's name, many-to-many, and a relation from the other side."""
    monkeypatch.setattr(Thing._meta, "constraints", [Notify(name="some_events", **{argument: ["title", name]})])
    message = only(ours.check_declarations([Thing._meta.app_config]))
    assert (message.id, message.obj) == ("pgsignals.E004", Thing)
    assert f"'some_events' on declaring.Thing names the field '{name}'" in message.msg
    assert message.hint == f"The fields are: {', '.join(ALL)}."


@pytest.mark.parametrize("argument", ["exclude", "watch"])
def test_a_text_where_names_are_meant_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"'a': {argument} is the text 'title'; a list is meant: \['title'\]"):
        Notify(name="a", **{argument: "title"})


# A table changed behind Django's back.


def write(writer: psycopg.Connection, *, column: str, old: str, new: str, table: str = "declaring_maker") -> None:
    """Insert, update and delete, of one row and of two."""
    for count in (1, 2):
        writer.execute(f"INSERT INTO {table} (id, {column}) SELECT n, {old} FROM generate_series(1, {count}) AS n")
        writer.execute(f"UPDATE {table} SET {column} = {new}")
        writer.execute(f"DELETE FROM {table}")


EXPECTED = [("insert", 1), ("update", 1), ("delete", 1)] + [
    (op, pk) for op in ("insert", "update", "delete") for pk in (1, 2)
]


def test_a_column_added_by_hand_leaves_events_complete(
    declare: Declare, listener: Listener, by_hand: ByHand, warnings_of: Warned
) -> None:
    """It does not travel, as the model does not have it."""
    writer, heard = warnings_of
    declare(Maker, fields="__all__")
    by_hand("ALTER TABLE declaring_maker ADD extra integer DEFAULT 1", "ALTER TABLE declaring_maker DROP extra")
    write(writer, column="name", old="'a'", new="'b'")
    events = listener.events()
    assert ops(events) == EXPECTED
    assert not any(event.incomplete for event in events)
    assert [event.new["name"] for event in events if event.new] == ["a", "b", "a", "a", "b", "b"]
    assert heard == []


@pytest.mark.parametrize(
    ("statement", "back"),
    [
        ("DROP name", "ADD name text NOT NULL"),
        ("RENAME name TO called", "RENAME called TO name"),
        ("ALTER name TYPE integer USING 1", "ALTER name TYPE text"),
        ("ALTER name TYPE date USING '2026-07-10'", "ALTER name TYPE text"),
    ],
)
@pytest.mark.parametrize("fields", ["__all__", ["name"]], ids=["all", "one"])
def test_a_column_dropped_renamed_or_retyped_by_hand_fails_no_write(
    declare: Declare,
    listener: Listener,
    by_hand: ByHand,
    warnings_of: Warned,
    statement: str,
    back: str,
    fields: Any,
) -> None:
    """Each event has its key, is marked incomplete, and each writer hears of the remedy."""
    writer, heard = warnings_of
    declare(Maker, fields=fields)
    by_hand(
        "ALTER TABLE declaring_maker ALTER name DROP NOT NULL", "ALTER TABLE declaring_maker ALTER name SET NOT NULL"
    )
    by_hand("ALTER TABLE declaring_maker ADD extra integer", "ALTER TABLE declaring_maker DROP extra")
    by_hand(f"ALTER TABLE declaring_maker {statement}", f"ALTER TABLE declaring_maker {back}")
    write(writer, column="extra", old="1", new="2")
    events = listener.events()
    assert ops(events) == EXPECTED
    assert all(event.incomplete and event.old is None and event.new is None for event in events)
    assert len(heard) == 6
    assert all('Run "manage.py pgsignals sync"' in warning for warning in heard)


@pytest.mark.parametrize("arguments", [{"watch": ["name"]}, {"when": Q(name="never")}], ids=["watch", "when"])
def test_what_asks_a_column_that_is_gone_announces_every_row(
    declare: Declare, listener: Listener, by_hand: ByHand, warnings_of: Warned, arguments: dict[str, Any]
) -> None:
    """Rather too much than too little: keys, marked incomplete. A watched column is asked by updates alone."""
    writer, heard = warnings_of
    declare(Maker, **arguments)
    by_hand("ALTER TABLE declaring_maker ADD extra integer", "ALTER TABLE declaring_maker DROP extra")
    by_hand("ALTER TABLE declaring_maker DROP name", "ALTER TABLE declaring_maker ADD name text NOT NULL")
    write(writer, column="extra", old="1", new="2")
    events = listener.events()
    assert ops(events) == EXPECTED
    asking = {"update"} if "watch" in arguments else {"insert", "update", "delete"}
    assert {event.op for event in events if event.incomplete} == asking
    assert len(heard) == 2 * len(asking)


@pytest.mark.django_db(transaction=True)
def test_sync_teaches_a_trigger_its_table_again(listener: Listener, by_hand: ByHand, warnings_of: Warned) -> None:
    """A column was dropped by hand, then the field from the model: the function is still that of the old model."""
    writer, heard = warnings_of
    by_hand("ALTER TABLE declaring_ledger ADD gone integer", "ALTER TABLE declaring_ledger DROP IF EXISTS gone")
    old = ModelState.from_model(Ledger)
    old.fields["gone"] = models.IntegerField(null=True)
    project = ProjectState()
    project.add_model(old)
    before = project.apps.get_model("declaring", "Ledger")
    for declaration in declarations(Ledger):
        for statement in sql.renew(declaration, before, connection):
            writer.execute(statement)
    by_hand("ALTER TABLE declaring_ledger DROP gone", "SELECT")
    Ledger.objects.create(amount=1)
    event = listener.event()
    assert (event.pk is not None, event.incomplete, event.new) == (True, True, None)
    call_command("pgsignals", "sync", stdout=StringIO())
    ledger = Ledger.objects.create(amount=2, account="a")
    event = listener.event()
    assert (event.incomplete, event.new) == (False, {"id": ledger.pk, "account": "a", "amount": 2})
    assert heard == []


def test_migrate_teaches_a_trigger_its_table_again(fleet: Fleet, listener: Listener, warnings_of: Warned) -> None:
    """The field goes from the model, as its column went before; all that remains travels."""
    writer, heard = warnings_of
    everything = Notify(name="plane_events", fields="__all__")
    fields = [("id", models.BigAutoField(primary_key=True)), ("a", models.TextField(null=True))]
    project = ProjectState()
    extra = ("b", models.TextField(null=True))
    project.add_model(ModelState("fleet", "plane", [*fields, extra], options={"constraints": [everything]}))
    fleet.apply(change(ProjectState(), project))
    writer.execute("ALTER TABLE fleet_plane DROP b")
    writer.execute("INSERT INTO fleet_plane (a) VALUES ('x')")
    fleet.apply([migrations.SeparateDatabaseAndState(state_operations=[migrations.RemoveField("plane", "b")])])
    writer.execute("INSERT INTO fleet_plane (a) VALUES ('y')")
    first, second = said(listener)
    assert (first["i"], first["r"]) == (1, [[1]])
    assert (second.get("i"), second["f"], second["r"]) == (None, ["id", "a"], [[2, [2, "y"]]])
    assert len(heard) == 1


def test_all_fields_means_those_that_a_migration_adds_and_removes(fleet: Fleet, listener: Listener) -> None:
    """Without a word about the declaration in these migrations."""
    everything = Notify(name="plane_events", fields="__all__")
    fleet.apply(change(ProjectState(), state(plane=[everything])))
    fleet.apply([migrations.AddField("plane", "b", models.IntegerField(default=7))])
    with connect() as writer:
        writer.execute("INSERT INTO fleet_plane (a, b) VALUES ('x', 8)")
        fleet.apply([migrations.RemoveField("plane", "a")])
        writer.execute("UPDATE fleet_plane SET b = 9")
    assert [(one["f"], one["r"], one.get("i")) for one in said(listener)] == [
        (["id", "a", "b"], [[1, [1, "x", 8]]], None),
        (["id", "b"], [[1, [1, 8], [1, 9]]], None),
    ]


@pytest.mark.parametrize("kind", ["text", "date", "integer", "bytea"])
def test_a_key_retyped_by_hand_leaves_an_event_about_the_table(
    listener: Listener, by_hand: ByHand, warnings_of: Warned, kind: str
) -> None:
    writer, heard = warnings_of
    value = SAMPLES.get(kind, SAMPLES["bigint"])[0]
    by_hand(
        f"ALTER TABLE declaring_tagged ALTER slug TYPE {kind} USING NULL",
        "DELETE FROM declaring_tagged; ALTER TABLE declaring_tagged ALTER slug TYPE uuid USING NULL",
    )
    writer.execute(f"INSERT INTO declaring_tagged (slug) VALUES ({value})")
    event = listener.event()
    assert (event.op, event.pk, event.incomplete) == ("insert", None, True)
    assert 'Run "manage.py pgsignals sync"' in heard[0]


SAMPLES = {
    "smallint": ("1", "-2"),
    "bigint": ("1", "9007199254740993"),
    "boolean": ("true", "false"),
    "real": ("1.5", "'NaN'"),
    "double precision": ("1.5", "'-Infinity'"),
    "numeric": ("1.50", "'NaN'"),
    "text": ("'a \"quoted\" \\ text'", "'7'"),
    "char(5)": ("'a\"'", "'b'"),
    "name": ("'a\"'", "'b'"),
    "uuid": ("'12345678-1234-5678-1234-567812345678'", "'00000000-0000-0000-0000-000000000000'"),
    "date": ("'2026-07-10'", "'infinity'"),
    "time": ("'12:30'", "'24:00'"),
    "timestamp": ("'2026-07-10 12:30'", "'infinity'"),
    "timestamptz": ("'2026-07-10 12:30Z'", "'4000-01-01 BC'"),
    "interval": ("'1 year -2 days'", "'-1 second'"),
    "bytea": ("'\\x00ff'", "''"),
    "json": ("'{\"a\": 1}'", "'[1, 2.0]'"),
    "jsonb": ("'{\"a\": 1}'", "'null'"),
    "inet": ("'10.0.0.1/8'", "'::1'"),
    "cidr": ("'10.0.0.0/8'", "'::1'"),
}
"""Well-known types, each with two values."""


@pytest.mark.parametrize("column", [field.name for field in Sample._meta.concrete_fields if not field.primary_key])
def test_a_column_of_whatever_well_known_type_fails_no_write_and_leaves_an_event_that_can_be_read(
    declare: Declare, listener: Listener, warnings_of: Warned, column: str
) -> None:
    """An event is of values that can be read, or marked incomplete."""
    declare(Sample, fields=[column])
    retyped(Sample._meta.get_field(column), SAMPLES, listener, warnings_of)


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("integer", "mood", "'calm'"),
        ("integer", "integer[]", "'{1,2}'"),
        ("integer", "money", "'1.5'"),
        ("integer", "bit(3)", "'011'"),
        ("integer", "int4range", "'[1,3)'"),
        ("boolean", "mood", "'calm'"),
        ("numbers", "text[]", "'{a,b}'"),
        ("numbers", "uuid[]", "'{12345678-1234-5678-1234-567812345678}'"),
        ("range", "daterange", "'[2026-01-01,2026-01-03)'"),
        ("range", "tsrange", "'[2026-01-01,2026-01-03)'"),
        ("range", "numrange", "'[1.5,3)'"),
        ("uuid", "hstore", "'a=>\"1\"'"),
        ("decimal", "text[]", "'{\"a b\"}'"),
        ("float", "point", "'(1,2)'"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_column_of_a_type_that_is_not_well_known_leaves_the_key(
    declare: Declare, listener: Listener, warnings_of: Warned, column: str, kind: str, value: str, rows: int
) -> None:
    """What such a type looks like as text may be no JSON, or other JSON than was meant."""
    writer, heard = warnings_of
    declare(Sample, fields=[column])
    writer.execute(f'ALTER TABLE declaring_sample ALTER "{column}" TYPE {kind} USING NULL')
    try:
        writer.execute(f'INSERT INTO declaring_sample ("{column}") SELECT {value} FROM generate_series(1, {rows})')
    finally:
        writer.execute("TRUNCATE declaring_sample")
        back = Sample._meta.get_field(column).db_type(connection)
        writer.execute(f'ALTER TABLE declaring_sample ALTER "{column}" TYPE {back} USING NULL')
    events = [event for event in listener.events() if event.op == "insert"]
    assert [(event.incomplete, event.new) for event in events] == [(True, None)] * rows
    assert "pgsignals sync" in heard[0]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_column_of_a_domain_is_of_the_type_that_it_is_made_of(
    declare: Declare, listener: Listener, warnings_of: Warned, rows: int
) -> None:
    writer, heard = warnings_of
    declare(Sample, fields=["integer"])
    writer.execute("CREATE DOMAIN declaring_small AS integer CHECK (value < 10)")
    writer.execute("ALTER TABLE declaring_sample ALTER integer TYPE declaring_small USING NULL")
    try:
        writer.execute(f"INSERT INTO declaring_sample (integer) SELECT 7 FROM generate_series(1, {rows})")
    finally:
        writer.execute("TRUNCATE declaring_sample")
        writer.execute("ALTER TABLE declaring_sample ALTER integer TYPE integer")
        writer.execute("DROP DOMAIN declaring_small")
    events = [event for event in listener.events() if event.op == "insert"]
    assert [(event.incomplete, event.new) for event in events] == [(False, {"integer": 7})] * rows
    assert heard == []


@pytest.mark.parametrize("rows", [1, 2])
def test_an_infinite_interval_leaves_an_event_that_is_complete(
    declare: Declare, listener: Listener, warnings_of: Warned, rows: int
) -> None:
    """Python's timedelta knows none; who reads the value gets what a query would raise."""
    if connection.pg_version < 170_000:
        pytest.skip("NOT RUN: infinite intervals, which are new in PostgreSQL 17")
    writer, heard = warnings_of
    declare(Thing, fields=["number", "lasts"])
    things = Thing.objects.bulk_create([Thing(token=uuid.uuid4()) for _ in range(rows)])
    listener.notifications()
    writer.execute("UPDATE declaring_thing SET lasts = '-infinity'")
    assert [(one["r"][0][0], one["r"][0][2], one.get("i")) for one in said(listener)] == [
        (things[0].pk, [0, "-infinity"], None)
    ]
    assert heard == []


@pytest.mark.parametrize(
    ("kind", "keys"), [("bit(3)", ["101", "110"]), ("hstore", ["a=>1", "b=>1"]), ("money", ["1", "2"])]
)
def test_a_key_of_any_type_pairs_old_and_new_rows(
    fleet: Fleet, listener: Listener, warnings_of: Warned, kind: str, keys: list[str]
) -> None:
    """Whether its = is in a schema of an extension, or cannot be hashed."""

    class Odd(models.TextField):
        def db_type(self, connection: Any) -> str:
            return kind

    with isolate_apps("tests.declaring"):
        model = type(
            "Odd",
            (models.Model,),
            {
                "__module__": __name__,
                "id": Odd(primary_key=True),
                "a": models.TextField(),
                "Meta": type("Meta", (), {"app_label": "declaring", "db_table": "fleet_ship"}),
            },
        )
    declaration = Notify(name="odd", fields=["a"])
    with connection.schema_editor() as editor:
        editor.create_model(model)
        editor.add_constraint(model, declaration)
    writer, heard = warnings_of
    writer.execute("INSERT INTO fleet_ship VALUES (%s, 'a'), (%s, 'a')", keys)
    writer.execute("UPDATE fleet_ship SET a = 'b'")
    writer.execute(f"UPDATE fleet_ship SET a = 'c' WHERE id = '{keys[0]}'::{kind}")
    assert [(one["o"], one.get("c"), len(one["r"]), one["r"][0][1:]) for one in said(listener)] == [
        ("i", None, 2, [["a"]]),
        ("u", ["a"], 2, [["a"], ["b"]]),
        ("u", ["a"], 1, [["b"], ["c"]]),
    ]
    assert heard == []


@pytest.fixture
def ignoring_case(listener: Listener) -> Iterator[str]:
    """A collation that takes 'a' and 'A' for equal."""
    with connect() as other:
        try:
            kind = "provider = icu, locale = 'und-u-ks-level2', deterministic = false"
            other.execute(f"CREATE COLLATION ignoring_case ({kind})")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("NOT RUN: collations that ignore case, which this build of PostgreSQL does not have")
        yield "ignoring_case"
        other.execute("DROP COLLATION ignoring_case")


@pytest.mark.parametrize("rows", [1, 2])
def test_a_text_that_equals_another_by_a_collation_unknown_to_django_has_changed(
    declare: Declare, listener: Listener, ignoring_case: str, by_hand: ByHand, rows: int
) -> None:
    """Nobody can say what changed, but that something did."""
    by_hand(
        f"ALTER TABLE declaring_maker ALTER name TYPE text COLLATE {ignoring_case}",
        'ALTER TABLE declaring_maker ALTER name TYPE text COLLATE "default"',
    )
    declare(Maker, fields=["name"])
    Maker.objects.bulk_create(Maker(name="a") for _ in range(rows))
    listener.notifications()
    Maker.objects.update(name="A")
    assert [(event.old["name"], event.new["name"], event.incomplete) for event in listener.events()] == [
        ("a", "A", True)
    ] * rows


@pytest.mark.parametrize("rows", [1, 2])
def test_a_foreign_key_has_the_collation_of_what_it_refers_to(
    fleet: Fleet, listener: Listener, ignoring_case: str, rows: int
) -> None:
    project = ProjectState()
    fields = [("id", models.CharField(max_length=5, primary_key=True, db_collation=ignoring_case))]
    project.add_model(ModelState("fleet", "port", fields))
    port = models.ForeignKey("fleet.port", models.CASCADE, db_constraint=False)
    project.add_model(
        ModelState(
            "fleet",
            "plane",
            [("id", models.BigAutoField(primary_key=True)), ("port", port)],
            options={"constraints": [Notify(name="plane_events", watch=["port"])]},
        )
    )
    fleet.apply(change(ProjectState(), project))
    with connect() as writer:
        writer.execute(f"INSERT INTO fleet_plane (port_id) SELECT 'a' FROM generate_series(1, {rows})")
        writer.execute("UPDATE fleet_plane SET port_id = 'A'")
    assert [(one["o"], one.get("c"), len(one["r"])) for one in said(listener)] == [
        ("i", None, rows),
        ("u", ["port"], rows),
    ]
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE fleet_plane, fleet_port CASCADE")


def test_a_condition_that_fails_for_a_row_is_warned_of_by_its_name(
    declare: Declare, listener: Listener, warnings_of: Warned
) -> None:
    """The write is kept, and each row announced; no table is to be repaired."""
    declare(Thing, when=GreaterThan(F("number") / F("other"), 1))
    writer, heard = warnings_of
    writer.execute(
        'INSERT INTO declaring_thing (number, other, "state of it", active, colour, token) '
        "SELECT 4, i, 'a', true, 'r', gen_random_uuid() FROM generate_series(0, 1) AS i"
    )
    assert [event.incomplete for event in listener.events()] == [True, True]
    assert "division by zero" in heard[0]
    assert "by what the declaration asks (when)" in heard[0]


def test_a_condition_casts_in_djangos_time_zone(declare: Declare, listener: Listener) -> None:
    """What day a moment is on does not depend on the writer's session."""
    declare(Thing, when=Q(Exact(Cast("moment", models.DateField()), date(2026, 7, 10))))
    with connection.cursor() as cursor:
        cursor.execute("SET TimeZone = 'Asia/Tokyo'")
        late = datetime(2026, 7, 10, 20, tzinfo=UTC)
        picked = Thing.objects.create(moment=late, token=uuid.uuid4())
        Thing.objects.bulk_create([Thing(moment=late, token=uuid.uuid4()), Thing(moment=late, token=uuid.uuid4())])
        cursor.execute("RESET TimeZone")
    assert len(listener.events()) == 3
    assert picked.pk


def test_names_that_leave_no_room_for_values_are_refused_and_the_keys_still_travel(
    monkeypatch: pytest.MonkeyPatch, declare: Declare, listener: Listener, warnings_of: Warned
) -> None:
    """Of a table with hundreds of columns."""
    monkeypatch.setattr(trigger_rows, "MAX_NAMES", 50)
    monkeypatch.setattr(Thing._meta, "constraints", [Notify(name="many", fields="__all__")])
    assert only(ours.check_declarations([Thing._meta.app_config])).id == "pgsignals.E008"
    monkeypatch.undo()
    monkeypatch.setattr(trigger_rows, "MAX_NAMES", 50)
    declare(Thing, fields="__all__")
    thing = Thing.objects.create(title="a")
    event = listener.event()
    assert (event.pk, event.incomplete, event.new) == (thing.pk, False, None)
    assert warnings_of[1] == []


def test_nothing_in_the_writers_temporary_schema_passes_for_postgresqls_own(
    declare: Declare, listener: Listener, warnings_of: Warned
) -> None:
    """A type there would run its checks with the rights of whoever writes."""
    writer, heard = warnings_of
    declare(Thing, when=Q(title__startswith="a") | Q(number__gt=1))
    for name in ("text", "varchar", "numeric", "jsonb"):
        writer.execute(f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.{name} CHECK (VALUE IS NULL)")
    row = Thing.objects.create(title="a", token=uuid.uuid4())
    listener.notifications()
    writer.execute("UPDATE declaring_thing SET title = 'ab' WHERE id = %s", [row.pk])
    assert [event.changed for event in listener.events()] == [{"title", "upper"}]
    assert heard == []


def retyped(field: Any, types: dict[str, tuple[str, str]], listener: Listener, warnings_of: Warned) -> None:
    writer, heard = warnings_of
    alter = f'ALTER TABLE declaring_sample ALTER "{field.column}" TYPE'
    for kind, (one, two) in types.items():
        heard.clear()
        writer.execute(f"{alter} {kind} USING NULL")
        try:
            write(writer, table="declaring_sample", column=f'"{field.column}"', old=one, new=two)
        finally:
            writer.execute("DELETE FROM declaring_sample")
            writer.execute(f"{alter} {field.db_type(connection)} USING NULL")
        events = listener.events()
        assert ops(events) == EXPECTED, kind
        incomplete = [event for event in events if event.incomplete]
        assert len(incomplete) in (0, len(events)), kind
        assert len(heard) == (6 if incomplete else 0), (kind, heard)
        for event in events:
            if event.op == "insert" and event.new is not None:
                # The first of the two is no extreme: whatever the event holds can be read.
                event.new[field.name]


# Kinds of columns, tables and models.


def test_a_generated_column_travels_is_watched_and_is_named_as_changed(declare: Declare, listener: Listener) -> None:
    declare(Thing, fields=["upper"], watch=["upper"])
    thing = Thing.objects.create(title="a")
    assert listener.event().new == {"upper": "A"}
    Thing.objects.update(title="A")
    Thing.objects.update(number=5)
    assert listener.events() == []
    Thing.objects.update(title="b")
    event = listener.event()
    assert (event.pk, event.changed, event.old, event.new) == (
        thing.pk,
        {"title", "upper"},
        {"upper": "A"},
        {"upper": "B"},
    )


def test_a_child_announces_its_own_table_and_the_parent_the_parents(listener: Listener) -> None:
    """One save writes to both."""
    restaurant = Restaurant.objects.create(name="a", stars=1)
    pk = restaurant.pk
    inserts = listener.events()
    assert [(event.op, event.model, event.pk, event.new) for event in inserts] == [
        ("insert", Place, pk, {"name": "a"}),
        ("insert", Restaurant, pk, {"place_ptr": pk, "stars": 1}),
    ]
    restaurant.name = "b"
    restaurant.save()
    event = listener.event()
    assert (event.model, event.changed, event.new) == (Place, {"name"}, {"name": "b"})
    restaurant.stars = 2
    restaurant.save()
    event = listener.event()
    assert (event.model, event.changed, event.instance()) == (Restaurant, {"stars"}, restaurant)
    restaurant.delete()
    assert [(event.op, event.model, event.pk) for event in listener.events()] == [
        ("delete", Restaurant, pk),
        ("delete", Place, pk),
    ]


@pytest.mark.parametrize("argument", ["fields", "watch", "exclude"])
def test_a_field_of_the_parents_table_is_refused_with_the_parents_name(
    monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.setattr(Restaurant._meta, "constraints", [Notify(name="some_events", **{argument: ["stars", "name"]})])
    message = only(ours.check_declarations([Restaurant._meta.app_config]))
    assert (message.id, message.obj) == ("pgsignals.E004", Restaurant)
    assert "names the field 'name'" in message.msg
    assert message.hint == "It is a column of declaring.Place, whose table announces it: declare it there."


def test_receivers_and_signals_of_a_proxy_hear_of_its_table(declare: Declare, listener: Listener) -> None:
    """The event is the concrete model's, whoever wrote."""
    declare(Thing, name="thing_events", fields=["status"])
    called, signalled = Box(), Box()

    def heard(event: PgEvent) -> None:
        called.put(event)

    def sent(sender: object, event: PgEvent, **kwargs: object) -> None:
        signalled.put((sender, event))

    with only_receivers_of_this_test():
        on_pg_event(Nickname, "insert")(heard)
        pg_event.connect(sent, sender=Thing)
        try:
            with relaying():
                nickname = Nickname.objects.create(status="a")
                (event,) = called.wait()
                ((sender, same),) = signalled.wait()
        finally:
            pg_event.disconnect(sent, sender=Thing)
    assert (event.model, event.label, event.pk, event.new) == (Thing, "declaring.thing", nickname.pk, {"status": "a"})
    assert (sender, same) == (Thing, event)


def test_a_swapped_out_model_installs_nothing(fleet: Fleet) -> None:
    """Its table is never made; the one that stands in for it announces."""
    project = state(plane=[Notify(name="plane_events")])
    fields = [("id", models.BigAutoField(primary_key=True))]
    options = {"swappable": "PGSIGNALS_TEST_SHIP", "constraints": [Notify(name="ship_events")]}
    project.add_model(ModelState("fleet", "ship", fields, options=options))
    with override_settings(PGSIGNALS_TEST_SHIP="fleet.Plane"):
        fleet.apply(change(ProjectState(), project))
        assert "pgsignals_ship_events" not in functions()
        names = [row.name for row in sync.compare("default", fleet.state.apps, {}) if row.declared]
    assert names == ["plane_events"]
    assert list(installed()["fleet_plane"]) != []


SWAPPED = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "swapped_settings"
import django
django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import SystemCheckError
call_command("migrate", run_syncdb=True, verbosity=0)
call_command("pgsignals", "status", "--check")
from tests.conftest import Listener
from pgsignals import wire
listener = Listener(wire.CHANNEL)
user = get_user_model().objects.create(name="ada", password="secret")
get_user_model().objects.update(password="other")
for event in listener.events():
    print("EVENT", event.op, event.label, event.pk == user.pk, sorted(event.changed), sorted(event.new))
"""


def test_a_model_that_stands_in_for_the_user_model_announces(
    tmp_path: Path, child_environment: dict[str, str], listener: Listener
) -> None:
    """A project of its own, on a database of its own."""
    name = "pgsignals_test_swapped"
    (tmp_path / "swapped_settings.py").write_text(
        "from tests.settings import *\n"
        "AUTH_USER_MODEL = 'declaring.Member'\n"
        "MIDDLEWARE = []\n"
        "DATABASES.pop('sqlite')\n"
        "DATABASE_ROUTERS = []\n"
    )
    environment = {
        **child_environment,
        "PGSIGNALS_TEST_DATABASE": name,
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}",
    }
    with connect() as admin:
        admin.execute(f"CREATE DATABASE {name}")
    try:
        done = subprocess.run(
            [sys.executable, "-c", SWAPPED], env=environment, capture_output=True, text=True, timeout=100
        )
    finally:
        with connect() as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("EVENT")] == [
        "EVENT insert declaring.member True [] ['id', 'last_login', 'name']",
        "EVENT update declaring.member True ['password'] ['id', 'last_login', 'name']",
    ]


# Several declarations.


def test_each_declaration_of_a_model_announces_by_itself(listener: Listener) -> None:
    """With its own operations, fields, watch and condition."""
    ledger = Ledger.objects.create(amount=1)
    Ledger.objects.update(amount=ledger.pk + 101)
    Ledger.objects.update(comment="c")
    Ledger.objects.update(account="a")
    Ledger.objects.all().delete()
    payloads = said(listener)
    assert [(one["d"], one["o"], one.get("c")) for one in payloads] == [
        ("ledger_all", "i", None),
        ("ledger_all", "u", ["amount"]),
        ("ledger_large", "u", ["amount"]),
        ("ledger_all", "u", ["comment"]),
        ("ledger_all", "u", ["account"]),
        ("ledger_all", "d", None),
    ]
    assert {one["d"]: one.get("f") for one in payloads} == {
        "ledger_all": ["id", "account", "amount"],
        "ledger_large": None,
    }


def test_two_declarations_of_the_same_operations_announce_twice(declare: Declare, listener: Listener) -> None:
    """And the check says so; with a watch or a condition of its own the second is meant."""
    declare(Maker, name="first", fields=["name"])
    declare(Maker, name="second")
    Maker.objects.create(name="a")
    assert [(one["d"], one["r"][0][1:]) for one in said(listener)] == [("first", [["a"]]), ("second", [])]


@pytest.mark.parametrize(
    ("second", "ids"),
    [
        ({}, ["pgsignals.E006"]),
        ({"fields": "__all__"}, ["pgsignals.E006"]),
        ({"watch": ["name"]}, ["pgsignals.E006"]),
        ({"watch": ["name"], "on": ["update"]}, []),
        ({"when": Q(name="a")}, ["pgsignals.E006"]),
        ({"when": Q(name="a"), "on": ["insert", "update", "delete"]}, []),
        ({"channel": "makers"}, ["pgsignals.E006"]),
        ({"on": ["insert"], "when": Q()}, ["pgsignals.E006"]),
    ],
)
def test_the_check_refuses_to_announce_the_same_twice(
    monkeypatch: pytest.MonkeyPatch, second: dict[str, Any], ids: list[str]
) -> None:
    monkeypatch.setattr(Maker._meta, "constraints", [Notify(name="first"), Notify(name="second", **second)])
    messages = ours.check_declarations([Maker._meta.app_config])
    assert [message.id for message in messages] == ids
    assert all("by Notify 'first' and by Notify 'second'" in message.msg for message in messages)


def test_a_declaration_with_a_channel_speaks_there_alone(declare: Declare, listener: Listener) -> None:
    """Whatever the name of the channel, and also where it cannot say all."""
    own = Listener('the "makers"\'', wire.CHANNEL)
    declare(Maker, channel='the "makers"\'', fields=["name"])
    Maker.objects.create(name="a")
    with connect() as writer:
        writer.execute("SET pgsignals.context = 'broken'")
        writer.execute("INSERT INTO declaring_maker (name) VALUES ('b')")
        writer.execute("TRUNCATE declaring_maker CASCADE")
    heard = own.notifications()
    own.connection.close()
    assert [(one.channel, json.loads(one.payload)["o"]) for one in heard] == [
        ('the "makers"\'', operation) for operation in "iit"
    ]
    assert listener.notifications() == []


@pytest.mark.parametrize("channel", ["", "é" * 32, "pgsignals"])
def test_a_channel_that_will_not_do_is_refused_at_once(channel: str) -> None:
    with pytest.raises(ValueError, match="Notify 'a': "):
        Notify(name="a", channel=channel)


# Names.


def test_children_of_an_abstract_model_declare_under_names_of_their_own(listener: Listener) -> None:
    """And each with all fields of its own, for the condition that they share."""
    Book.objects.create(title="b")
    Film.objects.create(title="f", minutes=90)
    Film.objects.create()
    assert [(one["d"], one["m"], one["f"]) for one in said(listener)] == [
        ("declaring_book", "declaring.book", ["id", "title"]),
        ("declaring_film", "declaring.film", ["id", "title", "minutes"]),
    ]


@isolate_apps("tests.declaring")
def test_a_name_that_becomes_too_long_is_refused_with_the_limit(
    monkeypatch: pytest.MonkeyPatch, transactional_db: None
) -> None:
    """By the check, and so by `migrate`, before it does anything."""

    class Base(models.Model):
        class Meta:
            abstract = True
            app_label = "declaring"
            constraints = [Notify(name="%(app_label)s_%(class)s_events")]

    class JustShortEnoughForWhatPostgresql(Base):
        class Meta(Base.Meta):
            pass

    class OneLetterTooLongForWhatPostgresqls(Base):
        class Meta(Base.Meta):
            pass

    monkeypatch.setattr(ours, "apps", JustShortEnoughForWhatPostgresql._meta.apps)
    message = only(ours.check_declarations(None))
    assert (message.id, message.obj) == ("pgsignals.E003", OneLetterTooLongForWhatPostgresqls)
    assert "it has 51 bytes, and PostgreSQL's limit of 63 leaves 49 for it" in message.msg
    with pytest.raises(SystemCheckError, match="leaves 49 for it"):
        call_command("migrate", skip_checks=False, stdout=StringIO(), stderr=StringIO())


# makemigrations.


class Renaming(MigrationQuestioner):
    """Yes, it was renamed."""

    def ask_rename(self, *args: Any) -> bool:
        return True


def plane_with(field: str, declaration: Notify, **options: Any) -> ProjectState:
    project = ProjectState()
    fields = [("id", models.BigAutoField(primary_key=True)), (field, models.TextField(null=True, **options))]
    project.add_model(ModelState("fleet", "plane", fields, options={"constraints": [declaration]}))
    return project


@pytest.mark.parametrize(
    "arguments",
    [
        lambda field: {},
        lambda field: {"fields": [field]},
        lambda field: {"exclude": [field]},
        lambda field: {"watch": [field]},
        lambda field: {"when": Q(**{f"{field}__gt": "x"}), "watch": [field], "fields": "__all__"},
    ],
    ids=["nothing", "fields", "exclude", "watch", "when"],
)
@pytest.mark.parametrize("options", [{}, {"db_column": "x"}], ids=["own column", "db_column"])
def test_a_renamed_field_is_found_by_makemigrations_and_the_trigger_follows(
    fleet: Fleet, listener: Listener, arguments: Callable[[str], dict[str, Any]], options: dict[str, Any]
) -> None:
    """Also where its column stays as it is."""
    before = plane_with("a", Notify(name="plane_events", **arguments("a")), **options)
    after = plane_with("b", Notify(name="plane_events", **arguments("b")), **options)
    fleet.apply(change(ProjectState(), before))
    changes = MigrationAutodetector(fleet.state, after, Renaming())._detect_changes()
    operations = [operation for migration in changes["fleet"] for operation in migration.operations]
    assert not {type(one) for one in operations} & {migrations.RemoveField, migrations.AddField}
    fleet.apply(operations)
    assert change(fleet.state, after) == []
    assert [row.state for row in sync.compare("default", fleet.state.apps, {}) if row.declared] == ["installed"]
    with connect() as writer:
        writer.execute(f"INSERT INTO fleet_plane ({options.get('db_column', 'b')}) VALUES ('y')")
        writer.execute(f"UPDATE fleet_plane SET {options.get('db_column', 'b')} = 'z'")
    heard = said(listener)
    assert [(one["o"], one.get("c"), one.get("i")) for one in heard] == [("i", None, None), ("u", ["b"], None)]


@pytest.mark.parametrize(
    "arguments",
    [{"when": Q(a="x")}, {"watch": ["a"]}, {"exclude": ["a"]}, {"fields": "__all__"}, {"channel": "planes"}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_changes_the_function_alone_is_an_alter_constraint(arguments: dict[str, Any]) -> None:
    """To it, from it, and for another value."""
    plain, declared = state(plane=[Notify(name="e")]), state(plane=[Notify(name="e", **arguments)])
    for before, after in ((plain, declared), (declared, plain)):
        assert [type(one).__name__ for one in change(before, after)] == ["AlterConstraint"]
    assert change(declared, declared) == []
    conditions = [state(plane=[Notify(name="e", when=Q(a=value))]) for value in "xy"]
    assert [type(one).__name__ for one in change(*conditions)] == ["AlterConstraint"]


@pytest.mark.parametrize("when", CONDITIONS.values(), ids=CONDITIONS)
def test_a_condition_goes_through_a_migration_unchanged(when: Any) -> None:
    """What the file says is the same declaration, so that makemigrations finds nothing new in it."""
    declaration = Notify(name="some_events", when=when)
    (operation,) = written([migrations.AddConstraint("thing", declaration)])
    assert operation.constraint == declaration
    plane = [state(plane=[one]) for one in (operation.constraint, declaration)]
    assert change(*plane) == []


# What a transaction says to the triggers.


def test_a_silenced_transaction_announces_nothing_and_the_next_one_does(listener: Listener) -> None:
    with connect() as writer:
        with writer.transaction():
            writer.execute("SELECT set_config('pgsignals.silenced', 'on', true)")
            writer.execute("INSERT INTO declaring_ledger (id, account, amount, comment) VALUES (1, '', 0, '')")
            writer.execute("UPDATE declaring_ledger SET amount = 1000")
            writer.execute("TRUNCATE declaring_ledger")
        writer.execute("INSERT INTO declaring_ledger (id, account, amount, comment) VALUES (2, '', 0, '')")
    assert ops(listener.events()) == [("insert", 2)]


@pytest.mark.parametrize("value", ["off", "", "ON", "true"])
def test_only_the_word_on_silences(listener: Listener, value: str) -> None:
    with connect() as writer:
        writer.execute("SELECT set_config('pgsignals.silenced', %s, false)", [value])
        writer.execute("INSERT INTO declaring_ledger (account, amount, comment) VALUES ('', 0, '')")
    assert listener.event().op == "insert"


def tell(writer: psycopg.Connection, context: str) -> None:
    """One row and two rows, and then TRUNCATE, in transactions with this context."""
    with writer.transaction():
        writer.execute("SELECT set_config('pgsignals.context', %s, true)", [context])
        write(writer, column="name", old="'a'", new="'b'")
    with writer.transaction():
        writer.execute("SELECT set_config('pgsignals.context', %s, true)", [context])
        writer.execute("TRUNCATE declaring_maker CASCADE")


BIG = json.dumps({"a": "x" * (1024 - len('{"a": ""}'))})


@pytest.mark.parametrize("context", ['{"actor": 7, "why": {"é": [null, "\\"%s"]}}', "{}", BIG])
def test_the_context_of_a_transaction_is_in_each_of_its_events(
    declare: Declare, listener: Listener, warnings_of: Warned, context: str
) -> None:
    writer, heard = warnings_of
    declare(Maker, fields=["name"])
    tell(writer, context)
    writer.execute("INSERT INTO declaring_maker (name) VALUES ('c')")
    *events, last = listener.events()
    assert ops(events) == [*EXPECTED, ("truncate", None)]
    assert all(event.context == json.loads(context) and not event.incomplete for event in events)
    assert (last.context, heard) == ({}, [])


@pytest.mark.parametrize(
    "context", ["no json", '"text"', "[1]", "7", "null", "{", '{"a": NaN}', '{"a": 1}, "o": "d"', BIG + " "]
)
def test_a_context_that_is_none_keeps_the_write_and_leaves_keys(
    declare: Declare, listener: Listener, warnings_of: Warned, context: str
) -> None:
    """Any role may set it to anything: events come without it, marked incomplete, and the writer is warned."""
    writer, heard = warnings_of
    declare(Maker, fields=["name"], watch=["name"])
    tell(writer, context)
    events = listener.events()
    assert ops(events) == [*EXPECTED, ("truncate", None)]
    assert all(event.context == {} and event.new is None and event.old is None for event in events)
    assert all(event.incomplete for event in events if event.op != "truncate")
    assert len(heard) == 7  # one for each statement
    assert all("pgsignals: trigger" in warning for warning in heard)
