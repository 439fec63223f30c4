"""Ways in which the directory of a cache stops taking anything, each undone afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.patience import LATE_S
from tests.support.small_disk import MIB, fill, small_disk

# The errors of a disk, or of a directory on one, that calls of the system say.
DISK_ERRNOS = (
    errno.ENOENT,
    errno.EACCES,
    errno.EIO,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ESTALE,
    errno.EROFS,
)
# Given a directory whose parent is a file system of its own.
Way = Callable[[Path], AbstractContextManager[None]]


@contextlib.contextmanager
def own_disk(path: Path) -> Iterator[Path]:
    """Have a small file system at `path`, and yield a directory in it that does not exist."""
    with small_disk(path, 24 * MIB) as disk:
        yield disk / "cache"


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    filler = directory.parent / "filler"
    fill(filler)
    yield
    filler.unlink()


@contextlib.contextmanager
def no_inodes(directory: Path) -> Iterator[None]:
    status = os.statvfs(directory.parent)
    used = status.f_files - status.f_ffree
    _remount(directory.parent, f"nr_inodes={used}")
    yield
    _remount(directory.parent, "nr_inodes=100000")


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    # An open file for writing, as of a database, does not let it be made so for this mount
    # alone; and one opened below a second mount, before that is read-only, neither.
    view = directory.parent.with_name("read-only-view")
    view.mkdir()
    try:
        _mount("--bind", directory.parent, view)
        _remount(view, "bind,ro")
        _mount("--bind", view, directory.parent)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", directory.parent], check=True, timeout=LATE_S)
    finally:
        subprocess.run(["umount", "--lazy", view], check=False, timeout=LATE_S)
        view.rmdir()


@contextlib.contextmanager
def gone(directory: Path) -> Iterator[None]:
    shutil.rmtree(directory, ignore_errors=True)
    yield


@contextlib.contextmanager
def a_file(directory: Path) -> Iterator[None]:
    shutil.rmtree(directory, ignore_errors=True)
    directory.write_bytes(b"")
    yield
    directory.unlink()


@contextlib.contextmanager
def overwritten(directory: Path) -> Iterator[None]:
    """Every file holds something else, and is shorter.

    But for what SQLite's processes share as memory: whoever cuts that ends them all by SIGBUS.
    """
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        if not path.name.endswith("-shm"):
            path.write_bytes(b"of something else")
    yield


WAYS: dict[str, Way] = {
    way.__name__: way for way in (full, no_inodes, read_only, gone, a_file, overwritten)
}


def _remount(path: Path, options: str) -> None:
    _mount("-o", f"remount,{options}", path)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=LATE_S)
