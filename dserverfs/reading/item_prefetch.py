"""Fetching the next items of a directory that is read in order, before they are asked for.

Used by the block reader, which tells of every item that a program begins to read. Items
of one block come whole, many at once (`many_gets`), verified as always, and go to the
cache in batches; of larger ones the first blocks come. An item that fails here is left to
the reader that asks for it. Thread-safe; `begun` never blocks.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.reading.block_filling import BlockFiller
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, MemoryBlock
from dserverfs.reading.cache.write_behind import CacheWriter, Put
from dserverfs.reading.cache_lookup import CacheLookup, HashMismatch, check_whole
from dserverfs.reading.claims import Claim, Claims
from dserverfs.reading.comparison_report import Counting
from dserverfs.reading.item_order import ItemOrder, Stretch
from dserverfs.remote.many_gets import Got, ManyGets, Want
from dserverfs.remote.signed_urls import UrlSource

logger = logging.getLogger(__name__)

# Bytes of one stretch: with the half window still unread, a third of the reader's memory.
MAX_STRETCH_BYTES = 16 * 1024 * 1024
MAX_BATCH = 64  # written to the cache together
MAX_FAILURES = 4  # in a row: the store is slow, or will have none of it


class ItemPrefetch:
    """Fetches items for readers that go from item to item."""

    def __init__(
        self,
        claims: Claims,
        filler: BlockFiller,
        urls: UrlSource,
        gets: ManyGets,
        cached: CacheLookup,
        writer: CacheWriter,
        counting: Counting,
        *,
        verify: Policy,
    ) -> None:
        self._claims = claims
        self._filler = filler
        self._urls = urls
        self._gets = gets
        self._cached = cached
        self._writer = writer
        self._counting = counting
        self._policy = verify
        self._lock = threading.Lock()
        self._order = ItemOrder()
        self._waiting: deque[Want[Claim]] = deque()
        self._is_getting = False
        # Of the getting thread: items to write to the cache, and failures in a row.
        self._arrived: list[Put] = []
        self._arrived_bytes = 0
        self._failures = 0
        self._prepare_pool = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._get_pool = ThreadPoolExecutor(1, thread_name_prefix="get")

    def begun(self, content: ItemContent) -> None:
        """Note that the item is read from its beginning."""
        with self._lock:
            stretch = self._order.read(content.dataset.uri, content.place)
        if stretch is not None:
            try:
                self._prepare_pool.submit(self._prepare, content, stretch)
            except RuntimeError:  # shut down
                pass

    def close(self) -> None:
        """Write what arrived and release all claims. Takes a moment."""
        self._prepare_pool.shutdown(wait=False, cancel_futures=True)
        self._gets.close()
        self._get_pool.shutdown()

    def _prepare(self, content: ItemContent, stretch: Stretch) -> None:
        """Take the cached items of a stretch from the cache, and have the others fetched."""
        mine: deque[Claim] = deque()
        try:
            small, large = self._chosen(content, stretch)
            mine.extend(self._claims.claim(small))
            blocks = self._cached.find_small([claim.content for claim in mine])
            found = [(claim, block) for claim, block in zip(mine, blocks, strict=True) if block]
            missing = [claim for claim, block in zip(mine, blocks, strict=True) if not block]
            mine = deque(missing)
            self._claims.settle(found)
            self._counting.add(from_cache=sum(claim.content.size_in_bytes for claim, _ in found))
            while mine:
                self._queue(mine[0])
                mine.popleft()
            for item in large:
                self._filler.request_ahead(item, Run(0, 1))
        except DserverfsError as error:
            logger.debug("%s: not fetched ahead: %s", content.dataset.uri, error)
        except Exception:
            logger.exception("%s: a fault of ours while fetching ahead", content.dataset.uri)
        finally:
            self._claims.release([*mine])

    def _chosen(
        self, content: ItemContent, stretch: Stretch
    ) -> tuple[list[ItemContent], list[ItemContent]]:
        """Return the items of a stretch that fit into the budget, small ones and larger ones."""
        small, large = [], []
        size_in_bytes = 0
        items = content.items_from(stretch.first, stretch.length)
        for item in reversed(items) if stretch.descending else items:
            size_in_bytes += min(item.size_in_bytes, BLOCK_SIZE)
            if size_in_bytes > MAX_STRETCH_BYTES:
                done = item.place - stretch.first
                if stretch.descending:
                    done = stretch.length - 1 - done
                with self._lock:
                    self._order.limit(content.dataset.uri, stretch, done)
                break
            if item.number_of_blocks > 1:
                large.append(item)
            elif item.size_in_bytes:
                small.append(item)
        return small, large

    def _queue(self, claim: Claim) -> None:
        """Queue a claimed item; raises DserverfsError if it gets no URL."""
        content = claim.content
        url = self._urls.item_url(content.dataset, content.identifier, content.neighbours)
        with self._lock:
            self._waiting.append(Want(url.url, content.size_in_bytes, claim))
            start, self._is_getting = not self._is_getting, True
        if start:
            try:
                self._get_pool.submit(self._get)
            except RuntimeError:  # shut down
                self._give_up()

    def _get(self) -> None:
        """Fetch waiting items until there are none."""
        while True:
            try:
                self._gets.run(self._take, self._done)
                self._write()
            except Exception:
                logger.exception("a fault of ours while fetching ahead")
                self._give_up()
            with self._lock:
                if not self._waiting or self._gets.is_closed:
                    self._is_getting = False
                    break
        if self._gets.is_closed:
            self._give_up()

    def _take(self) -> Want[Claim] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _done(self, bunch: list[Got[Claim]]) -> None:
        """Hand out the items that are right; leave the others to their readers."""
        right: list[tuple[Claim, Block]] = []
        failed: list[Claim] = []
        for got in bunch:
            claim = got.what
            put = self._checked(claim.content, got.content)
            if put is None:
                failed.append(claim)
                self._failures += 1
                continue
            self._failures = 0
            right.append((claim, put.block))
            size_in_bytes = claim.content.size_in_bytes
            if self._arrived_bytes + size_in_bytes > BLOCK_SIZE or len(self._arrived) >= MAX_BATCH:
                self._write()
            self._arrived.append(put)
            self._arrived_bytes += size_in_bytes
        self._claims.settle(right)
        self._claims.release(failed)
        if self._failures >= MAX_FAILURES:
            self._give_up()

    def _checked(self, content: ItemContent, data: bytes | None) -> Put | None:
        """Return an item as it is to be cached; None if it did not come or is wrong."""
        if data is None:
            return None
        is_verified = False
        try:
            is_verified = check_whole(content, data)
        except HashMismatch:
            self._filler.distrust(content)
            if self._policy is not Policy.OFF:
                return None
        self._counting.add(received=len(data), as_files=len(data) if is_verified else 0)
        key = BlockKey(content.key, 0)
        stored_as = BlockKey(content.content_key, 0) if is_verified else key
        return Put(key, stored_as, MemoryBlock(data))

    def _write(self) -> None:
        if self._arrived:
            self._writer.put_many(self._arrived)
            self._arrived, self._arrived_bytes = [], 0

    def _give_up(self) -> None:
        """Leave the waiting items to their readers."""
        with self._lock:
            left = [want.what for want in self._waiting]
            self._waiting.clear()
        self._claims.release(left)
