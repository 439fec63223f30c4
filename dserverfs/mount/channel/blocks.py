"""The blocks of items that the channel may read by itself.

The rule for an answer to a READ from here: the daemon has told the block, with its file and its
checksums, after its item was compared with the manifest; the bytes have their checksums, which
is looked at when a checksum chunk is read first; and the block was not taken back. A read that is
not wholly in such blocks, or not in the page cache, is the daemon's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from dserverfs.base.checksums import CRC_BYTES, compare, number_of_chunks, to_read
from dserverfs.base.local_files import SharedFile
from dserverfs.mount.channel import messages


class _Damaged(Exception):
    """A block has other checksums than were told."""


class Told:
    """A block that may be read."""

    __slots__ = ("checked", "file", "length", "number", "start", "sums")

    def __init__(self, file: SharedFile, start: int, length: int, number: int, sums: bytes) -> None:
        """Of `length` bytes from `start` of the file on; `number` is that of its message."""
        self.file = file
        self.start = start
        self.length = length
        self.number = number
        self.sums = sums
        self.checked = bytearray(number_of_chunks(length))


class Files:
    """The files of blocks, each open once in however many messages it comes.

    So no more are open than the daemon has, which has bounded them by the same limit.
    """

    def __init__(self) -> None:
        self._open: WeakValueDictionary[tuple[int, int], SharedFile] = WeakValueDictionary()

    def take(self, fd: int) -> SharedFile:
        """Return the file of a descriptor, which is owned by it, or closed."""
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        file = self._open.get(key)  # nothing else has its number while it is open
        if file is None:
            file = self._open[key] = SharedFile(fd)
        else:
            os.close(fd)
        return file


def blocks_in(message: bytes, files: Sequence[SharedFile]) -> tuple[int, list[tuple[int, Told]]]:
    """Return the inode of a BLOCKS message, and the blocks by their index.

    Without those whose file has not come: this process has too many open. The files are owned
    by the blocks. Raises struct.error for no such message.
    """
    _, count, inode = messages.BLOCKS.unpack_from(message)
    behind = messages.BLOCKS.size + count * messages.BLOCK.size
    told = []
    for place, length, index, number, start in messages.BLOCK.iter_unpack(
        message[messages.BLOCKS.size : behind]
    ):
        end = behind + number_of_chunks(length) * CRC_BYTES
        if place < len(files):
            told.append((index, Told(files[place], start, length, number, message[behind:end])))
        behind = end
    return inode, told


class Blocks:
    """What was told and not taken back."""

    def __init__(self, damaged: Callable[[int, int, int], None]) -> None:
        """`damaged` is told of a block that turned out wrong: inode, index and number."""
        self.block_bytes = 1  # of each but the last of an item
        self._damaged = damaged
        self._told: dict[int, dict[int, Told]] = {}  # by inode and index
        self._chunks = memoryview(bytearray(0))  # room for chunks to be compared

    def index(self, offset: int) -> int:
        """Return the index of the block that has a byte."""
        return offset // self.block_bytes

    def tell(self, inode: int, blocks: Sequence[tuple[int, Told]]) -> None:
        """Take blocks, in place of those that were told before."""
        if blocks:
            self._told.setdefault(inode, {}).update(blocks)

    def lose(self, inode: int, index: int, number: int | None = None) -> None:
        """Read a block no more; if `number` is given, only the one that was told with it."""
        told = self._told.get(inode, {})
        block = told.get(index)
        if block is None or number not in (None, block.number):
            return
        del told[index]
        if not told:
            del self._told[inode]

    def forget(self, inode: int) -> None:
        """Read no block of an inode any more."""
        self._told.pop(inode, None)

    def clear(self) -> None:
        """Read no block any more."""
        self._told.clear()

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
                if not self._fill(block, start, target[done : done + wanted]):
                    return 0
            except _Damaged:
                self.lose(inode, index)
                self._damaged(inode, index, block.number)
                return 0
            done += wanted
            if block.length < self.block_bytes:  # the last of its item
                break
        return done

    def _fill(self, block: Told, start: int, target: memoryview) -> bool:
        """Read a block from `start` on; return False if the disk has to be. Raises _Damaged."""
        stop = start + len(target)
        begin, end, unchecked = to_read(block.checked, start, stop, block.length)
        whole = begin == start and end == stop
        chunks = target if whole else self._room(end - begin)
        try:
            count = os.preadv(block.file.fd, [chunks], block.start + begin, os.RWF_NOWAIT)
        except OSError:
            return False
        if count != len(chunks):
            return False
        if unchecked and not compare(block.checked, block.sums, chunks, begin):
            raise _Damaged
        if not whole:
            target[:] = chunks[start - begin : stop - begin]
        return True

    def _room(self, number: int) -> memoryview:
        """Return memory for so many bytes, which is used again."""
        if len(self._chunks) < number:
            self._chunks = memoryview(bytearray(number))
        return self._chunks[:number]
