"""Private tables of many items, on the disk where they are large.

Used to freeze, hash and upload in memory that does not grow with the number of items. A
table is a file of SQLite without a name: it is gone with its process, and after a
crash. Thread-safe; raises sqlite3.Error as the disk does.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.model import Identifier, Item, identifier_of

_TOGETHER = 1000  # rows that are in memory at once
_ITEM = "identifier, relpath, size, hash, mtime_ns, timestamp"


def private_database(owner: object) -> sqlite3.Connection:
    """Return a database without a name, which is closed when `owner` is not held any more."""
    # In memory until it outgrows 2 MB.
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    weakref.finalize(owner, connection.close)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


class DiskDict:
    """A dict of JSON values by text."""

    def __init__(self) -> None:
        self._database = private_database(self)
        self._lock = threading.Lock()
        self._count = 0
        self._database.execute("CREATE TABLE kept (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def __setitem__(self, key: str, value: Any) -> None:
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, json.dumps(value))
            )

    def __getitem__(self, key: str) -> Any:
        with self._lock:
            row = self._database.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return json.loads(row[0])

    def __contains__(self, key: object) -> bool:
        try:
            self[str(key)]
        except KeyError:
            return False
        return True


class File(NamedTuple):
    """A file as it was found."""

    path: Path
    size_in_bytes: int
    mtime_ns: int


class FileTable(Mapping[str, File]):
    """Files below a directory by relpath, in the order in which they were added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._database = private_database(self)
        self._lock = threading.Lock()
        self._count = self._bytes = 0
        # A date may be beyond what SQLite has for an integer.
        self._database.execute(
            "CREATE TABLE file"
            " (place INTEGER PRIMARY KEY, relpath TEXT UNIQUE, size INTEGER, mtime_ns TEXT)"
        )

    @property
    def size_in_bytes(self) -> int:
        return self._bytes

    def add(self, relpath: str, size_in_bytes: int, mtime_ns: int) -> None:
        with self._lock:
            self._database.execute(
                "INSERT INTO file (relpath, size, mtime_ns) VALUES (?, ?, ?)",
                (relpath, size_in_bytes, str(mtime_ns)),
            )
            self._count += 1
            self._bytes += size_in_bytes

    def largest_first(self) -> Iterator[Path]:
        """Yield the paths, those of the largest files first."""
        with self._lock:
            self._database.execute("CREATE INDEX IF NOT EXISTS by_size ON file (size, place)")
        size, place = 1 << 62, 0
        while rows := self._rows(
            "SELECT size, place, relpath FROM file WHERE (size, place) < (?, ?)"
            f" ORDER BY size DESC, place DESC LIMIT {_TOGETHER}",
            (size, place),
        ):
            for _, _, relpath in rows:
                yield self.root / relpath
            size, place, _ = rows[-1]

    def __getitem__(self, relpath: str) -> File:
        rows = self._rows("SELECT size, mtime_ns FROM file WHERE relpath = ?", (relpath,))
        if not rows:
            raise KeyError(relpath)
        return File(self.root / relpath, rows[0][0], int(rows[0][1]))

    def __iter__(self) -> Iterator[str]:
        return (relpath for relpath, _ in self.all())

    def __len__(self) -> int:
        return self._count

    def items(self) -> ItemsView[str, File]:
        """Return the files by relpath, without a look for each."""
        return _Files(self)

    def all(self) -> Iterator[tuple[str, File]]:
        """Yield what `items` returns."""
        place = 0
        while rows := self._rows(
            "SELECT place, relpath, size, mtime_ns FROM file WHERE place > ?"
            f" ORDER BY place LIMIT {_TOGETHER}",
            (place,),
        ):
            for _, relpath, size, mtime_ns in rows:
                yield relpath, File(self.root / relpath, size, int(mtime_ns))
            place = rows[-1][0]

    def _rows(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()


class ItemTable(Mapping[Identifier, Item]):
    """Items and their dates by identifier, in the order in which they were added."""

    def __init__(self) -> None:
        self._database = private_database(self)
        self._lock = threading.Lock()
        self._count = 0
        self._database.execute(
            "CREATE TABLE item (place INTEGER PRIMARY KEY, identifier TEXT UNIQUE, relpath TEXT,"
            " size INTEGER, hash TEXT, mtime_ns TEXT, timestamp REAL)"
        )

    def add(
        self, relpath: str, size_in_bytes: int, hash: str, mtime_ns: int, timestamp: float
    ) -> None:
        identifier = identifier_of(relpath)
        with self._lock:
            self._database.execute(
                "INSERT INTO item (identifier, relpath, size, hash, mtime_ns, timestamp)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (identifier, relpath, size_in_bytes, hash, str(mtime_ns), timestamp),
            )
            self._count += 1

    def __getitem__(self, identifier: Identifier) -> Item:
        return self._row(identifier)[0]

    def __iter__(self) -> Iterator[Identifier]:
        return (item.identifier for item, _ in self.dated())

    def __len__(self) -> int:
        return self._count

    def values(self) -> ValuesView[Item]:
        """Return the items, without a look for each."""
        return _Items(self)

    def dated(self) -> Iterator[tuple[Item, float]]:
        """Yield each item with its date as the manifest has it."""
        place = 0
        while rows := self._rows(
            f"SELECT place, {_ITEM} FROM item WHERE place > ? ORDER BY place LIMIT {_TOGETHER}",
            (place,),
        ):
            for _, *columns in rows:
                yield _item(columns)
            place = rows[-1][0]

    def timestamps(self) -> Mapping[Identifier, float]:
        """Return the dates as the manifest has them."""
        return _Timestamps(self)

    def timestamp(self, identifier: Identifier) -> float:
        return self._row(identifier)[1]

    def _row(self, identifier: Identifier) -> tuple[Item, float]:
        rows = self._rows(f"SELECT {_ITEM} FROM item WHERE identifier = ?", (identifier,))
        if not rows:
            raise KeyError(identifier)
        return _item(rows[0])

    def _rows(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()


class _Files(ItemsView[str, File]):
    def __init__(self, table: FileTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[str, File]]:
        return self._table.all()


class _Items(ValuesView[Item]):
    def __init__(self, table: ItemTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[Item]:
        return (item for item, _ in self._table.dated())


class _Timestamps(Mapping[Identifier, float]):
    """The dates of a table of items."""

    def __init__(self, table: ItemTable) -> None:
        self._table = table

    def __getitem__(self, identifier: Identifier) -> float:
        return self._table.timestamp(identifier)

    def __iter__(self) -> Iterator[Identifier]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


def _item(columns: Sequence[Any]) -> tuple[Item, float]:
    identifier, relpath, size, digest, mtime_ns, timestamp = columns
    return Item(identifier, relpath, size, digest, int(mtime_ns)), timestamp
