"""Brings the tables of a database to the present, all steps of `migrations` in one transaction.

A stop half way leaves the database as it was. Of several servers that start on one database the
first does it and the others wait: in PostgreSQL by an advisory lock, in SQLite, whose data
directory only commands of an operator share, by its write lock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, func, inspect, select, text

from dserverfs.base.errors import UsageError
from dserverfs.server.database import locks
from dserverfs.server.database.tables import POSTGRESQL

VERSION_TABLE = "dserverfs_version"
_STEPS = Path(__file__).with_name("migrations")
_LOCK = locks.number_of("upgrade")

_log = logging.getLogger(__name__)


def upgrade(engine: Engine, shown: str) -> None:
    """Bring the database to the present; `shown` is its name in messages.

    Raises UsageError for a database of something else, or of a newer version.
    """
    with engine.connect() as connection:
        if version_of(connection) == head():
            return
    with _writing(engine, shown) as connection:
        present = version_of(connection)  # another server may have done it
        if present == head():
            return
        _require_ours(connection, present, shown)
        configuration = Config()
        configuration.set_main_option("script_location", str(_STEPS).replace("%", "%%"))
        configuration.attributes["connection"] = connection
        is_new = not inspect(connection).has_table("dataset")
        command.upgrade(configuration, head())
    if not is_new:
        _log.info("database %s is now of version %s", shown, head())


def head() -> str:
    """Return the version that this program has."""
    found = ScriptDirectory(str(_STEPS)).get_current_head()
    assert found is not None
    return found


def version_of(connection: Connection) -> str | None:
    """Return the version of a database; None if it is of none."""
    options = {"version_table": VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def _require_ours(connection: Connection, present: str | None, shown: str) -> None:
    if present is not None:
        try:
            ScriptDirectory(str(_STEPS)).get_revision(present)
        except CommandError as error:
            raise UsageError(
                f"database {shown} is of version {present}, this program knows up to {head()};"
                " use the dserverfs that wrote it"
            ) from error
    elif connection.dialect.name == POSTGRESQL:
        strangers = sorted(inspect(connection).get_table_names())
        if strangers:
            raise UsageError(
                f"database {shown} holds no dserverfs server, and is not empty ({strangers[0]} is"
                " in it); make one for it alone, by: createdb --encoding UTF8 NAME"
            )


@contextmanager
def _writing(engine: Engine, shown: str) -> Iterator[Connection]:
    """Give a connection in a transaction that no other writes beside; it is committed."""
    with engine.connect() as connection:
        if engine.dialect.name == POSTGRESQL:
            _lock(connection, shown)
        else:
            # Python's sqlite3 would commit before each change of a table.
            connection.detach()
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.isolation_level = None
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()


def _lock(connection: Connection, shown: str) -> None:
    """Hold the lock until the transaction ends; a step may take long."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL lock_timeout = '30min'"))
    if not connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
        _log.info("database %s: another server brings its tables to the present", shown)
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
