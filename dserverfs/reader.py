"""Reading items: blocks from memory, the cache or the store, each fetched once.

Used by the mount's operations and everything else that needs item bytes.
`ItemReader.read` answers at once or hands out what to wait for, so that no
thread of a caller waits for a block unless it wants to. Thread-safe.

Invariant: a block that readers wait for is in `_pending` until its future is
done, and then in `_loaded`, under one lock, so that it is never fetched twice
at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dserverfs.blocks import (
    BLOCK_SIZE,
    MAX_RUN,
    Block,
    MemoryBlock,
    ReadAhead,
    Run,
    block_length,
)
from dserverfs.cache import BlockCache, BlockKey
from dserverfs.cache_writer import CacheWriter
from dserverfs.errors import (
    DeadlineExceeded,
    DserverfsError,
    IntegrityError,
    ProtocolError,
    Unreachable,
)
from dserverfs.item_content import ItemContent
from dserverfs.loaded_blocks import LoadedBlocks
from dserverfs.many_gets import ManyGets
from dserverfs.prefetch import Claim, Prefetch
from dserverfs.signed_urls import UrlSource
from dserverfs.storage import ByteRange, Storage, StorageRefused
from dserverfs.transport import Deadline, backoff_s
from dserverfs.verification import Verdict, Verification
from dserverfs.verify import digest

logger = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

READ_TIMEOUT_S = 120.0
ATTEMPTS = 4
# Threads: demanded blocks and read-ahead apart, so that a reader's next block does
# not queue behind another's read-ahead. 3 streams of read-ahead saturate two cores.
DEMAND_THREADS = 16
AHEAD_THREADS = 3
MAX_ETAGS = 4096


class Reader:
    """Bytes of items for all who ask in this process."""

    def __init__(
        self,
        resolver: UrlSource,
        storage: Storage,
        cache: BlockCache,
        gets: ManyGets | None = None,
        *,
        verify: bool = True,
    ) -> None:
        """With `verify`, items fetched whole are compared with the manifest's hash."""
        self._verify = verify
        self._resolver = resolver
        self._storage = storage
        self._cache = cache
        self._writer = CacheWriter(cache)
        self._verification = Verification(self._at_hand)
        self._lock = threading.Lock()
        self._pending: dict[BlockKey, Future[Block]] = {}
        self._unasked: set[BlockKey] = set()  # pending ones that nobody waits for yet
        self._loaded = LoadedBlocks()
        self._tell_drop: Callable[[ItemContent], None] = lambda content: None
        self._drops: dict[str, int] = {}  # how often each item turned out wrong
        self._etags: OrderedDict[str, str] = OrderedDict()
        self._demand = ThreadPoolExecutor(DEMAND_THREADS, thread_name_prefix="demand")
        self._ahead = ThreadPoolExecutor(AHEAD_THREADS, thread_name_prefix="ahead")
        self._prefetch = Prefetch(
            self, resolver, gets or ManyGets(), cache, self._writer, verify=verify
        )

    def open(self, content: ItemContent) -> ItemReader:
        """Return a reader of the item; does no I/O."""
        return ItemReader(self, content)

    def close(self) -> None:
        """Drop what is queued, write what was fetched; readers then fail."""
        self._demand.shutdown(wait=False, cancel_futures=True)
        self._ahead.shutdown(wait=False, cancel_futures=True)
        self._prefetch.close()
        self._verification.close()
        self._writer.close()
        with self._lock:
            self._loaded.clear()

    def on_drop(self, tell: Callable[[ItemContent], None]) -> None:
        """Let `tell` know of each item whose bytes turned out wrong after some were handed out.

        It is called in a fetching thread and must not wait for a read to end.
        """
        self._tell_drop = tell

    def flush(self) -> None:
        """Return when everything fetched so far is in the cache."""
        self._writer.flush()

    def times_dropped(self, content: ItemContent) -> int:
        """Return how often the item's bytes turned out wrong."""
        return self._drops.get(content.key, 0)

    def is_at_hand(self, content: ItemContent) -> bool:
        """Return whether the begin of an item needs no request: most of it is likely not to."""
        return content.size_in_bytes == 0 or self._at_hand(content, 0) is not None

    def drop(self, content: ItemContent) -> None:
        """Forget every block of an item that turned out to be wrong, here and in the cache."""
        self._drop(content)

    def want(self, content: ItemContent, run: Run) -> list[Block | Future[Block]]:
        """Return the blocks of `run`: loaded ones, and futures of the others, now being fetched."""
        return self._ask(content, run, self._demand)

    def want_ahead(self, content: ItemContent, run: Run) -> None:
        """Fetch the blocks of `run` in the background, in requests of at most MAX_RUN."""
        for first in range(run.first, run.first + run.length, MAX_RUN):
            count = min(MAX_RUN, run.first + run.length - first)
            self._ask(content, Run(first, count), self._ahead)

    def begun(self, content: ItemContent) -> None:
        """Note that the item is read from its beginning: the next ones may be fetched ahead."""
        self._prefetch.begun(content)

    def claim(self, contents: Sequence[ItemContent]) -> list[Claim]:
        """Return a claim on each item of one block that is neither at hand nor under way."""
        claims = []
        with self._lock:
            for content in contents:
                key = BlockKey(content.key, 0)
                at_hand = key in self._loaded or self._writer.waiting(key) is not None
                if not at_hand and key not in self._pending:
                    claims.append(Claim(content, Future()))
                    self._pending[key] = claims[-1].future
                    self._unasked.add(key)
        return claims

    def settle(self, settled: Sequence[tuple[Claim, Block]]) -> None:
        """Hand out claimed items."""
        with self._lock:
            for claim, block in settled:
                self._arrive_locked(BlockKey(claim.content.key, 0), block)
        for claim, block in settled:
            claim.future.set_result(block)

    def release(self, claims: Sequence[Claim]) -> None:
        """Give claims back: what somebody waits for is fetched in the usual way."""
        for claim in claims:
            key = BlockKey(claim.content.key, 0)
            with self._lock:
                if key in self._unasked:
                    self._unasked.discard(key)
                    del self._pending[key]
                    continue
            try:
                self._demand.submit(self._fill, claim.content, [(0, claim.future)])
            except RuntimeError:
                self._abandon(claim.content, [(0, claim.future)], Unreachable("shut down"))

    def _ask(
        self, content: ItemContent, run: Run, pool: ThreadPoolExecutor
    ) -> list[Block | Future[Block]]:
        answer: list[Block | Future[Block]] = []
        missing: list[tuple[int, Future[Block]]] = []
        with self._lock:
            for index in range(run.first, run.first + run.length):
                key = BlockKey(content.key, index)
                block = self._loaded.get(key) or self._writer.waiting(key)
                if block is not None:
                    self._loaded.add(key, block)
                    answer.append(block)
                    continue
                future = self._pending.get(key)
                if future is None:
                    future = self._pending[key] = Future()
                    missing.append((index, future))
                self._unasked.discard(key)
                answer.append(future)
        if missing:
            pool.submit(self._fill, content, missing)
        return answer

    def _fill(self, content: ItemContent, missing: list[tuple[int, Future[Block]]]) -> None:
        """Settle every future in `missing` (ascending block indices), in a pool's thread."""
        waiting = list(missing)
        try:
            deadline = Deadline(READ_TIMEOUT_S)
            for entry in missing:
                index, future = entry
                length = block_length(content.size_in_bytes, index)
                block = self._cache.load(BlockKey(content.key, index), length)
                if block is not None:
                    self._settle(content, index, future, block)
                    waiting.remove(entry)
            while waiting:
                self._fetch(content, waiting, _leading_run(waiting), deadline)
        except IntegrityError as error:
            # Nothing of it may be mixed with what the next reader fetches.
            self._drop(content)
            self._abandon(content, waiting, error)
        except DserverfsError as error:
            self._abandon(content, waiting, error)
        except BaseException as error:
            logger.exception("%s: a fault of ours while reading", content.dataset.uri)
            self._abandon(content, waiting, error)
            raise

    def _fetch(
        self,
        content: ItemContent,
        waiting: list[tuple[int, Future[Block]]],
        run: int,
        deadline: Deadline,
    ) -> None:
        """Fetch the first `run` blocks of `waiting`, taking each off it as it is settled."""
        goal = len(waiting) - run

        def on_block(data: bytes) -> None:
            index, future = waiting[0]
            if self._verify:
                self._check(content, index, data, deadline)
            self._settle(content, index, future, MemoryBlock(data))
            del waiting[0]
            self._writer.put(BlockKey(content.key, index), data)
            if self._verify:
                self._verification.arrived(content, index)

        attempt = 0
        refused = False
        mismatched = False
        while len(waiting) > goal:
            left = len(waiting)
            url = self._resolver.item_url(content.dataset, content.identifier, content.neighbours)
            start = waiting[0][0] * BLOCK_SIZE
            end = min(content.size_in_bytes, (waiting[left - goal - 1][0] + 1) * BLOCK_SIZE)
            try:
                self._storage.read_range(
                    url.url,
                    ByteRange(start, end - start, content.size_in_bytes),
                    block_size=BLOCK_SIZE,
                    etag=self._etags.get(content.key),
                    deadline=deadline,
                    on_etag=lambda etag: self._check_etag(content, etag),
                    on_block=on_block,
                )
            except StorageRefused as error:
                self._resolver.forget_url(content.dataset, content.identifier, url)
                if refused:
                    raise ProtocolError(f"{error}, also with a new URL") from error
                refused = True
            except _HashMismatch as error:
                if mismatched:
                    raise
                mismatched = True
                logger.warning("%s; fetched once more", error)
            except Unreachable as error:
                attempt = 0 if len(waiting) < left else attempt
                if attempt + 1 >= ATTEMPTS or isinstance(error, DeadlineExceeded):
                    raise
                logger.debug("%s: tried again after: %s", content.dataset.uri, error)
                time.sleep(min(backoff_s(attempt), deadline.remaining_s()))
                attempt += 1

    def _check(self, content: ItemContent, index: int, data: bytes, deadline: Deadline) -> None:
        """Raise IntegrityError if this block ends an item that is not what the manifest says."""
        if len(data) == content.size_in_bytes:
            _check_whole(content, data)
        elif index == content.number_of_blocks - 1:
            self._check_end(content, data, deadline)

    def _check_end(self, content: ItemContent, last: bytes, deadline: Deadline) -> None:
        """Raise IntegrityError if the item was read whole and is not what the manifest says.

        Whoever read it got wrong bytes before this one, so that reader must fail;
        nothing of the item stays, and the next reader fetches it anew.
        """
        verdict = self._verification.verdict(
            content, last, lambda index: self._is_coming(content, index), deadline
        )
        if verdict is Verdict.WRONG:
            raise IntegrityError(
                f"{content.dataset.uri}: item {content.identifier} does not have the hash "
                f"{content.hash} of the manifest; nothing of it is kept"
            )

    def _is_coming(self, content: ItemContent, index: int) -> bool:
        key = BlockKey(content.key, index)
        with self._lock:
            if key in self._pending or key in self._loaded:
                return True
        return self._at_hand(content, index) is not None

    def _at_hand(self, content: ItemContent, index: int) -> Block | None:
        """Return a block that was fetched, from wherever it is now."""
        key = BlockKey(content.key, index)
        with self._lock:
            block = self._loaded.get(key) or self._writer.waiting(key)
        if block is None:
            block = self._cache.load(key, block_length(content.size_in_bytes, index))
        return block

    def _drop(self, content: ItemContent) -> None:
        """Forget every block of an item."""
        keys = [BlockKey(content.key, index) for index in range(content.number_of_blocks)]
        self._writer.discard(keys)
        with self._lock:
            self._drops[content.key] = self._drops.get(content.key, 0) + 1
            self._etags.pop(content.key, None)
            self._loaded.drop(keys)
        self._cache.drop(keys)
        self._tell_drop(content)

    def _settle(
        self, content: ItemContent, index: int, future: Future[Block], block: Block
    ) -> None:
        key = BlockKey(content.key, index)
        with self._lock:
            self._arrive_locked(key, block)
        future.set_result(block)

    def _arrive_locked(self, key: BlockKey, block: Block) -> None:
        self._pending.pop(key, None)
        self._unasked.discard(key)
        self._loaded.add(key, block)

    def _abandon(
        self,
        content: ItemContent,
        waiting: Sequence[tuple[int, Future[Block]]],
        error: BaseException,
    ) -> None:
        self._verification.failed(content)
        with self._lock:
            for index, _ in waiting:
                self._pending.pop(BlockKey(content.key, index), None)
        for _, future in waiting:
            future.set_exception(error)

    def _check_etag(self, content: ItemContent, etag: str) -> None:
        """Note the object's ETag; raises IntegrityError if another one was seen before."""
        with self._lock:
            known = self._etags.setdefault(content.key, etag)
            if len(self._etags) > MAX_ETAGS:
                self._etags.popitem(last=False)
        if known != etag:
            raise IntegrityError(
                f"{content.dataset.uri}: item {content.identifier} changed while it was read"
            )


