"""The two forms of a block in this process: in memory, or in an open file.

Knows neither network nor cache. Blocks may be read from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from dserverfs.base.checksums import checksums, compare, to_read
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_files import SharedFile

_WRONG = "does not have its checksum"


class DamagedBlock(Exception):
    """A cached block does not have its checksums: forget it and fetch it again."""


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

    @property
    def file(self) -> SharedFile:
        """The file that it is in, with other blocks."""
        return self._file

    def distrust(self) -> None:
        """Compare all of it with its checksums anew."""
        self._checked[:] = bytes(len(self._checked))

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
        start, end, unchecked = to_read(self._checked, offset, stop, self._length)
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
        if not compare(self._checked, self.checksums, data, start):
            raise DamagedBlock(_WRONG)
        return data[offset - start : stop - start]

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes; waits for the disk. Raises DamagedBlock if they are not there."""
        stop = min(offset + size, self._length)
        start, end, unchecked = to_read(self._checked, offset, stop, self._length)
        try:
            data = os.pread(self._fd, end - start, self._start + start)
        except OSError as error:
            raise DamagedBlock(f"cannot be read: {error}") from error
        if len(data) != end - start:
            raise DamagedBlock("became shorter while it was open")
        if not unchecked:
            return data
        if not compare(self._checked, self.checksums, data, start):
            raise DamagedBlock(_WRONG)
        return memoryview(data)[offset - start : stop - start]

    def read_ahead(self) -> None:
        """Tell the kernel to begin to read it all from the disk; waits for nothing."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, self._start, self._length, os.POSIX_FADV_WILLNEED)


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
