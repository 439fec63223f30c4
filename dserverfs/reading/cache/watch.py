"""The watch on a shared cache: other processes evict from it, or take it away altogether.

Used by the cache. A removed file takes up its space until every process has closed it.
So a process that removes files touches a mark beside the database, and every process
looks at the mark once a second, as long as it has files of the cache open. Thread-safe.

On disk: `evicted`, an empty file; its time is all that counts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dserverfs.base import threads
from dserverfs.base.local_files import create_private
from dserverfs.reading.cache import layout

WATCH_S = 1.0
_MARK = "evicted"


class CacheWatch:
    """Looks after one directory."""

    def __init__(self, directory: Path, changed: Callable[[], None]) -> None:
        """`changed` is called when files may have been removed; in a thread of its own, too."""
        self._directory = directory
        self._changed = changed
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._seen_ns = 0
        self._database = 0  # its inode, as it was when it was opened

    def opened(self) -> None:
        """Remember the database that was opened just now; raises OSError."""
        create_private(self._directory / _MARK)
        self._seen_ns = self._touched_ns()
        self._database = (self._directory / layout.DATABASE).stat().st_ino

    def start(self) -> None:
        """Look once a second from now on."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._ended.is_set():
                self._thread = threads.started(self._run, name="watch")

    def close(self) -> None:
        self._ended.set()

    def removed(self) -> None:
        """Tell the other processes that files were removed."""
        with contextlib.suppress(OSError):
            os.utime(self._directory / _MARK)
            self._seen_ns = self._touched_ns()

    def is_recent(self) -> bool:
        """Return True while other processes may still have to close removed files."""
        return time.time() - self._touched_ns() / 1e9 < 3 * WATCH_S

    def is_gone(self) -> bool:
        """Return True if the database that was opened is gone, or another one is in its place."""
        try:
            return (self._directory / layout.DATABASE).stat().st_ino != self._database
        except FileNotFoundError:
            return True
        except OSError as error:
            return isinstance(error, NotADirectoryError)

    def _run(self) -> None:
        while not self._ended.wait(WATCH_S):
            touched_ns = self._touched_ns()
            if touched_ns != self._seen_ns or self.is_gone():
                self._seen_ns = touched_ns
                self._changed()

    def _touched_ns(self) -> int:
        try:
            return (self._directory / _MARK).stat().st_mtime_ns
        except OSError:
            return 0
