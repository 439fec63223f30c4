"""Blocks: the unit in which item bytes are fetched, cached, checked and waited for.

Arithmetic and read-ahead policy, and the two forms a block takes in this
process. Knows neither network nor cache. The policy is pure; blocks may be read
from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from zlib_ng import zlib_ng

# 1 MiB: waiters need not be woken within a block, and a random reader fetches no
# more than that; larger ranges are fetched as runs of blocks.
BLOCK_SIZE = 1024 * 1024
# What a checksum covers. 4 KiB out of a block not touched before: 9 us, 36 us with 64 KiB,
# 460 us with the whole; checksums of a whole block take the same time with each.
PART_SIZE = 16 * 1024
CRC_BYTES = 4
# A sequential reader's window of blocks asked for ahead of it; 32 MiB in flight
# fill 1 Gbit/s at 100 ms (12 MiB) with room to spare, and two such readers'
# windows stay in the reader's memory until they are read.
MAX_WINDOW = 32
# Bytes asked for ahead for each that was read in order, before rounding down to a power of
# two of blocks: so `head` and `file` have little fetched for nothing, and the full
# window is there after 11 MiB. With 2 it takes 16 MiB, with 4 `head -c 1M` has 5 fetched.
AHEAD_FACTOR = 3
# Blocks fetched by one request. 16 MiB ranges: 1 GiB in 1.2 s; 8 MiB: 1.4 s.
MAX_RUN = 16


class Run(NamedTuple):
    """Blocks [first, first+length) of an item."""

    first: int
    length: int


def number_of_blocks(size_in_bytes: int) -> int:
    return -(-size_in_bytes // BLOCK_SIZE)


def number_of_parts(length: int) -> int:
    """Return how many checksums a block of that length has."""
    return -(-length // PART_SIZE)


def block_length(size_in_bytes: int, index: int) -> int:
    """Return how many bytes block `index` of an item of that size has."""
    return min(BLOCK_SIZE, size_in_bytes - index * BLOCK_SIZE)


def leading_run(indices: Sequence[int]) -> Run:
    """Return the run that ascending block indices begin with."""
    length = 1
    while length < len(indices) and indices[length] == indices[0] + length:
        length += 1
    return Run(indices[0], length)


class ReadAhead:
    """One reader's guess at what it will read next, in blocks.

    The window grows in proportion to what was read in order and starts anew when the
    reader seeks. Reads of a sequential reader may arrive a little out of order: the
    kernel has several requests under way.
    """

    def __init__(self) -> None:
        self._start = 0  # bytes [start, end) were read in order
        self._end = 0
        self._next = 0  # the block after the last one read in order
        self._asked = 0  # blocks before this one were asked for already

    def plan(self, offset: int, size: int, total: int) -> Run:
        """Return the run to fetch ahead when that is read, of an item of `total` blocks.

        It may be empty.
        """
        first, last = offset // BLOCK_SIZE, (offset + size - 1) // BLOCK_SIZE
        if not self._next - 2 <= first <= self._next + 1:
            self._asked = 0
            self._start, self._end = offset, offset + size
            self._next = last + 1
            return Run(last + 1, 0)
        if offset + size > self._end:
            self._end = offset + size
        if last >= self._next:
            self._next = last + 1
        # A power of two: a few large requests, not one for each block.
        blocks = AHEAD_FACTOR * (self._end - self._start) // BLOCK_SIZE
        window = min(MAX_WINDOW, 1 << blocks.bit_length() >> 1)
        start = max(self._asked, last + 1)
        end = min(total, self._next + window)
        # Wait until half a window is due, so that requests are few and large.
        if end - start < max(1, window // 2) and (end < total or not window):
            return Run(start, 0)
        self._asked = max(start, end)
        return Run(start, max(0, end - start))


class DamagedBlock(Exception):
    """A cached block is not what was stored: forget it and fetch it again."""


def checksums(data: bytes | bytearray | memoryview) -> bytes:
    """Return the CRC-32 of each part of a block, 4 bytes each, big endian."""
    view = memoryview(data)
    return b"".join(
        [
            zlib_ng.crc32(view[start : start + PART_SIZE]).to_bytes(CRC_BYTES, "big")
            for start in range(0, len(view), PART_SIZE)
        ]
    )


def new_serial() -> int:
    """Return a number for bytes that just came, which no others have, whoever sends them.

    Which of two arrivals a block is cannot be told by its checksums: a store that knows
    the right bytes finds others with the same CRC-32 at once.
    """
    return (int.from_bytes(os.urandom(8), "big") >> 1) | 1


class MemoryBlock:
    """A block held in memory: small, or not to be had from the cache's disk."""

    __slots__ = ("_checksums", "_view", "row", "serial", "used")

    def __init__(
        self, data: bytes | bytearray | memoryview, row: int = 0, serial: int | None = None
    ) -> None:
        """`row` is the cache's number for it; 0 if the cache does not have it.

        `serial` says which arrival it is (0: not known), None that it came just now.
        """
        self._view = memoryview(data).toreadonly()
        self._checksums: bytes | None = None
        self.row = row
        self.serial = new_serial() if serial is None else serial
        self.used = False  # since somebody set it to False

    @property
    def memory_in_bytes(self) -> int:
        return len(self._view)

    @property
    def data(self) -> memoryview:
        return self._view

    @property
    def checksums(self) -> bytes:
        if self._checksums is None:
            self._checksums = checksums(self._view)
        return self._checksums

    def read_nowait(
        self, offset: int, size: int, buffer: memoryview | None = None
    ) -> memoryview | None:
        """Return the bytes; a view that stays good as long as it is held."""
        return self._view[offset : offset + size]

    def read(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]

    def read_ahead(self) -> None:
        """Do nothing: it is in memory."""


