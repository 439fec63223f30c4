"""A manifest as a directory tree in SQLite: made once, then looked up row by row.

Used by the catalogue. Makes a million items cost neither memory nor start-up
time: `json.load` of such a manifest takes 785 MB, so a large one is indexed by
a short-lived process (`python -m dserverfs.manifest_index JSON INDEX`).

Rows are numbered breadth first, so that a directory's children are
consecutive and sorted by name; row 0 is the directory `data` itself. An index
is written under another name, synced and renamed: what is there is whole. It
never changes, so it is opened immutable, without locks. Thread-safe.

Relpaths are hostile until checked: an item that cannot be shown under its own
becomes `.refused-<identifier>` at the top, so that a copy fails visibly.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.errors import DserverfsError, NotFound, ProtocolError
from dserverfs.model import (
    MAX_COMPONENT_BYTES,
    Identifier,
    Item,
    identifier_of,
    is_identifier,
    relpath_is_usable,
)

FORMAT_VERSION = 1
# Larger manifests are indexed by a process of their own; it starts in 50 ms, as
# long as 2 MiB take to be indexed here.
IN_PROCESS_BYTES = 2 * 1024 * 1024
INDEXING_TIMEOUT_S = 300.0
REFUSED_PREFIX = ".refused-"
_MAX_PLAIN_S = 1e11

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE about (format INTEGER, hash_function TEXT, items INTEGER, size_in_bytes INTEGER);
CREATE TABLE node (
    row INTEGER PRIMARY KEY, parent INTEGER, name TEXT, identifier TEXT, size INTEGER,
    hash TEXT, mtime_ns INTEGER, refused INTEGER, first_child INTEGER, children INTEGER);
"""
_NAME_INDEX = "CREATE UNIQUE INDEX node_name ON node (parent, name)"
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
    refused: int  # 1: its relpath cannot be shown, it must not be opened
    first_child: int  # directories: the row of the first child
    children: int  # directories: the number of children


# (identifier, relpath, size, hash, mtime_ns): a tuple and no object, of which a million
# take three times as long to make.
_Entry = tuple[str, str, int, str, int]


class _Leaf(NamedTuple):
    """An item in the tree while it is built; a directory is a dict."""

    entry: _Entry
    refused: int


_Tree = dict[str, Any]  # of _Leaf and _Tree, by name

# What nearly every relpath looks like, as one match tells; any other is taken apart.
_PLAIN_RELPATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_ .+=,@()-]{0,200}(?:/(?!\Z)|\Z))+\Z")


