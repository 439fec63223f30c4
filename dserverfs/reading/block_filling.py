"""Fetching the blocks that are missing, in threads: from the disk cache, else from the store.

Used for readers that wait, for their read-ahead, and for prefetched items that failed.
Every block is checked, handed to all who wait for it, and written to the cache behind
their backs. Thread-safe.

Invariant: the future of a missing block becomes done, unless the block was dropped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from dserverfs.base import pools
from dserverfs.base.errors import DserverfsError, IntegrityError, Unreachable
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run, block_length, leading_run
from dserverfs.base.retry import Deadline
from dserverfs.reading.block_hashing import BlockHashing
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, FileBlock, MemoryBlock, read_ahead
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.cache_lookup import BlockMismatch, CacheLookup
from dserverfs.reading.hash_pages import HashPages
from dserverfs.reading.item_drops import ItemDrops
from dserverfs.reading.item_hashes import ItemHashes, Verdict
from dserverfs.reading.ranges import RangeFetcher, StaleResponse
from dserverfs.reading.single_flight import Missing, Requested, SingleFlight, wait_for
from dserverfs.remote.objects import ByteRange

logger = logging.getLogger(__name__)

# Blocks fetched by one request. 16 MiB ranges: 1 GiB in 1.2 s; 8 MiB: 1.4 s.
MAX_RUN = 16
# Threads: demanded blocks and read-ahead apart, so that a reader's next block does
# not queue behind another's read-ahead. 3 streams of read-ahead saturate two cores.
DEMAND_THREADS = 16
AHEAD_THREADS = 3


class _Unwanted(Exception):
    """The rest of the run is not wanted: its item is closed, or the cache has some of it."""


class BlockParts(NamedTuple):
    """The parts of reading that missing blocks come from and go to."""

    flight: SingleFlight
    cached: CacheLookup
    ranges: RangeFetcher
    pages: HashPages
    hashes: ItemHashes
    hashing: BlockHashing
    writer: CacheWriter
    drops: ItemDrops


class _Fill:
    """The missing blocks of one request, on their way to their readers; for one thread."""

    def __init__(
        self, parts: BlockParts, content: ItemContent, missing: list[Missing], deadline: Deadline
    ) -> None:
        """`deadline` began when the blocks were asked for, and begins anew with each."""
        self._parts = parts
        self._content = content
        self._waiting = missing  # ascending indices; a block that arrived is taken off
        self._deadline = deadline
        self._knew_hashes = False  # when the cache was asked
        self._begin()

    def run(self) -> None:
        """Settle the future of every missing block."""
        content = self._content
        try:
            self._has_unwanted()
            self._fill_from_cache()
            while self._waiting:
                run = leading_run([each.block_index for each in self._waiting])
                wanted = _bytes_of(content, run)
                self._parts.hashing.expect(content, run)
                try:
                    self._parts.ranges.fetch(content, wanted, self, self.receive, self._deadline)
                except _Unwanted:
                    pass
                except BlockMismatch as error:
                    self._lose_block(error)
                except IntegrityError:
                    raise
                except DserverfsError:
                    if not self._finds_by_hashes():
                        raise
        except IntegrityError as error:
            # Nothing of it may be mixed with what the next reader fetches.
            self._parts.drops.drop(content)
            self.abandon(error)
        except DserverfsError as error:
            self.abandon(content.named_in(error))
        except BaseException as error:
            logger.exception("%s: a fault of ours while reading", content.dataset.uri)
            self.abandon(error)

    def abandon(self, error: BaseException) -> None:
        """Let the readers of the blocks that did not arrive fail."""
        self._parts.hashes.give_up(self._content)
        self._parts.flight.abandon(self._content, self._waiting, error)

    # The version of the object, as the range fetcher asks for it

    def expected(self) -> str | None:
        self._begin()
        if self._parts.hashing.has_hashes(self._content):
            return None  # each block is compared, of whatever version it is
        return self._parts.flight.etag(self._content)

    def check(self, etag: str) -> None:
        if not self._parts.hashing.has_hashes(self._content):
            self._parts.flight.check_etag(self._content, self._blocks, etag)
        elif self._blocks.is_dropped:
            raise StaleResponse

    def receive(self, data: bytes) -> None:
        """Check, hand out and cache the next block from the store."""
        if self._has_unwanted():
            raise _Unwanted
        content, missing = self._content, self._waiting[0]
        block = MemoryBlock(data)
        index = missing.block_index
        verdict, stored_as = self._parts.hashing.check(content, index, block, self._deadline)
        self._hand_out(missing, block, verdict)
        self._parts.writer.put(BlockKey(content.key, index), block, stored_as)
        if self._has_unwanted():
            raise _Unwanted
        if stored_as.names_content and self._finds_by_hashes():
            raise _Unwanted

    def _finds_by_hashes(self) -> bool:
        """Take blocks from the cache by hashes that were not known before; return if there are."""
        if self._knew_hashes or not self._waiting:
            return False
        before = len(self._waiting)
        if self._parts.pages.obtain(self._content, self._waiting[0].block_index) is not None:
            self._fill_from_cache()
        return len(self._waiting) < before

    def _lose_block(self, error: BlockMismatch) -> None:
        """Let the readers of the next block fail; it came twice, and was wrong."""
        lost = self._waiting[:1]
        self._waiting = self._waiting[1:]
        self._parts.pages.renew(self._content, lost[0].block_index)
        self._parts.flight.abandon(self._content, lost, error)

    def _begin(self) -> None:
        """Begin an attempt; what it brings is stale if the item is dropped before it arrives."""
        self._blocks = self._parts.flight.map_of(self._content)

    def _fill_from_cache(self) -> None:
        indices = [each.block_index for each in self._waiting]
        self._knew_hashes = self._parts.hashing.has_hashes(self._content)
        found = self._parts.cached.find_many(self._content, indices)
        came = 0
        for missing, cached in zip(list(self._waiting), found, strict=True):
            if cached is None:
                continue
            came += block_length(self._content.size_in_bytes, missing.block_index)
            # Of a run the kernel reads all; of a single block, the bytes that are asked for.
            if len(indices) > 1:
                cached.block.read_ahead()
            verdict = Verdict.VERIFIED if cached.is_verified else Verdict.UNKNOWN
            with contextlib.suppress(StaleResponse):
                self._hand_out(missing, cached.block, verdict)
        if came:
            self._parts.hashing.counting.add(from_cache=came)

    def _hand_out(self, missing: Missing, block: Block, verdict: Verdict) -> None:
        """Settle a block and have it hashed if need be; raises StaleResponse."""
        index = missing.block_index
        is_unverified = self._parts.hashing.mark(self._content, index, block, verdict)
        self._parts.flight.settle(self._content, missing, block, self._blocks)
        self._waiting.remove(missing)
        if is_unverified:
            self._parts.hashing.on_block(self._content, index)

    def _has_unwanted(self) -> bool:
        """Return True if blocks were dropped since they were asked for; take them off."""
        wanted = self._parts.flight.still_wanted(self._content, self._waiting)
        has_dropped = len(wanted) < len(self._waiting)
        self._waiting = wanted
        return has_dropped


class BlockFiller:
    """Fetches missing blocks."""

    def __init__(self, parts: BlockParts, *, read_timeout_s: float) -> None:
        self._parts = parts
        self._flight = parts.flight
        self._read_timeout_s = read_timeout_s
        self._idle = threading.Condition()
        self._filling = 0  # requests that are queued or under way
        self._demand = ThreadPoolExecutor(DEMAND_THREADS, thread_name_prefix="demand")
        self._ahead = ThreadPoolExecutor(AHEAD_THREADS, thread_name_prefix="ahead")

    def request_blocks(self, content: ItemContent, run: Run) -> list[Block | Future[Block]]:
        """Return the blocks of `run`: hot ones, and futures of the others, now being fetched.

        Raises DeadlineExceeded for blocks that just did not come in time.
        """
        requested = self._flight.request(content, run)
        if requested.missing:
            self.fetch(content, requested.missing)
        return requested.blocks

    def request_ahead(self, content: ItemContent, run: Run) -> None:
        """Fetch the blocks of `run` in the background, in requests of at most MAX_RUN."""
        for first in range(run.first, run.first + run.length, MAX_RUN):
            count = min(MAX_RUN, run.first + run.length - first)
            requested = self._flight.request_ahead(content, Run(first, count))
            if missing := requested.missing:
                submit = functools.partial(self._submit, self._ahead, content, missing)
                self._parts.hashing.when_near(content, missing[0].block_index, submit)
            self._read_ahead_on_disk(requested)

    def obtain(self, content: ItemContent, index: int, deadline: Deadline) -> Block:
        """Return a block, fetched if need be; blocks. Raises as fetching does."""
        (wanted,) = self.request_blocks(content, Run(index, 1))
        return wait_for(wanted, content, deadline) if isinstance(wanted, Future) else wanted

    def fetch(self, content: ItemContent, missing: list[Missing]) -> None:
        """Have blocks fetched for readers that wait; ascending indices."""
        self._submit(self._demand, content, missing)

    def distrust(self, content: ItemContent) -> None:
        """Have an item come from the store itself from now on: bytes of it were wrong."""
        self._parts.ranges.distrust(content)

    def flush(self) -> None:
        """Return when everything requested so far has come, or could not be had."""
        with self._idle:
            self._idle.wait_for(lambda: self._filling == 0, self._read_timeout_s)

    def close(self) -> None:
        """Drop what is queued; readers then fail."""
        self._demand.shutdown(wait=False, cancel_futures=True)
        self._ahead.shutdown(wait=False, cancel_futures=True)

    def _read_ahead_on_disk(self, requested: Requested) -> None:
        in_files = [block for block in requested.blocks if isinstance(block, FileBlock)]
        if in_files:
            with contextlib.suppress(RuntimeError):  # shut down
                self._ahead.submit(read_ahead, in_files)

    def _submit(
        self, pool: ThreadPoolExecutor, content: ItemContent, missing: list[Missing]
    ) -> None:
        deadline = Deadline(self._read_timeout_s)

        def new() -> _Fill:
            return _Fill(self._parts, content, missing, deadline)

        with self._idle:
            self._filling += 1
        pools.submit(
            pool,
            lambda: self._to_its_end(lambda: new().run()),
            dropped=lambda: self._to_its_end(lambda: new().abandon(reading_is_over())),
        )

    def _to_its_end(self, fill: Callable[[], None]) -> None:
        try:
            fill()
        finally:
            with self._idle:
                self._filling -= 1
                self._idle.notify_all()


def reading_is_over() -> Unreachable:
    """Return the error of readers that wait when the mount ends."""
    return Unreachable("reading has come to its end")


def _bytes_of(content: ItemContent, run: Run) -> ByteRange:
    start = run.first * BLOCK_SIZE
    end = min(content.size_in_bytes, start + run.length * BLOCK_SIZE)
    return ByteRange(start, end - start, content.size_in_bytes)
