"""Values arrive as Django would load them."""

from __future__ import annotations

import datetime as dt
import inspect
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.postgres import fields as pg
from django.contrib.postgres.search import SearchVectorField
from django.db import connection, models
from django.test import override_settings
from psycopg.types.range import Range

from pgsignals import values

from .conftest import Listener, connect
from .kinds.models import (
    EVERY_FIELD,
    Code,
    DateTimeKey,
    DecimalKey,
    Everything,
    Measurement,
    PlainKey,
    SmallKey,
)
from .shop.models import Line, Page, Token

UTC = dt.UTC
NOON = dt.datetime(2013, 7, 10, 12, 0, 0, 123456, tzinfo=UTC)
EARLY = dt.datetime(1, 1, 2, 3, 4, 5, tzinfo=UTC)
LATE = dt.datetime(9999, 12, 30, tzinfo=UTC)
HOSTILE = "quote \" apostrophe ' backslash \\ newline \n tab \t brace } bracket ] 100% é 🛫 \x01"
SOME_UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")

ORDINARY: dict[str, Any] = {
    "big": 2**63 - 1,
    "binary": b"\x00\xff'\\",
    "boolean": True,
    "char": HOSTILE,
    "date": dt.date(2013, 7, 10),
    "datetime": NOON,
    "decimal": Decimal("12345678901234567890.0123456789"),
    "duration": dt.timedelta(days=400, hours=30, microseconds=7),
    "email": "a@example.org",
    "file": "a/b.txt",
    "file_path": "/etc/hosts",
    "float": 0.1 + 0.2,
    "ip": "192.168.0.1",
    "image": "a/b.png",
    "integer": -1,
    "json": {"a": [1, 2.5, None, True, HOSTILE], "deep": {"x": {}}},
    "positive_big": 2**62,
    "positive": 2**31 - 1,
    "positive_small": 7,
    "slug": "a-slug",
    "small": -32768,
    "text": HOSTILE,
    "time": dt.time(23, 59, 59, 999999),
    "url": "https://example.org/?a=b&c=%20",
    "uuid": SOME_UUID,
    "hstore": {"a": HOSTILE, "nothing": None},
    "search": "'fat':2 'rat':3",
    "integer_range": Range(1, 10),
    "big_range": Range(None, 2**40),
    "decimal_range": Range(Decimal("0.10"), Decimal("9.99"), "[]"),
    "datetime_range": Range(NOON, None),
    "date_range": Range(dt.date(2013, 7, 1), dt.date(2013, 8, 1)),
    "integers": [1, None, 3],
    "texts": [HOSTILE, "", None, "NULL", "{}"],
    "decimals": [Decimal("1.500"), None],
    "booleans": [True, False, None],
    "floats": [1.0, 1e300],
    "datetimes": [NOON, EARLY, None],
    "durations": [dt.timedelta(days=-3, seconds=1), None],
    "uuids": [SOME_UUID, None],
    "jsons": [{"a": HOSTILE}, [1, [2]]],
    "ranges": [Range(NOON, LATE), Range(empty=True), None],
    "grid": [[1, 2], [3, None]],
    "cube": [[["a", "b"], ["c", "d"]], [["e", "f"], ["g", None]]],
    "celsius": Decimal("21.5"),
    "temperatures": [Decimal("-3.0"), None],
    "mood": "stormy",
}

EXTREME: dict[str, Any] = {
    "big": -(2**63),
    "binary": b"",
    "boolean": False,
    "char": "",
    "date": dt.date(9999, 12, 31),
    "datetime": EARLY,
    "decimal": Decimal("-0.0000000001"),
    "duration": -dt.timedelta(days=1, microseconds=1),
    "float": -1.7976931348623157e308,
    "ip": "2001:db8::1",
    "integer": 0,
    "json": None,
    "text": "\\",
    "time": dt.time(0),
    "hstore": {},
    "integer_range": Range(empty=True),
    "datetime_range": Range(None, None),
    "integers": [],
    "texts": [],
    "grid": [],
    "cube": [],
}

SESSIONS = {
    "ordinary": "",
    "odd": "-c datestyle=German,DMY -c intervalstyle=sql_standard -c timezone=Asia/Kathmandu -c bytea_output=escape "
    "-c extra_float_digits=0 -c xmloption=document -c standard_conforming_strings=on",
}