def build(manifest_path: Path, index_path: Path) -> None:
    """Index the manifest in `manifest_path`; raises ProtocolError if it is none."""
    try:
        with manifest_path.open("rb") as file:
            manifest = json.load(file)
        items = manifest["items"]
        hash_function = str(manifest.get("hash_function", ""))
        entries = [_entry(identifier, entry) for identifier, entry in items.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"the manifest cannot be read: {error!r}") from error
    del manifest, items
    root = _tree(entries)
    scratch = index_path.with_name(f"{index_path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with contextlib.closing(sqlite3.connect(scratch)) as connection:
            connection.executescript(_SCHEMA)
            connection.execute(
                "INSERT INTO about VALUES (?, ?, ?, ?)",
                (
                    FORMAT_VERSION,
                    hash_function,
                    len(entries),
                    sum(entry[2] for entry in entries),
                ),
            )
            connection.executemany(
                "INSERT INTO node VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _rows(root)
            )
            connection.execute(_NAME_INDEX)
            connection.commit()
        _sync(scratch)
        scratch.rename(index_path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _entry(identifier: str, entry: Any) -> _Entry:
    relpath, size, digest = entry.get("relpath"), entry.get("size_in_bytes"), entry.get("hash")
    moment = entry.get("utc_timestamp")
    is_plain = (type(relpath), type(size), type(digest), type(moment)) == (str, int, str, float)
    if is_plain and size >= 0 and 0 <= moment < _MAX_PLAIN_S:
        return identifier, relpath, size, digest.lower(), round(moment * 1_000_000) * 1000
    item = Item.from_json(identifier, entry)
    return identifier, item.relpath, item.size_in_bytes, item.hash, item.mtime_ns


def _tree(entries: list[_Entry]) -> _Tree:
    entries.sort(key=lambda entry: entry[0])
    entries.sort(key=lambda entry: entry[1].count("/"))  # stable: files before what is below
    root: _Tree = {}
    directories = {"": root}
    refused = []
    for entry in entries:
        relpath = entry[1]
        above, _, name = relpath.rpartition("/")
        if not _is_usable(relpath) or not is_identifier(entry[0]):
            refused.append(entry)
            continue
        directory = directories.get(above)
        if directory is None:
            directory = _make_directories(root, above)
            if directory is not None:
                directories[above] = directory
        if directory is None or name in directory or name.startswith(REFUSED_PREFIX):
            refused.append(entry)
        else:
            directory[name] = _Leaf(entry, 0)
    for entry in refused:
        known = entry[0] if is_identifier(entry[0]) else identifier_of(entry[1])
        root[f"{REFUSED_PREFIX}{known}"] = _Leaf(entry, 1)
    return root


def _is_usable(relpath: str) -> bool:
    if len(relpath) <= MAX_COMPONENT_BYTES and _PLAIN_RELPATH.match(relpath):
        return True
    return relpath_is_usable(relpath)


def _make_directories(root: _Tree, path: str) -> _Tree | None:
    """Return the directory at `path`; None if a file is in its way."""
    directory = root
    for name in path.split("/"):
        below = directory.setdefault(name, {})
        if isinstance(below, _Leaf):
            return None
        directory = below
    return directory


def _rows(root: _Tree) -> Iterator[tuple[Any, ...]]:
    """Number the nodes breadth first and yield their rows, in order."""
    yield (0, 0, "", None, 0, "", 0, 0, 1, len(root))
    level = [(0, root)]
    row = 1
    while level:
        following = row + sum(len(directory) for _, directory in level)
        next_level = []
        for parent, directory in level:
            for name in sorted(directory):
                node = directory[name]
                if isinstance(node, _Leaf):
                    (identifier, _, size, digest, mtime_ns), refused = node
                    yield (row, parent, name, identifier, size, digest, mtime_ns, refused, 0, 0)
                else:
                    yield (row, parent, name, None, 0, "", 0, 0, following, len(node))
                    following += len(node)
                    next_level.append((row, node))
                row += 1
        level = next_level


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def build_apart(manifest_path: Path, index_path: Path) -> None:
    """As `build`, but a large manifest does not stay in this process' memory; blocks."""
    if manifest_path.stat().st_size <= IN_PROCESS_BYTES:
        build(manifest_path, index_path)
        return
    command = [sys.executable, "-m", __spec__.name, str(manifest_path), str(index_path)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=INDEXING_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise ProtocolError(
            f"indexing the manifest took over {INDEXING_TIMEOUT_S:.0f} s"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise ProtocolError(f"the manifest cannot be indexed: {said}")


class ManifestIndex:
    """Look-ups in an index. Raises DserverfsError from `open` if the file is not a good one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self.hash_function = ""
        self.number_of_items = 0
        self.size_in_bytes = 0

    def open(self) -> ManifestIndex:
        """Open the file; raises NotFound if it is not there, ProtocolError if it is no index."""
        uri = f"file:{urllib.parse.quote(str(self._path))}?mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise NotFound(f"{self._path}: no index") from error
        try:
            about = connection.execute(
                "SELECT format, hash_function, items, size_in_bytes FROM about"
            ).fetchone()
        except sqlite3.Error as error:
            connection.close()
            raise ProtocolError(f"{self._path}: not an index: {error}") from error
        if about is None or about[0] != FORMAT_VERSION:
            connection.close()
            raise ProtocolError(f"{self._path}: an index of another version")
        _, self.hash_function, self.number_of_items, self.size_in_bytes = about
        self._connection = connection
        return self

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def row(self, row: int) -> Row:
        """Return that row; raises NotFound."""
        return self._one(f"SELECT {_COLUMNS} FROM node WHERE row = ?", (row,))

    def child(self, parent: int, name: str) -> Row:
        """Return the child of that name; raises NotFound."""
        return self._one(
            f"SELECT {_COLUMNS} FROM node WHERE parent = ? AND name = ? AND row > 0", (parent, name)
        )

    def children(self, parent: Row, start_row: int, limit: int) -> list[Row]:
        """Return up to `limit` children of a directory, in row order, from `start_row` on."""
        first = max(parent.first_child, start_row)
        end = min(parent.first_child + parent.children, first + limit)
        return self._all(
            f"SELECT {_COLUMNS} FROM node WHERE row >= ? AND row < ? ORDER BY row", (first, end)
        )

    def identifiers_from(self, row: int, limit: int) -> list[Identifier]:
        """Return the identifiers of up to `limit` items from `row` on: likely the next read."""
        rows = self._all(
            f"SELECT {_COLUMNS} FROM node WHERE row >= ? AND identifier IS NOT NULL"
            " AND refused = 0 ORDER BY row LIMIT ?",
            (row, limit),
        )
        return [found.identifier for found in rows if found.identifier is not None]

    def rows_from(self, row: int, limit: int) -> list[Row]:
        """Return the rows [row, row+limit) that there are, directories as well."""
        return self._all(
            f"SELECT {_COLUMNS} FROM node WHERE row >= ? AND row < ? ORDER BY row",
            (row, row + limit),
        )

    def _one(self, sql: str, parameters: tuple[int | str, ...]) -> Row:
        rows = self._all(sql, parameters)
        if not rows:
            raise NotFound(f"{self._path}: no row for {parameters}")
        return rows[0]

    def _all(self, sql: str, parameters: tuple[int | str, ...]) -> list[Row]:
        with self._lock:
            if self._connection is None:
                raise ProtocolError(f"{self._path}: used after it was closed")
            try:
                return [Row._make(found) for found in self._connection.execute(sql, parameters)]
            except sqlite3.Error as error:
                raise ProtocolError(f"{self._path}: damaged: {error}") from error


def main(arguments: Sequence[str]) -> int:
    """Index JSON (first argument) into INDEX (second); the process `build_apart` starts."""
    manifest_path, index_path = arguments
    gc.disable()  # a million items are no garbage: looking for it takes half of the time
    try:
        build(Path(manifest_path), Path(index_path))
    except DserverfsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
