"""Verified blocks of items for all readers of this process: the parts of reading, put together.

Used by open items, and by all who ask what is cached. Each part knows only those below it:

    ItemPrefetch, Verification   the next items; what is compared before bytes are served
    Claims
    BlockFiller                  missing blocks, from the cache or by ranges from the store
    BlockHashing                 compares blocks, hashes items while their blocks arrive
    ItemDrops                    forgets what is wrong
    ItemHashes, SingleFlight     what is verified; what is hot or under way
    SmallItems                   all bytes of many items, for those who hand them on
    CacheLookup, CacheWriter     the disk cache, read and written behind
    HashPages                    the hashes of blocks
    HotBlocks, RangeFetcher      memory and open files; the store

Requests answer at once with blocks or futures, so that no thread of a caller waits for a
block unless it wants to. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dserverfs.base.hashes import Hasher, Policy, hasher_of
from dserverfs.base.items import ItemContent
from dserverfs.reading.block_filling import BlockFiller, BlockParts
from dserverfs.reading.block_hashing import BlockHashing
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.write_behind import PATIENCE_S, CacheWriter
from dserverfs.reading.cache_lookup import CacheLookup
from dserverfs.reading.claims import Claims
from dserverfs.reading.comparison_report import ComparisonReport
from dserverfs.reading.hash_pages import HashPages, HashSource, NoHashes
from dserverfs.reading.hot_blocks import HotBlocks
from dserverfs.reading.item_drops import ItemDrops
from dserverfs.reading.item_hashes import STRICT_LIMIT_BYTES, ItemHashes
from dserverfs.reading.item_prefetch import ItemPrefetch
from dserverfs.reading.pending_blocks import FAILURE_KEPT_S, PendingBlocks
from dserverfs.reading.ranges import RangeFetcher
from dserverfs.reading.single_flight import SingleFlight
from dserverfs.reading.small_items import SmallItems
from dserverfs.reading.verification import MAX_NAMED_LARGE, Verification
from dserverfs.remote.objects import Storage
from dserverfs.remote.signed_urls import UrlSource

READ_TIMEOUT_S = 120.0


class BlockReader:
    """Blocks of items."""

    def __init__(
        self,
        urls: UrlSource,
        storage: Storage,
        cache: BlockCache,
        hot: HotBlocks,
        *,
        verify: Policy = Policy.COMPLETE,
        strict_limit_in_bytes: int = STRICT_LIMIT_BYTES,
        read_timeout_s: float = READ_TIMEOUT_S,
        failure_kept_s: float = FAILURE_KEPT_S,
        max_named_large: int = MAX_NAMED_LARGE,
        make_hasher: Callable[[str], Hasher | None] = hasher_of,
        block_hashes: HashSource | None = None,
        cache_patience_s: float | None = None,
    ) -> None:
        """`cache` closes what it removed by `hot.close_removed`.

        A block waits for `cache_patience_s` for a disk that is slower than the network.
        """
        self.read_timeout_s = read_timeout_s
        self.hashes = hashes = ItemHashes(
            verify, strict_limit_in_bytes=strict_limit_in_bytes, make_hasher=make_hasher
        )
        self._writer = writer = CacheWriter(
            cache,
            hot.attach_file,
            patience_s=PATIENCE_S if cache_patience_s is None else cache_patience_s,
        )
        self.pages = pages = HashPages(cache, block_hashes or NoHashes())
        self.cached = cached = CacheLookup(cache, verify, writer, pages)
        pending = PendingBlocks()
        self.flight = flight = SingleFlight(
            hot, pending, cache, writer, cached, failure_kept_s=failure_kept_s
        )
        self.ranges = ranges = RangeFetcher(urls, storage)
        self.drops = drops = ItemDrops(hashes, flight, writer, cached, ranges)
        hashing = BlockHashing(hashes, pages, flight, writer, drops)
        self.report = ComparisonReport(hashes, pages, hashing.counting)
        parts = BlockParts(flight, cached, ranges, pages, hashes, hashing, writer, drops)
        self.filler = filler = BlockFiller(parts, read_timeout_s=read_timeout_s)
        self.verification = Verification(parts, filler, max_named_large=max_named_large)
        self.small = SmallItems(hashes, flight, cached, hashing.counting)
        claims = Claims(hot, pending, writer, filler)
        self.prefetch = ItemPrefetch(
            claims,
            filler,
            urls,
            storage.many_gets(),
            cached,
            writer,
            hashing.counting,
            verify=verify,
        )

    def close(self) -> None:
        """Drop what is queued, write what was fetched; readers then fail."""
        self.filler.close()
        self.prefetch.close()
        self.verification.close()
        self.pages.close()
        self._writer.close()
        self.flight.clear()

    def flush(self) -> None:
        """Return when everything requested so far is in the cache, or could not be had."""
        self.filler.flush()
        self._writer.flush()

    def is_at_hand(self, content: ItemContent) -> bool:
        """Return True if block 0 needs no request; then the rest probably needs none, too."""
        return content.size_in_bytes == 0 or self.flight.find(content, 0) is not None

    def has_all(self, content: ItemContent) -> bool:
        """Return True if the cache has every block of the item."""
        return self.cached.has_all(content)

    def has_all_verified(self, content: ItemContent) -> bool:
        """Return True if the cache has every block of the item, verified."""
        return self.cached.has_all_verified(content)

    def held(self, contents: Sequence[ItemContent]) -> list[int]:
        """Return how many bytes of each item the cache has, verified or not."""
        return self.cached.held(contents)

    def held_in(self, content: ItemContent, blocks: Sequence[int]) -> int:
        """Return how many bytes of these blocks the cache has, verified or not."""
        return self.cached.held_in(content, blocks)

    def drop(self, content: ItemContent) -> None:
        """Forget every block of an item that turned out to be wrong, here and in the cache."""
        self.drops.drop(content)
