"""Opening the block cache's database, or making it: diskcache's, set up as the cache needs it.

Used by the cache, with its directory as argument. Raises what SQLite, diskcache and
the operating system raise.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import diskcache
import diskcache.core

from dserverfs.base.local_files import create_private
from dserverfs.reading.cache import space
from dserverfs.reading.cache.block_files import BytesDisk, files_in
from dserverfs.reading.cache.troubles import means_corrupt

logger = logging.getLogger(__name__)

# Below it a block is a blob in the database: a file costs 50 us more to make and to open.
MIN_FILE_SIZE = 64 * 1024
AS_IT_IS = -1  # a size limit: the one that whoever used the cache last has set
BUSY_TIMEOUT_S = 5.0
OPEN_TIMEOUT_S = 10.0
# diskcache's least-recently-used writes to the database at every hit (36 us against
# 16 us): the order of use is noted in memory instead and written in batches.
_POLICY = "dserverfs-noted"

diskcache.core.EVICTION_POLICY[_POLICY] = {
    "init": "CREATE INDEX IF NOT EXISTS Cache_access_time ON Cache (access_time)",
    "get": None,
    "cull": "SELECT {fields} FROM Cache ORDER BY access_time LIMIT ?",
}


def database(directory: Path, size_limit: int | None) -> Any:
    """Return diskcache's cache; a corrupt one is thrown away, with one line in the log.

    For the holder of the directory's lock. `size_limit` as of a BlockCache.
    """
    try:
        return _open(directory, size_limit)
    except sqlite3.DatabaseError as error:
        if not means_corrupt(error):
            raise
        logger.warning("cache %s is corrupt and is made anew: %s", directory, error)
        _remove_all(directory)
        return _open(directory, size_limit)


def _open(directory: Path, size_limit: int | None) -> Any:
    is_new = not (directory / "cache.db").exists()
    create_private(directory / "cache.db")  # SQLite makes its others like it
    cache = diskcache.Cache(
        str(directory),
        timeout=BUSY_TIMEOUT_S,
        disk=BytesDisk,
        eviction_policy=_POLICY,
        cull_limit=16,
        disk_min_file_size=MIN_FILE_SIZE,
        statistics=0,
        sqlite_cache_size=2048,
        sqlite_mmap_size=0,  # a database that is cut short would be SIGBUS
    )
    if size_limit is None or (is_new and size_limit <= 0):
        cache.reset("size_limit", space.default_limit(directory, cache.volume()))
    elif size_limit > 0:
        cache.reset("size_limit", size_limit)
    return cache


def _remove_all(directory: Path) -> None:
    for path in directory.glob("cache.db*"):
        path.unlink(missing_ok=True)
    for name in files_in(directory):
        (directory / name).unlink(missing_ok=True)
