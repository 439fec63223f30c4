"""Eviction of the blocks used longest ago, and the sweep of files that have no row.

Used by the cache and its maintenance, with the table as argument. Raises FAILURES, but
for `sweep`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dserverfs.reading.cache.block_files import files_in
from dserverfs.reading.cache.block_table import BUSY, FAILURES, BlockTable

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 24 * 3600.0
# A file without a row that is older belongs to no process: rows follow their files at once.
ORPHANED_AFTER_S = 600.0
_ROWS_AT_A_TIME = 64


def evict(
    table: BlockTable, directory: Path, size_in_bytes: int, removed: Callable[[], None]
) -> int:
    """Give back about that much, the least recently used first; return how much it was.

    `removed` is called when files were, and has to have them closed: their space is free
    only then, and on a full disk there is no room before for the transaction that follows.
    """
    freed = 0
    while freed < size_in_bytes:
        rows = table.least_recently_used(_ROWS_AT_A_TIME)
        if not rows:
            break
        evicted: dict[int, None] = {}
        for row, filename, inline_bytes in rows:
            if freed < size_in_bytes and row not in evicted:
                together = table.of_same_file(row) if filename else {row: None}
                freed += inline_bytes + _remove_files(table, directory, together.values())
                evicted |= dict.fromkeys(together)
        removed()
        try:
            table.delete_rows(evicted)
        except BUSY as error:
            # Others still have them open, and there is no room yet. A row without its
            # file is a miss, and is among the first to go the next time.
            logger.debug("cache %s: evicted rows are still there: %s", directory, error)
            break
    return freed


def _remove_files(table: BlockTable, directory: Path, names: Iterable[str | None]) -> int:
    """Remove names of one file; return how much space that gives back when it is closed."""
    links = size_in_bytes = 0
    for name in names:
        if name is not None:
            with contextlib.suppress(OSError):
                status = (directory / name).stat()
                links, size_in_bytes = status.st_nlink, status.st_size
            table.disk.remove(name)
    return size_in_bytes if links == 1 else 0


def sweep_is_due(directory: Path) -> bool:
    """Return True, once a day, to the process that is to sweep."""
    mark = directory / "swept"
    with contextlib.suppress(FileNotFoundError):
        if 0 <= time.time() - mark.stat().st_mtime < SWEEP_EVERY_S:
            return False
    mark.touch(0o600)
    return True


def sweep(table: BlockTable, directory: Path, older_than_s: float) -> int:
    """Remove files that no row names, which killed processes left; return how many."""
    removed = 0
    try:
        # Files before rows: one that is written between the two is in neither.
        names = files_in(directory)
        for name in names - table.filenames():
            path = directory / name
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                if time.time() - path.lstat().st_mtime >= older_than_s:
                    path.unlink()
                    removed += 1
    except FAILURES as error:
        logger.debug("cache %s: not swept: %s", directory, error)
    return removed
