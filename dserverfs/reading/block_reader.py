"""Reading items: blocks from memory, the cache or the store, each fetched once.

Used by the readers of items (`open_item`). `want` answers at once or hands out
what to wait for, so that no thread of a caller waits for a block unless it wants
to. Thread-safe.

Invariant: a block that readers wait for is in `_pending` until its future is
done, and then in `_loaded`, under one lock, so that it is never fetched twice
at a time.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dserverfs.base.errors import DeadlineExceeded, DserverfsError, IntegrityError, Unreachable
from dserverfs.base.hashes import Policy
from dserverfs.base.items import ItemContent, Run, leading_run
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache.block_cache import BlockCache, BlockKey
from dserverfs.reading.cache.blocks import Block, FileBlock, MemoryBlock, is_sound, read_ahead
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.cache_lookup import CachedItems, check_whole, mismatch
from dserverfs.reading.hot_blocks import LoadedBlocks, RecentFailures, Shelf
from dserverfs.reading.item_prefetch import Claim, Prefetch
from dserverfs.reading.pending_blocks import PendingBlocks
from dserverfs.reading.ranges import Fetcher, Outdated, Unwanted, wait_for
from dserverfs.reading.run_receiver import RunReceiver
from dserverfs.reading.verification import STRICT_LIMIT_BYTES, Verdict, Verification
from dserverfs.remote.many_gets import ManyGets
from dserverfs.remote.objects import Storage
from dserverfs.remote.signed_urls import UrlSource

logger = logging.getLogger(__name__)


# Blocks fetched by one request. 16 MiB ranges: 1 GiB in 1.2 s; 8 MiB: 1.4 s.
MAX_RUN = 16
READ_TIMEOUT_S = 120.0
# Threads: demanded blocks and read-ahead apart, so that a reader's next block does
# not queue behind another's read-ahead. 3 streams of read-ahead saturate two cores.
DEMAND_THREADS = 16
AHEAD_THREADS = 3


class Reader:
    """Bytes of items for all who ask in this process."""

    def __init__(
        self,
        resolver: UrlSource,
        storage: Storage,
        cache: BlockCache,
        gets: ManyGets | None = None,
        *,
        verify: Policy = Policy.COMPLETE,
        strict_limit_in_bytes: int = STRICT_LIMIT_BYTES,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.read_timeout_s = read_timeout_s
        self._policy = verify
        self._fetcher = Fetcher(resolver, storage)
        self._cache = cache
        self._writer = CacheWriter(cache, self._on_file)
        self._cached = CachedItems(cache, verify, self.found_right)
        self.verification = Verification(self, verify, strict_limit_in_bytes)
        self._lock = threading.Lock()
        self._idle = threading.Condition()
        self._filling = 0  # how many threads are
        self._pending = PendingBlocks()
        # A quarter of the files that may be open; the mount allows itself more.
        self._loaded = LoadedBlocks(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        cache.on_removal(lambda: self._loaded.close_removed(self._lock))
        self._tell_drop: Callable[[ItemContent], None] = lambda content: None
        self._drops: dict[str, int] = {}  # how often each item turned out wrong
        self._failures = RecentFailures()
        self._demand = ThreadPoolExecutor(DEMAND_THREADS, thread_name_prefix="demand")
        self._ahead = ThreadPoolExecutor(AHEAD_THREADS, thread_name_prefix="ahead")
        self._prefetch = Prefetch(
            self, resolver, gets or ManyGets(), self._cached, self._writer, verify=verify
        )

    def close(self) -> None:
        """Drop what is queued, write what was fetched; readers then fail."""
        self._demand.shutdown(wait=False, cancel_futures=True)
        self._ahead.shutdown(wait=False, cancel_futures=True)
        self._prefetch.close()
        self.verification.close()
        self._writer.close()
        with self._lock:
            self._loaded.clear()

    def on_drop(self, tell: Callable[[ItemContent], None]) -> None:
        """Let `tell` know of each item whose bytes turned out wrong after some were handed out.

        It is called in a fetching thread and must not wait for a read to end.
        """
        self._tell_drop = tell

    def flush(self) -> None:
        """Return when everything asked for so far is in the cache, or could not be had."""
        with self._idle:
            self._idle.wait_for(lambda: self._filling == 0, self.read_timeout_s)
        self._writer.flush()

    def times_dropped(self, content: ItemContent) -> int:
        """Return how often the item's bytes turned out wrong."""
        return self._drops.get(content.key, 0)

    def is_at_hand(self, content: ItemContent) -> bool:
        """Return whether the begin of an item needs no request: most of it is likely not to."""
        return content.size_in_bytes == 0 or self.at_hand(content, 0) is not None

    def is_under_way(self, content: ItemContent) -> bool:
        """Return whether a block of the item is just being fetched for somebody."""
        with self._lock:
            return self._pending.has_of(content.key)

    def want(self, content: ItemContent, run: Run) -> list[Block | Future[Block]]:
        """Return the blocks of `run`: loaded ones, and futures of the others, now being fetched.

        Raises DeadlineExceeded for blocks that just could not be had in time.
        """
        if self._failures:
            keys = [BlockKey(content.key, run.first + place) for place in range(run.length)]
            with self._lock:
                self._failures.check([key for key in keys if key not in self._loaded])
        return self._ask(content, run, self._demand)

    def opened(self, content: ItemContent) -> Shelf:
        """Return where the item's blocks are that can be read at once; see there."""
        with self._lock:
            shelf = self._loaded.shelf(content.key)
            shelf.readers += 1
            return shelf

    def note_use(self, block: Block) -> None:
        """Note that a block is read: it stays longer than others. Never waits."""
        if not block.used:
            block.used = True
            self._cache.note_use(block)

    def closed(self, content: ItemContent, shelf: Shelf) -> None:
        """Keep no memory for an item that somebody read, where the cache has it on disk.

        Of what is fetched ahead, nothing is if that was the last who had it open.
        """
        with self._lock:
            shelf.readers -= 1
            if content.number_of_blocks > 1:
                self._loaded.leave_memory(content.key)
                if shelf.readers == 0:
                    self._pending.drop_unasked(content.key)

    def want_ahead(self, content: ItemContent, run: Run) -> None:
        """Fetch the blocks of `run` in the background, in requests of at most MAX_RUN."""
        for first in range(run.first, run.first + run.length, MAX_RUN):
            count = min(MAX_RUN, run.first + run.length - first)
            wanted = self._ask(content, Run(first, count), self._ahead)
            at_hand = [entry for entry in wanted if isinstance(entry, FileBlock)]
            if at_hand:
                with contextlib.suppress(RuntimeError):  # shut down
                    self._ahead.submit(read_ahead, at_hand)

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
                    claims.append(Claim(content, self._pending.add(key)))
        return claims

    def settle(self, settled: Sequence[tuple[Claim, Block]]) -> None:
        """Hand out claimed items."""
        with self._lock:
            for claim, block in settled:
                self._arrive_locked(BlockKey(claim.content.key, 0), block, claim.future)
        for claim, block in settled:
            claim.future.set_result(block)

    def release(self, claims: Sequence[Claim]) -> None:
        """Give claims back: what somebody waits for is fetched in the usual way."""
        for claim in claims:
            key = BlockKey(claim.content.key, 0)
            with self._lock:
                if self._pending.drop_if_unasked(key):
                    continue
            try:
                deadline = Deadline(self.read_timeout_s)
                self._demand.submit(self._fill, claim.content, [(0, claim.future)], deadline)
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
                block = self._loaded.get(key)
                if block is None:
                    block = self._writer.waiting(key)
                    if block is not None:
                        self._load_locked(key, block)
                if block is not None:
                    self.note_use(block)
                    answer.append(block)
                    continue
                future = self._pending.get(key)
                if future is None:
                    future = self._pending.add(key)
                    missing.append((index, future))
                if pool is self._demand:
                    self._pending.ask(key)
                answer.append(future)
        if missing:
            try:
                pool.submit(self._fill, content, missing, Deadline(self.read_timeout_s))
            except RuntimeError:
                self._abandon(content, missing, Unreachable("reading has come to its end"))
        return answer

    def gave_up(self, content: ItemContent, run: Run) -> None:
        """Note that somebody waited for these blocks as long as may be."""
        error = DeadlineExceeded(f"{content.label}: the store does not answer in time")
        keys = [BlockKey(content.key, run.first + place) for place in range(run.length)]
        with self._lock:
            self._failures.note([key for key in keys if key in self._pending], error)

    def _fill(
        self, content: ItemContent, missing: list[tuple[int, Future[Block]]], deadline: Deadline
    ) -> None:
        """Settle every future in `missing` (ascending block indices), in a pool's thread.

        `deadline` began when they were asked for, and begins anew with each block.
        """
        waiting = list(missing)
        with self._idle:
            self._filling += 1
        try:
            self.leave_unwanted(content, waiting)
            self._fill_from_cache(content, waiting)
            receiver = RunReceiver(self, content, waiting, deadline)
            while waiting:
                run = leading_run([index for index, _ in waiting])
                with contextlib.suppress(Unwanted):
                    self._fetcher.fetch(content, run, receiver, deadline)
        except IntegrityError as error:
            # Nothing of it may be mixed with what the next reader fetches.
            self.drop(content)
            self._abandon(content, waiting, error)
        except DserverfsError as error:
            self._abandon(content, waiting, content.named_in(error))
        except BaseException as error:
            logger.exception("%s: a fault of ours while reading", content.dataset.uri)
            self._abandon(content, waiting, error)
            raise
        finally:
            with self._idle:
                self._filling -= 1
                self._idle.notify_all()

    def _fill_from_cache(
        self, content: ItemContent, waiting: list[tuple[int, Future[Block]]]
    ) -> None:
        """Settle those of `waiting` that are on disk and of use, and take them off."""
        dropped = self.times_dropped(content)
        # Of a run, all that is fetched is read ahead; of a single block, what is asked for.
        ahead = len(waiting) > 1
        found = self._cached.find_many(content, [index for index, _ in waiting])
        for entry, cached in zip(list(waiting), found, strict=True):
            if cached is None:
                continue
            index, future = entry
            if ahead:
                cached.block.read_ahead()
            verdict = Verdict.RIGHT if cached.is_right else Verdict.UNKNOWN
            unverified = self._is_unverified(content, index, cached.block, verdict)
            try:
                self._settle(content, index, future, cached.block, dropped)
            except Outdated:
                continue
            waiting.remove(entry)
            if unverified:
                self.verification.arrived(content, index)

    def leave_unwanted(
        self, content: ItemContent, waiting: list[tuple[int, Future[Block]]]
    ) -> bool:
        """Take off `waiting` what was dropped since it was asked for; return whether any was."""
        with self._lock:
            wanted = [
                (index, future)
                for index, future in waiting
                if self._pending.is_wanted(BlockKey(content.key, index), future)
            ]
        dropped = len(wanted) < len(waiting)
        waiting[:] = wanted
        return dropped

    def take(
        self,
        content: ItemContent,
        waiting: list[tuple[int, Future[Block]]],
        data: bytes,
        dropped: int,
        deadline: Deadline,
    ) -> None:
        """Settle the first of `waiting` with what was fetched, and take it off."""
        index, future = waiting[0]
        block = MemoryBlock(data)
        verdict = self._check(content, index, block, deadline)
        unverified = self._is_unverified(content, index, block, verdict)
        self._settle(content, index, future, block, dropped)
        del waiting[0]
        stored_as = content.content_key if verdict is Verdict.RIGHT else content.key
        self._writer.put(BlockKey(content.key, index), block, BlockKey(stored_as, index))
        if unverified:
            self.verification.arrived(content, index)

    def _check(
        self, content: ItemContent, index: int, block: MemoryBlock, deadline: Deadline
    ) -> Verdict:
        """Return what is known of a block that came; raises IntegrityError if it cannot be right.

        A whole item in one block is compared, and so is one of several of which
        this is the last that was missing. Whoever read that one got wrong bytes
        before, so that reader must fail; nothing of the item stays, and the next
        reader fetches it anew.
        """
        if self._policy is Policy.OFF:
            return Verdict.UNKNOWN
        if content.number_of_blocks == 1:
            return Verdict.RIGHT if check_whole(content, block.data) else Verdict.UNKNOWN
        verdict = Verdict.UNKNOWN
        known = self.verification.recognises(content, index, block)
        if index == content.number_of_blocks - 1 and not known:
            verdict = self.verification.verdict(
                content, block, lambda index: self._is_coming(content, index), deadline
            )
        if verdict is Verdict.WRONG:
            raise mismatch(content)
        return verdict

    def _is_unverified(
        self, content: ItemContent, index: int, block: Block, verdict: Verdict
    ) -> bool:
        """Return whether the item has to be compared because of a block; notes that."""
        if verdict is Verdict.RIGHT or self._policy is Policy.OFF:
            return False
        if self.verification.recognises(content, index, block):
            return False
        self.verification.doubt(content)
        return True

    # What the verification asks for and tells

    def at_hand(self, content: ItemContent, index: int) -> Block | None:
        """Return a block that was fetched, from wherever it is now."""
        key = BlockKey(content.key, index)
        with self._lock:
            block = self._loaded.get(key) or self._writer.waiting(key)
        if block is None:
            cached = self._cached.find(content, index)
            block = None if cached is None else cached.block
        return block

    def obtain(self, content: ItemContent, index: int, deadline: Deadline) -> Block:
        """Return a block, fetched if need be; blocks."""
        (wanted,) = self.want(content, Run(index, 1))
        return wait_for(wanted, content, deadline) if isinstance(wanted, Future) else wanted

    def has_all(self, content: ItemContent) -> bool:
        """Return whether the cache has every block of the item."""
        return self._cached.has_all(content)

    def all_verified(self, content: ItemContent) -> bool:
        """Return whether the cache has every block of the item, verified."""
        return self._cached.has_all_verified(content)

    def found_right(self, content: ItemContent, serials: Sequence[int]) -> None:
        """Enter the item's blocks as verified, once they are on disk."""
        self._writer.enter_verified(content.key, content.content_key, serials)

    def found_wrong(self, content: ItemContent) -> Exception:
        """Forget everything of the item; return what to tell its readers."""
        self.drop(content)
        return mismatch(content)

    def _is_coming(self, content: ItemContent, index: int) -> bool:
        key = BlockKey(content.key, index)
        with self._lock:
            if key in self._pending or key in self._loaded:
                return True
        return self.at_hand(content, index) is not None

    def drop(self, content: ItemContent) -> None:
        """Forget every block of an item that turned out to be wrong, here and in the cache."""
        self.verification.forget(content)
        # Nothing that was asked for before the first time is settled afterwards; who
        # comes between the two may find what is just being dropped, and is refused, too.
        self._count_drop(content)
        self._writer.discard(content.key)
        self._cached.drop(content)
        self._count_drop(content)
        self._tell_drop(content)

    def _count_drop(self, content: ItemContent) -> None:
        with self._lock:
            self._drops[content.key] = self._drops.get(content.key, 0) + 1
            self._fetcher.forget(content)
            self._loaded.drop_item(content.key)

    def drop_damaged(self, content: ItemContent, run: Run) -> None:
        """Forget blocks of which one is not what was stored."""
        for index in range(run.first, run.first + run.length):
            with self._lock:
                block = self._loaded.pop(BlockKey(content.key, index))
            if block is not None and not is_sound(block):
                self._cached.drop_damaged(content, index)

    def _settle(
        self, content: ItemContent, index: int, future: Future[Block], block: Block, dropped: int
    ) -> None:
        """Hand out a block; raises Outdated if the item was dropped since it was asked for."""
        key = BlockKey(content.key, index)
        with self._lock:
            if self.times_dropped(content) != dropped:
                raise Outdated
            self._arrive_locked(key, block, future)
            if isinstance(block, MemoryBlock) and not block.row:
                self._writer.announce(key, block)
        future.set_result(block)

    def _abandon(
        self,
        content: ItemContent,
        waiting: Sequence[tuple[int, Future[Block]]],
        error: BaseException,
    ) -> None:
        self.verification.failed(content)
        keys = [BlockKey(content.key, index) for index, _ in waiting]
        with self._lock:
            for key, (_, future) in zip(keys, waiting, strict=True):
                self._pending.remove(key, future)
            if isinstance(error, DeadlineExceeded):
                self._failures.note(keys, error)
        for _, future in waiting:
            future.set_exception(error)

    def _arrive_locked(self, key: BlockKey, block: Block, future: Future[Block]) -> None:
        self._pending.remove(key, future)
        self._load_locked(key, block)

    def _load_locked(self, key: BlockKey, block: Block) -> None:
        self._loaded.add(key, block)
        self._cache.note_use(block)

    def _on_file(self, key: BlockKey, block: Block) -> None:
        """Have the block from its file when memory is short: the kernel may take its pages."""
        with self._lock:
            self._loaded.put_behind(key, block)
            self._cache.note_use(block)
