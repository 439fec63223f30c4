"""How the block cache's values lie on the disk: rows, and files beside them.

Used by the cache. diskcache unpickles what it finds (CVE-2025-69872, no fixed
release), so the `Disk` here stores bytes only and refuses anything else. A
file has a random name and is never written again, so a name stands for its
content as long as it is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
import diskcache.core

SUFFIX = ".blk"
_NAME = re.compile(r"[0-9a-f]/[0-9a-f]{31}\.blk\Z")


class StoredFile(NamedTuple):
    """A block's file, open."""

    name: str  # relative to the cache's directory; random
    fd: int


class Value:
    """A block on its way to the disk; `file` once it is written."""

    def __init__(self, data: memoryview, file: StoredFile | None) -> None:
        self.data = data
        self.file = file


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores `Value`s and text keys; never pickles, never unpickles."""

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError("a key of the block cache is text")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:
        if not raw or not isinstance(key, str):
            raise ValueError("a key of the block cache is text")
        return key

    def prepare(self, data: memoryview) -> Value:
        """Write the block's file, if it is to have one; raises OSError and leaves none then.

        Apart from `store`, so that no transaction waits for the disk.
        """
        return Value(data, None if len(data) < self.min_file_size else self._write(data))

    def _write(self, data: memoryview) -> StoredFile:
        random = os.urandom(16).hex()
        name = f"{random[0]}/{random[1:]}{SUFFIX}"
        path = os.path.join(self._directory, name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        try:
            # One call, so that a full disk is noticed as a short count.
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        return StoredFile(name, fd)

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str | None, Any]:
        if not isinstance(value, Value) or read:
            raise TypeError("the block cache stores prepared blocks only")
        if value.file is None:
            return 0, diskcache.core.MODE_RAW, None, sqlite3.Binary(value.data)
        return len(value.data), diskcache.core.MODE_BINARY, value.file.name, None

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Return a row's bytes, or a StoredFile which the caller closes; raises OSError."""
        if mode == diskcache.core.MODE_RAW and isinstance(value, bytes):
            return value
        if mode == diskcache.core.MODE_BINARY and isinstance(filename, str):
            if not _NAME.match(filename):
                raise OSError(errno.EINVAL, "a cache row names a file that is not the cache's")
            path = os.path.join(self._directory, filename)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return StoredFile(filename, fd)
        raise OSError(errno.EINVAL, "a cache row is not of the block cache's form")

    def remove(self, file_path: str) -> None:
        # Not the directory as well, as diskcache does: another block is put there soon.
        if _NAME.match(file_path):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self._directory, file_path))

    def discard(self, value: Value) -> None:
        """Take back what `prepare` wrote."""
        if value.file is not None:
            os.close(value.file.fd)
            self.remove(value.file.name)


def files_in(directory: Path) -> set[str]:
    """Return the names of all block files there."""
    return {f"{path.parent.name}/{path.name}" for path in directory.glob(f"[0-9a-f]/*{SUFFIX}")}
