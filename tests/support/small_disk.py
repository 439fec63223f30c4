"""A small file system for tests of full disks; only root can mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024


@contextlib.contextmanager
def small_disk(path: Path, size_in_bytes: int) -> Iterator[Path]:
    """Have a file system of that size at `path`; skips the test if that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small file system")
    path.mkdir(exist_ok=True)
    options = f"size={size_in_bytes},mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def fill(path: Path) -> None:
    """Leave nothing free, by a file at `path`."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