class OpenFile:
    """A file that is closed when the last reference is gone, so never under a reader."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)

    def is_removed(self) -> bool:
        """Return whether it has no name any more, and takes up space only because it is open."""
        return os.fstat(self.fd).st_nlink == 0


class FileBlock:
    """A block in an open file of the cache; the file may be unlinked meanwhile.

    Each part is compared with its checksum the first time that it is read.
    """

    __slots__ = (
        *("_checked", "_fd", "_file", "_length", "_start"),
        *("checksums", "row", "serial", "used"),
    )

    memory_in_bytes = 0

    def __init__(
        self,
        file: OpenFile,
        start: int,
        length: int,
        checksums: bytes,
        checked: bytearray,
        row: int = 0,
        serial: int = 0,
    ) -> None:
        """Of `length` bytes of the file from `start` on.

        `checked` has a byte for each part, not 0 once it was compared; it may be shared.
        `row` and `serial` as of a MemoryBlock.
        """
        self._file = file
        self._fd = file.fd
        self._start = start
        self._length = length
        self._checked = checked
        self.checksums = checksums
        self.row = row
        self.serial = serial
        self.used = False

    def is_removed(self) -> bool:
        """Return whether the cache does not have it any more."""
        return self._file.is_removed()

    def read_nowait(
        self, offset: int, size: int, buffer: memoryview | None = None
    ) -> memoryview | None:
        """Return the bytes if they are in the page cache, else None. Raises DamagedBlock.

        A part of `buffer` (which holds BLOCK_SIZE bytes), if one is given: memory that was
        written to before costs less than new.
        """
        stop = min(offset + size, self._length)
        start, end, unchecked = self._span(offset, stop)
        data = memoryview(bytearray(end - start)) if buffer is None else buffer[: end - start]
        try:
            count = os.preadv(self._fd, [data], self._start + start, os.RWF_NOWAIT)
        except OSError as error:
            # EOPNOTSUPP: tmpfs and overlayfs cannot tell; let a thread read.
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise DamagedBlock(f"cannot be read: {error}") from error
        if count != end - start:  # the rest is on the disk, or the file became shorter
            return None
        if not unchecked:
            return data
        self._check(data, start)
        return data[offset - start : stop - start]

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes; waits for the disk. Raises DamagedBlock if they are not there."""
        stop = min(offset + size, self._length)
        start, end, unchecked = self._span(offset, stop)
        try:
            data = os.pread(self._fd, end - start, self._start + start)
        except OSError as error:
            raise DamagedBlock(f"cannot be read: {error}") from error
        if len(data) != end - start:
            raise DamagedBlock("became shorter while it was open")
        if not unchecked:
            return data
        self._check(data, start)
        return memoryview(data)[offset - start : stop - start]

    def read_ahead(self) -> None:
        """Have the kernel begin to read it all from the disk; waits for nothing."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, self._start, self._length, os.POSIX_FADV_WILLNEED)

    def _span(self, offset: int, stop: int) -> tuple[int, int, bool]:
        """Return where to read from and to: whole parts if one was not compared yet."""
        first, last = offset // PART_SIZE, (stop - 1) // PART_SIZE
        if offset >= stop:
            return offset, offset, False
        if self._checked.find(0, first, last + 1) < 0:
            return offset, stop, False
        return first * PART_SIZE, min((last + 1) * PART_SIZE, self._length), True

    def _check(self, data: bytes | memoryview, start: int) -> None:
        first = start // PART_SIZE
        found = checksums(data)
        if found != self.checksums[first * CRC_BYTES : first * CRC_BYTES + len(found)]:
            raise DamagedBlock("does not have its checksum")
        self._checked[first : first + len(found) // CRC_BYTES] = b"\1" * (len(found) // CRC_BYTES)


Block = MemoryBlock | FileBlock


def is_sound(block: Block) -> bool:
    """Return whether a block can be read and is what was stored; waits for the disk."""
    try:
        block.read(0, BLOCK_SIZE)
    except DamagedBlock:
        return False
    return True


def read_ahead(blocks: Sequence[Block]) -> None:
    """Have the kernel begin to read these blocks from the disk."""
    for block in blocks:
        block.read_ahead()
