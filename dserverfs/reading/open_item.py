"""Reading one open item: offsets and sizes in, exactly those bytes out.

Used by the mount's operations and everything else that needs item bytes. A caller that
must not wait in a thread calls `request_blocks` and awaits the futures in it; then it asks
`verification_pending`, and if that gives a future it awaits it and begins anew; then it
cuts its bytes out of the blocks. `read` does all that and blocks. Thread-safe.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from dserverfs.base.errors import DeadlineExceeded, IntegrityError
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run, leading_run
from dserverfs.base.retry import Deadline
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache.blocks import Block, DamagedBlock, FileBlock
from dserverfs.reading.read_ahead import ReadAhead
from dserverfs.reading.single_flight import wait_for

# Larger items (1 TiB) take no memory for blocks that are not read.
MAX_BLOCKS_AT_ONCE = 1 << 20
_LOADED_AT_ONCE = 16  # blocks, in one request


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


class OpenItem:
    """One open item; several threads may read."""

    def __init__(
        self,
        reader: BlockReader,
        content: ItemContent,
        on_drop: Callable[[], None] | None = None,
    ) -> None:
        """`on_drop` is called, in any thread, if the item's bytes turn out wrong."""
        self._reader = reader
        self._content = content
        self._on_drop = on_drop
        self._ahead = ReadAhead()
        self._flight = reader.flight
        self._filler = reader.filler
        self._hot = reader.flight.open(content, on_drop)
        self._lock = threading.Lock()
        # The blocks that were asked for, a byte each, until all were; anew once they were right.
        self._blocks = content.number_of_blocks
        self._asked: bytearray | _Marks | None = _no_marks(self._blocks)
        self._unasked = self._blocks
        # Hot blocks to be shared, and how many at once beside the one that is read.
        self._others = iter(list[int]())
        self._sharing = 0

    @property
    def content(self) -> ItemContent:
        return self._content

    def close(self) -> None:
        """Let the memory that the item takes be used for others; it may be read on.

        The read-ahead ends, unless others have the item open.
        """
        self._flight.close(self._content, self._hot, self._on_drop)

    def read_nowait(self, offset: int, size: int, buffer: memoryview) -> Buffer | None:
        """Return the bytes if they lie in one hot block, else None: then `request_blocks`.

        The short way of most reads: 10 us instead of 30. The answer may be a part of
        `buffer`, which has room for a block. Never blocks; raises as `request_blocks` does.
        """
        index, start = divmod(offset, BLOCK_SIZE)
        block = self._hot.get(index)
        if block is None or start + size > BLOCK_SIZE:
            self._refuse_if_dropped()
            return None
        if offset == 0:
            self._reader.prefetch.begun(self._content)
        with self._lock:
            ahead = self._ahead.plan(offset, size, self._blocks)
            if self._asked is not None and not self._asked[index]:
                self._note_locked(self._asked, index, index)
        if ahead.length:
            self._filler.request_ahead(self._content, ahead)
        verification = self._reader.verification
        if not verification.needs_no_verification(self._content, whole=self._asked is None):
            return None
        self._refuse_if_dropped()
        if not block.used:
            self._flight.note_use(block)
        try:
            return block.read_nowait(start, size, buffer)
        except DamagedBlock:
            return None

    @property
    def is_dropped(self) -> bool:
        """Whether bytes of it turned out wrong: this handle gives none any more."""
        return self._hot.is_dropped

    def shareable(self, index: int, most: int) -> Sequence[tuple[int, FileBlock]]:
        """Return a hot block in a file that somebody else may read, and others of the item.

        With each call twice as many, up to `most`. Empty if the block is in no file, or the item
        was not compared as a whole. Who reads them compares their checksums. For one thread.
        """
        block = self._hot.get(index)
        if not isinstance(block, FileBlock):
            return ()
        if not self._reader.verification.needs_no_verification(self._content, whole=True):
            return ()
        found = [(index, block)]
        others = [*itertools.islice(self._others, self._sharing)]
        for other in others:
            block = self._hot.get(other)
            if isinstance(block, FileBlock) and other != index:
                found.append((other, block))
        if len(others) < self._sharing:  # all were looked at; others may be hot by now
            self._others = iter(list(self._hot))
        self._sharing = min(2 * self._sharing + 1, most - 1)
        return () if self.is_dropped else found

    def touched(self, offset: int, size: int) -> None:
        """Note a read of a shareable block that somebody else has answered."""
        if offset == 0:
            self._reader.prefetch.begun(self._content)
        with self._lock:
            ahead = self._ahead.plan(offset, size, self._blocks)
        if ahead.length:
            self._filler.request_ahead(self._content, ahead)
        block = self._hot.get(offset // BLOCK_SIZE)
        if block is not None and not block.used:
            self._flight.note_use(block)

    def request_blocks(self, offset: int, size: int) -> list[Block | Future[Block]]:
        """Return the blocks of bytes [offset, offset+size); start fetching those missing.

        Empty at or beyond the end of the item. Never blocks. Raises IntegrityError
        for ever once bytes of this handle were found to be wrong: the kernel asks again
        after a read-ahead that failed, and must get the same answer.
        """
        self._refuse_if_dropped()
        end = min(offset + size, self._content.size_in_bytes)
        if offset >= end:
            return []
        if offset == 0:
            self._reader.prefetch.begun(self._content)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        with self._lock:
            ahead = self._ahead.plan(offset, end - offset, self._blocks)
        wanted = self._filler.request_blocks(self._content, Run(first, last - first + 1))
        # After the request: a noted block is hot or under way, as `verification_pending` assumes.
        with self._lock:
            if self._asked is not None:
                self._note_locked(self._asked, first, last)
        if ahead.length:
            self._filler.request_ahead(self._content, ahead)
        return wanted

    def verification_pending(self) -> Future[None] | None:
        """Return a future to await before serving the requested blocks, or None.

        Nearly always None. After the wait the blocks have to be requested again. Raises
        IntegrityError if they were not the manifest's.
        """
        whole = self._asked is None
        # Asked before the verification, which knows of every block that is not under way.
        all_came = whole and not self._flight.is_awaited(self._content)
        pending = self._reader.verification.verification_pending(self._content, whole=whole)
        self._refuse_if_dropped()
        if all_came and pending is None:
            self._begin_anew()
        return pending

    def give_up(self, offset: int, size: int) -> None:
        """Note that these bytes did not come in time: the same request fails at once now."""
        end = min(offset + size, self._content.size_in_bytes)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        self._flight.give_up(self._content, Run(first, last - first + 1))

    def cut_nowait(self, blocks: Sequence[Block], offset: int, size: int) -> Buffer | None:
        """Return exactly min(size, end - offset) bytes out of requested blocks.

        None if they would have to come from a disk first: then call `cut` in a thread.
        """
        pieces = []
        for block, start, count in self._slices(blocks, offset, size):
            try:
                piece = block.read_nowait(start, count)
            except DamagedBlock:
                return None
            if piece is None:
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cut(self, blocks: Sequence[Block], offset: int, size: int) -> Buffer:
        """As `cut_nowait`, but wait for the disk, and fetch anew what is damaged there."""
        try:
            pieces = [
                block.read(start, count)
                for block, start, count in self._slices(blocks, offset, size)
            ]
        except DamagedBlock:
            first = offset // BLOCK_SIZE
            self._reader.drops.drop_damaged(self._content, Run(first, len(blocks)))
            return self.read(offset, size)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly min(size, end - offset) bytes; blocks until they are there.

        Raises what the URL source and the store raise.
        """
        try:
            blocks = self._obtain(offset, size)
            return bytes(self.cut(blocks, offset, size)) if blocks else b""
        except DeadlineExceeded:
            self.give_up(offset, size)
            raise

    def load(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Load the whole item into the cache, compared if it can be; blocks. Raises as `read`.

        `advance` is told of every few bytes that are there.
        """
        size_in_bytes = self._content.size_in_bytes
        for offset in range(0, size_in_bytes, BLOCK_SIZE):
            self._obtain(offset, BLOCK_SIZE)
            advance(min(BLOCK_SIZE, size_in_bytes - offset))

    def load_blocks(self, blocks: Sequence[int]) -> None:
        """Load these blocks, in ascending order, and fetch none ahead; as `load`."""
        left = list(blocks)
        while left:
            run = leading_run(left[:_LOADED_AT_ONCE])
            deadline = Deadline(self._reader.read_timeout_s)
            for wanted in self._filler.request_blocks(self._content, run):
                if isinstance(wanted, Future):
                    wait_for(wanted, self._content, deadline)
            del left[: run.length]

    def _obtain(self, offset: int, size: int) -> list[Block]:
        """Return the blocks of these bytes when they may be served."""
        deadline = Deadline(self._reader.read_timeout_s)
        while True:
            blocks = [
                wait_for(wanted, self._content, deadline) if isinstance(wanted, Future) else wanted
                for wanted in self.request_blocks(offset, size)
            ]
            pending = self.verification_pending() if blocks else None
            if pending is None:
                return blocks
            wait_for(pending, self._content, deadline)

    def _refuse_if_dropped(self) -> None:
        if self._hot.is_dropped:
            raise IntegrityError(f"{self._content.label} was read wrong; open it again")

    def _begin_anew(self) -> None:
        """Begin a second reading of the item, the first being right.

        Else each block that is fetched again would have the whole compared again.
        """
        with self._lock:
            if self._asked is None:
                self._asked = _no_marks(self._blocks)
                self._unasked = self._blocks

    def _note_locked(self, asked: bytearray | _Marks, first: int, last: int) -> None:
        """Note the blocks that were asked for, and when these were all."""
        for index in range(first, last + 1):
            if not asked[index]:
                asked[index] = 1
                self._unasked -= 1
        if self._unasked == 0:
            self._asked = None

    def _slices(
        self, blocks: Sequence[Block], offset: int, size: int
    ) -> list[tuple[Block, int, int]]:
        """Return (block, offset in it, number of bytes) for each piece of the answer."""
        end = min(offset + size, self._content.size_in_bytes)
        slices = []
        for index, block in enumerate(blocks, offset // BLOCK_SIZE):
            start = max(offset, index * BLOCK_SIZE)
            stop = min(end, (index + 1) * BLOCK_SIZE)
            slices.append((block, start - index * BLOCK_SIZE, stop - start))
        return slices
