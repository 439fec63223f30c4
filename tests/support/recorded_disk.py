"""A disk whose power can be cut at any of its writes, as often as one likes, afterwards.

Everything that is written to it is recorded, with the flushes of its cache between. What a
power cut leaves at a position of the record is a disk with all that was written before
the last flush, and of what was written since nothing, everything, or some sectors. Only
root can mount one, where there are loop devices and FUSE.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import recording_device
from tests.support.child_processes import spawn
from tests.support.ext4_disk import MIB
from tests.support.recording_device import FLUSH, HEAD

SECTOR = 4096  # smaller than what a disk writes at once, and as large as a page
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q"),
}
SIZE = {"ext4": 64 * MIB, "xfs": 320 * MIB}  # the least that mkfs.xfs makes is 300 MiB
# How much of what was not flushed is kept.
KEPT = (0.0, 0.0, 0.1, 0.5, 0.9, 1.0)


class _Write(NamedTuple):
    at: int  # its end in the record
    offset: int
    begin: int  # of its bytes in the record
    size: int


class RecordedDisk:
    """A mounted disk, and its record."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self._blank = path.with_name(f"{path.name}.blank")
        self.record = path.with_name(f"{path.name}.record")

    def position(self) -> int:
        """Return where the record ends now: all that was synced before is before it."""
        return self.record.stat().st_size

    @contextlib.contextmanager
    def after_power_cut(self, position: int, kept: float, dice: random.Random) -> Iterator[Path]:
        """Mount what a cut leaves there; `kept` of the sectors written since the last flush.

        The file system replays its journal, and must find itself in order.
        """
        image = self.path.with_name(f"{self.path.name}.after")
        self._write_image(image, position, kept, dice)
        path = self.path.with_name(f"{self.path.name}-after")
        try:
            with _mounted(image, path, self.kind):
                yield path
        finally:
            image.unlink()

    def _write_image(self, image: Path, position: int, kept: float, dice: random.Random) -> None:
        subprocess.run(["cp", "--sparse=always", self._blank, image], check=True)
        flushed, since = self._writes(position)
        log = os.open(self.record, os.O_RDONLY)
        target = os.open(image, os.O_WRONLY)
        try:
            for write in flushed:
                os.pwrite(target, os.pread(log, write.size, write.begin), write.offset)
            for write in since:
                for start in range(0, write.size, SECTOR):
                    if dice.random() < kept:
                        size = min(SECTOR, write.size - start)
                        sector = os.pread(log, size, write.begin + start)
                        os.pwrite(target, sector, write.offset + start)
        finally:
            os.close(log)
            os.close(target)

    def _writes(self, position: int) -> tuple[list[_Write], list[_Write]]:
        """Return the writes before the last flush, and those since, up to a position."""
        flushed: list[_Write] = []
        since: list[_Write] = []
        with self.record.open("rb") as log:
            at = 0
            while at + HEAD.size <= position:
                log.seek(at)
                kind, offset, size = HEAD.unpack(log.read(HEAD.size))
                if at + HEAD.size + size > position:
                    break
                if kind == FLUSH:
                    flushed += since
                    since = []
                else:
                    since.append(_Write(at + HEAD.size + size, offset, at + HEAD.size, size))
                at += HEAD.size + size
        return flushed, since


@contextlib.contextmanager
def recorded_disk(
    path: Path, kind: str = "ext4", size_in_bytes: int | None = None
) -> Iterator[RecordedDisk]:
    """Mount a new disk at `path`, and record what is written to it; skips where that cannot be."""
    make = MAKE[kind]
    if os.geteuid() != 0 or shutil.which(make[0]) is None:
        pytest.skip(f"needs root and {make[0]}")
    disk = RecordedDisk(path, kind)
    image, served = path.with_name(f"{path.name}.img"), path.with_name(f"{path.name}.served")
    with image.open("wb") as file:
        file.truncate(size_in_bytes or SIZE[kind])
    subprocess.run([*make, image], check=True)
    subprocess.run(["cp", "--sparse=always", image, disk._blank], check=True)
    disk.record.touch()
    served.mkdir(exist_ok=True)
    command = [sys.executable, "-m", recording_device.__name__, str(image), str(served)]
    with spawn([*command, str(disk.record)], stdout=subprocess.PIPE) as device:
        assert device.stdout is not None
        try:
            assert device.stdout.readline() == b"serves\n"
            with _mounted(served / "image", path, kind):
                yield disk
        finally:
            subprocess.run(["umount", "--lazy", served], capture_output=True, check=False)
    for file_of_it in (image, disk._blank, disk.record):
        file_of_it.unlink(missing_ok=True)


@contextlib.contextmanager
def _mounted(image: Path, path: Path, kind: str) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    options = "loop,nouuid" if kind == "xfs" else "loop"
    command = ["mount", "-t", kind, "-o", options]
    done = subprocess.run([*command, image, path], capture_output=True, text=True)
    if done.returncode:
        if path.name.endswith("-after"):
            raise AssertionError(f"the file system is damaged: {done.stderr}")
        pytest.skip(f"no loop device: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], capture_output=True, check=False)
