"""Who writes, and why: what a transaction tells the triggers, in settings that end with it.

A context is a chain of layers in a ContextVar. A `Courier` stands in front of every statement of a connection and
tells PostgreSQL, as late as it can, what the statement is to know: `SET LOCAL "pgsignals.context" = '{"actor": 7}'`.
Such a setting ends with its transaction, whichever way, so the next user of a pooled connection never sees it; and
unlike `SELECT set_config(...)` it takes no snapshot, so a transaction may still choose its isolation, or lock tables.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, transaction
from psycopg import sql
from psycopg.pq import TransactionStatus

from . import conf

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("pgsignals")

MAX_CONTEXT: Final = 1024
"""Bytes that a context, nested ones merged, may have as JSON. They are taken from the room of every notification."""

MAX_NESTED: Final = 80
"""Brackets and braces in a context. A listener reads no JSON of more than 100 levels, so it would lose the event."""

UNKNOWN: Final = "?"
"""What was sent last may be gone, by a rollback to a savepoint for example: no JSON, so it equals no context."""

NEVER = frozenset(("BEGIN", "DISCARD", "PREPARE", "RELEASE", "RESET", "SET", "SHOW", "START"))
"""First words of statements that fire no trigger. Nothing is sent before these, nor before those that end."""

ENDS = frozenset(("ABORT", "COMMIT", "END", "ROLLBACK"))
"""First words of statements after which what was sent may be gone, in the same transaction or a chained one."""

WRITES = frozenset(("COPY", "DELETE", "INSERT", "MERGE", "TRUNCATE", "UPDATE", "WITH"))
"""First words of statements that fire triggers, and that PostgreSQL allows inside a transaction."""

MAY_WRITE = WRITES | {"CALL", "DO", "EXECUTE"}

# Possessive, so that a long comment is read once.
_FIRST_WORD = re.compile(r"(?:[\s(]+|--[^\n]*+|/\*.*?\*/)*+([A-Za-z]+)", re.DOTALL)
_WRITE_IN_WITH = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)


class Later:
    """Values that are asked for when something is written; once, unless `sign()` gives another object.

    A failure is logged and leaves the values out: nobody's write fails because of them.
    """

    def __init__(self, ask: Callable[[], Mapping[str, Any]], sign: Callable[[], object] = lambda: None) -> None:
        self._ask = ask
        self._sign = sign
        self._signed: object = None
        self._answer: dict[str, str] | None = None
        self._asking = False
        self._lock = threading.RLock()

    def known(self) -> dict[str, str]:
        """What is known without asking."""
        return self._answer or {}

    def load(self) -> dict[str, str]:
        """The values, each as JSON."""
        with self._lock:
            sign = self._sign()
            # Asking may itself write, to a session for example.
            if not self._asking and (self._answer is None or sign is not self._signed):
                self._asking = True
                try:
                    self._answer = self._fitting()
                finally:
                    self._asking = False
                self._signed = sign
            return self.known()

    def _fitting(self) -> dict[str, str]:
        try:
            answer = encode(self._ask())
            check_size(as_text(answer))
        except Exception:
            logger.exception("The context could not be made; what is written now is announced without it.")
            return {}
        return answer


class Frame:
    """The layers in force inside a block, the outermost first."""

    __slots__ = ("_refused", "_text", "layers", "outer")

    def __init__(self, outer: Frame | None, layer: dict[str, str] | Later) -> None:
        self.outer = outer
        self.layers: tuple[dict[str, str] | Later, ...] = (*(outer.layers if outer else ()), layer)
        self._text: str | None = None
        self._refused: str | None = None
        if all(isinstance(layer, dict) for layer in self.layers):
            self._text = self._merged(load=False)

    def given(self) -> str:
        """What the program said itself, as JSON."""
        merged: dict[str, str] = {}
        for layer in self.layers:
            merged |= layer if isinstance(layer, dict) else {}
        return as_text(merged)

    def text(self, *, load: bool) -> str:
        """All that is known, as JSON; with `load`, what can be asked for is asked for."""
        return self._merged(load=load) if self._text is None else self._text

    def _merged(self, *, load: bool) -> str:
        merged: dict[str, str] = {}
        for layer in self.layers:
            merged |= layer if isinstance(layer, dict) else layer.load() if load else layer.known()
        text = as_text(merged)
        try:
            check_size(text)
        except ValueError as error:
            if self._is_given():
                raise
            if text != self._refused:
                logger.error("%s What is written now is announced with the explicit part only.", error)
            self._refused = text
            return self.given()
        return text

    def _is_given(self) -> bool:
        return all(isinstance(layer, dict) for layer in self.layers)


_active: ContextVar[Frame | None] = ContextVar("pgsignals.context", default=None)


def encode(values: Mapping[str, Any]) -> dict[str, str]:
    """Each value as JSON. Raises TypeError for the first that is none."""
    return {str(key): _encode(str(key), value) for key, value in values.items()}


def _encode(key: str, value: Any) -> str:
    try:
        text = json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        f"{key}{text}".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"pgsignals.context({key}={value!r}): the value cannot be written as JSON ({error}). "
            "Give text, a number, or another value that DjangoJSONEncoder knows; for a model its pk."
        ) from error
    return text


def as_text(fragments: Mapping[str, str]) -> str:
    """One JSON object; empty text where it would be empty."""
    if not fragments:
        return ""
    return "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{text}" for key, text in fragments.items()) + "}"


def check_size(text: str) -> None:
    """Raise ValueError where a context is too big, or too deep."""
    if (nested := text.count("[") + text.count("{")) > MAX_NESTED:
        raise ValueError(
            f"The context has {nested} brackets and braces; at most {MAX_NESTED} may be in it. Keep it flat: keys, and "
            f"the rest elsewhere. It begins {text[:80]!r}."
        )
    if (size := len(text.encode())) > MAX_CONTEXT:
        raise ValueError(
            f"The context has {size} bytes as JSON, nested ones merged; at most {MAX_CONTEXT} may travel with every "
            f"event. Keep keys in it, and the rest elsewhere. It begins {text[:80]!r}."
        )


class context:
    """Put who writes, and why, into every event of the block: `with pgsignals.context(actor=7, request_id="a1"):`.

    Receivers read it as `event.context`. Nested contexts are merged, the inner one wins. Also a decorator, of sync
    and of async functions. It holds for all PostgreSQL databases, and goes where ContextVars go: into
    `sync_to_async`, not into a thread or a task queue.

    Values are whatever DjangoJSONEncoder writes (UUIDs, dates, decimals and lazy text become text). On entering,
    raises TypeError for a value that is not JSON, and ValueError where all of it has more than 1,024 bytes as JSON, or
    more than 80 brackets and braces.

    What it costs: one short statement in each transaction, before the transaction's first statement, and once more
    after a rollback to a savepoint or where the context changes. In autocommit a statement that writes (INSERT,
    UPDATE, DELETE, MERGE, TRUNCATE, COPY, and WITH that has one of these) becomes a transaction of its own: BEGIN,
    SET LOCAL and COMMIT are three more round trips. Other statements are left alone there, so a function that writes
    and is called by `SELECT f()` or CALL in autocommit has no context.

    `cursor.copy()` and `cursor.callproc()` do not pass where Django lets libraries look at statements: before the
    first of these in a transaction, or in a block, execute any other statement (`SELECT 1`), and they have it too.
    """

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __enter__(self) -> None:
        # Nothing is kept here: one object may be entered again, by several threads.
        _active.set(Frame(_active.get(), encode(self._values)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, or a coroutine function."""
        refuse_generator(function, "pgsignals.context")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaiting(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return awaiting  # type: ignore[return-value]

        @functools.wraps(function)
        def calling(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return calling


def refuse_generator(function: Callable[..., Any], what: str) -> None:
    """Raise TypeError for a function whose body runs after the call has returned."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{what} cannot decorate the generator {function.__qualname__}: its body runs after the call has "
            "returned. Write the with statement inside it."
        )


def _leave() -> None:
    # Not ContextVar.reset(): a block may be left in another Context than it was entered in, in async fixtures say.
    frame = _active.get()
    _active.set(frame.outer if frame else None)


@contextmanager
def deferred(ask: Callable[[], Mapping[str, Any]], sign: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A context whose values are asked for at the first write. It never raises: what is wrong with it is logged."""
    _active.set(Frame(_active.get(), Later(ask, sign)))
    try:
        yield
    finally:
        _leave()


def current_text() -> str:
    """What is in force here, as JSON; empty where nothing is."""
    frame = _active.get()
    return frame.text(load=True) if frame else ""


class Courier:
    """Brings the context to PostgreSQL, in front of a connection's statements. One for each connection.

    It sees every statement, Django's savepoints among them, so it knows what was sent and what was undone; and
    psycopg knows whether a transaction is open, whoever opened it.
    """

    __slots__ = ("_sending", "_sent")

    def __init__(self) -> None:
        self._sent: str | None = None  # None: nothing in this transaction
        self._sending = False

    def __call__(
        self, execute: Callable[..., Any], statement: Any, params: Any, many: bool, about: dict[str, Any]
    ) -> Any:
        frame = _active.get()
        if (frame is None and self._sent is None) or self._sending:
            return execute(statement, params, many, about)
        return self._accompany(frame, lambda: execute(statement, params, many, about), statement, about["connection"])

    def _accompany(self, frame: Frame | None, run: Callable[[], Any], statement: Any, database: Any) -> Any:
        word, writes = read(statement, database)
        status = status_of(database)
        if status == TransactionStatus.IDLE:
            self._sent = None
            if database.connection.autocommit:
                return self._alone(frame, run, database) if frame is not None and writes else run()
        if word in ENDS:
            return self._ending(run)
        if status in (TransactionStatus.IDLE, TransactionStatus.INTRANS) and word not in NEVER:
            self._tell(frame, database, load=writes or word in MAY_WRITE - WRITES)
        return run()

    def _alone(self, frame: Frame, run: Callable[[], Any], database: Any) -> Any:
        """A write in autocommit: a transaction of its own."""
        text = frame.text(load=True)
        if not text:
            return run()
        # What fails at the commit, a deferred constraint for example, must be an error of Django's all the same.
        with database.wrap_database_errors, own_transaction(database):
            self._send(text, database)
            result = run()
        self._sent = None
        return result

    def _ending(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        finally:
            if self._sent is not None:
                self._sent = UNKNOWN

    def _tell(self, frame: Frame | None, database: Any, *, load: bool) -> None:
        text = frame.text(load=load) if frame else ""
        if text != (self._sent or ""):
            self._send(text, database)

    def _send(self, text: str, database: Any) -> None:
        self._sending = True
        try:
            set_local("pgsignals.context", storable(text, database), database)
        finally:
            self._sending = False
        self._sent = text


def read(statement: Any, database: Any) -> tuple[str, bool]:
    """The statement's first word in capitals, and whether the statement writes rows."""
    if isinstance(statement, sql.Composable):
        statement = statement.as_string(database.connection)
    elif isinstance(statement, bytes):
        statement = statement.decode("latin-1")
    found = _FIRST_WORD.match(statement)
    word = found[1].upper() if found else ""
    return word, word in WRITES and (word != "WITH" or _WRITE_IN_WITH.search(statement) is not None)


def status_of(database: Any) -> TransactionStatus:
    """Where psycopg's connection stands. It sends BEGIN with the first statement: until then it is idle."""
    if database.connection is None:
        return TransactionStatus.UNKNOWN
    status: TransactionStatus = database.connection.info.transaction_status
    return status


def storable(text: str, database: Any) -> str:
    """The context as the database can hold it: PostgreSQL fails a statement over a character that it lacks."""
    encoding = database.connection.info.parameter_status("server_encoding")
    if text.isascii() or encoding in (None, "UTF8"):
        return text
    escaped = json.dumps(json.loads(text), separators=(",", ":"))
    try:
        check_size(escaped)
    except ValueError as error:
        logger.error("In a database in %s: %s What is written now is announced without it.", encoding, error)
        return ""
    return escaped


def own_transaction(database: Any) -> AbstractContextManager[Any]:
    """A transaction on exactly this connection: it may be a `copy()`, which atomic() does not know."""
    if connections[database.alias] is database:
        return transaction.atomic(using=database.alias)
    own: AbstractContextManager[Any] = database.connection.transaction()
    return own


def set_local(name: str, text: str, database: Any) -> None:
    """Set one of our settings until the end of the transaction."""
    quoted = sql.Literal(text).as_string(database.connection)
    with database.cursor() as cursor:
        # SET takes no parameters from the server's point of view.
        cursor.execute(f"SET LOCAL {name} = {quoted}")


def install(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """Put a courier in front of a PostgreSQL connection's statements, once. A receiver of `connection_created`."""
    if connection.vendor == "postgresql" and not any(isinstance(one, Courier) for one in connection.execute_wrappers):
        connection.execute_wrappers.append(Courier())


class silenced(ContextDecorator):
    """Announce nothing of what the block writes to one database: `with pgsignals.silenced():` around a bulk load.

    Opens `transaction.atomic()`, and ends with it: what this connection writes after the block, and what others write
    meanwhile, is announced. On a database that is not PostgreSQL the block just runs. Logs a WARNING on entering.

    `using` is the alias of the database; PGSIGNALS["DATABASE"] by default. In a data migration's RunPython it is
    `using=schema_editor.connection.alias`. Also a decorator, of functions that are neither async nor generators
    (TypeError): Django's transactions know no async.
    """

    def __init__(self, using: str | None = None) -> None:
        self._using = using
        self._blocks: list[Any] = []

    def _recreate_cm(self) -> silenced:
        return silenced(self._using)

    def __call__(self, function: Any) -> Any:
        """Decorate a function."""
        refuse_generator(function, "pgsignals.silenced")
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"pgsignals.silenced cannot decorate the coroutine {function.__qualname__}: Django's transactions know "
                "no async. Put the writes into a function, decorate that, and call it with sync_to_async."
            )
        return super().__call__(function)

    def __enter__(self) -> None:
        block = _silence(self._using or conf.get().DATABASE)
        block.__enter__()
        self._blocks.append(block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._blocks.pop().__exit__(kind, error, trace)


@contextmanager
def _silence(alias: str) -> Iterator[None]:
    database: Any = connections[alias]
    if database.vendor != "postgresql":
        yield
        return
    goes_on = database.in_atomic_block or not database.get_autocommit()
    with transaction.atomic(using=alias):
        former = _silence_now(database) if goes_on else ""
        logger.warning(
            "What is now written to the database %r is not announced, until this silenced block ends.", alias
        )
        set_local("pgsignals.silenced", "on", database)
        yield
        # A rollback, to our savepoint or further, takes the setting back by itself.
        if goes_on and not database.needs_rollback:
            set_local("pgsignals.silenced", former, database)


def _silence_now(database: Any) -> str:
    with database.cursor() as cursor:
        cursor.execute("SELECT current_setting('pgsignals.silenced', true)")
        (value,) = cursor.fetchone()
    return value or ""
