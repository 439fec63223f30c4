"""Statements in dservercore's session. Needs an app context; the caller commits."""

from __future__ import annotations

from typing import Any

from dservercore.extensions import sql_db
from sqlalchemy import ColumnElement, Executable, Table, delete, insert, select

from dserverfs.server.database import dialects


def dialect_name() -> str:
    """Return `sqlite` or `postgresql`."""
    name: str = sql_db.engine.dialect.name
    return name


def execute(statement: Executable, values: Any = None) -> Any:
    """Run a statement, with `values` if it has none of its own; return SQLAlchemy's result."""
    return sql_db.session.execute(statement, values)


def value(statement: Executable) -> Any:
    """Return the first column of the first row, None if there is no row."""
    return execute(statement).scalar()


def first(table: Table, *conditions: ColumnElement[bool]) -> Any:
    """Return the first row that keeps the conditions, with all columns; None if there is none."""
    return execute(select(table).where(*conditions)).first()


def insert_row(table: Table, **values: Any) -> int:
    """Insert a row by the names of its columns; return the first column of its key."""
    number: int = execute(insert(table).values(values)).inserted_primary_key[0]
    return number


def replace_row(table: Table, **values: Any) -> None:
    """Insert a row, or give the one that has its key these values."""
    execute(dialects.upsert(dialect_name(), table, values))


def delete_rows(table: Table, *conditions: ColumnElement[bool]) -> int:
    """Delete the rows that keep the conditions; return how many there were."""
    deleted: int = execute(delete(table).where(*conditions)).rowcount
    return deleted
