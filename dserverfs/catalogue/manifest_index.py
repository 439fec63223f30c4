"""A manifest as a directory tree in SQLite: made once, then looked up row by row.

Used by the catalogue and the trees. Makes a million items cost neither memory
nor start-up time.

Rows are numbered breadth first, so that a directory's children are
consecutive and sorted by name; row 0 is the directory `data` itself. An index
never changes, so it is opened immutable, without locks. Its file ends with a seal, which
is compared when it is opened: what a bit flipped in would be other names, sizes and
hashes. Thread-safe.
"""

from __future__ import annotations

import sqlite3
import threading
import urllib.parse
import weakref
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.errors import NotFound, ProtocolError
from dserverfs.base.items import HashesPlace
from dserverfs.base.model import Identifier
from dserverfs.base.sealed_files import has_seal

FORMAT_VERSION = 5
SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE about (
    format INTEGER, hash_function TEXT, items INTEGER, size_in_bytes INTEGER, unsafe INTEGER,
    hashes_head BLOB, hashes_size INTEGER);
CREATE TABLE node (
    row INTEGER PRIMARY KEY, parent INTEGER, name TEXT, identifier TEXT, size INTEGER,
    hash TEXT, mtime_ns INTEGER, refused INTEGER, first_child INTEGER, children INTEGER);
