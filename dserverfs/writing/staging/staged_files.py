"""The local files of a staged dataset: changed on the disk, with what is kept beside them.

Used by the staged tree. A user's mode is kept where the daemon needs another one (see
`modes`), and the incremental hash is told of everything that is done to a file. Blocking on
the local disk; for one thread at a time. Raises OSError as the disk says.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from dserverfs.base.descriptors import require_spare
from dserverfs.base.local_files import RENAME_EXCHANGE, rename
from dserverfs.writing.staging.incremental_hash import HashAhead
from dserverfs.writing.staging.modes import OWNER_DIRECTORY, OWNER_FILE, Modes

_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

Target = int | str  # a path, or a descriptor where no name is left


class Renamed(NamedTuple):
    """Two entries as they were before a rename."""

    moved: os.stat_result
    replaced: os.stat_result | None


class StagedFiles:
    """The files of one staged dataset."""

    def __init__(self, hashes: HashAhead) -> None:
        self._hashes = hashes
        self._modes = Modes()

    def mode(self, target: Target, status: os.stat_result) -> int:
        """Return the user's mode of a file of which `status` is known."""
        return self._modes.of(target, status)

    # Files

    def create(self, path: str, mode: int, flags: int) -> int:
        """Return a descriptor of a file that is made unless it is there and `flags` let it be."""
        # The kernel asks to create what it did not find; another process may have made it since.
        is_new = True
        require_spare()
        try:
            fd = os.open(path, _MAKE, OWNER_FILE)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            fd, is_new = os.open(path, _MAKE & ~os.O_EXCL, OWNER_FILE), False
        try:
            self._modes.set(fd, mode, is_directory=False)
            if is_new:
                self._hashes.made(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open(self, target: Target, inode: int, flags: int) -> int:
        """Return another descriptor of a file, for what `flags` say."""
        require_spare()
        if flags & os.O_TRUNC:
            self._hashes.forget(inode)
        return os.open(_by_path(target), flags | os.O_CLOEXEC)

    def begin_write(self, inode: int, fd: int, offset: int) -> None:
        """Note that something is about to be written at `offset`."""
        self._hashes.begins(inode, fd, offset)

    def end_write(self, inode: int, fd: int, end: int) -> None:
        """Note that all that was begun to be written is, up to `end`."""
        self._hashes.ended(inode, fd, end)

    def end_writing(self, inode: int, fd: int) -> None:
        """Note that a descriptor for writing is about to be closed."""
        self._hashes.closed(inode, fd)

    def change(
        self,
        target: Target,
        mode: int | None,
        size_in_bytes: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
    ) -> None:
        """Change what is not None."""
        before = os.stat(target)
        if size_in_bytes is not None:
            self._hashes.forget(before.st_ino)
            os.truncate(_by_path(target), size_in_bytes)
        if mode is not None:
            self._modes.set(target, mode, is_directory=stat.S_ISDIR(before.st_mode))
        if atime_ns is not None or mtime_ns is not None:
            now = os.stat(target)
            atime_ns = now.st_atime_ns if atime_ns is None else atime_ns
            mtime_ns = now.st_mtime_ns if mtime_ns is None else mtime_ns
            os.utime(target, ns=(atime_ns, mtime_ns))
        self._touched(before, target)

    # Names

    def make_directory(self, path: str, mode: int) -> None:
        os.mkdir(path, OWNER_DIRECTORY)
        self._modes.set(path, mode, is_directory=True)

    def link(self, old: str, new: str) -> None:
        before = os.lstat(old)
        os.link(old, new, follow_symlinks=False)
        self._touched(before, new)

    def remove(self, path: str) -> os.stat_result:
        """Remove a file; return its status before."""
        status = os.lstat(path)
        os.unlink(path)
        # Its inode may come again; and one that is left has another ctime.
        self._hashes.forget(status.st_ino)
        return status

    def rename(self, old: str, new: str, flags: int) -> Renamed:
        """Rename as renameat2(2) does."""
        moved, replaced = os.lstat(old), None
        with contextlib.suppress(FileNotFoundError):
            replaced = os.lstat(new)
        rename(old, new, flags)
        self._touched(moved, new)
        if replaced is not None and not os.path.samestat(moved, replaced):
            if flags & RENAME_EXCHANGE:
                self._touched(replaced, old)
            else:
                self._hashes.forget(replaced.st_ino)
        return Renamed(moved, replaced)

    def _touched(self, before: os.stat_result, target: Target) -> None:
        """Note that other than the content of a file was changed."""
        if self._hashes.follows(before.st_ino):
            self._hashes.touched(before, os.stat(target))


def _by_path(target: Target) -> str:
    """Return a path by which a file can be opened anew, for other uses than its descriptor."""
    return f"/proc/self/fd/{target}" if isinstance(target, int) else target
