"""A program that reads a file at random until its standard input ends, and compares every byte.

`python -m tests.support.random_reader FILE RELPATH SIZE`: the content is that of
`dtool_datasets.content_of`. Nothing comes from the page cache. Says how many reads it made; every
error ends it with a traceback.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.dtool_datasets import content_of
from tests.support.patience import LATE_S


class Reader:
    """A process that reads."""

    def __init__(self, path: Path, relpath: str, size: int) -> None:
        pipe, words = subprocess.PIPE, (str(path), relpath, str(size))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *words],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        self.reads = 0  # when it has ended

    def end(self) -> None:
        """Require that it saw no error."""
        said, wrong = self._process.communicate(timeout=LATE_S)
        assert self._process.returncode == 0, wrong
        assert not wrong
        self.reads = int(said)
        assert self.reads > 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def reading(path: Path, relpath: str, size: int) -> Iterator[Reader]:
    """Have a process read until the end of the block, and require that it saw no error."""
    reader = Reader(path, relpath, size)
    try:
        yield reader
        reader.end()
    finally:
        reader.kill()


def main(path: str, relpath: str, size: str) -> None:
    content, rng, reads = content_of(relpath, int(size)), random.Random(os.getpid()), 0
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    while not reads or not select.select([sys.stdin], [], [], 0)[0]:  # however late it began
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        offset, count = rng.randrange(len(content)), rng.choice([1, 100, 4096, 200_000])
        assert os.pread(fd, count, offset) == content[offset : offset + count]
        reads += 1
        if reads % 50 == 0:  # and by a new handle
            other = os.open(path, os.O_RDONLY)
            assert os.fstat(other).st_ino == os.fstat(fd).st_ino
            os.close(fd)
            fd = other
    print(reads)


if __name__ == "__main__":
    main(*sys.argv[1:])
