"""The block cache's values on the disk: blobs in rows, and files beside the database.

Used by the cache. diskcache unpickles the values it finds (CVE-2025-69872, no fixed
release), so the `Disk` here stores bytes only and refuses anything else.

Blocks that are written together lie in one file, which has a name for each of them (hard
links), made of random digits and the block's place: to make a file takes 40 us, and 1 ms
where ext4 has just removed others, a name takes 10 us. A block's name goes when it is
removed, the file with the last of them. Files are never written again, so a name stands
for its content as long as it is there.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet, WeakValueDictionary

import diskcache
import diskcache.core

from dserverfs.base.local_files import SharedFile, reserve, write_all

SUFFIX = ".blk"
_NAME = re.compile(r"[0-9a-f]/[0-9a-f]{31}-([0-9a-f]{1,8})\.blk\Z")
# Smaller blocks are blobs in the database: a file costs 50 us more to make and to open.
MIN_FILE_SIZE = 64 * 1024
MAX_BLOCKS_IN_FILE = 16
# For more at once the kernel takes memory in large pieces, which on a virtual machine the host
# has often taken back: 1 GiB, cold, takes 5.5 s with 16 MiB at once, and 4.8 with this; the
# daemon's processor time is 7.0 s, and 4.5.
WRITE_BYTES = 64 * 1024
# The beginning that the names of blocks in one file share, and no others have.
STEM_CHARACTERS = 33
# What is a FIFO, and none of ours, is opened at once, and too short.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# File systems without hard links say EPERM, or that they know no such call.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class StoredFile(NamedTuple):
    """A block's file, open."""

    name: str  # relative to the cache's directory; random
    file: SharedFile
    start: int  # of the block in it, in bytes


class Value:
    """A block on its way to the disk; `file` once it is written."""

    def __init__(self, data: memoryview, file: StoredFile | None) -> None:
        self.data = data
        self.file = file


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores `Value`s and text keys; never pickles, never unpickles."""

    _has_links = True  # until the file system says otherwise
    times_removed = 0

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(directory, **settings)
        # Of several blocks each, by what the blocks' names begin with.
        self._opened: WeakValueDictionary[str, SharedFile] = WeakValueDictionary()
        self._removed: WeakSet[SharedFile] = WeakSet()
        self._removing = threading.Lock()

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError("a key of the block cache is text")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:
        if not raw or not isinstance(key, str):
            raise ValueError("a key of the block cache is text")
        return key

    def prepare(self, pieces: Sequence[memoryview]) -> list[Value]:
        """Write blocks that belong together, those to be files; raises OSError, leaves none then.

        Apart from `store`, so that no transaction waits for the disk.
        """
        large = [data for data in pieces if len(data) >= self.min_file_size]
        files = iter(self._write(large))
        return [
            Value(data, next(files) if len(data) >= self.min_file_size else None) for data in pieces
        ]

    def _write(self, pieces: Sequence[memoryview]) -> list[StoredFile]:
        stored: list[StoredFile] = []
        try:
            while len(stored) < len(pieces):
                most = MAX_BLOCKS_IN_FILE if self._has_links else 1
                wanted = pieces[len(stored) : len(stored) + most]
                try:
                    stored += self._write_one_file(wanted)
                except OSError as error:
                    if len(wanted) == 1 or error.errno not in _NO_LINKS:
                        raise
                    self._has_links = False
        except BaseException:
            self._remove_all(file.name for file in stored)
            raise
        return stored

    def _write_one_file(self, pieces: Sequence[memoryview]) -> list[StoredFile]:
        random = os.urandom(16).hex()
        starts = [*itertools.accumulate((len(data) for data in pieces), initial=0)]
        names = [f"{random[0]}/{random[1:]}-{start:x}{SUFFIX}" for start in starts[:-1]]
        path = os.path.join(self._directory, names[0])
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            file = SharedFile(os.open(path, flags, 0o600))
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            file = SharedFile(os.open(path, flags, 0o600))
        try:
            # ext4 then needs not look for space, nor count it, at each write.
            reserve(file.fd, starts[-1])
            for data, start in zip(pieces, starts, strict=False):
                for at in range(0, len(data), WRITE_BYTES):
                    write_all(file.fd, data[at : at + WRITE_BYTES], start + at)
            for name in names[1:]:
                os.link(path, os.path.join(self._directory, name))
        except BaseException:
            self._remove_all(names)
            raise
        self._opened[names[0][:STEM_CHARACTERS]] = file
        return [
            StoredFile(name, file, start) for name, start in zip(names, starts[:-1], strict=True)
        ]

    def _remove_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.remove(name)

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str | None, Any]:
        if not isinstance(value, Value) or read:
            raise TypeError("the block cache stores prepared blocks only")
        if value.file is None:
            return 0, diskcache.core.MODE_RAW, None, sqlite3.Binary(value.data)
        return len(value.data), diskcache.core.MODE_BINARY, value.file.name, None

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Return a row's bytes, or a StoredFile; raises OSError.

        A file that this process has open is not opened again. The block's name may be gone then;
        the file has the block all the same.
        """
        if mode == diskcache.core.MODE_RAW and isinstance(value, bytes):
            return value
        if mode == diskcache.core.MODE_BINARY and isinstance(filename, str):
            match = _NAME.match(filename)
            if not match:
                raise OSError(errno.EINVAL, "a cache row names a file that is not the cache's")
            file = self._opened.get(filename[:STEM_CHARACTERS])
            if file is None:
                path = os.path.join(self._directory, filename)
                file = SharedFile(os.open(path, _READ))
                self._opened[filename[:STEM_CHARACTERS]] = file
            return StoredFile(filename, file, int(match[1], 16))
        raise OSError(errno.EINVAL, "a cache row is not of the block cache's form")

    def remove(self, file_path: str) -> None:
        # Not the directory as well, as diskcache does: another block is put there soon.
        if is_name(file_path):
            self.times_removed += 1
            file = self._opened.get(file_path[:STEM_CHARACTERS])
            if file is not None:
                with self._removing:
                    self._removed.add(file)
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self._directory, file_path))

    def take_removed(self) -> list[SharedFile]:
        """Return the open files that have lost a name since the last call."""
        with self._removing:
            removed = list(self._removed)
            self._removed.clear()
        return removed

    def has(self, filename: str | None) -> bool:
        """Return whether the file of a row is there; a row without one needs none."""
        return filename is None or os.path.exists(os.path.join(self._directory, filename))

    def discard(self, value: Value) -> None:
        """Remove the file that `prepare` wrote."""
        if value.file is not None:
            self.remove(value.file.name)


def is_name(value: object) -> bool:
    """Return whether a row's value is the name of a block file; a damaged row has any other."""
    return isinstance(value, str) and _NAME.match(value) is not None


def size_on_disk(directory: Path) -> int:
    """Return how many bytes block files and database take up; raises OSError."""
    sizes: dict[int, int] = {}
    for path in (*directory.glob(f"[0-9a-f]/*{SUFFIX}"), *directory.glob("cache.db*")):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def files_in(directory: Path) -> set[str]:
    """Return the names of all block files there."""
    return {f"{path.parent.name}/{path.name}" for path in directory.glob(f"[0-9a-f]/*{SUFFIX}")}
