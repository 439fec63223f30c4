"""Locks by name, for what no two requests may do at once: in whatever process they are answered.

With SQLite all processes are on one machine, and a name is a byte of one file in the data
directory: a lock of an open file description (fcntl(2), F_OFD_SETLK), which holds between
threads as between processes, and ends with its process, however that ends. The file stays
empty.

Needs an app context.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from flask import Flask, current_app

from dserverfs.base.errors import Busy
from dserverfs.base.locks import open_lock

WAIT_S = 60.0  # as long as clients wait for an answer
_POLL_S = 0.02
_EXTENSION = "dserverfs_locks"


class Locks(Protocol):
    """What `holding` needs of a database, or of a file beside it."""

    def holding(self, name: str) -> AbstractContextManager[None]:
        """Hold the lock of a name; raises Busy, with status 503, after WAIT_S."""


class FileLocks:
    """The locks of all processes of this machine that use one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        end_s = time.monotonic() + WAIT_S
        offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        fd = open_lock(self._path)
        try:
            while not _try_byte(fd, offset):
                if time.monotonic() >= end_s:
                    raise taken(name)
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(fd)


def install(app: Flask, locks: Locks) -> None:
    """Let `holding` use these locks in the contexts of an app."""
    app.extensions[_EXTENSION] = locks


@contextmanager
def holding(name: str) -> Iterator[None]:
    """Hold the lock of a name until the end of the block; not to be nested.

    Raises Busy, with status 503, if others hold it for WAIT_S.
    """
    locks: Locks = current_app.extensions[_EXTENSION]
    with locks.holding(name):
        yield


def taken(name: str) -> Busy:
    """Return the error of a lock that others hold for too long."""
    return Busy(
        f"{name}: another request is at work on it; try again later",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
    )


def _try_byte(fd: int, offset: int) -> bool:
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        return False
    return True
