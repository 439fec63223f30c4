"""The blocks of items that the channel may read by itself.

The rule for an answer to a READ from here: the daemon has told the block, with its descriptor,
after all of it was compared with its checksums and its item with the manifest; and it has not
taken it back. A read that is not wholly in such blocks, or not in the page cache, is the daemon's.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Told(NamedTuple):
    """A block that may be read."""

    fd: int
    start: int  # in the file, as length in bytes
    length: int
    number: int  # of the message that told it


class Blocks:
    """What was told and not taken back; owns the descriptors."""

    def __init__(self) -> None:
        self.block_bytes = 1  # of each but the last of an item
        self._told: dict[int, dict[int, Told]] = {}  # by inode and index

    def index(self, offset: int) -> int:
        """Return the index of the block that has a byte."""
        return offset // self.block_bytes

    def tell(self, inode: int, index: int, block: Told) -> None:
        """Take a block, of which there is none at that place."""
        self._told.setdefault(inode, {})[index] = block

    def lose(self, inode: int, index: int, number: int | None = None) -> None:
        """Read a block no more; if `number` is given, only the one that was told with it."""
        told = self._told.get(inode, {})
        block = told.get(index)
        if block is None or number not in (None, block.number):
            return
        os.close(block.fd)
        del told[index]
        if not told:
            del self._told[inode]

    def forget(self, inode: int) -> None:
        """Read no block of an inode any more."""
        for index in list(self._told.get(inode, ())):
            self.lose(inode, index)

    def clear(self) -> None:
        """Read no block any more."""
        for inode in list(self._told):
            self.forget(inode)

    def read(self, inode: int, offset: int, size: int, target: memoryview) -> int:
        """Read; return how many bytes, or 0 if the daemon has to. Waits for no disk."""
        told = self._told.get(inode)
        if told is None:
            return 0
        done = 0
        while done < size:
            index, start = divmod(offset + done, self.block_bytes)
            block = told.get(index)
            if block is None:
                return 0
            wanted = min(size - done, block.length - start)
            if wanted <= 0:
                return 0
            try:
                count = os.preadv(
                    block.fd, [target[done : done + wanted]], block.start + start, os.RWF_NOWAIT
                )
            except OSError:
                return 0
            if count != wanted:
                return 0
            done += count
            if block.length < self.block_bytes:  # the last of its item
                break
        return done
