"""SQL in dservercore's session. Needs an app context; the caller commits."""

from __future__ import annotations

from typing import Any

from dservercore.extensions import sql_db
from sqlalchemy import text


def execute(statement: str, **values: Any) -> Any:
    """Run a statement with `:name` for each value; return SQLAlchemy's result."""
    return sql_db.session.execute(text(statement), values)


def value(statement: str, **values: Any) -> Any:
    """Return the first column of the first row, None if there is no row."""
    return execute(statement, **values).scalar()


def insert(table: str, **values: Any) -> int:
    """Insert a row by the names of its columns; return its number."""
    number: int = _insert("INSERT", table, values).lastrowid
    return number


def replace(table: str, **values: Any) -> None:
    """Insert a row, in place of one that has its key."""
    _insert("INSERT OR REPLACE", table, values)


def _insert(verb: str, table: str, values: dict[str, Any]) -> Any:
    places = ", ".join(f":{name}" for name in values)
    return execute(f"{verb} INTO {table} ({', '.join(values)}) VALUES ({places})", **values)