class _HashMismatch(IntegrityError):
    """The whole item was fetched and is not what the manifest says."""


def _check_whole(content: ItemContent, data: bytes) -> None:
    """Raise _HashMismatch unless `data`, an item in one block, has the manifest's hash.

    A block takes 1.1 ms of MD5: too little to hand out anything unchecked.
    """
    found = digest(content.hash_function, data)
    if found is not None and found != content.hash:
        raise _HashMismatch(
            f"{content.dataset.uri}: item {content.identifier} has hash {found}, "
            f"the manifest says {content.hash}"
        )


def _leading_run(waiting: Sequence[tuple[int, Future[Block]]]) -> int:
    """Return how many of the first blocks follow each other without a gap."""
    first = waiting[0][0]
    count = 0
    while count < len(waiting) and waiting[count][0] == first + count:
        count += 1
    return count


class ItemReader:
    """One open item; several threads may read."""

    def __init__(self, reader: Reader, content: ItemContent) -> None:
        self._reader = reader
        self._content = content
        self._ahead = ReadAhead()
        self._times_dropped = reader.times_dropped(content)
        self._lock = threading.Lock()

    @property
    def content(self) -> ItemContent:
        return self._content

    def want(self, offset: int, size: int) -> list[Block | Future[Block]]:
        """Return the blocks of bytes [offset, offset+size); start fetching those missing.

        Empty at or beyond the end of the item. Never blocks. Raises IntegrityError
        for ever once bytes it handed out were found to be wrong: the kernel asks
        again after a read-ahead that failed, and must not be told otherwise.
        """
        if self._reader.times_dropped(self._content) != self._times_dropped:
            raise IntegrityError(
                f"{self._content.dataset.uri}: item {self._content.identifier} was read wrong;"
                " open it again"
            )
        end = min(offset + size, self._content.size_in_bytes)
        if offset >= end:
            return []
        if offset == 0:
            self._reader.begun(self._content)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        total = self._content.number_of_blocks
        with self._lock:
            ahead = self._ahead.plan(first, last, total)
        wanted = self._reader.want(self._content, Run(first, last - first + 1))
        if ahead.length:
            self._reader.want_ahead(self._content, ahead)
        return wanted

    def cut_nowait(self, blocks: Sequence[Block], offset: int, size: int) -> Buffer | None:
        """Return exactly min(size, end - offset) bytes out of the blocks `want` gave.

        None if they would have to come from a disk first: then call `cut` in a thread.
        """
        pieces = []
        for block, start, count in self._parts(blocks, offset, size):
            piece = block.read_nowait(start, count)
            if piece is None:
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cut(self, blocks: Sequence[Block], offset: int, size: int) -> Buffer:
        """As `cut_nowait`, but wait for the disk."""
        pieces = [
            block.read(start, count) for block, start, count in self._parts(blocks, offset, size)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly min(size, end - offset) bytes; blocks until they are there.

        Raises what the resolver and the storage raise.
        """
        blocks = []
        for wanted in self.want(offset, size):
            if isinstance(wanted, Future):
                try:
                    wanted = wanted.result(READ_TIMEOUT_S)
                except TimeoutError as error:
                    raise DeadlineExceeded(
                        f"{self._content.dataset.uri}: read took too long"
                    ) from error
            blocks.append(wanted)
        return bytes(self.cut(blocks, offset, size)) if blocks else b""

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
