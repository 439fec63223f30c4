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

from dserverfs.cache_disk import MAX_BLOCKS_IN_FILE, STEM_CHARACTERS

_SELECT = (
    "SELECT key, rowid, mode, filename, value, tag FROM Cache"
    " WHERE raw = 1 AND key IN (SELECT value FROM json_each(?))"
)
# What is there already is the same: a block never changes.
_INSERT = (
    "INSERT OR IGNORE INTO Cache (key, raw, store_time, access_time, access_count, tag, size,"
    f" mode, value) VALUES (?, 1, ?, ?, 0, ?, 0, {diskcache.core.MODE_RAW}, ?)"
)
# All blocks of a file, which takes up space until the last of them is gone. They were
# stored in one transaction, one after the other.
_NOTE = (
    "UPDATE Cache SET access_time = max(access_time, :moment)"
    " WHERE rowid BETWEEN :row - :most AND :row + :most AND (rowid = :row"
    " OR substr(filename, 1, :stem) = (SELECT substr(filename, 1, :stem) FROM Cache"
    " WHERE rowid = :row))"
)


class Row(NamedTuple):
    """What is stored of a block."""

    number: int
    mode: int
    filename: str | None
    value: Any
    checksums: Any


def rows_of(cache: Any, keys: Sequence[str]) -> dict[str, Row]:
    """Return the row of each key that is there."""
    rows = cache._sql(_SELECT, (json.dumps(keys),)).fetchall()
    return {key: Row(*columns) for key, *columns in rows}


def insert(cache: Any, blobs: Sequence[tuple[str, memoryview, bytes]]) -> None:
    """Store (key, blob, checksums), in one transaction, evicting as many if the cache is full."""
    now_s = time.time()
    rows = [(key, now_s, now_s, sums, blob) for key, blob, sums in blobs]
    with cache._transact(False) as (sql, cleanup):
        cache._con.executemany(_INSERT, rows)
        cache._cull(now_s, sql, cleanup, len(rows) + cache.cull_limit)


def note_uses(cache: Any, uses: Sequence[tuple[int, float]]) -> None:
    """Note when rows were used, in a transaction of the caller's."""
    for row, moment_s in uses:
        cache._sql(
            _NOTE,
            {
                "row": row,
                "moment": moment_s,
                "most": MAX_BLOCKS_IN_FILE - 1,
                "stem": STEM_CHARACTERS,
            },
        )
