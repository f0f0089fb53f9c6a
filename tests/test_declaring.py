"""What a declaration asks for, and what the trigger then says: watch, when, fields, exclude, channel, names, models."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from django.db import connection, models
from django.db.models import F, Q, Value
from django.db.models.functions import Length, Lower
from django.db.models.lookups import GreaterThan

from pgsignals import Notify, PgEvent

from .conftest import Listener, connect
from .declaring.models import Cell, Maker, Thing

Declare = Callable[..., None]


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
    with connect() as writer:
        writer.add_notice_handler(lambda notice: heard.append(f"{notice.message_primary} {notice.message_hint}"))
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
    """Alone, and among rows that are not announced."""
    declare(Thing, watch=["status"])
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


@pytest.mark.parametrize("setting", ["DateStyle = 'German, DMY'", "TimeZone = 'Asia/Tokyo'"])
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


@pytest.mark.parametrize(
    "when", [Q(pk=(1, "a")), Q(pk__in=[(1, "a"), (2, "b")]), Q(row=1, column="a"), ~Q(pk=(1, "b"))]
)
def test_a_condition_may_ask_a_composite_key(declare: Declare, listener: Listener, when: Q) -> None:
    declare(Cell, when=when)
    Cell.objects.bulk_create([Cell(row=1, column="a"), Cell(row=1, column="b")])
    Cell.objects.create(row=3, column="'")
    assert {event.pk for event in listener.events()} == {cell.pk for cell in Cell.objects.filter(when)}
