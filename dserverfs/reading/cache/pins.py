"""The record of what is pinned: items whose blocks are not evicted, by dataset.

Used by the cache, which asks of each block that it stores, and by who pins and unpins. It
has items, and no blocks: those get other names. All processes share one; those that only
ask are told "nothing" where it cannot be read.

On disk: `pins.db` beside the blocks, a database of SQLite, synced; it is there once
something was pinned. Earlier versions leave it alone. Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.errors import LocalDiskError
from dserverfs.base.local_files import create_private
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.layout import PINS

logger = logging.getLogger(__name__)

FORMAT = 1
BUSY_TIMEOUT_S = 5.0
_SCHEMA = (
    "CREATE TABLE dataset (uri TEXT PRIMARY KEY, name TEXT NOT NULL)",
    "CREATE TABLE item (uri TEXT NOT NULL, relpath TEXT NOT NULL, key TEXT NOT NULL PRIMARY KEY,"
    " content TEXT NOT NULL, size INTEGER NOT NULL)",
    "CREATE INDEX item_uri ON item (uri)",
    "CREATE INDEX item_content ON item (content)",
)
_ROWS_AT_A_TIME = 500
_AMONG = "IN (SELECT value FROM json_each(?))"


class PinnedItem(NamedTuple):
    """An item whose blocks stay."""

    uri: str  # the dserver URI of its dataset
    relpath: str
    key: str  # ItemContent.key
    content: str  # ItemContent.content_key
    size_in_bytes: int


class PinnedDataset(NamedTuple):
    """A dataset of which items are pinned."""

    uri: str
    name: str
    items: int
    size_in_bytes: int


class Pins:
    """The record of one cache. Raises LocalDiskError, but from `among`."""

    def __init__(self, directory: Path) -> None:
        """`directory` is that of the blocks; it is private."""
        self._path = directory / PINS
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def close(self) -> None:
        with self._lock:
            self._close_locked()

    def blocks_among(
        self, keys: Sequence[BlockKey], origins: Mapping[BlockKey, BlockKey]
    ) -> frozenset[str]:
        """Return which of the keys are of blocks of a pinned item or content, as text.

        `origins` has the block that one was read as, if that is not its key. Takes 1 us where
        nothing was ever pinned.
        """
        if not self._path.exists():
            return frozenset()
        owners = {key: (key.owner, origins.get(key, key).owner) for key in keys}
        pinned = self.among({owner for both in owners.values() for owner in both})
        return frozenset(
            key.as_text() for key, both in owners.items() if not pinned.isdisjoint(both)
        )

    def among(self, keys: Collection[str]) -> set[str]:
        """Return which of these keys of items or contents are pinned; none if that is unknown."""
        try:
            with self._lock:
                connection = self._known_locked()
                if connection is None or not keys:
                    return set()
                text = json.dumps([*keys])
                rows = connection.execute(
                    f"SELECT key FROM item WHERE key {_AMONG}"
                    f" UNION SELECT content FROM item WHERE content {_AMONG}",
                    (text, text),
                )
                return {key for (key,) in rows}
        except (sqlite3.Error, OSError) as error:
            logger.debug("%s: cannot be asked: %s", self._path, error)
            return set()

    def add(self, uri: str, name: str, items: Iterable[PinnedItem]) -> None:
        """Enter items of a dataset; those that are there stay."""
        with self._written() as connection:
            connection.execute("INSERT OR REPLACE INTO dataset VALUES (?, ?)", (uri, name))
            connection.executemany("INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?)", items)

    def remove_dataset(self, uri: str) -> int:
        """Strike out all items of a dataset; return how many there were."""
        with self._written() as connection:
            removed = connection.execute("DELETE FROM item WHERE uri = ?", (uri,)).rowcount
            connection.execute("DELETE FROM dataset WHERE uri = ?", (uri,))
            return removed

    def remove(self, keys: Sequence[str]) -> int:
        """Strike out items by their keys; return how many were there."""
        with self._written() as connection:
            text = json.dumps([*keys])
            removed = connection.execute(f"DELETE FROM item WHERE key {_AMONG}", (text,)).rowcount
            connection.execute(
                "DELETE FROM dataset WHERE NOT EXISTS (SELECT 1 FROM item WHERE uri = dataset.uri)"
            )
            return removed

    def datasets(self) -> list[PinnedDataset]:
        """Return the datasets of which items are pinned, by name."""
        rows = self._asked(
            "SELECT dataset.uri, name, count(*), sum(size) FROM dataset JOIN item USING (uri)"
            " GROUP BY dataset.uri ORDER BY name, dataset.uri"
        )
        return [PinnedDataset(*row) for row in rows]

    def size_in_bytes(self) -> int:
        """Return how many bytes the contents of all items take up."""
        sizes = self._asked("SELECT sum(size) FROM (SELECT DISTINCT content, size FROM item)")
        return sum(int(size or 0) for (size,) in sizes)

    def items(self, uri: str | None = None) -> Iterator[PinnedItem]:
        """Yield the items of a dataset, or all; others may be added and removed meanwhile."""
        key = ""
        where = "key > ?" if uri is None else "key > ? AND uri = ?"
        while rows := self._asked(
            f"SELECT * FROM item WHERE {where} ORDER BY key LIMIT {_ROWS_AT_A_TIME}",
            (key,) if uri is None else (key, uri),
        ):
            for row in rows:
                yield PinnedItem(*row)
            key = rows[-1][2]

    def _asked(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of an answer; none where nothing was ever pinned."""
        with self._told(), self._lock:
            connection = self._known_locked()
            return [] if connection is None else connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        """Give the database for one transaction; it is made if need be."""
        with self._told(), self._lock:
            connection = self._known_locked() or self._made_locked()
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LocalDiskError(
                f"{self._path}: what is pinned cannot be read or written: {error}; without that"
                " file nothing is pinned"
            ) from error

    def _known_locked(self) -> sqlite3.Connection | None:
        """Return the database; None if nothing was ever pinned."""
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            self._close_locked()
            return None
        if self._connection is None or inode != self._inode:
            self._close_locked()
            connection = self._opened()
            if _version(connection) == 0:  # who made it was killed
                connection.close()
                return None
            self._connection, self._inode = connection, inode
        return self._connection

    def _made_locked(self) -> sqlite3.Connection:
        create_private(self._path)
        connection = self._opened()
        try:
            connection.execute("PRAGMA journal_mode = WAL")  # who stores blocks never waits
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                if _version(connection) == 0:
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {FORMAT}")
        except BaseException:
            connection.close()
            raise
        self._connection, self._inode = connection, os.stat(self._path).st_ino
        return connection

    def _opened(self) -> sqlite3.Connection:
        """Return the database open; raises DatabaseError if it is of a newer version."""
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            if _version(connection) > FORMAT:
                raise sqlite3.DatabaseError("it is of a newer version of dserverfs")
        except BaseException:
            connection.close()
            raise
        return connection

    def _close_locked(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _version(connection: sqlite3.Connection) -> int:
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    return int(version)