CREATE TABLE block_hashes (row INTEGER PRIMARY KEY, first INTEGER);
"""
NAME_INDEX = "CREATE UNIQUE INDEX node_name ON node (parent, name)"
_ABOUT = (
    "SELECT format, hash_function, items, size_in_bytes, unsafe, hashes_head, hashes_size"
    " FROM about"
)
_COLUMNS = "row, parent, name, identifier, size, hash, mtime_ns, refused, first_child, children"


class Row(NamedTuple):
    """A directory (identifier is None) or an item below `data`."""

    row: int
    parent: int
    name: str
    identifier: Identifier | None
    size_in_bytes: int
    hash: str
    mtime_ns: int
    refused: int  # 1: its entry in the manifest cannot be shown, it must not be opened
    first_child: int  # directories: the row of the first child
    children: int  # directories: the number of children


# row, name, is a directory, size, mtime_ns, refused: a plain tuple, for there are many.
Listed = tuple[int, str, int, int, int, int]
# The same, and of a directory the row of the first child, and the number of children.
ListedWithChildren = tuple[int, str, int, int, int, int, int, int]


class ManifestIndex:
    """Look-ups in an index. Raises DserverfsError from `open` if the file is not a good one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self.memory_in_bytes = 0  # of one that lies in no file
        self.hash_function = ""
        self.number_of_items = 0
        self.size_in_bytes = 0
        self.unsafe = 0  # how many items have a relpath that must not be used to write files
        self._hashes_head = b""
        self._hashes_size = 0
        self.is_damaged = False  # found out by a look-up

    def open(self) -> ManifestIndex:
        """Open the file; raises NotFound if it is not there, ProtocolError if it is no index.

        Reads all of it once, to compare its seal: 30 ms for a million items.
        """
        try:
            is_sound = has_seal(self._path)
        except OSError as error:
            raise NotFound(f"{self._path}: no index") from error
        if not is_sound:
            raise ProtocolError(f"{self._path}: damaged: does not have its seal")
        uri = f"file:{urllib.parse.quote(str(self._path))}?mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise NotFound(f"{self._path}: no index") from error
        try:
            (version,) = connection.execute("SELECT format FROM about").fetchone() or (None,)
            about = connection.execute(_ABOUT).fetchone() if version == FORMAT_VERSION else None
        except sqlite3.Error as error:
            connection.close()
            raise ProtocolError(f"{self._path}: not an index: {error}") from error
        if about is None:
            connection.close()
            raise NotFound(f"{self._path}: an index of another version")
        self._hold(connection, about)
        return self

    def adopt(self, connection: sqlite3.Connection) -> ManifestIndex:
        """Look up in an index that lies in memory; `connection` is closed with this."""
        self._hold(connection, connection.execute(_ABOUT).fetchone())
        return self

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _hold(self, connection: sqlite3.Connection, about: tuple[Any, ...]) -> None:
        _, self.hash_function, self.number_of_items, self.size_in_bytes, self.unsafe = about[:5]
        self._hashes_head, self._hashes_size = about[5:]
        # Its cache of statements refers to it: it would hold its file, and its memory, until the
        # garbage is looked through, long after this index was let go.
        weakref.finalize(self, connection.close)
        self._connection = connection

    def row(self, row: int) -> Row:
        """Return that row, whose number this index gave; raises ProtocolError if it is lost."""
        rows = self._all(f"SELECT {_COLUMNS} FROM node WHERE row = ?", (row,))
        if not rows:
            self.is_damaged = True
            raise ProtocolError(f"{self._path}: damaged: row {row} is missing")
        return rows[0]

    def child(self, parent: int, name: str) -> Row:
        """Return the child of that name; raises NotFound."""
        rows = self._all(
            f"SELECT {_COLUMNS} FROM node WHERE parent = ? AND name = ? AND row > 0", (parent, name)
        )
        if not rows:
            raise NotFound(f"{self._path}: nothing named {name!r} in row {parent}")
        return rows[0]

    def children(self, parent: Row, start_row: int, limit: int) -> list[Row]:
        """Return up to `limit` children of a directory, in row order, from `start_row` on."""
        first = max(parent.first_child, start_row)
        end = min(parent.first_child + parent.children, first + limit)
        return self._all(
            f"SELECT {_COLUMNS} FROM node WHERE row >= ? AND row < ? ORDER BY row", (first, end)
        )

    def listing(self, parent: Row, start_row: int, limit: int) -> list[Listed]:
        """Return what `children` does, cut down to what a listing shows.

        Half the time of `children`, of which hash and identifier take most.
        """
        first = max(parent.first_child, start_row)
        end = min(parent.first_child + parent.children, first + limit)
        return self._select(
            "SELECT row, name, identifier IS NULL, size, mtime_ns, refused FROM node"
            " WHERE row >= ? AND row < ? ORDER BY row",
            (first, end),
        )

    def listing_from(self, row: int, limit: int) -> list[ListedWithChildren]:
        """Return what is shown of the rows [row, row+limit), whatever directory they are in."""
        return self._select(
            "SELECT row, name, identifier IS NULL, size, mtime_ns, refused, first_child, children"
            " FROM node WHERE row >= ? AND row < ? ORDER BY row",
            (row, row + limit),
        )

    def identifiers_around(self, row: int, limit: int) -> list[Identifier]:
        """Return the identifiers of the `limit` items nearest to `row`, the nearest first."""
        sql = "SELECT row, identifier FROM node WHERE identifier IS NOT NULL AND refused = 0 AND"
        found = [
            *self._select(f"{sql} row >= ? ORDER BY row LIMIT ?", (row, limit)),
            *self._select(f"{sql} row < ? ORDER BY row DESC LIMIT ?", (row, limit)),
        ]
        found.sort(key=lambda entry: abs(int(entry[0]) - row))
        return [Identifier(identifier) for _, identifier in found[:limit]]

    def rows_from(self, row: int, limit: int) -> list[Row]:
        """Return the rows [row, row+limit) that there are, directories as well."""
        return self._all(
            f"SELECT {_COLUMNS} FROM node WHERE row >= ? AND row < ? ORDER BY row",
            (row, row + limit),
        )

    def rows_with_hash(self, hash: str, limit: int) -> list[Row]:
        """Return the first items with that hash; looks at every row: 0.1 s for a million."""
        return self._all(
            f"SELECT {_COLUMNS} FROM node WHERE hash = ? AND identifier IS NOT NULL"
            " AND refused = 0 ORDER BY row LIMIT ?",
            (hash, limit),
        )

    def hashes_place(self, row: int) -> HashesPlace | None:
        """Return where the block hashes of an item would be; None of an item of one block."""
        found = self._select("SELECT first FROM block_hashes WHERE row = ?", (row,))
        return HashesPlace(self._hashes_head, self._hashes_size, found[0][0]) if found else None

    def _all(self, sql: str, parameters: tuple[int | str, ...]) -> list[Row]:
        return [Row._make(found) for found in self._select(sql, parameters)]

    def _select(self, sql: str, parameters: tuple[int | str, ...]) -> list[Any]:
        with self._lock:
            if self._connection is None:
                raise ProtocolError(f"{self._path}: used after it was closed")
            try:
                return self._connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                self.is_damaged = True
                raise ProtocolError(f"{self._path}: damaged: {error}") from error