def test_every_concrete_field_of_django_is_among_the_kinds() -> None:
    """A field class that Django has and this file forgets fails here."""
    concrete = {
        thing
        for module in (models, pg)
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, models.Field) and not thing.system_check_removed_details
    }
    # Without a column, or never used by themselves.
    abstract = {models.Field, models.ForeignObject, models.CompositePrimaryKey, models.ManyToManyField}
    abstract |= {models.OrderWrt, pg.RangeField}
    tested = {type(field) for field in EVERY_FIELD.values()} | {models.AutoField, models.BigAutoField}
    tested |= {models.SmallAutoField, SearchVectorField}
    assert concrete - abstract - tested == set()


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("given", [ORDINARY, EXTREME, {}], ids=["ordinary", "extreme", "null"])
def test_each_kind_arrives_as_a_query_gives_it(listener: Listener, given: dict[str, Any], session: str) -> None:
    """Whatever the writer's session has set, a value is equal to the queried one, and of the same type."""
    Code.objects.create(code=SOME_UUID)
    if given:
        given = {**given, "foreign_id": SOME_UUID, "one_to_one_id": SOME_UUID}
    Everything.objects.create(**given)
    listener.notifications()
    with connect(options=SESSIONS[session]) as writer:
        # A changed key is a delete and an insert, so this session writes every column of the row twice.
        writer.execute("UPDATE kinds_everything SET id = id + 1000")
    deleted, inserted = listener.events()
    expected = Everything.objects.filter(pk=inserted.pk).values(*EVERY_FIELD).get()
    assert not inserted.incomplete
    assert inserted.new is not None
    assert deleted.old is not None
    for name in EVERY_FIELD:
        assert inserted.new[name] == expected[name], name
        assert type(inserted.new[name]) is type(expected[name]), name
        assert deleted.old[name] == expected[name], name


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: SmallKey.objects.create(), int),
        (lambda: PlainKey.objects.create(), int),
        (lambda: DecimalKey.objects.create(id=Decimal("1.50000")), Decimal),
        (lambda: DateTimeKey.objects.create(id=NOON), dt.datetime),
        (lambda: Token.objects.create(), uuid.UUID),
        (lambda: Page.objects.create(slug=HOSTILE), str),
        (lambda: Line.objects.create(order_number=7, position=HOSTILE), tuple),
    ],
)
def test_primary_keys_arrive_typed(listener: Listener, make: Callable[[], models.Model], kind: type) -> None:
    """`event.pk` is what `instance.pk` is, and finds the row."""
    row = make()
    event = listener.event()
    assert event.pk == row.pk
    assert type(event.pk) is kind
    assert event.instance() == row


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1E+200", "0.10"])
def test_numbers_that_json_does_not_have_arrive(listener: Listener, text: str) -> None:
    """NaN, the infinities, and every digit of numeric."""
    with connect() as writer:
        writer.execute("INSERT INTO kinds_measurement (value) VALUES (%s)", [text])
    event = listener.event()
    assert event.new is not None
    assert event.new.raw["value"] is not None
    kind = values.kind_of("numeric")
    assert str(kind.read(event.new.raw["value"])) == str(Decimal(text)) or Decimal(text) == kind.read(
        event.new.raw["value"]
    )
    assert Measurement.objects.count() == 1


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_floats_that_json_does_not_have_arrive(listener: Listener, text: str) -> None:
    with connect() as writer:
        writer.execute('INSERT INTO kinds_everything ("float") VALUES (%s)', [text])
    event = listener.event()
    assert event.new is not None
    assert str(event.new["float"]) == str(float(text))


def test_a_moment_that_python_does_not_have_says_so(listener: Listener) -> None:
    """PostgreSQL's infinity is no datetime; reading it names the field, the value and the way to the text."""
    with connect() as writer:
        writer.execute("INSERT INTO kinds_everything (datetime) VALUES ('infinity')")
    event = listener.event()
    assert event.new is not None
    with pytest.raises(ValueError, match=r"kinds.everything.datetime: the value 'infinity' cannot be read"):
        event.new["datetime"]
    assert event.new.raw["datetime"] == "infinity"
    assert event.new["text"] is None


def test_without_time_zones_moments_are_naive(listener: Listener) -> None:
    """With USE_TZ off, a moment is in settings.TIME_ZONE, whatever zone the writer's session has."""
    with connect(options="-c timezone=Asia/Tokyo") as writer:
        writer.execute("INSERT INTO kinds_everything (datetime) VALUES ('2013-07-10 12:00:00+00')")
    (notification,) = listener.notifications()
    with override_settings(USE_TZ=False, TIME_ZONE="America/New_York"):
        from pgsignals.decode import Decoder

        (event,) = Decoder("default").decode(notification.channel, notification.payload)
        assert event.new is not None
        assert event.new["datetime"] == dt.datetime(2013, 7, 10, 8, 0, 0)
    connection.close()


def test_a_field_that_this_code_does_not_know_stays_raw(listener: Listener) -> None:
    """The trigger of a newer deploy may send what an older process has no field for."""
    payload = (
        '{"v":1,"d":"d","s":"public","x":1,"t":0,"m":"shop.order","o":"i","f":["status","colour"],'
        '"n":1,"r":[[1,["new","#fff"]]]}'
    )
    (event,) = listener.decoder.decode("pgsignals", payload)
    assert event.new == {"status": "new", "colour": "#fff"}


@pytest.mark.parametrize("raw", [[[10**12, 0]], [[2], 1], [[0, 5], 1]])
def test_a_forged_array_asks_for_nothing(raw: list[Any]) -> None:
    """An array's lengths must fit its items, before anything of that length is made."""
    with pytest.raises(ValueError, match="has"):
        values.kind_of("integer[]").read(raw)
