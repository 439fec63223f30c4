"""Blocks: the unit in which item bytes are fetched, cached, checked and waited for.

Arithmetic and read-ahead policy, and the two forms a block takes in this
process. Knows neither network nor cache. The policy is pure; blocks may be read
from any thread.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

# 1 MiB: waiters need not be woken within a block, and a random reader fetches no
# more than that; larger ranges are fetched as runs of blocks.
BLOCK_SIZE = 1024 * 1024
# A sequential reader's window of blocks asked for ahead of it; 32 MiB in flight
# fill 1 Gbit/s at 100 ms (12 MiB) with room to spare, and two such readers'
# windows stay in the reader's memory until they are read.
MAX_WINDOW = 32
FIRST_WINDOW = 2
# The full window after two steps: at 100 ms each step costs a round trip.
WINDOW_GROWTH = 4
# Blocks fetched by one request. 16 MiB ranges: 1 GiB in 1.2 s; 8 MiB: 1.4 s.
MAX_RUN = 16


class Run(NamedTuple):
    """Blocks [first, first+length) of an item."""

    first: int
    length: int


def number_of_blocks(size_in_bytes: int) -> int:
    return -(-size_in_bytes // BLOCK_SIZE)


def block_length(size_in_bytes: int, index: int) -> int:
    """Return how many bytes block `index` of an item of that size has."""
    return min(BLOCK_SIZE, size_in_bytes - index * BLOCK_SIZE)


class ReadAhead:
    """One reader's guess at what it will read next, in blocks.

    The window grows while reads go on in order and starts anew when the reader
    seeks. Reads of a sequential reader may arrive a little out of order: the
    kernel has several requests under way.
    """

    def __init__(self) -> None:
        self._next = 0  # the block after the last one read in order
        self._window = 0
        self._asked = 0  # blocks before this one were asked for already

    def plan(self, first: int, last: int, total: int) -> Run:
        """Return the run to fetch ahead when blocks first..last of `total` are read.

        It may be empty.
        """
        if not self._next - 2 <= first <= self._next + 1:
            self._window = 0
            self._asked = 0
            self._next = last + 1
            return Run(last + 1, 0)
        if last + 1 > self._next or self._window == 0:
            self._window = min(MAX_WINDOW, max(FIRST_WINDOW, self._window * WINDOW_GROWTH))
        self._next = max(self._next, last + 1)
        start = max(self._asked, last + 1)
        end = min(total, self._next + self._window)
        # Wait until half a window is due, so that requests are few and large.
        if end - start < max(1, self._window // 2) and end < total:
            return Run(start, 0)
        self._asked = max(start, end)
        return Run(start, max(0, end - start))


class MemoryBlock:
    """A block held in memory: small, or not to be had from the cache's disk."""

    __slots__ = ("_view",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).toreadonly()

    @property
    def memory_in_bytes(self) -> int:
        return len(self._view)

    def read_nowait(self, offset: int, size: int) -> memoryview | None:
        """Return the bytes; a view that stays good as long as it is held."""
        return self._view[offset : offset + size]

    def read(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]


class FileBlock:
    """A block in an open file of the cache; the file may be unlinked meanwhile.

    Closed when the last reference is gone, so that it cannot be closed under a
    reader.
    """

    __slots__ = ("_fd", "_length")

    memory_in_bytes = 0

    def __init__(self, fd: int, length: int) -> None:
        self._fd = fd
        self._length = length

    def read_nowait(self, offset: int, size: int) -> bytes | bytearray | None:
        """Return the bytes if they are in the page cache, else None."""
        wanted = max(0, min(size, self._length - offset))
        buffer = bytearray(wanted)
        try:
            count = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            # EOPNOTSUPP: tmpfs and overlayfs cannot tell; let a thread read.
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        return buffer if count == wanted else None

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes; waits for the disk. Raises OSError if they are not there."""
        wanted = max(0, min(size, self._length - offset))
        data = os.pread(self._fd, wanted, offset)
        if len(data) != wanted:
            raise OSError(errno.EIO, "a cache file became shorter while it was open")
        return data

    def __del__(self) -> None:
        os.close(self._fd)


Block = MemoryBlock | FileBlock
