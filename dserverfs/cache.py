"""The disk cache of item blocks: diskcache, hardened and limited.

One directory per user (mode 0700), shared by all mounts and processes. Used by
the reader; knows nothing of servers, URLs or the network. A cache that fails
is a cache that misses: no method of BlockCache raises for a bad disk.

On disk: `blocks/cache.db` (SQLite) and a file for each block that is not
small. A value is the block followed by its CRC-32, 4 bytes, big endian. A
killed process leaves at worst a file without a row, which takes space until
the directory is cleared, never a row whose content passes the check wrongly.

diskcache unpickles what it finds (CVE-2025-69872, no fixed release), so the
`Disk` here stores bytes only and refuses anything else. Thread-safe: diskcache
keeps a connection per thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
import diskcache.core

from dserverfs import cache_rows
from dserverfs.blocks import BLOCK_SIZE, Block, FileBlock, MemoryBlock
from dserverfs.errors import UsageError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CRC_BYTES = 4
GIB = 1024**3
MAX_SIZE_BYTES = 50 * GIB
FLOOR_BYTES = 2 * GIB
FLOOR_FRACTION = 0.05
# Below it a block is a blob in the database: a file costs 50 us more to make and to open.
MIN_FILE_SIZE = 64 * 1024
FREE_SPACE_CHECK_S = 2.0
RETRY_AFTER_FAILURE_S = 30.0
# diskcache's least-recently-used writes to the database at every hit (36 us against
# 16 us): the order of use is noted in memory instead and written in batches.
_POLICY = "dserverfs-noted"
_NOTES_PER_BATCH = 256

diskcache.core.EVICTION_POLICY[_POLICY] = {
    "init": "CREATE INDEX IF NOT EXISTS Cache_access_time ON Cache (access_time)",
    "get": None,
    "cull": "SELECT {fields} FROM Cache ORDER BY access_time LIMIT ?",
}


class BlockKey(NamedTuple):
    """Which block: of an item in a dataset on a server."""

    item: str  # dserver URI of the dataset, "/" and the identifier
    block: int

    def as_text(self) -> str:
        return f"{FORMAT_VERSION}:{BLOCK_SIZE}:{self.item}:{self.block}"


class _Checked:
    """A value on its way to the disk."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.crc = zlib.crc32(data).to_bytes(CRC_BYTES, "big")


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores `_Checked` values and text keys; never pickles, never unpickles."""

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError("a key of the block cache is text")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:
        if not raw or not isinstance(key, str):
            raise ValueError("a key of the block cache is text")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str | None, Any]:
        if not isinstance(value, _Checked) or read:
            raise TypeError("the block cache stores checked bytes only")
        size = len(value.data) + CRC_BYTES
        if size < self.min_file_size:
            return 0, diskcache.core.MODE_RAW, None, sqlite3.Binary(value.data + value.crc)
        name = os.urandom(16).hex()
        filename = f"{name[0]}/{name[1:]}.blk"
        path = os.path.join(self._directory, filename)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        try:
            # One call, so that a full disk is noticed as a short count.
            if os.writev(fd, [value.data, value.crc]) != size:
                raise OSError(errno.ENOSPC, "short write to the cache")
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return size, diskcache.core.MODE_BINARY, filename, None

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Return a blob's bytes, or a _StoredFile which the caller closes."""
        if mode == diskcache.core.MODE_RAW and isinstance(value, bytes):
            return value
        if mode == diskcache.core.MODE_BINARY and filename is not None:
            if os.path.isabs(filename) or ".." in filename.split("/"):
                raise OSError(errno.EINVAL, "a cache row names a file outside the cache")
            path = os.path.join(self._directory, filename)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return _StoredFile(filename, fd)
        raise OSError(errno.EINVAL, "a cache row is not of the block cache's form")

    def remove(self, file_path: str) -> None:
        # Not the directory as well, as diskcache does: another block is put there soon.
        with contextlib.suppress(OSError):
            os.remove(os.path.join(self._directory, file_path))


