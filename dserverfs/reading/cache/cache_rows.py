"""Several rows of diskcache's table at a time.

Used by the block cache for small blocks. diskcache asks four things of SQLite for
each value it stores and one for each it gets: 100 us and 40 us a row, 15 us and
6 us here. Relies on the table of diskcache 5.6.3. Raises what diskcache raises.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import diskcache.core

from dserverfs.reading.cache.block_files import MAX_BLOCKS_IN_FILE, STEM_CHARACTERS
from dserverfs.reading.cache.blocks import MemoryBlock

_SELECT = (
    "SELECT key, rowid, mode, filename, value, tag, access_count FROM Cache"
    " WHERE raw = 1 AND key IN (SELECT value FROM json_each(?))"
)
# What is there already is the same: a block never changes. diskcache counts accesses for
# one of its policies only, which is not ours: the column has the block's serial.
_INSERT = (
    "INSERT OR IGNORE INTO Cache (key, raw, store_time, access_time, access_count, tag, size,"
    f" mode, value) VALUES (?, 1, ?, ?, ?, ?, 0, {diskcache.core.MODE_RAW}, ?)"
)
# All blocks of a file, which takes up space until the last of them is gone. They were
# stored in one transaction, one after the other.
_NOTE = (
    "UPDATE Cache SET access_time = max(access_time, :moment)"
    " WHERE rowid BETWEEN :row - :most AND :row + :most AND (rowid = :row"
    " OR substr(filename, 1, :stem) = (SELECT substr(filename, 1, :stem) FROM Cache"
    " WHERE rowid = :row))"
)


_SAME_FILE = (
    "SELECT rowid, filename FROM Cache WHERE rowid = :row OR (rowid BETWEEN :row - :most"
    " AND :row + :most AND substr(filename, 1, :stem) ="
    " (SELECT substr(filename, 1, :stem) FROM Cache WHERE rowid = :row))"
)


class Row(NamedTuple):
    """What is stored of a block."""

    number: int
    mode: int
    filename: str | None
    value: Any
    checksums: Any
    serial: Any


def rows_of(cache: Any, keys: Sequence[str]) -> dict[str, Row]:
    """Return the row of each key that is there."""
    rows = cache._sql(_SELECT, (json.dumps(keys),)).fetchall()
    return {key: Row(*columns) for key, *columns in rows}


def insert(cache: Any, blocks: Sequence[tuple[str, MemoryBlock]]) -> None:
    """Store blocks in rows, in one transaction, evicting as many if the cache is full."""
    now_s = time.time()
    rows = [(key, now_s, now_s, block.serial, block.checksums, block.data) for key, block in blocks]
    with cache._transact(False) as (sql, cleanup):
        cache._con.executemany(_INSERT, rows)
        cache._cull(now_s, sql, cleanup, len(rows) + cache.cull_limit)


def set_serial(cache: Any, row: int, serial: int) -> None:
    """Note which arrival a block is that diskcache stored, in a transaction of the caller's."""
    cache._sql("UPDATE Cache SET access_count = ? WHERE rowid = ?", (serial, row))


def move(cache: Any, old: str, new: str, serial: int) -> None:
    """Give the block of `old` another key if it has that serial, in a transaction of the caller's.

    It goes if there is one of that key already.
    """
    rows = cache._sql(
        "SELECT rowid FROM Cache WHERE key = ? AND raw = 1 AND access_count = ?", (old, serial)
    ).fetchall()
    for (row,) in rows:
        cache._sql("UPDATE OR IGNORE Cache SET key = ? WHERE rowid = ?", (new, row))
        cache.delete(old)  # if it is still there


def of_same_file(cache: Any, row: int) -> dict[int, str | None]:
    """Return the names of all blocks in the file of a row, by their rows."""
    return dict(cache._sql(_SAME_FILE, _about(row)).fetchall())


def note_uses(cache: Any, uses: Sequence[tuple[int, float]]) -> None:
    """Note when rows were used, in a transaction of the caller's."""
    for row, moment_s in uses:
        cache._sql(_NOTE, {**_about(row), "moment": moment_s})


def _about(row: int) -> dict[str, int]:
    return {"row": row, "most": MAX_BLOCKS_IN_FILE - 1, "stem": STEM_CHARACTERS}
