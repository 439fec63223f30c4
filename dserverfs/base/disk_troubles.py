"""The pause after a failure of the disk that a cache is on, and the log's lines about it.

Used by the caches of blocks and of manifests. One line when the trouble begins and one
when it is over, for any number of blocks. Thread-safe.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

RETRY_AFTER_FAILURE_S = 30.0


class CacheTroubles:
    """The failures of one cache."""

    def __init__(
        self,
        directory: Path,
        retry_after_s: float = RETRY_AFTER_FAILURE_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._retry_after_s = retry_after_s
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._broken_until_s = 0.0
        self._unwritable_until_s = 0.0
        self._said: set[str] = set()  # troubles that the log has a line about, not over

    def is_broken(self) -> bool:
        """Return True while the cache is not to be tried."""
        return self._clock_s() < self._broken_until_s

    def is_unwritable(self) -> bool:
        """Return True while nothing is to be kept."""
        return self._clock_s() < self._unwritable_until_s

    def broke(self, error: Exception) -> bool:
        """Go without the cache for a while; return False if that was so already."""
        with self._lock:
            if self.is_broken():
                return False
            self._broken_until_s = self._clock_s() + self._retry_after_s
        self._say("cache %s fails, reading without a cache until it works again: %s", error)
        return True

    def cannot_be_written(self, error: Exception) -> bool:
        """Keep nothing new for a while; return False if that was so already."""
        with self._lock:
            if self.is_unwritable():
                return False
            self._unwritable_until_s = self._clock_s() + self._retry_after_s
        self._say("cache %s cannot be written, keeping nothing new until it can: %s", error)
        return True

    def is_over(self) -> None:
        """Note that something was kept."""
        if self._said:
            with self._lock:
                self._said.clear()
            logger.info("cache %s: works again", self._directory)

    def _say(self, form: str, error: Exception) -> None:
        with self._lock:
            level = logging.DEBUG if form in self._said else logging.WARNING
            self._said.add(form)
        logger.log(level, form, self._directory, said_of(error))


def said_of(error: Exception) -> str:
    return str(error) or "it is busy"


# What SQLite says where a damaged page is still a page, in which a name or a type is another.
_SAID_OF_DAMAGE = (
    *("malformed", "no such", "has no column", "Could not decode", "SQL logic error", 'near "'),
    *("unrecognized token", "incomplete input", "unsupported file format", "already exists"),
    *("constraint failed", "datatype mismatch", "unknown database", "ambiguous column"),
)


def means_corrupt(error: Exception) -> bool:
    """Return True if the database itself is damaged, and not busy, full, or on a bad disk."""
    if type(error) is sqlite3.DatabaseError:
        return True
    is_of_sql = isinstance(error, (sqlite3.OperationalError, sqlite3.IntegrityError))
    return is_of_sql and any(said in str(error) for said in _SAID_OF_DAMAGE)
