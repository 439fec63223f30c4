"""The two forms of a block in this process: in memory, or in an open file.

Knows neither network nor cache. Blocks may be read from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from zlib_ng import zlib_ng

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_files import SharedFile

# A checksum chunk: the bytes that one checksum covers. 4 KiB out of a block not touched
# before: 9 us, 36 us with 64 KiB, 460 us with the whole block; all checksums of a block
# take the same time with each.
CHUNK_BYTES = 16 * 1024
CRC_BYTES = 4


def number_of_chunks(length: int) -> int:
    """Return how many checksums a block of that length has."""
    return -(-length // CHUNK_BYTES)


class DamagedBlock(Exception):
    """A cached block does not have its checksums: forget it and fetch it again."""


def checksums(data: bytes | bytearray | memoryview) -> bytes:
    """Return the CRC-32 of each checksum chunk of a block, 4 bytes each, big endian."""
    view = memoryview(data)
    return b"".join(
        [
            zlib_ng.crc32(view[start : start + CHUNK_BYTES]).to_bytes(CRC_BYTES, "big")
            for start in range(0, len(view), CHUNK_BYTES)
        ]
    )


def new_serial() -> int:
    """Return a number for bytes that just came, which no other arrival has.

    Checksums do not tell two arrivals of a block apart: a store that knows the right
    bytes finds others with the same CRC-32 at once.
    """
    return (int.from_bytes(os.urandom(8), "big") >> 1) | 1


class MemoryBlock:
    """A block held in memory: small, or not on the cache's disk."""

    __slots__ = ("_checksums", "_view", "row", "serial", "used")

    def __init__(
        self, data: bytes | bytearray | memoryview, row: int = 0, serial: int | None = None
    ) -> None:
        """`row` is the cache's number for it; 0 if the cache does not have it.

        `serial` is that of its arrival (0: not known); None if it came just now.
        """
        self._view = memoryview(data).toreadonly()
        self._checksums: bytes | None = None
        self.row = row
        self.serial = new_serial() if serial is None else serial
        self.used = False  # since it was last set to False

    @property
    def memory_in_bytes(self) -> int:
        return len(self._view)

    @property
    def data(self) -> memoryview:
        return self._view

    @property
    def checksums(self) -> bytes:
        return self._checksums or self.compute_checksums()

    def compute_checksums(self) -> bytes:
        """Return its checksums, which are kept for later."""
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


class FileBlock:
    """A block in an open file of the cache; the file may be unlinked.

    Each checksum chunk is compared the first time that it is read.
    """

    __slots__ = (
        *("__weakref__", "_checked", "_fd", "_file", "_length", "_start"),
        *("checksums", "row", "serial", "used"),
    )

    memory_in_bytes = 0

    def __init__(
        self,
        file: SharedFile,
        start: int,
        length: int,
        checksums: bytes,
        checked: bytearray,
        row: int = 0,
        serial: int = 0,
    ) -> None:
        """Of `length` bytes of the file from `start` on.

        `checked` has a byte for each checksum chunk, not 0 once it was compared; it may be shared.
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
        """Return True if the cache does not have it any more."""
        return self._file.is_removed()

    @property
    def is_checked(self) -> bool:
        """Whether all of it was compared with its checksums."""
        return self._checked.find(0) < 0

    def place(self) -> tuple[int, int, int]:
        """Return the open file that it is in, where it begins there, and its length."""
        return self._fd, self._start, self._length

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
        """Tell the kernel to begin to read it all from the disk; waits for nothing."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, self._start, self._length, os.POSIX_FADV_WILLNEED)

    def _span(self, offset: int, stop: int) -> tuple[int, int, bool]:
        """Return the range to read: whole checksum chunks if one was not compared yet."""
        first, last = offset // CHUNK_BYTES, (stop - 1) // CHUNK_BYTES
        if offset >= stop:
            return offset, offset, False
        if self._checked.find(0, first, last + 1) < 0:
            return offset, stop, False
        return first * CHUNK_BYTES, min((last + 1) * CHUNK_BYTES, self._length), True

    def _check(self, data: bytes | memoryview, start: int) -> None:
        first = start // CHUNK_BYTES
        found = checksums(data)
        if found != self.checksums[first * CRC_BYTES : first * CRC_BYTES + len(found)]:
            raise DamagedBlock("does not have its checksum")
        self._checked[first : first + len(found) // CRC_BYTES] = b"\1" * (len(found) // CRC_BYTES)


Block = MemoryBlock | FileBlock


def is_sound(block: Block) -> bool:
    """Return True if a block can be read and is what was stored; waits for the disk."""
    try:
        block.read(0, BLOCK_SIZE)
    except DamagedBlock:
        return False
    return True


def read_ahead(blocks: Sequence[Block]) -> None:
    """Tell the kernel to begin to read these blocks from the disk."""
    for block in blocks:
        block.read_ahead()
