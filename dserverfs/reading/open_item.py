"""Reading one open item: offsets and sizes in, exactly those bytes out.

Used by the mount's operations and everything else that needs item bytes. A
caller that must not wait in a thread calls `want`, waits for the futures in it,
asks `held_back`, waits for that and begins anew if there is anything, and then
cuts its bytes out of the blocks; `read` does all that and blocks. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from dserverfs.base.errors import DeadlineExceeded, IntegrityError
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading.block_reader import Reader
from dserverfs.reading.cache.blocks import Block, DamagedBlock
from dserverfs.reading.ranges import wait_for
from dserverfs.reading.read_ahead import ReadAhead

# Of larger items (1 TiB) no memory is taken for what is not read.
MAX_BLOCKS_AT_ONCE = 1 << 20


class _Marks:
    """A byte for each block, as a bytearray, but memory only near those that were set."""

    _PAGE = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def __getitem__(self, index: int) -> int:
        page = self._pages.get(index // self._PAGE)
        return 0 if page is None else page[index % self._PAGE]

    def __setitem__(self, index: int, value: int) -> None:
        page = self._pages.setdefault(index // self._PAGE, bytearray(self._PAGE))
        page[index % self._PAGE] = value


def _no_marks(blocks: int) -> bytearray | _Marks:
    # A manifest may say that an item has 2**63 bytes.
    return bytearray(blocks) if blocks <= MAX_BLOCKS_AT_ONCE else _Marks()


class ItemReader:
    """One open item; several threads may read."""

    def __init__(self, reader: Reader, content: ItemContent) -> None:
        self._reader = reader
        self._content = content
        self._ahead = ReadAhead()
        self._shelf = reader.opened(content)
        self._times_dropped = reader.times_dropped(content)
        self._lock = threading.Lock()
        # Which blocks were asked for, a byte each, until all were; anew once they were right.
        self._blocks = content.number_of_blocks
        self._asked: bytearray | _Marks | None = _no_marks(self._blocks)
        self._unasked = self._blocks

    @property
    def content(self) -> ItemContent:
        return self._content

    def close(self) -> None:
        """Let the memory that the item takes be used for others; it may be read on.

        What is fetched ahead is left, unless others have the item open.
        """
        self._reader.closed(self._content, self._shelf)

    def read_nowait(self, offset: int, size: int, buffer: memoryview) -> Buffer | None:
        """Return the bytes if they lie in one block that is at hand, else None: then `want` them.

        The short way of most reads: 10 us instead of 30. What is returned may be a part of
        `buffer`, which has room for a block. Never blocks; raises IntegrityError as `want` does.
        """
        index, start = divmod(offset, BLOCK_SIZE)
        block = self._shelf.get(index)
        # A read from the beginning may be the sign to fetch the next items.
        if block is None or offset == 0 or start + size > BLOCK_SIZE:
            return None
        with self._lock:
            ahead = self._ahead.plan(offset, size, self._blocks)
            if self._asked is not None and not self._asked[index]:
                self._note_locked(self._asked, index, index)
        if ahead.length:
            self._reader.want_ahead(self._content, ahead)
        if not self._reader.verification.lets_pass(self._content, whole=self._asked is None):
            return None
        self._refuse_if_dropped()
        self._reader.note_use(block)
        try:
            return block.read_nowait(start, size, buffer)
        except DamagedBlock:
            return None

    def want(self, offset: int, size: int) -> list[Block | Future[Block]]:
        """Return the blocks of bytes [offset, offset+size); start fetching those missing.

        Empty at or beyond the end of the item. Never blocks. Raises IntegrityError
        for ever once bytes it handed out were found to be wrong: the kernel asks
        again after a read-ahead that failed, and must not be told otherwise.
        """
        self._refuse_if_dropped()
        end = min(offset + size, self._content.size_in_bytes)
        if offset >= end:
            return []
        if offset == 0:
            self._reader.begun(self._content)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        with self._lock:
            ahead = self._ahead.plan(offset, end - offset, self._blocks)
        wanted = self._reader.want(self._content, Run(first, last - first + 1))
        # Behind `want`: what is noted is at hand or under way, as `held_back` takes for granted.
        with self._lock:
            if self._asked is not None:
                self._note_locked(self._asked, first, last)
        if ahead.length:
            self._reader.want_ahead(self._content, ahead)
        return wanted

    def held_back(self) -> Future[None] | None:
        """Return what has to be waited for before bytes that `want` gave may be handed out.

        None if there is nothing, nearly always. After the wait the blocks have to be
        asked for again. Raises IntegrityError if they were not the manifest's.
        """
        whole = self._asked is None
        # Asked before the verification, which knows of every block that is not under way.
        all_came = whole and not self._reader.is_under_way(self._content)
        held = self._reader.verification.held_back(self._content, whole=whole)
        self._refuse_if_dropped()
        if all_came and held is None:
            self._begin_anew()
        return held

    def gave_up(self, offset: int, size: int) -> None:
        """Note that somebody waited in vain for these bytes: who asks again is told at once."""
        end = min(offset + size, self._content.size_in_bytes)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        self._reader.gave_up(self._content, Run(first, last - first + 1))

    def cut_nowait(self, blocks: Sequence[Block], offset: int, size: int) -> Buffer | None:
        """Return exactly min(size, end - offset) bytes out of the blocks `want` gave.

        None if they would have to come from a disk first: then call `cut` in a thread.
        """
        pieces = []
        for block, start, count in self._parts(blocks, offset, size):
            try:
                piece = block.read_nowait(start, count)
            except DamagedBlock:
                return None
            if piece is None:
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cut(self, blocks: Sequence[Block], offset: int, size: int) -> Buffer:
        """As `cut_nowait`, but wait for the disk, and fetch anew what it has not kept."""
        try:
            pieces = [
                block.read(start, count)
                for block, start, count in self._parts(blocks, offset, size)
            ]
        except DamagedBlock:
            first = offset // BLOCK_SIZE
            self._reader.drop_damaged(self._content, Run(first, len(blocks)))
            return self.read(offset, size)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly min(size, end - offset) bytes; blocks until they are there.

        Raises what the resolver and the storage raise.
        """
        try:
            return self._read(offset, size, Deadline(self._reader.read_timeout_s))
        except DeadlineExceeded:
            self.gave_up(offset, size)
            raise

    def load(self) -> None:
        """Have the whole item in the cache, compared if it can be; blocks. Raises as `read`."""
        for offset in range(0, self._content.size_in_bytes, BLOCK_SIZE):
            self._obtain(offset, BLOCK_SIZE, Deadline(self._reader.read_timeout_s))

    def _read(self, offset: int, size: int, deadline: Deadline) -> bytes:
        blocks = self._obtain(offset, size, deadline)
        return bytes(self.cut(blocks, offset, size)) if blocks else b""

    def _obtain(self, offset: int, size: int, deadline: Deadline) -> list[Block]:
        """Return the blocks of these bytes when they may be handed out."""
        while True:
            blocks = [
                wait_for(wanted, self._content, deadline) if isinstance(wanted, Future) else wanted
                for wanted in self.want(offset, size)
            ]
            held = self.held_back() if blocks else None
            if held is None:
                return blocks
            wait_for(held, self._content, deadline)

    def _refuse_if_dropped(self) -> None:
        if self._reader.times_dropped(self._content) != self._times_dropped:
            raise IntegrityError(f"{self._content.label} was read wrong; open it again")

    def _begin_anew(self) -> None:
        """Take what is read from now on for a second reading of the item, the first being right.

        Else each block that is fetched again would have the whole compared again.
        """
        with self._lock:
            if self._asked is None:
                self._asked = _no_marks(self._blocks)
                self._unasked = self._blocks

    def _note_locked(self, asked: bytearray | _Marks, first: int, last: int) -> None:
        """Note which blocks were asked for, and when that were all."""
        for index in range(first, last + 1):
            if not asked[index]:
                asked[index] = 1
                self._unasked -= 1
        if self._unasked == 0:
            self._asked = None

    def _parts(
        self, blocks: Sequence[Block], offset: int, size: int
    ) -> list[tuple[Block, int, int]]:
        """Return (block, offset in it, number of bytes) for each piece of the answer."""
        end = min(offset + size, self._content.size_in_bytes)
        parts = []
        first = offset // BLOCK_SIZE
        for index, block in enumerate(blocks, first):
            start = max(offset, index * BLOCK_SIZE)
            stop = min(end, (index + 1) * BLOCK_SIZE)
            parts.append((block, start - index * BLOCK_SIZE, stop - start))
        return parts
