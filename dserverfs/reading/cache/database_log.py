"""The write-ahead log of the cache's database, which is cut when it is large."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dserverfs.reading.cache.layout import DATABASE

# SQLite begins its log anew after 4 MiB, unless others write while it is copied: on a slow
# disk they always do.
MAX_LOG_BYTES = 8 * 1024 * 1024
TIMEOUT_S = 2.0  # in which nobody writes
RETRY_S = 30.0  # if a reader is in the way, or after it has grown by half as much again


class DatabaseLog:
    """The log of one cache."""

    def __init__(self, cache: Any) -> None:
        """`cache` is diskcache's."""
        self._cache = cache
        self._file = Path(cache.directory, f"{DATABASE}-wal")
        self._limit = MAX_LOG_BYTES
        self._tried_s = 0.0

    def shorten_if_large(self) -> None:
        """Cut it if it is larger than it may be; waits for TIMEOUT_S at most.

        Raises OSError and sqlite3.Error.
        """
        size = self._file.stat().st_size
        if size > self._limit or (size > MAX_LOG_BYTES and self._may_retry()):
            self._shorten(size)

    def shorten(self) -> None:
        """Cut it, as `shorten_if_large`: the database is as small as what is in it then."""
        self._shorten(self._file.stat().st_size)

    def _may_retry(self) -> bool:
        return time.monotonic() - self._tried_s > RETRY_S

    def _shorten(self, size: int) -> None:
        """Write the log into the database while all wait, and cut it."""
        self._limit = size + MAX_LOG_BYTES // 2
        self._tried_s = time.monotonic()
        sql = self._cache._sql
        sql(f"PRAGMA busy_timeout = {TIMEOUT_S * 1000:.0f}")
        try:
            ((is_busy, _, _),) = sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            sql(f"PRAGMA busy_timeout = {self._cache.timeout * 1000:.0f}")
        if not is_busy:
            self._limit = MAX_LOG_BYTES
