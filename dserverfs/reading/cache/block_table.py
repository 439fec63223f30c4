"""The table of the cache's blocks: the one module that talks SQL to diskcache's database.

Used by the cache, its eviction and its maintenance. Relies on the table of diskcache 5.6.3 and on
its private API, for several rows at a time: diskcache asks four things of SQLite for
each value it stores and one for each it gets, 100 us and 40 us a row; 15 us and 6 us
here. Every method raises FAILURES. Thread-safe: diskcache keeps a connection per thread.

A row's tag is its seal and the checksums of its block. The seal binds them to the row's
key, file and serial: SQLite does not see it if a bit of a key flips, and the block would be
another's.

A pinned block is one that is used in the far future: the order of use has it behind all
others, for earlier versions as well, and eviction here ends before it. Nobody has to look
anything up to evict.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple, TypeVar

import diskcache
import diskcache.core
from zlib_ng import zlib_ng

from dserverfs.reading.cache.block_files import (
    MAX_BLOCKS_IN_FILE,
    STEM_CHARACTERS,
    BytesDisk,
    Value,
    is_name,
)
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.cache.database_log import DatabaseLog

R = TypeVar("R")

BUSY_TIMEOUT_S = 5.0
PATIENCE_S = 60.0  # of what maintenance changes, while other processes write
BUSY = (sqlite3.OperationalError, diskcache.Timeout)
FAILURES = (sqlite3.Error, diskcache.Timeout, OSError)
SEAL_BYTES = 4
_ROWS_AT_A_TIME = 100
_RAW, _FILE = diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY
# diskcache's least-recently-used writes to the database at every hit (36 us against
# 16 us): the order of use is noted in memory instead and written in batches.
POLICY = "dserverfs-noted"
# When pinned blocks are used, in seconds since 1970: the year 33,658.
PINNED_S = 1e12
_UNPINNED = f"access_time < {PINNED_S}"

diskcache.core.EVICTION_POLICY[POLICY] = {
    "init": "CREATE INDEX IF NOT EXISTS Cache_access_time ON Cache (access_time)",
    "get": None,
    "cull": f"SELECT {{fields}} FROM Cache WHERE {_UNPINNED} ORDER BY access_time LIMIT ?",
}

_OF_KEYS = "FROM Cache WHERE raw = 1 AND key IN (SELECT value FROM json_each(?))"
# The rows in their own order, which is that on the disk: so the kernel reads ahead.
_SELECT = (
    "SELECT key, rowid, mode, filename, value, tag, access_count FROM Cache"
    f" WHERE rowid IN (SELECT rowid {_OF_KEYS})"
)
_PRESENT = f"SELECT key, rowid, filename {_OF_KEYS}"
# A row that is there already is the same: a block never changes. diskcache counts accesses
# for one of its policies only, which is not ours: the column has the block's serial.
_INSERT = (
    "INSERT OR IGNORE INTO Cache (key, raw, store_time, access_time, access_count, tag, size,"
    f" mode, value) VALUES (?, 1, ?, ?, ?, ?, 0, {diskcache.core.MODE_RAW}, ?)"
)
_INSERT_FILE = (
    "INSERT INTO Cache (key, raw, store_time, access_time, access_count, tag, size, mode,"
    " filename, value) VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# All blocks of a file, which takes up space until the last of them is gone. They were
# stored in one transaction, one after the other.
_OF_SAME_FILE = (
    "WHERE rowid BETWEEN :row - :most AND :row + :most AND (rowid = :row"
    " OR substr(filename, 1, :stem) = (SELECT substr(filename, 1, :stem) FROM Cache"
    " WHERE rowid = :row))"
)
_IN_FILES = (
    "SELECT rowid FROM Cache WHERE filename IS NOT NULL"
    " AND rowid IN (SELECT value FROM json_each(?))"
)
_NOTE_ONE = "UPDATE Cache SET access_time = max(access_time, ?) WHERE rowid = ?"
_NOTE = f"UPDATE Cache SET access_time = max(access_time, :moment) {_OF_SAME_FILE}"
_USED_AS = (
    "UPDATE Cache SET access_time = max(access_time, (SELECT access_time FROM Cache"
    " WHERE rowid = ?)) WHERE key = ? AND raw = 1"
)
_SAME_FILE = f"SELECT rowid, filename FROM Cache {_OF_SAME_FILE}"
_IN_RANGE = "FROM Cache WHERE key > ? AND key < ? AND raw = 1"
_SIZES = (
    "SELECT (SELECT coalesce(sum(size), 0) FROM Cache) - value FROM Settings WHERE key = 'size'"
)


class Row(NamedTuple):
    """A block as it is stored."""

    number: int
    mode: int
    filename: str | None
    value: Any
    checksums: bytes | None  # None: the row is damaged
    serial: Any


class StoredRow(NamedTuple):
    """A row as a check of the whole cache reads it."""

    number: int
    key: Any
    mode: int
    filename: str | None
    value: Any
    checksums: bytes | None  # None: the row is damaged
    size: Any


class OldRow(NamedTuple):
    """A row that may be evicted."""

    number: int
    filename: str | None
    inline_bytes: int


def of_values(method: Callable[..., R]) -> Callable[..., R]:
    """Have values that no cache wrote, which Python stumbles over, told as a corrupt database."""

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> R:
        try:
            return method(*arguments, **named)
        except UnicodeEncodeError:
            raise  # of a caller's key; what SQLite says of a damaged name may be no UTF-8
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise sqlite3.DatabaseError(f"a value is none of a cache: {error}") from error

    return call


class BlockTable:
    """The rows of one cache, in the order of their use, within a size limit."""

    def __init__(self, cache: Any) -> None:
        """`cache` is diskcache's, as `open_table` makes it."""
        self._cache = cache
        self.disk: BytesDisk = cache.disk
        self._log = DatabaseLog(cache)

    @property
    def size_limit(self) -> int:
        return int(self._cache.size_limit)

    @of_values
    def excess_in_bytes(self) -> int:
        """Return by how much the cache is larger than its limit; negative if it is not."""
        return self.held_in_bytes() - self.size_limit

    def give_back(self) -> None:
        """Have the disk get back what deleted rows took; waits for a moment in which nobody writes.

        If there is none, later writers do it.
        """
        with contextlib.suppress(*FAILURES):
            self._log.shorten()

    @of_values
    def held_in_bytes(self) -> int:
        """Return how large it is, its database with it."""
        return int(self._cache.volume())

    def __len__(self) -> int:
        return len(self._cache)

    def close(self) -> None:
        """Close this thread's connection."""
        self._cache.close()

    @of_values
    def find(self, keys: Sequence[str]) -> dict[str, Row]:
        """Return the row of each key that is there."""
        rows = self._cache._sql(_SELECT, (json.dumps(keys),)).fetchall()
        return {
            key: Row(
                row, mode, filename, value, _checksums(tag, key, mode, filename, serial), serial
            )
            for key, row, mode, filename, value, tag, serial in rows
        }

    @of_values
    def present(self, keys: Sequence[str]) -> set[str]:
        """Return those keys that have a row; its block may turn out to be gone."""
        return {key for key, _, _ in self._sql(_PRESENT, (json.dumps(keys),)).fetchall()}

    @of_values
    def store(
        self,
        small: Sequence[tuple[str, MemoryBlock]],
        large: Sequence[tuple[str, MemoryBlock, Value]],
        pinned: Set[str] = frozenset(),
    ) -> list[int]:
        """Enter blocks, evicting others if the cache is full; return the rows of large ones.

        No two large ones have the same key. A row is 0 if it was evicted at once. The keys
        in `pinned` are. One transaction.
        """
        with self._transaction():
            if small:
                self._insert(small, pinned)
            return self._replace(large, pinned) if large else []

    def _insert(self, blocks: Sequence[tuple[str, MemoryBlock]], pinned: Set[str]) -> None:
        now_s = time.time()
        rows = [
            (
                *(key, now_s, PINNED_S if key in pinned else now_s, block.serial),
                *(_tag(key, _RAW, None, block), block.data),
            )
            for key, block in blocks
        ]
        with self._cache._transact() as (sql, cleanup):
            self._cache._con.executemany(_INSERT, rows)
            self._cache._cull(now_s, sql, cleanup, len(rows) + self._cache.cull_limit)

    def _replace(
        self, blocks: Sequence[tuple[str, MemoryBlock, Value]], pinned: Set[str]
    ) -> list[int]:
        """Enter blocks in the place of those of the same keys, which may be lost."""
        now_s = time.time()
        rows = []
        for key, block, value in blocks:
            size, mode, filename, inline = self.disk.store(value, read=False)
            tag = _tag(key, mode, filename, block)
            used_s = PINNED_S if key in pinned else now_s
            rows.append((key, now_s, used_s, block.serial, tag, size, mode, filename, inline))
        keys = json.dumps([key for key, _, _ in blocks])
        with self._cache._transact() as (sql, cleanup):
            for _, _, filename in sql(_PRESENT, (keys,)).fetchall():
                cleanup(filename)
            sql(f"DELETE {_OF_KEYS}", (keys,))
            self._cache._con.executemany(_INSERT_FILE, rows)
            for _ in rows:
                if self.excess_in_bytes() < 0:
                    break
                self._cache._cull(now_s, sql, cleanup)
            numbers = {key: row for key, row, _ in sql(_PRESENT, (keys,)).fetchall()}
        return [numbers.get(key, 0) for key, _, _ in blocks]

    @of_values
    def move(self, moves: Sequence[tuple[str, str, int]]) -> None:
        """Give blocks another key: (old, new, serial) each, if that is the block's serial.

        A block goes if there is one of the new key already that can be had, which is pinned
        then if it was. One transaction.
        """
        with self._transaction():
            for old, new, serial in moves:
                rows = self._sql(
                    "SELECT rowid, mode, filename, tag FROM Cache"
                    " WHERE key = ? AND raw = 1 AND access_count = ?",
                    (old, serial),
                ).fetchall()
                for row, mode, filename, tag in rows:
                    sums = _checksums(tag, old, mode, filename, serial)
                    if sums is not None:
                        self._delete_if_lost(new)
                        self._sql(
                            "UPDATE OR IGNORE Cache SET key = ?, tag = ? WHERE rowid = ?",
                            (new, _seal(new, mode, filename, serial, sums) + sums, row),
                        )
                        self._sql(_USED_AS, (row, new))
                    self._cache.delete(old)  # if it is still there

    def _delete_if_lost(self, key: str) -> None:
        """Delete a row that is damaged or whose file is gone: it would keep others away."""
        row = self.find([key]).get(key)
        if row is not None and (row.checksums is None or not self.disk.has(row.filename)):
            self._cache.delete(key)

    @of_values
    def count(self, low: str, high: str) -> int:
        """Return how many keys lie between these two."""
        return int(self._sql(f"SELECT count(*) {_IN_RANGE}", (low, high)).fetchall()[0][0])

    @of_values
    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._cache.delete(key)

    @of_values
    def delete_between(self, low: str, high: str) -> None:
        rows = self._sql(f"SELECT key {_IN_RANGE}", (low, high)).fetchall()
        self.delete(key for (key,) in rows)

    @of_values
    def delete_rows(self, numbers: Iterable[int]) -> None:
        """Delete rows whose files were removed; one transaction."""
        with self._transaction():
            for number in numbers:
                self._sql("DELETE FROM Cache WHERE rowid = ?", (number,))

    @of_values
    def delete_unless_replaced(self, row: StoredRow) -> None:
        """Delete a row, and its file, unless it was replaced since; waits while others write."""

        def delete() -> None:
            with self._cache.transact():
                self._sql(
                    "DELETE FROM Cache WHERE rowid = ? AND key = ? AND filename IS ?",
                    (row.number, row.key, row.filename),
                )

        self._patiently(delete)
        if row.filename is not None:
            self.disk.remove(row.filename)

    @of_values
    def clear(self) -> None:
        """Delete every row; waits while others write."""
        self._patiently(self._cache.clear)

    @of_values
    def recount(self) -> None:
        """Take the size of all blocks from the rows; what diskcache has added up may be wrong.

        0.2 s for 100,000 blocks, in which nobody waits.
        """
        for (lacking,) in self._sql(_SIZES).fetchall():
            if lacking:
                self._sql("UPDATE Settings SET value = value + ? WHERE key = 'size'", (lacking,))

    @of_values
    def note_uses(self, uses: Iterable[tuple[int, float]]) -> None:
        """Note when rows were used, and by that all blocks of their files; one transaction."""
        moments: dict[int, float] = {}
        for row, moment_s in uses:
            moments[row] = max(moment_s, moments.get(row, moment_s))
        with self._transaction():
            found = self._sql(_IN_FILES, (json.dumps([*moments]),)).fetchall()
            in_files = {row: moments.pop(row) for (row,) in found}
            # Without a look for others of the same file, 3 us each in place of 30.
            self._cache._con.executemany(_NOTE_ONE, [(s, row) for row, s in moments.items()])
            for row, moment_s in in_files.items():
                self._sql(_NOTE, {**_about(row), "moment": moment_s})

    @of_values
    def pin(self, keys: Sequence[str]) -> None:
        """Pin the blocks of these keys that are here, and all that lie in files with them."""
        with self._transaction():
            for row in self.rows_of(keys):
                self._sql("UPDATE Cache SET access_time = ? WHERE rowid = ?", (PINNED_S, row))

    @of_values
    def pinned_rows(self) -> set[int]:
        rows = self._sql(f"SELECT rowid FROM Cache WHERE access_time >= {PINNED_S}").fetchall()
        return {row for (row,) in rows}

    @of_values
    def rows_of(self, keys: Sequence[str]) -> set[int]:
        """Return the rows of these keys, and of all blocks that lie in files with theirs."""
        found = set[int]()
        for _, row, filename in self._sql(_PRESENT, (json.dumps(keys),)).fetchall():
            if row not in found:
                found.update(self.of_same_file(row) if filename else [row])
        return found

    @of_values
    def release(self, rows: Iterable[int]) -> None:
        """Let pinned blocks be evicted, the last of all that are used now; one transaction."""
        now_s = time.time()
        with self._transaction():
            for row in rows:
                self._sql("UPDATE Cache SET access_time = ? WHERE rowid = ?", (now_s, row))

    @of_values
    def clear_unpinned(self) -> None:
        """Delete every row that is not pinned; waits while others write."""
        select = f"SELECT rowid, filename FROM Cache WHERE rowid > ? AND {_UNPINNED}"
        ordered = f"{select} ORDER BY rowid LIMIT {_ROWS_AT_A_TIME}"
        self._patiently(lambda: self._cache._select_delete(ordered, [0]))

    @of_values
    def least_recently_used(self, count: int) -> list[OldRow]:
        """Return blocks that may be evicted: no pinned ones."""
        rows = self._sql(
            "SELECT rowid, filename, coalesce(length(value), 0) FROM Cache"
            f" WHERE {_UNPINNED} ORDER BY access_time LIMIT ?",
            (count,),
        ).fetchall()
        return [OldRow(row, name if is_name(name) else None, length) for row, name, length in rows]

    @of_values
    def of_same_file(self, row: int) -> dict[int, str | None]:
        """Return the names of all blocks in the file of a row, by their rows."""
        rows = self._sql(_SAME_FILE, _about(row)).fetchall()
        return {row: name if is_name(name) else None for row, name in rows}

    @of_values
    def filenames(self) -> set[str]:
        rows = self._sql("SELECT filename FROM Cache WHERE filename IS NOT NULL").fetchall()
        return {name for (name,) in rows}

    def all_keys(self) -> Iterator[Any]:
        for (key,) in self._sql("SELECT key FROM Cache WHERE raw = 1"):
            yield key

    def rows(self) -> Iterator[StoredRow]:
        """Yield every row, also while others add and remove some."""
        last = 0
        while True:
            rows = self._sql(
                "SELECT rowid, key, mode, filename, value, tag, access_count, size FROM Cache"
                " WHERE rowid > ? ORDER BY rowid LIMIT ?",
                (last, _ROWS_AT_A_TIME),
            ).fetchall()
            if not rows:
                return
            for row, key, mode, filename, value, tag, serial, size in rows:
                sums = _checksums(tag, key, mode, filename, serial)
                yield StoredRow(row, key, mode, filename, value, sums, size)
            last = rows[-1][0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._cache.transact(retry=False):
            yield
        with contextlib.suppress(*FAILURES):  # what was written is written
            self._log.shorten_if_large()

    def _patiently(self, change: Callable[[], object]) -> None:
        """Make a change, after those of others; raises what else is in its way, or Timeout.

        diskcache takes every error for a busy database, and would try for ever.
        """
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                change()
                return
            except diskcache.Timeout:
                self._require_writable()
                if time.monotonic() > end_s:
                    raise

    def _require_writable(self) -> None:
        """Raise OperationalError if there can be no change, and not because of others' changes."""
        try:
            self._sql("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        else:
            self._sql("ROLLBACK")

    @of_values
    def _sql(self, statement: str, values: Any = ()) -> Any:
        return self._cache._sql(statement, values)


def _tag(key: str, mode: int, filename: str | None, block: MemoryBlock) -> bytes:
    return _seal(key, mode, filename, block.serial, block.checksums) + block.checksums


def _seal(key: str, mode: int, filename: str | None, serial: int, checksums: bytes) -> bytes:
    """Return what binds a block's checksums to its row."""
    text = f"{key}\0{mode}\0{filename}\0{serial}\0".encode("utf-8", "surrogatepass")
    return zlib_ng.crc32(text + checksums).to_bytes(SEAL_BYTES, "big")


def _checksums(tag: Any, key: Any, mode: Any, filename: Any, serial: Any) -> bytes | None:
    """Return the checksums of a row's block; None if the row is not what was written."""
    if not isinstance(tag, bytes):
        return None
    sums = tag[SEAL_BYTES:]
    return sums if tag[:SEAL_BYTES] == _seal(key, mode, filename, serial, sums) else None


def _about(row: int) -> dict[str, int]:
    return {"row": row, "most": MAX_BLOCKS_IN_FILE - 1, "stem": STEM_CHARACTERS}
