"""Two directories to which the same is done, and what can be seen of each."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
STARTED_NS = time.time_ns()


class Side(NamedTuple):
    """One of the two directories."""

    root: str
    fds: list[int]
    os: Any = os  # or what has its calls

    def has(self, relpath: str) -> bool:
        return not isinstance(
            outcome_of(lambda side: side.os.lstat(side.path(relpath)), self), Failed
        )

    def touch(self, relpath: str) -> None:
        self.os.close(self.os.open(self.path(relpath), os.O_WRONLY | os.O_CREAT, 0o666))

    def renameat2(self, old: str, new: str, flags: int) -> None:
        call = renameat2 if self.os is os else self.os.renameat2
        call(self.path(old), self.path(new), flags)

    def path(self, relpath: str) -> str:
        return f"{self.root}/{relpath}"

    def fd(self, number: int) -> int:
        return self.fds[number % len(self.fds)]


class Failed(NamedTuple):
    """That an operation failed, and how."""

    errno: str

    def __str__(self) -> str:
        return self.errno


def shown(status: os.stat_result) -> tuple[object, ...]:
    """Return of a file's attributes what must be the same on both sides."""
    is_directory = stat.S_ISDIR(status.st_mode)
    # A time that was set is kept to the nanosecond; others are of this run.
    mtime_ns = status.st_mtime_ns
    mtime = mtime_ns if mtime_ns < STARTED_NS - 10**9 else "of this run"
    return (
        stat.S_IFMT(status.st_mode),
        oct(stat.S_IMODE(status.st_mode)),
        None if is_directory else status.st_size,
        status.st_nlink,
        mtime,
    )


def outcome_of(act: Callable[[Side], object], side: Side) -> object:
    try:
        return act(side)
    except OSError as error:
        return Failed(errno.errorcode[error.errno or 0])


def tree_of(side: Side) -> dict[str, object]:
    """Return what can be seen of a tree: attributes, and contents where they may be read."""
    found: dict[str, object] = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        names = outcome_of(lambda _, at=side.root + directory: sorted(side.os.listdir(at)), side)  # type: ignore[misc]
        found[directory or "/"] = names
        for name in names if isinstance(names, list) else []:
            relpath = f"{directory}/{name}"
            status = outcome_of(lambda _, at=side.root + relpath: side.os.lstat(at), side)  # type: ignore[misc]
            if isinstance(status, Failed):
                found[f"{relpath} as"] = status
            else:
                found[f"{relpath} as"] = shown(status)  # type: ignore[arg-type]
                if stat.S_ISDIR(status.st_mode):  # type: ignore[attr-defined]
                    pending.append(relpath)
    return found


def contents_of(side: Side, directory: str = "") -> dict[str, bytes]:
    """Return the content of every file below `directory` by its relative path."""
    found: dict[str, bytes] = {}
    for name in side.os.listdir(side.path(directory)):
        relpath = f"{directory}/{name}".lstrip("/")
        status = side.os.lstat(side.path(relpath))
        if stat.S_ISDIR(status.st_mode):
            found |= contents_of(side, relpath)
        else:
            fd = side.os.open(side.path(relpath), os.O_RDONLY)
            found[relpath] = side.os.pread(fd, status.st_size, 0)
            side.os.close(fd)
    return found


def open_up(side: Side, path: str) -> None:
    """Let everything be read at a path and below it, whatever modes it has."""
    side.os.chmod(path, 0o700)
    if stat.S_ISDIR(side.os.lstat(path).st_mode):
        for name in side.os.listdir(path):
            open_up(side, f"{path}/{name}")


def renameat2(old: str, new: str, flags: int) -> None:
    """Rename with RENAME_NOREPLACE (1), RENAME_EXCHANGE (2), ...; raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
