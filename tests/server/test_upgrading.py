"""A database is brought to the present once, wholly or not at all, and no other is touched."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from dservercore.extensions import sql_db
from sqlalchemy import MetaData, create_engine, insert, inspect, select

from dserverfs.base.errors import UsageError
from dserverfs.server import app
from dserverfs.server.database import full_text, tables, upgrading
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.settings import DATABASE, ServerSettings
from dserverfs.server.store.stores import Stores
from tests.compatibility import released
from tests.support import postgresql
from tests.support.servers import SOURCES

# Another server, on the data directory and the database of the arguments; it ends itself in the
# middle of the last step if there is a third.
OTHER = """
import os, pathlib, sys
from alembic import op
from dserverfs.server import app
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.stores import Stores
directory, address, *killed = sys.argv[1:]
if killed:
    before = op.create_index
    def create_index(name, *arguments, **options):
        if name == "dserverfs_search_newest":
            os.kill(os.getpid(), 9)
        before(name, *arguments, **options)
    op.create_index = create_index
directory = DataDirectory(pathlib.Path(directory))
with directory.shared():
    flask = app.create(
        directory,
        Stores(None, lambda bucket: None),
        ServerSettings({"DSERVER_DATABASE": address or None}.get),
    )
app.close(flask)
print("made")
"""

EARLIER = [str(number) for number in range(1, int(upgrading.head()))]


@contextlib.contextmanager
def opened(directory: Path, address: str | None) -> Iterator[Any]:
    get = {DATABASE: address}.get
    with DataDirectory(directory).shared():
        flask = app.create(
            DataDirectory(directory), Stores(None, lambda bucket: None), ServerSettings(get)
        )
    try:
        with flask.app_context():
            yield sql_db.engine
    finally:
        app.close(flask)


def other(directory: Path, address: str | None, *killed: str) -> list[str]:
    return [sys.executable, "-c", OTHER, str(directory), address or "", *killed]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Each database that a server may have, empty."""
    return None if request.param == "sqlite" else postgresql.shared.get().new_database()


def names_in(engine: Any) -> set[str]:
    found = inspect(engine)
    return {
        *found.get_table_names(),
        *(index["name"] for name in found.get_table_names() for index in found.get_indexes(name)),
    }


def test_steps_make_the_tables_that_are_described(tmp_path: Path, database: str | None) -> None:
    described = MetaData()
    for table in [*sql_db.metadata.tables.values(), *tables.metadata.tables.values()]:
        table.to_metadata(described)
    if database is not None:
        full_text.words.to_metadata(described)
    indexes = {"dserverfs_dataset_base_uri", "dserverfs_search_permissions_base_uri"}
    indexes |= {"dserverfs_register_permissions_base_uri"}  # ours, on tables of dservercore

    def is_described(entry: Any, name: str | None, kind: str, *_: Any) -> bool:
        is_ours_or_fts5 = name in indexes or str(name).startswith(
            ("dserverfs_search_text", "dserverfs_search_items")
        )
        return not (is_ours_or_fts5 or name == upgrading.VERSION_TABLE)

    def is_other_type(*types: Any) -> bool | None:
        return False if isinstance(types[-1], tables.KeptReadme) else None

    with opened(tmp_path, database) as engine, engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": is_described, "compare_type": is_other_type}
        )
        assert compare_metadata(context, described) == []
        assert upgrading.version_of(connection) == upgrading.head()
        assert indexes <= names_in(engine)


@pytest.mark.parametrize("version", released.VERSIONS)
def test_data_directory_of_a_released_version_is_upgraded_whole_or_not_at_all(
    tmp_path: Path, version: str
) -> None:
    data = released.kept(version, tmp_path) / "server"
    before = dump(data / "dserver.sqlite")

    ended = subprocess.run(other(data, None, "killed"), cwd=SOURCES, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert dump(data / "dserver.sqlite") == before
    with opened(data, None) as engine:
        assert {"dserverfs_block_hashes", "dserverfs_search_newest"} <= names_in(engine)

    after = dump(data / "dserver.sqlite")
    assert [line for line in before if line.startswith("INSERT") and line not in after] == []


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_interrupted_upgrade_of_postgresql_is_as_if_it_had_not_begun(tmp_path: Path) -> None:
    address = postgresql.shared.get().new_database()

    ended = subprocess.run(other(tmp_path, address, "killed"), cwd=SOURCES, check=False)
    engine = create_engine(f"postgresql+psycopg{address.removeprefix('postgresql')}")
    left = names_in(engine)
    engine.dispose()

    assert (ended.returncode, left) == (-signal.SIGKILL, set())
    with opened(tmp_path, address) as engine:
        assert "dataset" in names_in(engine)


def test_servers_that_start_at_once_wait_for_each_other(
    tmp_path: Path, database: str | None
) -> None:
    with DataDirectory(tmp_path / "1").locked():
        pass
    if database is not None:  # hosts of one database
        shutil.copytree(tmp_path / "1", tmp_path / "2")
    directories = [tmp_path / ("1" if database is None else name) for name in ("1", "2")]

    begun = [
        subprocess.Popen(other(directory, database), cwd=SOURCES, stdout=subprocess.PIPE)
        for directory in directories
    ]

    assert [process.communicate(timeout=60)[0] for process in begun] == [b"made\n", b"made\n"]


def test_database_of_something_else_is_refused_as_it_is(tmp_path: Path) -> None:
    cluster = postgresql.shared.get()
    address = cluster.new_database()
    name = postgresql.name_of(address)
    cluster.execute('CREATE TABLE "user" (id integer)', name)

    refusal = pytest.raises(UsageError, match=r"not empty \(user is in it\)")
    with refusal, opened(tmp_path, address):
        pass

    assert cluster.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [
        (1,)
    ]
    assert not (tmp_path / "database").exists()


def test_database_of_a_newer_version_is_refused(tmp_path: Path, database: str | None) -> None:
    with opened(tmp_path, database) as engine, engine.begin() as connection:
        connection.exec_driver_sql("UPDATE dserverfs_version SET version_num = '99'")

    refusal = pytest.raises(UsageError, match="is of version 99, this program knows up to")
    with refusal, opened(tmp_path, database):
        pass


@pytest.mark.parametrize("version", EARLIER)
def test_database_of_an_earlier_version_is_upgraded_and_says_so_once(
    tmp_path: Path,
    database: str | None,
    version: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(upgrading, "head", lambda: version)
        with opened(tmp_path, database) as engine, engine.begin() as connection:
            connection.execute(insert(tables.password).values(username="alice", hash="#"))

    with caplog.at_level(logging.INFO, upgrading.__name__):
        for _ in range(2):
            with opened(tmp_path, database) as engine, engine.begin() as connection:
                assert connection.scalar(select(tables.password.c.hash)) == "#"
                assert upgrading.version_of(connection) == upgrading.head()

    assert len([text for text in caplog.messages if "is now of version" in text]) == 1
