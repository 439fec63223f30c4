"""Single flight: every block is fetched once, however many readers ask for it.

Used by `block_filling`, which fetches what is missing, and all who look for blocks.
Requests answer at once with blocks and futures. Thread-safe; does no I/O but in `find`.

Invariant: a block that readers wait for is in `_pending` until its future is done, and
then in `_hot`, under one lock, so that it is never fetched twice at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.base.items import ItemContent, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, MemoryBlock
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.cache_lookup import CacheLookup
from dserverfs.reading.hot_blocks import BlockMap, HotBlocks
from dserverfs.reading.pending_blocks import ObjectVersions, PendingBlocks, RecentFailures
from dserverfs.reading.ranges import StaleResponse, changed

T = TypeVar("T")


class Missing(NamedTuple):
    """A block that has to be fetched, and the future that its readers wait for."""

    block_index: int
    future: Future[Block]


class Requested(NamedTuple):
    """The blocks of a run: hot ones, and futures of the others."""

    blocks: list[Block | Future[Block]]
    missing: list[Missing]  # of these futures, the ones for the caller to settle


class SingleFlight:
    """The blocks of all items: hot, or under way once."""

    def __init__(
        self,
        hot: HotBlocks,
        pending: PendingBlocks,
        cache: BlockCache,
        writer: CacheWriter,
        cached: CacheLookup,
        *,
        failure_kept_s: float,
    ) -> None:
        self._hot = hot
        self._cache = cache
        self._writer = writer
        self._cached = cached
        self._lock = hot.lock
        self._pending = pending
        self._failures = RecentFailures(failure_kept_s)
        self._versions = ObjectVersions()

    def request(self, content: ItemContent, run: Run) -> Requested:
        """Return the blocks of `run` for a reader that waits for them.

        Raises DeadlineExceeded for blocks that just did not come in time.
        """
        keys = _keys(content, run)
        with self._lock:
            if self._failures:
                self._failures.check([key for key in keys if key not in self._hot])
            requested = self._request_locked(keys)
            if self._pending:
                self._pending.ask(keys)
            return requested

    def request_ahead(self, content: ItemContent, run: Run) -> Requested:
        """Return the blocks of `run`, for which no reader waits yet."""
        with self._lock:
            return self._request_locked(_keys(content, run))

    def find(self, content: ItemContent, index: int) -> Block | None:
        """Return a block that was fetched, from memory or disk; may block on a disk."""
        key = BlockKey(content.key, index)
        with self._lock:
            block = self._hot.get(key) or self._writer.waiting(key)
        if block is None:
            cached = self._cached.find(content, index)
            block = None if cached is None else cached.block
        return block

    def in_memory(self, contents: Sequence[ItemContent]) -> list[memoryview | None]:
        """Return the bytes of items of one block that are in memory. Never waits."""
        found: list[memoryview | None] = []
        with self._lock:
            for content in contents:
                key = BlockKey(content.key, 0)
                block = self._hot.get(key) or self._writer.waiting(key)
                found.append(block.data if isinstance(block, MemoryBlock) else None)
        return found

    def find_uncompared(self, content: ItemContent, index: int) -> Block | None:
        """Return a block that may have been handed out without being compared; may block."""
        key = BlockKey(content.key, index)
        with self._lock:
            block = self._hot.get(key) or self._writer.waiting(key)
        return self._cached.find_uncompared(content, index) if block is None else block

    def is_coming(self, content: ItemContent, index: int) -> bool:
        """Return True if a block was fetched or is under way; may block on a disk."""
        key = BlockKey(content.key, index)
        with self._lock:
            if key in self._pending or key in self._hot:
                return True
        return self.find(content, index) is not None

    def is_awaited(self, content: ItemContent) -> bool:
        """Return True if a reader waits for a block of the item."""
        with self._lock:
            return self._pending.has_of(content.key)

    def note_use(self, block: Block) -> None:
        """Note that a block is read: it stays longer than others. Never waits."""
        if not block.used:
            block.used = True
            self._cache.note_use(block)

    def open(self, content: ItemContent, on_drop: Callable[[], None] | None) -> BlockMap:
        """Return the live map of the item's hot blocks for one more reader."""
        with self._lock:
            blocks = self._hot.map_of(content.key)
            blocks.readers += 1
            if on_drop is not None:
                blocks.on_drop.append(on_drop)
            return blocks

    def close(
        self, content: ItemContent, blocks: BlockMap, on_drop: Callable[[], None] | None
    ) -> None:
        """Take back what `open` gave: no memory is kept for blocks that the cache has on disk.

        The read-ahead of the item ends with its last reader.
        """
        with self._lock:
            blocks.readers -= 1
            if on_drop is not None:
                blocks.on_drop.remove(on_drop)
            if content.number_of_blocks > 1 and not blocks.is_dropped:
                self._hot.spill_to_files(content.key)
                if blocks.readers == 0:
                    self._pending.drop_unasked(content.key)

    def map_of(self, content: ItemContent) -> BlockMap:
        """Return the item's map, by which `settle` sees that the item was dropped since."""
        with self._lock:
            return self._hot.map_of(content.key)

    def etag(self, content: ItemContent) -> str | None:
        """Return the ETag that the item's object had, if it was read lately."""
        with self._lock:
            return self._versions.get(content.key)

    def check_etag(self, content: ItemContent, blocks: BlockMap, etag: str) -> None:
        """Raise StaleResponse or, if it is another version of the object, IntegrityError."""
        with self._lock:
            if blocks.is_dropped:
                raise StaleResponse
            is_same = self._versions.is_same(content.key, etag)
        if not is_same:
            raise changed(content)

    def still_wanted(self, content: ItemContent, missing: Sequence[Missing]) -> list[Missing]:
        """Return those that were not dropped since they were asked for."""
        with self._lock:
            return [
                each
                for each in missing
                if self._pending.is_wanted(BlockKey(content.key, each.block_index), each.future)
            ]

    def settle(
        self, content: ItemContent, missing: Missing, block: Block, blocks: BlockMap
    ) -> None:
        """Hand out a block; raises StaleResponse if the item was dropped since `map_of`."""
        key = BlockKey(content.key, missing.block_index)
        with self._lock:
            if blocks.is_dropped:
                raise StaleResponse
            self._pending.remove(key, missing.future)
            self._hot.add(key, block)
            if isinstance(block, MemoryBlock) and not block.row:
                self._writer.announce(key, block)
        missing.future.set_result(block)

    def abandon(
        self, content: ItemContent, missing: Sequence[Missing], error: BaseException
    ) -> None:
        """Let the readers of these blocks fail."""
        keys = [BlockKey(content.key, each.block_index) for each in missing]
        with self._lock:
            for key, each in zip(keys, missing, strict=True):
                self._pending.remove(key, each.future)
            if isinstance(error, DeadlineExceeded):
                self._failures.note(keys, error)
        for each in missing:
            each.future.set_exception(error)

    def give_up(self, content: ItemContent, run: Run) -> None:
        """Note that a reader waited for these blocks as long as it may."""
        error = DeadlineExceeded(f"{content.label}: the store does not answer in time")
        with self._lock:
            self._failures.note([key for key in _keys(content, run) if key in self._pending], error)

    def drop(self, content: ItemContent) -> list[Callable[[], None]]:
        """Drop an item that turned out wrong; return the calls that tell its readers.

        Nothing that was asked for before is settled afterwards.
        """
        with self._lock:
            self._versions.forget(content.key)
            return self._hot.drop_item(content.key)

    def take_out(self, content: ItemContent, index: int) -> Block | None:
        """Return a hot block, which is not hot any more."""
        with self._lock:
            return self._hot.pop(BlockKey(content.key, index))

    def clear(self) -> None:
        with self._lock:
            self._hot.clear()

    def _request_locked(self, keys: Sequence[BlockKey]) -> Requested:
        blocks: list[Block | Future[Block]] = []
        missing: list[Missing] = []
        for key in keys:
            block = self._hot.get(key)
            if block is None:
                block = self._writer.waiting(key)
                if block is not None:
                    self._hot.add(key, block)
            if block is None:
                future = self._pending.get(key)
                if future is None:
                    future = self._pending.add(key)
                    missing.append(Missing(key.block, future))
                blocks.append(future)
                continue
            if not block.used:
                self.note_use(block)
            blocks.append(block)
        return Requested(blocks, missing)


def _keys(content: ItemContent, run: Run) -> list[BlockKey]:
    item = content.key
    return [BlockKey(item, index) for index in range(run.first, run.first + run.length)]


def wait_for(future: Future[T], content: ItemContent, deadline: Deadline) -> T:
    """Return the result of `future`; raises DeadlineExceeded if it does not come in time."""
    try:
        return future.result(deadline.remaining_s())
    except TimeoutError as error:
        raise DeadlineExceeded(f"{content.label}: read took too long") from error