def private_directory(path: Path) -> Path:
    """Make `path` if need be and return it; raises UsageError unless it is ours and private."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise UsageError(f"{path}: cannot be used as a directory: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UsageError(f"{path}: is not a directory of yours; name another with --cache-dir")
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def default_size_limit(directory: Path) -> int:
    """Return min(50 GiB, half of what is free), in bytes."""
    status = os.statvfs(directory)
    return min(MAX_SIZE_BYTES, status.f_bavail * status.f_frsize // 2)


class BlockCache:
    """Blocks on disk. `open` first; `close` when done."""

    def __init__(self, directory: Path, *, size_limit: int | None = None) -> None:
        self._directory = directory
        self._size_limit = size_limit
        self._cache: Any = None
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}
        self._checked: set[str] = set()  # files found whole in this process; 150 bytes a block
        self._space_checked_s = 0.0
        self._space_left = True
        self._broken_until_s = 0.0

    def open(self) -> None:
        """Open or make the cache; a corrupt database is thrown away, with one line in the log."""
        private_directory(self._directory)
        try:
            self._cache = self._open()
        except (sqlite3.DatabaseError, OSError, diskcache.Timeout) as error:
            logger.warning("cache %s is unusable and is made anew: %s", self._directory, error)
            for path in self._directory.glob("cache.db*"):
                path.unlink(missing_ok=True)
            try:
                self._cache = self._open()
            except (sqlite3.DatabaseError, OSError, diskcache.Timeout) as again:
                logger.warning("cache %s: reading without a cache: %s", self._directory, again)

    def _open(self) -> Any:
        limit = self._size_limit or default_size_limit(self._directory)
        return diskcache.Cache(
            str(self._directory),
            timeout=5,
            disk=BytesDisk,
            eviction_policy=_POLICY,
            size_limit=limit,
            cull_limit=16,
            disk_min_file_size=MIN_FILE_SIZE,
            statistics=0,
            sqlite_cache_size=2048,
        )

    def load(self, key: BlockKey, length: int) -> Block | None:
        """Return the block of `length` bytes if it is here and whole, else None."""
        cache = self._usable()
        if cache is None:
            return None
        text = key.as_text()
        try:
            stored = cache.get(text)
        except (sqlite3.Error, diskcache.Timeout, OSError, ValueError) as error:
            self._fail(error)
            return None
        if stored is None:
            return None
        block = self._block(stored, length)
        if block is None:
            logger.warning("cache %s: a damaged block is fetched again", self._directory)
            self.drop([key])
            return None
        self._note_use(text)
        return block

    def load_many(self, wanted: Sequence[tuple[BlockKey, int]]) -> list[Block | None]:
        """Return what `load` would for each key and length, asking the database once."""
        cache = self._usable()
        if cache is None or not wanted:
            return [None] * len(wanted)
        try:
            there = cache_rows.values_of(cache, [key.as_text() for key, _ in wanted])
        except (sqlite3.Error, diskcache.Timeout) as error:
            self._fail(error)
            there = {}
        return [self._load_row(there.get(key.as_text()), key, length) for key, length in wanted]

    def _load_row(
        self, row: tuple[int, str | None, Any] | None, key: BlockKey, length: int
    ) -> Block | None:
        if row is None:
            return None
        mode, _, value = row
        block = _blob(value, length) if mode == diskcache.core.MODE_RAW else None
        if block is None:
            return self.load(key, length)  # in a file, or damaged
        self._note_use(key.as_text())
        return block

    def _block(self, stored: bytes | _StoredFile, length: int) -> Block | None:
        """Return the block if it is whole: in memory when its file was read to find that out."""
        if isinstance(stored, bytes):
            return _blob(stored, length)
        if stored.name in self._checked:
            return FileBlock(stored.fd, length)
        try:
            block = _whole_file(stored.fd, length)
        finally:
            os.close(stored.fd)
        if block is not None:
            self._checked.add(stored.name)
        return block

    def store(self, blocks: Sequence[tuple[BlockKey, bytes]]) -> None:
        """Keep the blocks, in one transaction; if the disk is full or failing, do nothing."""
        cache = self._usable()
        if cache is None or not self._has_space(cache):
            return
        try:
            with cache.transact(retry=False):
                small = []
                for key, data in blocks:
                    value = _Checked(data)
                    if len(data) + CRC_BYTES < MIN_FILE_SIZE:
                        small.append((key.as_text(), data + value.crc))
                    else:
                        cache.set(key.as_text(), value)
                if small:
                    cache_rows.insert(cache, small)
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            self._fail(error)

    def drop(self, keys: Sequence[BlockKey]) -> None:
        """Forget these blocks."""
        cache = self._usable()
        if cache is None:
            return
        try:
            for key in keys:
                cache.delete(key.as_text())
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            self._fail(error)

    def close(self) -> None:
        self._write_notes()
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def give_way(self, size_in_bytes: int) -> bool:
        """Give back about that much of the disk to others; return whether there was anything."""
        cache = self._usable()
        if cache is None:
            return False
        try:
            if not len(cache):
                return False
            self._evict(cache, size_in_bytes)
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            self._fail(error)
            return False
        return True

    def _usable(self) -> Any:
        """Return diskcache's cache, or None while it is closed or fails."""
        return self._cache if time.monotonic() >= self._broken_until_s else None

    def _fail(self, error: Exception) -> None:
        """Go without the cache for a while; say so once a while."""
        with self._lock:
            if time.monotonic() < self._broken_until_s:
                return
            self._broken_until_s = time.monotonic() + RETRY_AFTER_FAILURE_S
        logger.warning(
            "cache %s fails, reading without it for %d s: %s",
            self._directory,
            RETRY_AFTER_FAILURE_S,
            error,
        )

    def _has_space(self, cache: Any) -> bool:
        """Return whether the file system keeps its floor of free space; evicts if it does not."""
        now_s = time.monotonic()
        if now_s - self._space_checked_s < FREE_SPACE_CHECK_S:
            return self._space_left
        self._space_checked_s = now_s
        try:
            status = os.statvfs(self._directory)
            free = status.f_bavail * status.f_frsize
            floor = min(FLOOR_BYTES, int(status.f_blocks * status.f_frsize * FLOOR_FRACTION))
            if free < floor:
                self._evict(cache, floor - free)
            self._space_left = free >= floor
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            self._fail(error)
            return False
        return self._space_left

    def _evict(self, cache: Any, size_in_bytes: int) -> None:
        """Give back about that much, the least recently used first."""
        volume = cache.volume()
        before = cache.size_limit
        cache.reset("size_limit", max(0, volume - size_in_bytes))
        try:
            cache.cull()
        finally:
            cache.reset("size_limit", before)

    def _note_use(self, text: str) -> None:
        with self._lock:
            self._used[text] = time.time()
            due = len(self._used) >= _NOTES_PER_BATCH
        if due:
            self._write_notes()

    def _write_notes(self) -> None:
        with self._lock:
            used, self._used = self._used, {}
        cache = self._cache
        if cache is None:
            return
        try:
            with cache.transact(retry=False):
                for text, moment_s in used.items():
                    cache._sql(
                        "UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1",
                        (moment_s, text),
                    )
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            logger.debug("cache %s: order of use not written: %s", self._directory, error)


class _StoredFile(NamedTuple):
    """A block's file, open, as found in the database."""

    name: str  # random, so it never names another content
    fd: int


def _blob(stored: bytes, length: int) -> Block | None:
    """Return a block that was a row, if its length and checksum are right."""
    data, crc = stored[:-CRC_BYTES], stored[-CRC_BYTES:]
    good = len(data) == length and zlib.crc32(data).to_bytes(CRC_BYTES, "big") == crc
    return MemoryBlock(data) if good else None


def _whole_file(fd: int, length: int) -> Block | None:
    """Return a file's block in memory, if its length and checksum are right."""
    data = memoryview(os.pread(fd, length + CRC_BYTES + 1, 0))
    if len(data) != length + CRC_BYTES:
        return None
    if zlib.crc32(data[:length]).to_bytes(CRC_BYTES, "big") != data[length:]:
        return None
    return MemoryBlock(data[:length])
