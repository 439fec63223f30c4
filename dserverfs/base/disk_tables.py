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
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.model import Identifier, Item, identifier_of

_TOGETHER = 1000  # rows that are in memory at once
_ITEM = "identifier, relpath, size, hash, mtime_ns, timestamp"


class PrivateTable:
    """One table in a database without a name, which is closed when nothing holds it any more."""

    def __init__(self, name: str, definition: str) -> None:
        """`definition` is SQL's; `in_order` needs `place INTEGER PRIMARY KEY` in it."""
        # In memory until it outgrows 2 MB.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        self._name = name
        self._lock = threading.Lock()
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"CREATE TABLE {name} {definition}")

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Execute a statement that answers nothing."""
        with self._lock:
            self._connection.execute(statement, values)

    def run_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each of the values, in one transaction."""
        with self._lock:
            self._connection.execute("BEGIN")
            self._connection.executemany(statement, values)
            self._connection.execute("COMMIT")

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows that a statement answers."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def row(self, columns: str, key: str, value: str) -> Any:
        """Return these columns of the row with that key; raises KeyError if there is none."""
        try:
            rows = self.rows(f"SELECT {columns} FROM {self._name} WHERE {key} = ?", (value,))
        except UnicodeEncodeError:  # a lone surrogate, of a server's answer: in no row
            rows = []
        if not rows:
            raise KeyError(value)
        return rows[0]

    def in_order(self, columns: str) -> Iterator[Sequence[Any]]:
        """Yield `place` and these columns of each row in the order in which they were added."""
        place = 0
        while rows := self.rows(
            f"SELECT place, {columns} FROM {self._name} WHERE place > ?"
            f" ORDER BY place LIMIT {_TOGETHER}",
            (place,),
        ):
            yield from rows
            place = rows[-1][0]

    def __len__(self) -> int:
        count: int = self.rows(f"SELECT count(*) FROM {self._name}")[0][0]
        return count


class DiskDict:
    """A dict of JSON values by text."""

    def __init__(self) -> None:
        self._table = PrivateTable("kept", "(key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def __setitem__(self, key: str, value: Any) -> None:
        self._table.run("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, json.dumps(value)))

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._table.row("value", "key", key)[0])

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
        self.size_in_bytes = 0  # of all
        self._count = 0
        # A date may be beyond what SQLite has for an integer.
        self._table = PrivateTable(
            "file", "(place INTEGER PRIMARY KEY, relpath TEXT UNIQUE, size INTEGER, mtime_ns TEXT)"
        )

    def add(self, relpath: str, size_in_bytes: int, mtime_ns: int) -> None:
        self._table.run(
            "INSERT INTO file (relpath, size, mtime_ns) VALUES (?, ?, ?)",
            (relpath, size_in_bytes, str(mtime_ns)),
        )
        self._count += 1
        self.size_in_bytes += size_in_bytes

    def largest_first(self) -> Iterator[Path]:
        """Yield the paths, those of the largest files first."""
        self._table.run("CREATE INDEX IF NOT EXISTS by_size ON file (size, place)")
        size, place = 1 << 62, 0
        while rows := self._table.rows(
            "SELECT size, place, relpath FROM file WHERE (size, place) < (?, ?)"
            f" ORDER BY size DESC, place DESC LIMIT {_TOGETHER}",
            (size, place),
        ):
            for _, _, relpath in rows:
                yield self.root / relpath
            size, place, _ = rows[-1]

    def __getitem__(self, relpath: str) -> File:
        size, mtime_ns = self._table.row("size, mtime_ns", "relpath", relpath)
        return File(self.root / relpath, size, int(mtime_ns))

    def __iter__(self) -> Iterator[str]:
        return (relpath for relpath, _ in self.all())

    def __len__(self) -> int:
        return self._count

    def items(self) -> ItemsView[str, File]:
        """Return the files by relpath, without a query for each."""
        return _Files(self)

    def all(self) -> Iterator[tuple[str, File]]:
        """Yield what `items` returns."""
        for _, relpath, size, mtime_ns in self._table.in_order("relpath, size, mtime_ns"):
            yield relpath, File(self.root / relpath, size, int(mtime_ns))


class ItemTable(Mapping[Identifier, Item]):
    """Items and their dates by identifier, in the order in which they were added."""

    def __init__(self) -> None:
        self._count = 0
        self._table = PrivateTable(
            "item",
            "(place INTEGER PRIMARY KEY, identifier TEXT UNIQUE, relpath TEXT,"
            " size INTEGER, hash TEXT, mtime_ns TEXT, timestamp REAL)",
        )

    def add(
        self, relpath: str, size_in_bytes: int, hash: str, mtime_ns: int, timestamp: float
    ) -> None:
        self._table.run(
            f"INSERT INTO item ({_ITEM}) VALUES (?, ?, ?, ?, ?, ?)",
            (identifier_of(relpath), relpath, size_in_bytes, hash, str(mtime_ns), timestamp),
        )
        self._count += 1

    def __getitem__(self, identifier: Identifier) -> Item:
        return _item(self._table.row(_ITEM, "identifier", identifier))[0]

    def __iter__(self) -> Iterator[Identifier]:
        return (item.identifier for item, _ in self.dated())

    def __len__(self) -> int:
        return self._count

    def values(self) -> ValuesView[Item]:
        """Return the items, without a query for each."""
        return _Items(self)

    def larger_than(self, size_in_bytes: int) -> Iterator[Item]:
        """Yield the items of more bytes, in ascending order of their identifiers."""
        identifier = ""
        while rows := self._table.rows(
            f"SELECT {_ITEM} FROM item WHERE identifier > ? AND size > ?"
            f" ORDER BY identifier LIMIT {_TOGETHER}",
            (identifier, size_in_bytes),
        ):
            for row in rows:
                yield _item(row)[0]
            identifier = rows[-1][0]

    def dated(self) -> Iterator[tuple[Item, float]]:
        """Yield each item with its date as the manifest has it."""
        return (_item(columns) for _, *columns in self._table.in_order(_ITEM))


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


def _item(columns: Sequence[Any]) -> tuple[Item, float]:
    identifier, relpath, size, digest, mtime_ns, timestamp = columns
    return Item(identifier, relpath, size, digest, int(mtime_ns)), timestamp
