"""Blocks as the rows of the cache's database have them: in the row, or in an open file.

Used by the cache. Remembers which checksum chunks of a file were compared, for all who
open it again. Thread-safe; blocks on the disk.
"""

from __future__ import annotations

import errno
import os

from dserverfs.base.checksums import CRC_BYTES, checksums, number_of_chunks
from dserverfs.reading.cache.block_files import StoredFile
from dserverfs.reading.cache.block_table import BlockTable, Row
from dserverfs.reading.cache.blocks import Block, FileBlock, MemoryBlock

MAX_CHECKED = 200_000  # blocks whose compared checksum chunks are remembered; 150 bytes each


class RowBlocks:
    """Makes blocks of rows."""

    def __init__(self) -> None:
        self._checked: dict[str, bytearray] = {}  # by file: its compared checksum chunks

    def of_row(self, table: BlockTable, row: Row, length: int) -> Block | None:
        """Return the block of a row, None if it cannot be that; raises FileNotFoundError."""
        sums = row.checksums
        if sums is None or len(sums) != number_of_chunks(length) * CRC_BYTES:
            return None
        try:
            stored = table.disk.fetch(row.mode, row.filename, row.value, read=False)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO):
                raise
            return None
        if isinstance(stored, bytes):
            whole = len(stored) == length and checksums(stored) == sums
            return MemoryBlock(stored, row.number, row.serial) if whole else None
        checked = self._checked_chunks(stored, length)
        block = FileBlock(stored.file, stored.start, length, sums, checked, row.number, row.serial)
        return block if os.fstat(stored.file.fd).st_size >= stored.start + length else None

    def _checked_chunks(self, stored: StoredFile, length: int) -> bytearray:
        """Return the live marks of those checksum chunks of the file that were compared."""
        if len(self._checked) > MAX_CHECKED:
            self._checked = {}
        return self._checked.setdefault(stored.name, bytearray(number_of_chunks(length)))

    def stored(self, block: MemoryBlock, file: StoredFile, row: int) -> FileBlock:
        """Return a block that was written to a file and entered in a row."""
        length = len(block.data)
        checked = self._checked_chunks(file, length)
        return FileBlock(file.file, file.start, length, block.checksums, checked, row, block.serial)
