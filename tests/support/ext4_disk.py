"""A disk of ext4 in a file, of which a copy is what a power cut leaves; only root can mount one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024


@contextlib.contextmanager
def ext4_disk(path: Path, size_in_bytes: int = 32 * MIB) -> Iterator[Path]:
    """Mount a new disk at `path`; skips the test if that cannot be."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    image = _image_of(path)
    with image.open("wb") as file:
        file.truncate(size_in_bytes)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with _mounted(image, path):
        yield path


@contextlib.contextmanager
def after_power_cut(disk: Path, path: Path) -> Iterator[Path]:
    """Mount at `path` what `disk` would hold if the power was cut now: without its page cache."""
    shutil.copyfile(_image_of(disk), _image_of(path))
    with _mounted(_image_of(path), path):
        yield path


@contextlib.contextmanager
def _mounted(image: Path, path: Path) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
        image.unlink()


def _image_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.img")
