"""What a migration has copied so far, in a file of SQLite: so the next run does the rest.

    source    keys as the last run listed them here     key, size, etag
    target    and there, without the prefix of there    key, size, etag
    copied    what was copied, of which source object   key, size, etag, target_etag

`target_etag` is NULL while an object is being written: after SIGKILL nobody knows whether
it was. A power cut may take the last rows: then their objects are compared once more.

An object there counts as a migration's own only if its row says so. What others have
written is never written over, and what others have changed since then ends the run: that
is a server that has the bucket by now.

Safe to share between threads.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.durable_files import PRIVATE_MODE
from dserverfs.base.errors import LocalDiskError
from dserverfs.server.store.bucket import StoredObject

_SCHEMA = """
CREATE TABLE IF NOT EXISTS place (name TEXT);
CREATE TABLE IF NOT EXISTS source (key TEXT PRIMARY KEY, size INTEGER, etag TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS target (key TEXT PRIMARY KEY, size INTEGER, etag TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS copied (
    key TEXT PRIMARY KEY, size INTEGER, etag TEXT, target_etag TEXT
) WITHOUT ROWID;
"""
_BOTH = "source LEFT JOIN copied USING (key) LEFT JOIN target USING (key)"
# The object there is the one that was written for this one here.
_DONE = (
    "(target.etag IS copied.target_etag AND target.etag IS NOT NULL AND target.size = source.size"
    " AND copied.etag = source.etag AND copied.size = source.size)"
)
_TOGETHER = 1000  # rows that are in memory at once


class Waiting(NamedTuple):
    """An object that is to be copied or compared."""

    key: str
    size_in_bytes: int
    etag: str
    target_etag: str | None  # of what is there now
    is_ours: int  # 1: a migration wrote that, or was writing it


class Counts(NamedTuple):
    objects: int
    size_in_bytes: int


class MigrationRecord:
    """The record of one bucket's migration to one place."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def opened(cls, path: Path, place: str) -> Iterator[MigrationRecord]:
        """Open or make the file; for another `place` it begins anew. Raises LocalDiskError."""
        try:
            path.touch(mode=PRIVATE_MODE)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
                record = cls(connection)
                record._begin_at(place)
                yield record
            finally:
                connection.close()
        except (OSError, sqlite3.Error) as error:
            raise LocalDiskError(f"{path}, which has what was migrated: {error}") from error

    def _begin_at(self, place: str) -> None:
        if self._rows("SELECT name FROM place") != [(place,)]:
            self._connection.execute("BEGIN")
            for table in ("place", "source", "target", "copied"):
                self._connection.execute(f"DELETE FROM {table}")
            self._connection.execute("INSERT INTO place VALUES (?)", (place,))
            self._connection.execute("COMMIT")

    def list_source(self, objects: Iterable[StoredObject]) -> None:
        self._replace("source", objects)

    def list_target(self, objects: Iterable[StoredObject]) -> None:
        self._replace("target", objects)

    def _replace(self, table: str, objects: Iterable[StoredObject]) -> None:
        with self._lock:
            self._connection.execute(f"DELETE FROM {table}")
        rows = ((each.key, each.size_in_bytes, each.etag) for each in objects)
        while together := list(islice(rows, _TOGETHER)):
            with self._lock:
                self._connection.execute("BEGIN")
                self._connection.executemany(f"REPLACE INTO {table} VALUES (?, ?, ?)", together)
                self._connection.execute("COMMIT")

    def all(self) -> Counts:
        return self._count("source")

    def waiting(self) -> Counts:
        return self._count(f"{_BOTH} WHERE NOT {_DONE}")

    def _count(self, rows: str) -> Counts:
        query = f"SELECT count(*), coalesce(sum(source.size), 0) FROM {rows}"
        ((objects, size_in_bytes),) = self._rows(query)
        return Counts(objects, size_in_bytes)

    def iter_waiting(self) -> Iterator[Waiting]:
        """Yield what is to be copied, by keys."""
        yield from self._iter(f"NOT {_DONE}")

    def iter_all(self) -> Iterator[Waiting]:
        """Yield all that is here, by keys."""
        yield from self._iter("TRUE")

    def _iter(self, condition: str) -> Iterator[Waiting]:
        query = (
            "SELECT key, source.size, source.etag, target.etag, copied.key IS NOT NULL"
            f" FROM {_BOTH} WHERE key > ? AND {condition} ORDER BY key LIMIT {_TOGETHER}"
        )
        last = ""
        while rows := self._rows(query, last):
            for row in rows:
                yield Waiting(*row)
            last = rows[-1][0]

    def changed_there(self) -> tuple[int, str]:
        """Return how many copies others have changed or deleted there, and the key of one.

        What is gone here as well does not count.
        """
        ((number, key),) = self._rows(
            "SELECT count(*), min(key) FROM copied LEFT JOIN target USING (key)"
            " WHERE target_etag IS NOT NULL AND target.etag IS NOT target_etag"
            " AND (target.etag IS NOT NULL OR key IN (SELECT key FROM source))"
        )
        return number, key or ""

    def gone_here(self) -> list[str]:
        """Return the keys of copies that are there, and whose objects are here no longer."""
        rows = self._rows(
            "SELECT key FROM copied WHERE key NOT IN (SELECT key FROM source)"
            " AND key IN (SELECT key FROM target)"
        )
        return [key for (key,) in rows]

    def begin(self, waiting: Waiting) -> None:
        """Note that this object is about to be written there."""
        values = (waiting.key, waiting.size_in_bytes, waiting.etag, None)
        self._run("REPLACE INTO copied VALUES (?, ?, ?, ?)", *values)

    def done(self, waiting: Waiting, target_etag: str) -> None:
        """Note that it is there, with this ETag, and was verified."""
        values = (waiting.key, waiting.size_in_bytes, waiting.etag, target_etag)
        self._run("REPLACE INTO copied VALUES (?, ?, ?, ?)", *values)

    def forget(self, key: str) -> None:
        """Note that an object is there no longer."""
        self._run("DELETE FROM copied WHERE key = ?", key)

    def _run(self, statement: str, *values: Any) -> None:
        with self._lock:
            self._connection.execute(statement, values)

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()
