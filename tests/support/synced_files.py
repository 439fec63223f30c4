"""The ways in which programs have a file on the disk before they go on."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from tests.support.promises import NEW


def _with_flags(flags: int) -> Callable[[Path, bytes], None]:
    def write(path: Path, data: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o644)
        try:
            for start in range(0, len(data), 1 << 16):
                os.write(fd, data[start : start + (1 << 16)])
            if not data:
                os.fsync(fd)  # nothing was written that the flag could have synced
        finally:
            os.close(fd)

    return write


def _with(sync: Callable[[int], None]) -> Callable[[Path, bytes], None]:
    def write(path: Path, data: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(data)
            sync(file.fileno())

    return write


def _opened_again(path: Path, data: bytes) -> None:
    """As a program does that syncs what others wrote: `sync FILE`."""
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _renamed(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}{NEW}")
    _with(os.fsync)(new, data)
    os.replace(new, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _mapped(path: Path, data: bytes) -> None:
    with path.open("w+b") as file:
        file.truncate(len(data))
        if data:
            with mmap.mmap(file.fileno(), len(data)) as pages:
                pages[:] = data
                pages.flush()
        os.fsync(file.fileno())


def _appended(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.truncate(0)
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            file.write(part)
            os.fdatasync(file.fileno())


WAYS: dict[str, Callable[[Path, bytes], None]] = {
    "fsync": _with(os.fsync),
    "fdatasync": _with(os.fdatasync),
    "O_SYNC": _with_flags(os.O_SYNC),
    "O_DSYNC": _with_flags(os.O_DSYNC),
    "sync of one that is closed": _opened_again,
    "rename and fsync of the directory": _renamed,
    "msync": _mapped,
    "fdatasync of each half": _appended,
}
