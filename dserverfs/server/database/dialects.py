"""What SQLite and PostgreSQL say differently, but for full text. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    ColumnElement,
    Table,
    TableValuedAlias,
    Text,
    any_,
    cast,
    func,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from dserverfs.server.database.tables import POSTGRESQL


def upsert(
    dialect_name: str,
    table: Table,
    values: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
) -> Any:
    """Return a statement that inserts a row, or changes the one that has its key.

    `changes` are the columns that it gets then, by default those of `values`; none: it stays.
    """
    insert = postgresql.insert if dialect_name == POSTGRESQL else sqlite.insert
    keys = [column.name for column in table.primary_key]
    if changes is None:
        changes = {name: value for name, value in values.items() if name not in keys}
    statement = insert(table).values(values)
    if not changes:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(index_elements=keys, set_=dict(changes))


def is_any_of(
    dialect_name: str, column: Column[Any], texts: Collection[str]
) -> ColumnElement[bool]:
    """Return the condition that a column has one of the texts, of which there may be many."""
    if dialect_name == POSTGRESQL:
        # No row of PostgreSQL has a text with a NUL, and none can be asked for.
        askable = sorted(text for text in set(texts) if "\0" not in text)
        return column == any_(literal(askable, ARRAY(Text)))
    values = func.json_each(json.dumps(sorted(set(texts)))).table_valued("value")
    return column.in_(select(values.c.value))


def elements(dialect_name: str, column: ColumnElement[str]) -> TableValuedAlias:
    """Return the texts of a JSON array, in the column `value`; to be joined with its table."""
    if dialect_name == POSTGRESQL:
        expanded = func.json_array_elements_text(cast(column, JSON))
        return expanded.table_valued("value").render_derived()
    return func.json_each(column).table_valued("value")
