"""The disk of the simulation: real files below one directory, and what a power cut leaves of them.

At its seams (`disk_seams`) another thread may go on, the disk may fail, the process or the
machine may die. After a power cut the names are those of some
moment since the last sync, as a journal keeps them in order; the content of a file that was
not synced since is as it was, as it should be, cut short, or zeros. SQLite's files are not
of this model: they stay as they are, but for those that the world damages on purpose.

Times of files are those of the simulated clock, with the kernel's coarse tick.
"""

from __future__ import annotations

import fcntl
import io
import os
import pathlib  # noqa: F401 - these take what they need of os when they are imported
import random
import shutil  # noqa: F401
import stat
import tempfile  # noqa: F401
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.simulation import threads
from tests.simulation.scheduler import Process, Scheduler

# Called at each seam with what is done and on which path; may raise, kill, or switch.
Seam = Callable[[str, str], None]

REAL = {
    name: getattr(os, name)
    for name in (
        *("open", "close", "pwrite", "write", "ftruncate", "truncate", "fsync", "fdatasync"),
        *("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir", "utime", "chmod"),
        *("stat", "fstat", "lstat", "statvfs", "getpid", "urandom", "scandir"),
    )
}
real_open = io.open
real_flock = fcntl.flock
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_DATABASES = ("cache.db", "hashes", ".index", ".sqlite", "-wal", "-shm", "-journal")

FREE_BYTES = 400 * 1024**3


class _Shown(NamedTuple):
    """The dates of a file: the machine's, and the simulated ones that stand for them."""

    real_mtime_ns: int
    real_ctime_ns: int
    mtime_ns: int
    ctime_ns: int


class Disk:
    """The files below `root`, of one simulated machine."""

    def __init__(self, scheduler: Scheduler, root: str, seam: Seam) -> None:
        self.scheduler = scheduler
        self.root = root
        self._prefix = root + "/"
        self.seam = seam
        self._dates: dict[int, _Shown] = {}
        self._locks: dict[int, Process] = {}  # by descriptor
        self._undo: list[Callable[[], None]] = []  # what was done to names since the last sync
        self._synced: dict[int, bytes] = {}  # content at the last sync, by inode
        self.dirty: set[int] = set()  # inodes whose content was not synced since
        self._graves = f"{root}.graves"
        self._number = 0
        REAL["mkdir"](self._graves)

    # Names and content

    def is_ours(self, path: object) -> bool:
        return isinstance(path, str) and path.startswith(self._prefix)

    def note_open(self, path: str, flags: int, was_there: bool) -> None:
        if not was_there:
            self._undo.append(lambda: quietly("unlink", path))
        if flags & WRITES:
            self.dirty.add(REAL["stat"](path).st_ino)

    def sync(self, fd: int) -> None:
        """Have a file's content on the disk, and all names."""
        status = REAL["fstat"](fd)
        if stat.S_ISREG(status.st_mode):
            self._synced[status.st_ino] = _content(fd)
            self.dirty.discard(status.st_ino)
        self._commit()

    def sync_all(self) -> None:
        for path in self._files():
            status = REAL["stat"](path)
            if status.st_ino in self.dirty:
                with real_open(path, "rb") as file:
                    self._synced[status.st_ino] = file.read()
        self.dirty.clear()
        self._commit()

    def power_cut(self, rng: random.Random) -> str:
        """Take back what was not synced, as far as chance has it; return what was."""
        taken_back = rng.randint(0, len(self._undo))
        for undo in reversed(self._undo[len(self._undo) - taken_back :]):
            undo()
        cut = 0
        for path in self._files():
            status = REAL["stat"](path)
            if status.st_ino not in self.dirty or path.endswith(_DATABASES):
                continue
            with real_open(path, "rb") as file:
                now = file.read()
            before = self._synced.get(status.st_ino, b"")
            choice = rng.randrange(4)
            content = (now, before, now[: rng.randint(0, len(now))], bytes(len(now)))[choice]
            if content != now:
                cut += 1
                REAL["chmod"](path, 0o600)
                with real_open(path, "wb") as file:
                    file.write(content)
                REAL["chmod"](path, stat.S_IMODE(status.st_mode))
        self.sync_all()
        return f"{taken_back} changes of names taken back, {cut} contents lost"

    def release_locks(self, process: Process) -> None:
        for fd, owner in list(self._locks.items()):
            if owner is process:
                del self._locks[fd]
                real_flock(fd, fcntl.LOCK_UN)

    def _commit(self) -> None:
        self._undo.clear()
        for name in os.listdir(self._graves):
            REAL["unlink"](f"{self._graves}/{name}")

    def _files(self) -> Iterator[str]:
        pending = [self.root]
        while pending:
            with REAL["scandir"](pending.pop()) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.path

    def bury(self, path: str) -> Callable[[], None]:
        """Return what brings a file back that is about to lose a name."""
        self._number += 1
        grave = f"{self._graves}/{self._number}"
        try:
            REAL["link"](path, grave, follow_symlinks=False)
        except OSError:
            return lambda: None
        return lambda: quietly("link", grave, path)

    def did(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    # Dates

    def dated(self, status: os.stat_result) -> os.stat_result:
        """Return a status with the simulated clock's dates."""
        shown = self._look(status, is_changed=False)
        values = list(status)
        values[7:10] = [shown.mtime_ns // 10**9] * 2 + [shown.ctime_ns // 10**9]
        floats = [shown.mtime_ns / 1e9] * 2 + [shown.ctime_ns / 1e9]
        whole = [shown.mtime_ns] * 2 + [shown.ctime_ns]
        return os.stat_result(
            (*values, *floats, *whole, status.st_blksize, status.st_blocks, status.st_rdev)
        )

    def changed(self, status: os.stat_result, mtime_ns: int | None = None) -> None:
        """Date a file as changed now; its content, too, unless a date is given."""
        self._look(status, is_changed=True, mtime_ns=mtime_ns)

    def _look(
        self, status: os.stat_result, *, is_changed: bool, mtime_ns: int | None = None
    ) -> _Shown:
        real = (status.st_mtime_ns, status.st_ctime_ns)
        known = self._dates.get(status.st_ino)
        if not is_changed and known is not None and known[:2] == real:
            return known
        tick_ns = self.scheduler.wall_ns() // threads.TICK_NS * threads.TICK_NS
        if mtime_ns is None:
            mtime_ns = tick_ns
            if known is not None and known.real_mtime_ns == real[0]:
                mtime_ns = known.mtime_ns
        shown = self._dates[status.st_ino] = _Shown(*real, mtime_ns, tick_ns)
        return shown

    # Locks

    def lock(self, fd: int, operation: int) -> None:
        """Lock a file as flock(2) does; waits with the simulated clock."""
        while True:
            try:
                real_flock(fd, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                if operation & fcntl.LOCK_NB:
                    raise
                self.seam("lock", "")
                threads.sleep(0.001)
                continue
            break
        current = self.scheduler.current
        if current is not None:
            self._locks[fd] = current.process

    def closed(self, fd: int) -> None:
        self._locks.pop(fd, None)


def _content(fd: int) -> bytes:
    own = REAL["open"](f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        return os.pread(own, 1 << 30, 0)
    finally:
        REAL["close"](own)


def quietly(name: str, *arguments: Any) -> None:
    try:
        REAL[name](*arguments)
    except OSError:
        pass
