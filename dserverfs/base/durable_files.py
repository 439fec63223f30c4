"""Small files that appear whole or not at all: the one order in which such a file is replaced.

Used wherever a file of ours is written anew. No state. The new file is written beside
its place, as `<name>.<process>-<thread>.new`, and renamed:

    write_durably, replacing              content synced, renamed, directory synced: for the
                                          only record of something
    write_unsynced, replacing_unsynced    renamed: for what can be fetched or made again

A process that is killed leaves the old file, and perhaps the one beside it, which
`remove_left_beside` deletes. So does a power cut; an unsynced file may also be empty
after one, or cut short, so that its reader has to notice.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dserverfs.base.local_files import call_libc, remove_if_possible

PRIVATE_MODE = 0o600


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file, or make it; it is on the disk when this returns. Raises OSError."""
    with replacing(path) as file:
        file.write(content)


def write_unsynced(path: Path, content: bytes) -> None:
    """Replace a file, or make it, without waiting for the disk. Raises OSError."""
    with replacing_unsynced(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file that takes the place of `path`, and is on the disk, when the block has ended.

    If the block raises, `path` is as it was.
    """
    with replacing_unsynced(path) as file:
        yield file
        sync_open(file)
    sync_directory(path.parent)


@contextlib.contextmanager
def replacing_unsynced(path: Path, *, mode: int = PRIVATE_MODE) -> Iterator[IO[bytes]]:
    """As `replacing`, without waiting for the disk; the block may sync the file by itself."""
    with written_beside(path, mode=mode) as (file, scratch):
        yield file
        file.flush()
        os.replace(scratch, path)


@contextlib.contextmanager
def written_beside(path: Path, *, mode: int = PRIVATE_MODE) -> Iterator[tuple[IO[bytes], Path]]:
    """Give an empty file beside `path`, for a caller that renames it itself.

    It is deleted with the end of the block if it still has its name then.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    scratch.unlink(missing_ok=True)  # of a process that was killed and had our numbers
    fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file, scratch
    finally:
        remove_if_possible(scratch)


def left_beside(path: Path, process: int | str = "*") -> list[Path]:
    """Return what was written beside a file and not renamed, by any process if none is named.

    The file's name may be a pattern. What SQLite has beside a database is among it.
    """
    return sorted(path.parent.glob(f"{path.name}.{process}-*.new*"))


def remove_left_beside(path: Path, *, older_than_s: float) -> None:
    """Delete what killed processes wrote beside a file; its name may be a pattern.

    What is younger may belong to a process that still writes it. A disk that fails keeps it.
    """
    for left in left_beside(path):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - older_than_s:
                left.unlink()


def sync_open(file: IO[bytes]) -> None:
    """Return when all that was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Return when the content of a file is on the disk."""
    with _opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    with _opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def sync_file_system(path: Path) -> None:
    """Return when everything written to the file system of a directory is on its disk."""
    with _opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        call_libc("syncfs", fd, path=str(path))


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
