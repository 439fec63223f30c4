"""Opening the cache's database, or making it anew: nothing in it is believed unlooked at.

Used by the cache. What is on the disk may be damaged in any way, and diskcache takes its
settings, and SQLite its schema, as they are. Raises FAILURES.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
from pathlib import Path

import diskcache
import diskcache.core

from dserverfs.base import disk_space
from dserverfs.base.disk_troubles import means_corrupt
from dserverfs.base.local_files import create_private
from dserverfs.reading.cache.block_files import MIN_FILE_SIZE, BytesDisk, files_in
from dserverfs.reading.cache.block_table import POLICY, BlockTable, of_values
from dserverfs.reading.cache.layout import DATABASE

logger = logging.getLogger(__name__)

# What diskcache takes from a database, and sets its own attributes by.
_SETTINGS = {*diskcache.core.DEFAULT_SETTINGS, *diskcache.core.METADATA}
_TEXTS = {"eviction_policy", "sqlite_journal_mode"}
# The tables, indexes and triggers of diskcache 5.6, and the hashes of their statements.
SCHEMA = {
    "Cache": "b1e287d8264b4cfb",
    "Cache_access_time": "c933d0b42ec6f8d0",
    "Cache_expire_time": "4a273a1da0f568b2",
    "Cache_key_raw": "4f0a5302019317d0",
    "Settings": "7dc3acaeb6bbc0a0",
    "Settings_count_delete": "2eb9bf040815f4bc",
    "Settings_count_insert": "0d6ef5b954e42033",
    "Settings_size_delete": "613ef63fc328c3a9",
    "Settings_size_insert": "404b74ec6db5c3f1",
    "Settings_size_update": "18eb18f5d803b490",
    "sqlite_autoindex_Settings_1": "e3b0c44298fc1c14",
}


def open_table(directory: Path, size_limit: int | None, busy_timeout_s: float) -> BlockTable:
    """Open or make the table; a corrupt one is thrown away, with one line in the log.

    For the holder of the directory's lock. `size_limit` as of a BlockCache.
    """
    try:
        return _open(directory, size_limit, busy_timeout_s)
    except sqlite3.DatabaseError as error:
        if not means_corrupt(error) and not _takes_no_writes(directory, error):
            raise
        throw_away(directory, error)
        return _open(directory, size_limit, busy_timeout_s)


def throw_away(directory: Path, error: Exception) -> None:
    """Delete a corrupt database and all block files; for the holder of the directory's lock."""
    logger.warning("cache %s is corrupt and is made anew: %s", directory, error)
    for name in [*(path.name for path in directory.glob(f"{DATABASE}*")), *files_in(directory)]:
        with contextlib.suppress(IsADirectoryError):
            (directory / name).unlink(missing_ok=True)


@of_values
def _open(directory: Path, size_limit: int | None, busy_timeout_s: float) -> BlockTable:
    is_new = not (directory / DATABASE).exists()
    create_private(directory / DATABASE)  # SQLite makes its others like it
    _require_sound(directory / DATABASE, busy_timeout_s)
    cache = diskcache.Cache(
        str(directory),
        timeout=busy_timeout_s,
        disk=BytesDisk,
        eviction_policy=POLICY,
        cull_limit=16,
        disk_min_file_size=MIN_FILE_SIZE,
        statistics=0,
        sqlite_cache_size=2048,
        sqlite_mmap_size=0,  # a database that is cut short would be SIGBUS
    )
    if size_limit is None or (is_new and size_limit <= 0):
        cache.reset("size_limit", disk_space.default_limit(directory, cache.volume()))
    elif size_limit > 0:
        cache.reset("size_limit", size_limit)
    return BlockTable(cache)


def _require_sound(database: Path, busy_timeout_s: float) -> None:
    """Raise DatabaseError for a schema or settings that diskcache did not write: it believes any.

    SQLite takes the schema as it reads it, and a bit of that may have flipped: then rows
    have no numbers, or sizes are not counted.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=busy_timeout_s)) as connection:
        for name, text in connection.execute("SELECT name, sql FROM sqlite_master"):
            if SCHEMA.get(name) != _digest(text):
                raise sqlite3.DatabaseError(f"its {str(name)[:40]!r} is none of a cache")
        if not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'Settings'"
        ).fetchall():
            return
        for key, value in connection.execute("SELECT key, value FROM Settings"):
            is_known = isinstance(key, str) and key in _SETTINGS
            if not is_known or not isinstance(value, str if key in _TEXTS else int):
                raise sqlite3.DatabaseError(f"its setting {str(key)[:40]!r} is none of a cache")
            if isinstance(value, int) and key in diskcache.core.METADATA and value < 0:
                raise sqlite3.DatabaseError(f"its {key} is below zero")


def _takes_no_writes(directory: Path, error: sqlite3.DatabaseError) -> bool:
    """Return whether a database says that it cannot be written, and its file can."""
    if "readonly" not in str(error):
        return False
    try:
        os.close(os.open(directory / DATABASE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _digest(text: object) -> str:
    return hashlib.sha256(f"{text or ''}".encode(errors="replace")).hexdigest()[:16]
