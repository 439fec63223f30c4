"""Hashes of local files, each read once: one made when a file was closed holds at the freeze.

Used by the freeze and the broker. Of each file the MD5, and in the same reading the hash of
each block of a file of more than one. A result is kept with the file's stat, and counts
only while that is the same; a file that changes while it is read is read again.
Thread-safe; blocking; several processes may share one file of results.

On disk is one SQLite database. It holds nothing that cannot be computed again:
one that cannot be read is replaced, and a result that was not written costs a
second reading. The hashes of blocks are in a table of their own, of which version 0.1.0
does not know; a large file that has a row in the other alone counts as not hashed. The
store compares what is sent with an MD5, and nobody the hashes of blocks with anything, so
those have a seal: damage of the database must not make right bytes look wrong for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import threads
from dserverfs.base.block_hashes import HASH_BYTES, BlockHasher, block_hash, has_hashes
from dserverfs.base.errors import Cancelled, ItemChanged
from dserverfs.base.hashes import Hasher, hash_file, new_md5
from dserverfs.base.items import number_of_blocks
from dserverfs.base.limits import shown_ns
from dserverfs.base.progress import OnProgress, Progress, unwatched

logger = logging.getLogger(__name__)

THREADS = min(8, os.cpu_count() or 1)
# A file that changes as often while it is read is being written to.
ATTEMPTS = 3
_BUSY_TIMEOUT_S = 10.0
_MD5 = re.compile("[0-9a-f]{32}")
CLOCK_REALTIME_COARSE = 5  # of Linux; Python has no name for it
_TICK_S = 0.011  # the kernel's clock, at 100 Hz


class Stamp(NamedTuple):
    """The stat of a file, by which a change shows; ctime also moves where mtime was set back."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        # A file may be dated beyond what SQLite keeps; ctime still tells a change of it.
        return cls(status.st_size, shown_ns(status.st_mtime_ns), status.st_ctime_ns, status.st_ino)

    def is_settled(self) -> bool:
        """Return whether any change from now on shows.

        The kernel stamps with a clock that ticks every 1-10 ms, so what is
        written in the tick of the last change leaves no trace. Some file systems
        keep whole seconds.
        """
        newest_ns = max(self.mtime_ns, self.ctime_ns)
        end_ns = newest_ns if self.ctime_ns % 1_000_000_000 else newest_ns + 1_000_000_000
        return time.clock_gettime_ns(CLOCK_REALTIME_COARSE) > end_ns


class FileHash(NamedTuple):
    """The hashes of a file."""

    md5: str  # 32 hex digits
    blocks: bytes  # of each block of a file of more than one, else none


class Begun(NamedTuple):
    """The hashes of the first bytes of a file of more than one block."""

    md5: Hasher  # the receiver's own, both
    blocks: BlockHasher
    length: int


