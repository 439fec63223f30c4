"""The read-ahead of one reader of an item. Pure policy; for one thread at a time."""

from __future__ import annotations

from dserverfs.base.items import BLOCK_SIZE, Run

# A sequential reader's window of blocks asked for ahead of it; 32 MiB in flight
# fill 1 Gbit/s at 100 ms (12 MiB) with room to spare, and two such readers'
# windows stay in the reader's memory until they are read.
MAX_WINDOW = 32
# The end of a full window is a multiple of so many blocks. Stores keep objects in pieces (of 4
# or 8 MiB, a multipart upload's often of 16), and read a piece twice for two requests: with
# ranges that begin anywhere, SeaweedFS takes 1.25 s of processor time for 1 GiB, else 1.1 s.
ALIGNMENT = 16
# Bytes asked for ahead for each that was read in order, before rounding down to a power of
# two of blocks: so `head` and `file` have little fetched for nothing, and the full
# window is there after 11 MiB. With 2 it takes 16 MiB, with 4 `head -c 1M` has 5 fetched.
AHEAD_FACTOR = 3


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
        """Return the run to fetch ahead when these bytes are read; it may be empty.

        The item has `total` blocks.
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
        if window == MAX_WINDOW and end < total:
            end -= end % ALIGNMENT
        # Wait until half a window is due, so that requests are few and large.
        if end - start < max(1, window // 2) and (end < total or not window):
            return Run(start, 0)
        self._asked = max(start, end)
        return Run(start, max(0, end - start))
