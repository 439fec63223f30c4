"""Two directories to which the same is done, and what can be seen of each."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
STARTED_NS = time.time_ns()


class Side(NamedTuple):
    """One of the two directories."""

    root: str
    fds: list[int]

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


def tree_of(root: str) -> dict[str, object]:
    """Return what can be seen of a tree: attributes, and contents where they may be read."""
    found: dict[str, object] = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        names = outcome_of(lambda _, at=root + directory: sorted(os.listdir(at)), Side(root, []))  # type: ignore[misc]
        found[directory or "/"] = names
        for name in names if isinstance(names, list) else []:
            relpath = f"{directory}/{name}"
            status = outcome_of(lambda _, at=root + relpath: os.lstat(at), Side(root, []))  # type: ignore[misc]
            if isinstance(status, os.stat_result):
                found[f"{relpath} as"] = shown(status)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(relpath)
            else:
                found[f"{relpath} as"] = status
    return found


def contents_of(root: str) -> dict[str, bytes]:
    """Return the content of every file below `root` by its relative path."""
    return {
        os.path.relpath(os.path.join(directory, name), root): Path(directory, name).read_bytes()
        for directory, _, files in os.walk(root)
        for name in files
    }


def renameat2(old: str, new: str, flags: int) -> None:
    """Rename with RENAME_NOREPLACE (1), RENAME_EXCHANGE (2), ...; raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
