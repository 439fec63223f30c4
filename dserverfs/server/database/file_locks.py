"""Locks by name between the processes of one machine: with SQLite that is all there are.

A name is a byte of one file: a lock of an open file description (fcntl(2), F_OFD_SETLK), which
holds between threads as between processes, and ends with its process, however that ends. The
file stays empty.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dserverfs.base.errors import Busy
from dserverfs.base.locks import open_lock

_POLL_S = 0.02
_RETRY_AFTER_S = 5.0


class FileLocks:
    """The locks of all processes that use one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def holding(self, name: str, wait_s: float) -> Iterator[None]:
        """Raises Busy, with status 503, if it is not free in time."""
        end_s = time.monotonic() + wait_s
        offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        fd = open_lock(self._path)
        try:
            while not _try_byte(fd, offset):
                if time.monotonic() >= end_s:
                    raise Busy(
                        f"another request is at work on {name}; try again",
                        status=503,
                        retry_after_s=_RETRY_AFTER_S,
                    )
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(fd)


def _try_byte(fd: int, offset: int) -> bool:
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        return False
    return True
