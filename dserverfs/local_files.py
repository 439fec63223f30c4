"""What reads and writes of local files have in common. No state."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

R = TypeVar("R")


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`; a disk that takes only a part says why when asked for more."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def with_own_descriptor(fd: int, call: Callable[[int], R]) -> Callable[[], R]:
    """Return `call`, for another thread, with a copy of `fd` that is closed after it.

    What the disk holds up for longer than its request may take must not find
    another file behind the number.
    """
    file = os.fdopen(os.dup(fd), "rb", buffering=0)

    def call_with_copy() -> R:
        with file:
            return call(file.fileno())

    return call_with_copy


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is waited for, for moments."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
