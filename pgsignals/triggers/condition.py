"""A declaration's `when`, from a Q to SQL that a trigger can ask of one row."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.core.exceptions import EmptyResultSet, FieldError, FullResultSet
from django.db.models import OuterRef, QuerySet, Subquery
from django.db.models.sql.query import Query
from psycopg import sql

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model, Q


def condition(when: Q, model: type[Model], connection: BaseDatabaseWrapper, alias: str) -> str:
    """The SQL of a declaration's `when`, asked of the row that goes by `alias`.

    Raises what Django raises for an unknown field or a value that a field cannot have, FieldError for what would need
    more than the row itself.
    """
    query, where = ask(when, model)
    where.relabel_aliases({model._meta.db_table: alias})
    try:
        text, parameters = where.as_sql(query.get_compiler(connection=connection), connection)
    except EmptyResultSet:
        return "false"
    except FullResultSet:
        return "true"
    if parameters:
        # How a value is written may depend on the connection's adapters.
        connection.ensure_connection()
    with_values: str = text % tuple(_value(one, connection) for one in parameters)
    return f"({with_values})"


def ask(when: Q, model: type[Model]) -> tuple[Query, Any]:
    """Django's query for a condition, and its WHERE. Raises as `condition` does."""
    query = Query(model)
    where = query.build_where(when)
    if any(isinstance(part, Subquery | QuerySet | OuterRef) for part in _parts(when)) or where.contains_aggregate:
        raise FieldError("A trigger can ask the row itself only: no subqueries, no aggregates")
    if where.contains_over_clause:
        raise FieldError("A trigger can ask the row itself only: no window functions")
    # A relation without a column here, and a field of a parent's table, are joins though nothing says `__`.
    if tables := [query.alias_map[alias].table_name for alias, uses in query.alias_refcount.items() if uses][1:]:
        raise FieldError(f"A trigger can ask the row itself only: no join with {tables[0]}")
    return query, where


def _parts(node: Any) -> Iterator[Any]:
    """A condition, and all that it is made of, lists of expressions among it."""
    yield node
    inner = node if isinstance(node, list | tuple) else getattr(node, "get_source_expressions", list)()
    for one in [*inner, *getattr(node, "children", ())]:
        yield from _parts(one)


def _value(parameter: Any, connection: BaseDatabaseWrapper) -> str:
    if isinstance(parameter, timedelta):
        # As ISO 8601 has it: what "-1 day 60 second" means depends on the writer's IntervalStyle.
        seconds = f"{parameter.seconds}.{parameter.microseconds:06}"
        return f"'P{parameter.days}DT{seconds}S'::interval"
    return sql.Literal(parameter).as_string(connection.connection).strip()
