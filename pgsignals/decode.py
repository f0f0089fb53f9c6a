"""From a notification's payload to events: names are bound to this project's models, and to how their fields read.

What a label means is worked out once and kept; decoding a row then makes one slotted object and no more.
"""

from __future__ import annotations

from datetime import datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.db import connections

from . import values, wire
from .event import DELETE, INSERT, MESSAGE, TRUNCATE, UPDATE, LogEvent, PgEvent, Reader, Source, Statement

if TYPE_CHECKING:
    from django.db.models import Model

LogRow = tuple[int, int | str, datetime, str, str, str, str]
"""id, xid, at, source, key, head and body of a row of the log."""

_MOST_HEADS = 1000

_TRUNCATE = wire.OPERATION_CODES[TRUNCATE]


class UnknownLabel(wire.WireError):
    """An event about a model that this project does not have: another project writes to the same database."""

    def __init__(self, label: str) -> None:
        super().__init__(f"it is about {label!r}, and this project has no such model")
        self.label = label


class Decoder:
    """Decodes what comes from one database. Not shared between threads."""

    def __init__(self, database: str) -> None:
        self.database = database
        self._models: dict[type[Model], _ModelReaders] = {}
        self._sources: dict[tuple[str, str, str], Source] = {}
        """By label, operation's code, and channel."""
        self._heads: dict[tuple[str, str], tuple[Source, Statement]] = {}
        """Of the log's rows: most of those that are read together share theirs."""

    def decode(self, channel: str, payload: str | bytes) -> list[PgEvent]:
        """The events of one notification.

        Raises wire.WireError, with the reason, for what cannot be read; of these, UnknownLabel for another project's
        model and wire.UnknownVersion for what a newer pgsignals wrote.
        """
        if channel == wire.CHANNEL:
            parsed = wire.parse_rows(payload)
            source = self._sources.get((parsed.label, parsed.code, channel))
            # The usual case: one row of a model that is known already.
            if source is not None and len(parsed.rows) == 1 and parsed.code != _TRUNCATE:
                return [PgEvent(source, parsed, parsed.rows[0])]
            return self._rows(channel, parsed)
        document = read_message(payload)
        if wire.looks_like_rows(document):
            return self._rows(channel, wire.read_rows(document))
        return [PgEvent(self._of_messages(channel), Statement(), document)]

    def logged(self, row: LogRow, group: str | None = None, window: tuple[str, str] | None = None) -> LogEvent:
        """The event of a row of the log, read by a group or by nobody in particular.

        Raises as `decode` does.
        """
        number, writer, moment, source, key, head, body = row
        known = self._heads.get((head, source))
        if known is None:
            known = self._head(head, source)
        try:
            said, ordered_by = wire.parse_body(body), wire.parse_body(key)
        except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors too
            raise wire.WireError(f"the log's row {number} cannot be read ({error})") from None
        return LogEvent(
            *known,
            said,
            number=number,
            writer=int(writer),
            moment=moment,
            raw_key=ordered_by,
            group=group,
            window=window,
        )

    def hinted(
        self, label: str, op: str, pk: Any, changed: list[str], fields: tuple[str, ...], old: Any, new: Any
    ) -> PgEvent:
        """The event that a hint is about, with the values that went along. Raises UnknownLabel."""
        source = self._source(wire.CHANNEL, label, wire.OPERATION_CODES[op])
        sides = {INSERT: [new], DELETE: [old], UPDATE: [old or new, new]}[op]
        row = [pk, *sides] if fields and None not in sides else [pk]
        return PgEvent(source, Statement(fields=fields, changed=frozenset(changed)), row)

    def hinted_message(self, channel: str, payload: Any) -> PgEvent:
        """The event of a message that reached a browser's process by a hint."""
        return PgEvent(Source(op=MESSAGE, channel=channel, database=self.database), Statement(), payload)

    def _head(self, text: str, source: str) -> tuple[Source, Statement]:
        parsed = wire.parse_head(text)
        if parsed.code == "m":
            found = self._of_messages(source)
        else:
            channel, label = parsed.channel or wire.CHANNEL, parsed.label or ""
            found = self._sources.get((label, parsed.code, channel)) or self._source(channel, label, parsed.code)
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[text, source] = found, parsed
        return found, parsed

    def _rows(self, channel: str, parsed: wire.RowsPayload) -> list[PgEvent]:
        source = self._sources.get((parsed.label, parsed.code, channel)) or self._source(
            channel, parsed.label, parsed.code
        )
        if parsed.code == _TRUNCATE:  # one event about the table
            return [PgEvent(source, parsed, [])]
        rows = parsed.rows
        # One row is the usual case, and costs a quarter of the way that is the fastest for many.
        return (
            [PgEvent(source, parsed, rows[0])]
            if len(rows) == 1
            else list(map(PgEvent, repeat(source), repeat(parsed), rows))
        )

    def _source(self, channel: str, given: str, code: str) -> Source:
        known = self._known(given)
        # Django finds a model by many spellings; only its own is kept, so that nobody can fill our memory.
        label = known.model._meta.label_lower
        key = (label, code, channel)
        if key not in self._sources:
            self._sources[key] = Source(
                op=wire.OPERATIONS[code],
                channel=channel,
                database=self.database,
                label=label,
                model=known.model,
                aliases=known.aliases,
                readers=known,
                read_pk=known.read_pk,
            )
        return self._sources[key]

    def _of_messages(self, channel: str) -> Source:
        key = ("", MESSAGE, channel)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = Source(op=MESSAGE, channel=channel, database=self.database)
        return source

    def _known(self, label: str) -> _ModelReaders:
        model = _model(label)
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = _ModelReaders(model, self.database)
        return known


class _ModelReaders(dict[str, Reader]):
    """A model's readers by field name, each made when it is first asked for.

    A field that the model does not have (the trigger is of another deploy) gets none: its value stays raw.
    """

    def __init__(self, model: type[Model], database: str) -> None:
        super().__init__()
        self.model = model
        self._database = database
        self.read_pk = values.key_reader(model, connections[database])
        self.aliases = {
            field.attname: field.name for field in model._meta.concrete_fields if field.attname != field.name
        }

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            try:
                field = self.model._meta.get_field(name)
            except FieldDoesNotExist:
                return default
            self[name] = values.reader(field, connections[self._database])  # type: ignore[arg-type]
        return self[name]


def _model(label: str) -> type[Model]:
    try:
        return apps.get_model(label)
    except (LookupError, ValueError):
        raise UnknownLabel(label) from None


def read_message(payload: str | bytes) -> Any:
    """What an application's message says: its JSON, or the text itself where it is none; None where it is empty.

    Any PostgreSQL client may notify, and many send plain words; these are no fault. Raises wire.WireError for JSON
    that is too deep, or has too long a number, to be read.
    """
    text = payload.decode(errors="replace") if isinstance(payload, bytes) else payload
    if not text:
        return None
    try:
        return wire.parse_json(text)
    except wire.NotJSON:
        return text
