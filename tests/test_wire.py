"""What strangers send on our channel is data: checked, refused with a reason, never fatal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgsignals import wire
from pgsignals.decode import Decoder, UnknownLabel

GOOD: dict[str, Any] = {
    "v": 1,
    "d": "order_events",
    "s": "public",
    "x": 5,
    "t": 1_000_000,
    "m": "shop.order",
    "o": "u",
    "f": ["status"],
    "c": ["status"],
    "n": 1,
    "r": [[1, ["a"], ["b"]]],
}


def nested(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_a_good_payload_is_read() -> None:
    (event,) = Decoder("default").decode(wire.CHANNEL, json.dumps(GOOD))
    assert (event.op, event.label, event.pk, event.changed) == ("update", "shop.order", 1, {"status"})
    assert (event.old, event.new) == ({"status": "a"}, {"status": "b"})
    assert event.at is not None
    assert event.at.isoformat() == "1970-01-01T00:00:01+00:00"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("", "not JSON"),
        ("hello", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("[" * 7999, "levels deep"),
        ("9" * 7000, "cannot be read"),
        ("[]", "not a JSON object"),
        ("{}", "version is None"),
        ({"v": True}, "version is True"),
        ({"v": "1"}, "version is '1'"),
        ({"v": 0}, "version is 0"),
        ({"o": "x"}, r"Invalid enum value 'x' - at `\$\.o`"),
        ({"o": ["i"]}, r"Expected `str`, got `array` - at `\$\.o`"),
        ({"m": 7}, r"Expected `str`, got `int` - at `\$\.m`"),
        ({"s": None}, r"got `null` - at `\$\.s`"),
        ({"x": "5"}, r"Expected `int`, got `str` - at `\$\.x`"),
        ({"t": True}, r"got `bool` - at `\$\.t`"),
        ({"t": 10**30}, "no date"),
        ({"t": -(10**18)}, "no date"),
        ({"f": "status"}, r"Expected `array`, got `str` - at `\$\.f`"),
        ({"c": [1]}, r"got `int` - at `\$\.c"),
        ({"r": 5}, r"Expected `array`, got `int` - at `\$\.r`"),
        ({"r": [5]}, r"Expected `array`, got `int` - at `\$\.r\[0\]`"),
        ({"r": [[nested(102)]]}, "levels deep"),
        ({"k": {"a": nested(102)}}, "levels deep"),
        ({"d": ...}, "missing required field `d`"),
        ({"r": [[1, ["a"]]]}, "one of its rows is"),
        ({"r": [[1, ["a"], ["b", "c"]]]}, "for 1 fields"),
        ({"r": [[1, "a", "b"]]}, "'a' for 1 fields"),
    ],
)
def test_a_payload_without_our_form_is_refused_with_the_reason(payload: Any, reason: str) -> None:
    if isinstance(payload, dict) and payload:
        text = json.dumps({key: value for key, value in {**GOOD, **payload}.items() if value is not ...})
    else:
        text = payload
    with pytest.raises(wire.WireError, match=reason):
        Decoder("default").decode(wire.CHANNEL, text)


@pytest.mark.parametrize("context", [r'{"a": "\ud800"}', '{"a": 1e999}', r'{"\udfff": [1E400]}'])
def test_a_context_that_only_postgresql_takes_for_json_is_left_out(
    context: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any role may set it; the event is there all the same. As a notification, and in the log."""
    text = json.dumps(GOOD)[:-1] + f', "k": {context}}}'
    (event,) = Decoder("default").decode(wire.CHANNEL, text)
    assert (event.pk, dict(event.new or {}), dict(event.context)) == (1, {"status": "b"}, {})
    assert "The context of an event of shop.order cannot be read" in caplog.text
    head = f'{{"v": 1, "m": "shop.order", "o": "u", "f": ["status"], "c": ["status"], "k": {context}}}'
    assert wire.parse_head(head).context == {}
    assert wire.parse_head(head).changed == {"status"}
    with pytest.raises(wire.WireError, match="got `int`"):
        wire.parse_rows(text.replace('"shop.order"', "7"))


def test_a_newer_version_is_told_apart_from_rubbish() -> None:
    """It is no stranger's mistake but a newer deploy, whose events this process cannot read."""
    with pytest.raises(wire.UnknownVersion, match=r"version 2.*reads version 1.*deploy the same version"):
        Decoder("default").decode(wire.CHANNEL, json.dumps({**GOOD, "v": 2, "r": "anything"}))


@pytest.mark.parametrize("label", ["elsewhere.thing", "shop.nothing", "nodot", "a.b.c", ""])
def test_another_projects_model_is_told_apart(label: str) -> None:
    with pytest.raises(UnknownLabel, match="no such model"):
        Decoder("default").decode(wire.CHANNEL, json.dumps({**GOOD, "m": label}))


def test_a_forged_key_fails_only_when_it_is_read() -> None:
    """The event exists, and says what is wrong with it to whoever asks."""
    (event,) = Decoder("default").decode(wire.CHANNEL, json.dumps({**GOOD, "r": [["one", ["a"], ["b"]]]}))
    with pytest.raises(ValueError, match=r"shop.order: the primary key 'one' cannot be read"):
        _ = event.pk
    assert event.raw_pk == "one"
    assert "one" in repr(event)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ('{"type": "user.created"}', {"type": "user.created"}),
        ('"' + "[" * 500 + '\\""', "[" * 500 + '"'),
        ("[" * 100 + "]" * 100, nested(100)),
        ('"text"', "text"),
        ("0", 0),
        ("plain words", "plain words"),
        ("", None),
        ("null", None),
    ],
)
def test_a_message_is_its_json_or_else_its_text(payload: str, message: Any) -> None:
    """Any client may notify with plain words; they are no fault."""
    (event,) = Decoder("default").decode("app_events", payload)
    assert (event.op, event.channel, event.payload) == ("message", "app_events", message)
    assert (event.model, event.label, event.pk, event.old, event.new) == (None, None, None, None, None)


@pytest.mark.parametrize("payload", ["[" * 101 + "]" * 101, "9" * 7000], ids=["deep", "long number"])
def test_a_message_too_deep_or_too_long_to_read_is_refused(payload: str) -> None:
    with pytest.raises(wire.WireError, match="JSON"):
        Decoder("default").decode("app_events", payload)


def test_on_another_channel_only_what_a_trigger_wrote_is_read_as_rows() -> None:
    """A message may have keys of the same names."""
    decode = Decoder("default").decode
    assert decode("other", json.dumps(GOOD))[0].label == "shop.order"
    for message in ({"v": 1, "o": "u"}, {**GOOD, "v": None, "x": None} | {"r": 1}, ["v"], "v", 5, {}):
        if isinstance(message, dict) and message.keys() >= GOOD.keys() - {"f", "c"}:
            with pytest.raises(wire.WireError):
                decode("other", json.dumps(message))
        else:
            (event,) = decode("other", json.dumps(message))
            assert (event.op, event.payload) == ("message", message)