class Hashes:
    """Hashes of the files below a directory, kept in a database."""

    def __init__(
        self,
        database: Path,
        root: Path,
        *,
        threads: int = THREADS,
        begun: Callable[[Stamp], Begun | None] = lambda stamp: None,
    ) -> None:
        """`begun` returns what was hashed before of the file of which `stat` says that."""
        self._database = database
        self._root = root
        self._threads = threads
        self._begun = begun
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._running: dict[str, Future[FileHash]] = {}
        self.bytes_read = 0  # statistics

    def open(self) -> Hashes:
        """Open the database; make it anew if it cannot be read, in memory if there can be none."""
        try:
            self._connection = _connect(self._database)
        except sqlite3.Error as error:
            logger.warning("%s: cannot be read, files are hashed again: %s", self._database, error)
            try:
                forget(self._database)
                self._connection = _connect(self._database)
            except (sqlite3.Error, OSError) as second:
                logger.warning("%s: hashes are not kept: %s", self._database, second)
                self._connection = _connect(Path(":memory:"))
        return self

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Hashes:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def of(self, file: Path) -> str:
        """Return the MD5 of a file as 32 hex digits.

        One reading however many ask at once. Raises ItemChanged if the file keeps
        changing, and OSError.
        """
        return self._of(file, lambda count: None).md5

    def known_blocks(self, file: Path, md5: str) -> bytes | None:
        """Return the hashes of the blocks of a file that has this MD5; None if not known.

        They are known if the file was hashed, and is as it was then.
        """
        try:
            known = self._known(str(file.relative_to(self._root)), Stamp.of(os.stat(file)))
        except OSError:
            return None
        return known.blocks if known is not None and known.md5 == md5 else None

    def all_of(
        self,
        files: Iterable[Path],
        *,
        on_progress: OnProgress = unwatched,
        stop: threading.Event | None = None,
    ) -> Mapping[Path, str]:
        """Return the MD5 of each file, several read at once; raises as `of`, and Cancelled."""
        sizes = {file: os.stat(file).st_size for file in files}
        digests: dict[Path, str] = {}
        self.each(
            # So that no thread is left with it at the end.
            sorted(sizes, key=lambda file: sizes[file], reverse=True),
            digests.__setitem__,
            totals=(sum(sizes.values()), len(sizes)),
            on_progress=on_progress,
            stop=stop,
        )
        return digests

    def each(
        self,
        files: Iterable[Path],
        found: Callable[[Path, str], None],
        *,
        totals: tuple[int, int],
        on_progress: OnProgress = unwatched,
        stop: threading.Event | None = None,
    ) -> None:
        """Tell `found` the MD5 of each file, by one thread at a time; raises as `all_of`.

        Several are read at once, the largest should come first. `totals` are their bytes
        and number. Holds no more than a few of them.
        """
        batch = _Batch(files, found, totals, on_progress, stop or threading.Event())

        def work() -> None:
            try:
                while (file := batch.take()) is not None:
                    batch.done(file, self._of(file, batch.advance).md5)
            except BaseException as error:  # noqa: BLE001 - handed to the caller, which waits
                batch.fail(error)

        helpers = threads.several_started(
            work, name="hash", count=min(self._threads, totals[1]) - 1
        )
        work()
        for helper in helpers:
            helper.join()
        batch.require_done()

    def _of(self, file: Path, advance: Callable[[int], None]) -> FileHash:
        relpath = str(file.relative_to(self._root))
        while True:
            mine: Future[FileHash] = Future()
            with self._lock:
                other = self._running.get(relpath)
                if other is None:
                    self._running[relpath] = mine
            if other is None:
                break
            with contextlib.suppress(Exception):  # it may be done for a file that has changed since
                other.result()
        try:
            found = self._known_or_read(file, relpath, advance)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(found)
            return found
        finally:
            with self._lock:
                del self._running[relpath]

    def _known_or_read(self, file: Path, relpath: str, advance: Callable[[int], None]) -> FileHash:
        known = self._known(relpath, Stamp.of(os.stat(file)))
        if known is not None:
            advance(os.stat(file).st_size)
            return known
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for _ in range(ATTEMPTS):
                before = Stamp.of(os.fstat(descriptor))
                settled = _settle(before)
                begun = self._begun(before) or Begun(new_md5(), BlockHasher(), 0)
                found = self._read(descriptor, begun, before.size, advance)
                if Stamp.of(os.fstat(descriptor)) == before:
                    if settled:
                        self._keep(relpath, before, found)
                    return found
        finally:
            os.close(descriptor)
        raise ItemChanged(f"{relpath}: is being written to while it is hashed", relpath=relpath)

    def _read(
        self, descriptor: int, begun: Begun, size: int, advance: Callable[[int], None]
    ) -> FileHash:
        def on_piece(count: int) -> None:
            with self._lock:
                self.bytes_read += count
            advance(count)

        md5, blocks, offset = begun
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        advance(offset)
        hashers = (md5, blocks) if has_hashes(size) else (md5,)
        hash_file(descriptor, *hashers, offset=offset, on_piece=on_piece)
        return FileHash(md5.hexdigest(), blocks.hashes())

    def _known(self, relpath: str, stamp: Stamp) -> FileHash | None:
        with self._lock:
            assert self._connection is not None, "not open"
            try:
                row = self._select_locked("md5", "hash", relpath, stamp)
                if row is None or not _is_md5(row[0]):
                    return None
                if not has_hashes(stamp.size):
                    return FileHash(row[0], b"")
                known = self._select_locked("blocks, seal", "block_hash", relpath, stamp)
            except sqlite3.Error as error:  # a damaged page
                logger.debug("%s: it is not known whether it was hashed: %s", relpath, error)
                return None
        if known is None or not isinstance(known[0], bytes):
            return None
        found = FileHash(row[0], known[0])
        is_whole = len(found.blocks) == HASH_BYTES * number_of_blocks(stamp.size)
        return found if is_whole and known[1] == _seal(found) else None

    def _select_locked(
        self, columns: str, table: str, relpath: str, stamp: Stamp
    ) -> Sequence[Any] | None:
        assert self._connection is not None
        found: Sequence[Any] | None = self._connection.execute(
            f"SELECT {columns} FROM {table} WHERE relpath = ? AND size = ? AND mtime_ns = ?"
            " AND ctime_ns = ? AND inode = ?",
            (os.fsencode(relpath), *stamp),
        ).fetchone()
        return found

    def _keep(self, relpath: str, stamp: Stamp, found: FileHash) -> None:
        """Note a result; one that cannot be noted costs a second reading."""
        with self._lock:
            if self._connection is None:
                return
            try:
                if found.blocks:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO block_hash VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (os.fsencode(relpath), *stamp, found.blocks, _seal(found)),
                    )
                self._connection.execute(
                    "INSERT OR REPLACE INTO hash VALUES (?, ?, ?, ?, ?, ?)",
                    (os.fsencode(relpath), *stamp, found.md5),
                )
            except sqlite3.Error as error:  # a full disk
                logger.debug("%s: hash is not kept: %s", relpath, error)


