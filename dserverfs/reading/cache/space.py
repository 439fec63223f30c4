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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import diskcache

from dserverfs.reading.cache import cache_rows
from dserverfs.reading.cache.block_files import files_in

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


def free_in_bytes(directory: Path) -> int:
    """Return how much is free for this user."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def lacking_in_bytes(directory: Path) -> int:
    """Return how much less is free than the floor, 5 % or 2 GiB; negative if there is more."""
    status = os.statvfs(directory)
    floor = min(FLOOR_BYTES, int(status.f_blocks * status.f_frsize * FLOOR_FRACTION))
    return floor - status.f_bavail * status.f_frsize


def evict(cache: Any, directory: Path, size_in_bytes: int, removed: Callable[[], None]) -> int:
    """Give back about that much, the least recently used first; return how much it was.

    `removed` is called when files were, and is to have them closed: their space is free
    only then, and on a full disk there is no room before for the transaction that follows.
    """
    freed = 0
    while freed < size_in_bytes:
        rows = cache._sql(
            "SELECT rowid, filename, coalesce(length(value), 0) FROM Cache"
            " ORDER BY access_time LIMIT ?",
            (_ROWS_AT_A_TIME,),
        ).fetchall()
        if not rows:
            break
        evicted: dict[int, None] = {}
        for row, filename, inline_bytes in rows:
            if freed < size_in_bytes and row not in evicted:
                together = cache_rows.of_same_file(cache, row) if filename else {row: None}
                freed += inline_bytes + _remove_files(cache, directory, together.values())
                evicted |= dict.fromkeys(together)
        removed()
        try:
            with cache.transact(retry=False):
                for row in evicted:
                    cache._sql("DELETE FROM Cache WHERE rowid = ?", (row,))
        except (sqlite3.OperationalError, diskcache.Timeout) as error:
            # Others still have them open, and there is no room yet. A row without its
            # file is a miss, and is among the first to go the next time.
            logger.debug("cache %s: evicted rows are still there: %s", directory, error)
            break
    return freed


def _remove_files(cache: Any, directory: Path, names: Iterable[str | None]) -> int:
    """Remove names of one file; return how much space that gives back when it is closed."""
    links = size_in_bytes = 0
    for name in names:
        if name is not None:
            with contextlib.suppress(OSError):
                status = (directory / name).stat()
                links, size_in_bytes = status.st_nlink, status.st_size
            cache.disk.remove(name)
    return size_in_bytes if links == 1 else 0


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
