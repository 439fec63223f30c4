"""Timing a piece of work, and reading that keeps every byte to be checked afterwards.

Bytes are read into memory that is there already, and hashed when the clock has
stopped: exactly the bytes that were timed are checked, and MD5 (0.6 s for 512
MiB) is not measured. The same for all peers.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import random
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmark.mounts import Mount, Processes
from dserverfs.base.model import Item

T = TypeVar("T")

LIMIT_S = 300.0
READ_BYTES = 128 * 1024  # what cat asks for at a time
SMALL_READ_BYTES = 4096


class WrongAnswer(Exception):
    """A peer gave other bytes, names or sizes than the manifest's."""


class Requests(NamedTuple):
    """How many were sent."""

    to_server: int
    to_store: int


@dataclass(frozen=True)
class Measurement:
    row: str
    seconds: float
    cpu_seconds: float | None = None  # of the daemon
    peak_bytes: int | None = None  # of the daemon, while this was measured
    requests: Requests | None = None


def measure(row: str, processes: Processes, work: Callable[[], T]) -> tuple[Measurement, T]:
    """Do `work`; it fails after LIMIT_S, for the daemon is killed then."""
    processes.reset_peak()
    cpu_before_s = processes.cpu_seconds()
    with processes.killed_after(LIMIT_S):
        start_s = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start_s
    if not processes.pids():
        return Measurement(row, seconds), result
    cpu_s = processes.cpu_seconds() - cpu_before_s
    return Measurement(row, seconds, cpu_s, processes.peak_bytes()), result


class Reading(NamedTuple):
    content: memoryview
    first_byte_s: float


class Buffer:
    """Memory for one large item, made once so that no reading pays for page faults."""

    def __init__(self, size: int) -> None:
        # One reading more than the item, to see a file that does not end there.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self._memory = memoryview(mmap.mmap(-1, size + READ_BYTES, flags=flags))

    def read(self, path: Path) -> Reading:
        """Read a file from its begin to its end."""
        start_s = time.perf_counter()
        first_byte_s = 0.0
        offset = 0
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(self._memory[offset : offset + READ_BYTES]):
                first_byte_s = first_byte_s or time.perf_counter() - start_s
                offset += count
        return Reading(self._memory[:offset], first_byte_s)


def check_content(item: Item, content: memoryview | bytes) -> None:
    """Raise WrongAnswer unless this is the item."""
    if len(content) != item.size_in_bytes or hashlib.md5(content).hexdigest() != item.hash:
        raise WrongAnswer(f"{item.relpath}: {len(content)} bytes that are not the item's")


def random_offsets(size: int, count: int, seed: str) -> list[int]:
    source = random.Random(seed)
    return [
        source.randrange(max(1, size // SMALL_READ_BYTES)) * SMALL_READ_BYTES for _ in range(count)
    ]


def read_at(path: Path, offsets: list[int], readers: int) -> list[tuple[int, bytes]]:
    """Read 4 KiB at each offset with that many threads, each with a file of its own."""
    found: list[tuple[int, bytes]] = []
    failures: list[OSError] = []

    def read(mine: list[int]) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                found.extend((at, os.pread(descriptor, SMALL_READ_BYTES, at)) for at in mine)
            finally:
                os.close(descriptor)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(offsets[i::readers],)) for i in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


def check_pieces(original: Path, pieces: list[tuple[int, bytes]], count: int) -> None:
    """Raise WrongAnswer unless these are `count` pieces of the local file."""
    with original.open("rb") as file:
        for offset, piece in pieces:
            if os.pread(file.fileno(), SMALL_READ_BYTES, offset) != piece:
                raise WrongAnswer(f"{original.name}: wrong bytes at {offset}")
    if len(pieces) != count:
        raise WrongAnswer(f"{original.name}: {len(pieces)} readings instead of {count}")


def output_of(*command: str | Path) -> bytes:
    """Run a program and return what it writes, read from a pipe."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True
    )
    return done.stdout


def check_names(mount: Mount, items: Collection[Item], names: Collection[str]) -> None:
    if Counter(names) != Counter(mount.name_of(item) for item in items):
        raise WrongAnswer(f"{len(names)} names that are not those of the {len(items)} items")


def check_listing(mount: Mount, items: Collection[Item], listing: bytes) -> None:
    """Raise WrongAnswer unless `ls -lR` showed each item with its size."""
    lines = [line.split() for line in listing.decode().splitlines()]
    shown = Counter((line[8], int(line[4])) for line in lines if len(line) == 9)
    if shown != Counter((mount.name_of(item), item.size_in_bytes) for item in items):
        raise WrongAnswer(f"ls -lR shows {len(shown)} files that are not the {len(items)} items")


def check_archive(mount: Mount, items: Collection[Item], archive: bytes) -> None:
    """Raise WrongAnswer unless this is a tar file of all items."""
    left = {mount.name_of(item): item for item in items}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                name = os.path.basename(member.name)
                if name not in left:
                    raise WrongAnswer(f"{name} is archived and is no item, or twice")
                check_content(left.pop(name), content.read())
    if left:
        raise WrongAnswer(f"{len(left)} items are not in the archive")