class _Batch:
    """Files to hash, in this order."""

    def __init__(
        self,
        files: Iterable[Path],
        found: Callable[[Path, str], None],
        totals: tuple[int, int],
        on_progress: OnProgress,
        stop: threading.Event,
    ) -> None:
        self._files = iter(files)
        self._found = found
        self._bytes, self._number = totals
        self._on_progress = on_progress
        self._stop = stop
        self._lock = threading.Lock()
        self._read = self._done = 0
        self._failures: list[BaseException] = []

    def take(self) -> Path | None:
        with self._lock:
            self._check_locked()
            return next(self._files, None)

    def advance(self, count: int) -> None:
        with self._lock:
            self._check_locked()
            self._read += count
            self._tell_locked()

    def done(self, file: Path, digest: str) -> None:
        with self._lock:
            self._found(file, digest)
            self._done += 1
            self._tell_locked()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._failures.append(error)

    def require_done(self) -> None:
        """Raise the first failure."""
        for failure in sorted(self._failures, key=lambda error: isinstance(error, Cancelled)):
            raise failure

    def _check_locked(self) -> None:
        if self._stop.is_set() or self._failures:
            raise Cancelled("hashing was stopped; what is hashed is kept")

    def _tell_locked(self) -> None:
        self._on_progress(Progress(self._read, self._bytes, self._done, self._number))


def forget(database: Path) -> None:
    """Delete a database that is not open: everything is read again."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        database, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # Results may be lost in a power cut, but not damaged.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS hash (relpath BLOB PRIMARY KEY, size INTEGER NOT NULL,"
            " mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,"
            " md5 TEXT NOT NULL) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS block_hash (relpath BLOB PRIMARY KEY,"
            " size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,"
            " inode INTEGER NOT NULL, blocks BLOB NOT NULL, seal BLOB NOT NULL)"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _is_md5(value: object) -> bool:
    return isinstance(value, str) and _MD5.fullmatch(value) is not None


def _seal(found: FileHash) -> bytes:
    return block_hash(found.md5.encode() + found.blocks)


def _settle(stamp: Stamp) -> bool:
    """Wait for the kernel's next tick if need be; return whether any change from now on shows."""
    if stamp.is_settled():
        return True
    time.sleep(_TICK_S)
    return stamp.is_settled()
