"""Rows of a frozen dataset's index, packed as FUSE's answers have them: what a channel is told.

The daemon packs a piece, rows [N * ROWS, (N + 1) * ROWS), and the channel cuts its answers out
of it. An entry is what READDIRPLUS has of it; its beginning is the answer to LOOKUP, with the
attributes for GETATTR in it. Rows are numbered breadth first and children sorted by name, so
that a directory is its first child and how many there are. Pure.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import NamedTuple

from dserverfs.mount.channel import wire
from dserverfs.mount.channel.wire import ATTR_OUT, DIRENT, ENTRY_BYTES, ENTRY_OUT

# Packed in 1.2 ms, for which the daemon's event loop does nothing else; about 90 KB.
ROWS = 512
# Of an inode number: the row, and what the rows of its dataset count from.
ROW_MASK = (1 << 34) - 1

_HEAD = Struct("=QII")  # the first row, how many, and how many extents
_EXTENT = Struct("=QQQ")  # a row, its first child, the number of children
_NOT_OPENED = (1 << 64) - 1  # in place of a first child, of an item that cannot be opened


class Extent(NamedTuple):
    """The children of a directory: consecutive rows."""

    first: int
    number: int


def packed(
    first: int, entries: Sequence[bytes], extents: Mapping[int, Extent], refused: Iterable[int]
) -> bytes:
    """Return the bytes of a piece whose rows begin with `first`.

    `extents` are those of the directories among them; items that are `refused` cannot be opened.
    """
    ends = array("I", itertools.accumulate(map(len, entries)))
    told = [
        *(_EXTENT.pack(row, *extent) for row, extent in extents.items()),
        *(_EXTENT.pack(row, _NOT_OPENED, 0) for row in refused),
    ]
    return b"".join((_HEAD.pack(first, len(ends), len(told)), ends.tobytes(), *told, *entries))


class Piece:
    """A piece as it was told."""

    __slots__ = ("_ends", "_entries", "_extents", "first", "number")

    def __init__(self, data: bytes) -> None:
        """Raises struct.error, or ValueError, for what is no piece."""
        first, number, number_of_extents = _HEAD.unpack_from(data)
        self.first: int = first
        self.number: int = number
        start = _HEAD.size
        self._ends = array("I")
        self._ends.frombytes(data[start : start + self._ends.itemsize * self.number])
        start += self._ends.itemsize * self.number
        behind = start + _EXTENT.size * number_of_extents
        self._extents = {
            row: None if first == _NOT_OPENED else Extent(first, number)
            for row, first, number in _EXTENT.iter_unpack(data[start:behind])
        }
        self._entries = memoryview(data)[behind:]
        if len(self._ends) != self.number or (self._ends[-1:] or [0])[0] != len(self._entries):
            raise ValueError("a piece is not whole")

    @property
    def size_in_bytes(self) -> int:
        return len(self._entries)

    def __contains__(self, row: int) -> bool:
        return self.first <= row < self.first + self.number

    def extent(self, row: int) -> Extent | None:
        """Return the children of a directory; None of an item."""
        return self._extents.get(row)

    def can_be_opened(self, row: int) -> bool:
        """Return whether a row is an item that the manifest describes well."""
        return row not in self._extents

    def name(self, row: int) -> bytes:
        start = self._start(row) + ENTRY_BYTES
        (length,) = _LENGTH.unpack_from(self._entries, start + _LENGTH_AT)
        start += DIRENT.size
        return bytes(self._entries[start : start + length])

    def entry_out(self, row: int) -> memoryview:
        """Return the answer to LOOKUP."""
        start = self._start(row)
        return self._entries[start : start + ENTRY_BYTES]

    def attr_out(self, row: int) -> bytes:
        """Return the answer to GETATTR."""
        entry = self.entry_out(row)
        _, _, _, seconds, _, nanoseconds = ENTRY_OUT.unpack_from(entry)
        return ATTR_OUT.pack(seconds, nanoseconds, 0) + entry[ENTRY_OUT.size :]

    def cut(self, row: int, end_row: int, size: int) -> memoryview:
        """Return as many entries of [row, end_row) as are here and have room."""
        start, ends = self._start(row), self._ends
        stop = min(end_row - self.first, self.number)
        count = bisect_right(ends, start + size, row - self.first, stop)
        return self._entries[start : ends[count - 1] if count > row - self.first else start]

    def _start(self, row: int) -> int:
        place = row - self.first
        return self._ends[place - 1] if place else 0


_LENGTH, _LENGTH_AT = Struct("=I"), 16  # of a name, in a dirent


def dots(inode: int, offset: int) -> list[bytes]:
    """Return what is there of `.` and `..` behind an offset; the kernel counts no look-up."""
    unknown = bytes(ENTRY_BYTES)
    found = ((b".", inode, wire.DOT), (b"..", wire.UNKNOWN_INODE, wire.DOT_DOT))
    return [
        unknown + wire.dirent(number, behind, _DIRECTORY, name)
        for name, number, behind in found
        if offset < behind
    ]


_DIRECTORY = 4  # as in a dirent
