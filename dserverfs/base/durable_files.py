"""Small files that appear whole or not at all, also after a power cut. No state.

Used wherever the only record of something is a file of ours. The one order in which
such a file is replaced: written beside its place, synced, renamed, its directory
synced. A crash in between leaves the file as it was, and perhaps what was written
beside it, which is named `<name>.<process>-<thread>.new`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PRIVATE_MODE = 0o600


def write_durably(path: Path, content: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Replace a file, or make it; it is on the disk when this returns. Raises OSError."""
    with replacing(path, mode=mode) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = PRIVATE_MODE) -> Iterator[IO[bytes]]:
    """Give a file that takes the place of `path`, and is on the disk, when the block has ended.

    If the block raises, `path` is as it was.
    """
    with written_beside(path, mode=mode) as (file, scratch):
        yield file
        sync_open(file)
        os.replace(scratch, path)
    sync_directory(path.parent)


@contextlib.contextmanager
def written_beside(path: Path, *, mode: int = PRIVATE_MODE) -> Iterator[tuple[IO[bytes], Path]]:
    """Give an empty file beside `path`, for who renames it in a moment of his own.

    It is deleted with the end of the block if it still has its name then.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    scratch.unlink(missing_ok=True)  # of a process that was killed and had our numbers
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file, scratch
    finally:
        scratch.unlink(missing_ok=True)


def left_beside(path: Path) -> list[Path]:
    """Return what processes that were killed wrote beside a file; its name may be a pattern.

    Only while no process writes it.
    """
    return sorted(path.parent.glob(f"{path.name}.*-*.new"))


def sync_open(file: IO[bytes]) -> None:
    """Return when all that was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Return when the content of a file is on the disk."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
