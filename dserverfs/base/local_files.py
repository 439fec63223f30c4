"""Reads and writes of local files. No state."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

R = TypeVar("R")

RENAME_EXCHANGE = 2  # of renameat2(2)
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`; a disk that takes only a part says why when asked for more."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def reserve(fd: int, size_in_bytes: int) -> None:
    """Give a new file that size, and space for it where a file system can; OSError if it is full.

    Not by `os.posix_fallocate`: where the file system cannot, libc writes to every block.
    """
    if _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size_in_bytes)) != 0:
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if is_full(error):
            raise error


def with_own_descriptor(fd: int, call: Callable[[int], R]) -> Callable[[], R]:
    """Return `call`, for another thread, with a copy of `fd` that is closed after it.

    A call that the disk holds up for longer than its request may take must not find
    another file behind the number.
    """
    file = os.fdopen(os.dup(fd), "rb", buffering=0)

    def call_with_copy() -> R:
        with file:
            return call(file.fileno())

    return call_with_copy


def files_below(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all below a directory but the directories, with their paths; raises OSError.

    Links are not followed.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry


def make_private(path: Path) -> None:
    """Make a directory and those above it that are missing, 0700 under any umask; OSError."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_mode & 0o777 != 0o700:
        path.chmod(0o700)  # a umask may take the owner's own rights


def create_private(path: Path) -> None:
    """Make an empty file that only its owner can read, unless there is one; OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def make_file_private(path: Path) -> None:
    """Let nobody but its owner use a file, which is made if there is none; OSError.

    What is no regular file of this user's, such as a terminal, stays as it is.
    """
    create_private(path)
    status = path.stat()
    is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    if is_own and status.st_mode & 0o777 != 0o600:
        path.chmod(0o600)


def open_regular(path: Path) -> IO[bytes]:
    """Return a file of a cache, open for reading; raises OSError also if it is of another kind.

    Never waits for the other end of a FIFO, and follows no link.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(fd, "rb", buffering=0)


def clear_way(path: Path, *, is_kind: Callable[[int], bool] = stat.S_ISREG) -> None:
    """Remove what is in the place of a file of a cache and is of another kind; raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if is_kind(mode):
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def subdirectories(path: Path) -> list[Path]:
    """Return the directories in a directory, in no order; none if it is not there. OSError."""
    try:
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def named(path: Path, pattern: str) -> list[Path]:
    """Return what has such a name in a directory, sorted; none if it is not there. OSError.

    `Path.glob` finds nothing, too, where it may not or cannot look.
    """
    try:
        return [path / name for name in sorted(fnmatch.filter(os.listdir(path), pattern))]
    except FileNotFoundError:
        return []


def is_full(error: OSError) -> bool:
    """Return whether a disk is full, or a user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def remove_if_possible(path: Path) -> bool:
    """Remove a file; return whether it is gone now."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def rename(old: str, new: str, flags: int) -> None:
    """Rename as renameat2(2) does; raises OSError."""
    if not flags:
        os.rename(old, new)
        return
    names = (_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new))
    call_libc("renameat2", *names, flags, path=old)


def call_libc(name: str, *arguments: int | bytes, path: str) -> None:
    """Call a function of the C library that Python lacks; raises OSError, which names `path`."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


class SharedFile:
    """A file that is closed when the last reference is gone, so never under a reader."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)

    def is_removed(self) -> bool:
        """Return True if it has no name any more, and takes up space only because it is open."""
        return os.fstat(self.fd).st_nlink == 0
