"""How much the block cache may hold, and what gives way.

Used by the cache, with diskcache's own cache as argument. Raises what SQLite,
diskcache and the operating system raise.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import diskcache

from dserverfs.cache_disk import files_in

logger = logging.getLogger(__name__)

GIB = 1024**3
MAX_SIZE_BYTES = 50 * GIB
FLOOR_BYTES = 2 * GIB
FLOOR_FRACTION = 0.05
SWEEP_EVERY_S = 24 * 3600.0
# A file without a row that is older is nobody's: rows follow their files at once.
ORPHANED_AFTER_S = 600.0
_ROWS_AT_A_TIME = 64


def default_limit(directory: Path, held_in_bytes: int) -> int:
    """Return min(50 GiB, half of what is free); what the cache holds already counts as free."""
    status = os.statvfs(directory)
    return min(MAX_SIZE_BYTES, (status.f_bavail * status.f_frsize + held_in_bytes) // 2)


def lacking_in_bytes(directory: Path) -> int:
    """Return how much less is free than the floor, 5 % or 2 GiB; negative if there is more."""
    status = os.statvfs(directory)
    floor = min(FLOOR_BYTES, int(status.f_blocks * status.f_frsize * FLOOR_FRACTION))
    return floor - status.f_bavail * status.f_frsize


def evict(cache: Any, size_in_bytes: int) -> None:
    """Give back about that much, the least recently used first."""
    while size_in_bytes > 0:
        rows = cache._sql(
            "SELECT rowid, filename, size, coalesce(length(value), 0) FROM Cache"
            " ORDER BY access_time LIMIT ?",
            (_ROWS_AT_A_TIME,),
        ).fetchall()
        if not rows:
            return
        # Files first: on a full disk there is no room for a transaction.
        evicted = []
        for row, filename, size, inline in rows:
            if size_in_bytes > 0:
                if filename is not None:
                    cache.disk.remove(filename)
                size_in_bytes -= size + inline
                evicted.append((row,))
        with cache.transact(retry=False):
            for row in evicted:
                cache._sql("DELETE FROM Cache WHERE rowid = ?", row)


def sweep_is_due(directory: Path) -> bool:
    """Return whether this process is to sweep: one a day is."""
    mark = directory / "swept"
    with contextlib.suppress(FileNotFoundError):
        if 0 <= time.time() - mark.stat().st_mtime < SWEEP_EVERY_S:
            return False
    mark.touch(0o600)
    return True


def sweep(cache: Any, directory: Path, older_than_s: float) -> int:
    """Remove files that no row names, which killed processes left; return how many."""
    removed = 0
    try:
        # Files before rows: one that is written meanwhile is in neither.
        names = files_in(directory)
        known = cache._sql("SELECT filename FROM Cache WHERE filename IS NOT NULL").fetchall()
        for name in names.difference(name for (name,) in known):
            path = directory / name
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= older_than_s:
                    path.unlink()
                    removed += 1
    except (sqlite3.Error, diskcache.Timeout, OSError) as error:
        logger.debug("cache %s: not swept: %s", directory, error)
    return removed
