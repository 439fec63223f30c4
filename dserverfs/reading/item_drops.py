"""Dropping items that turned out to be wrong, everywhere at once: hashes, memory and caches.

Used by all who find out. Thread-safe; waits for one batch of the cache's writer.
"""

from __future__ import annotations

from collections.abc import Callable

from dserverfs.base.items import ItemContent, Run
from dserverfs.reading.cache.blocks import is_sound
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.cache_lookup import CacheLookup
from dserverfs.reading.item_hashes import ItemHashes
from dserverfs.reading.ranges import RangeFetcher
from dserverfs.reading.single_flight import SingleFlight


class ItemDrops:
    """Forgets what is wrong."""

    def __init__(
        self,
        hashes: ItemHashes,
        flight: SingleFlight,
        writer: CacheWriter,
        cached: CacheLookup,
        ranges: RangeFetcher,
    ) -> None:
        self._hashes = hashes
        self._flight = flight
        self._writer = writer
        self._cached = cached
        self._ranges = ranges
        self._watchers: list[Callable[[ItemContent], None]] = []

    def watch(self, tell: Callable[[ItemContent], None]) -> None:
        """Have `tell` called, in any thread, with every item that turns out wrong."""
        self._watchers.append(tell)

    def drop(self, content: ItemContent) -> None:
        """Forget every block of an item, here and in the cache; its readers are told, and fail."""
        self._ranges.distrust(content)
        self._hashes.forget(content)
        # Nothing that was asked for before the first time is settled afterwards; a reader
        # that opens the item between the two may find blocks that are just being dropped,
        # and fails, too.
        readers = self._flight.drop(content)
        self._writer.discard(content.key)
        self._cached.drop(content)
        readers += self._flight.drop(content)
        for tell in readers:
            tell()
        for tell_of in self._watchers:
            tell_of(content)

    def drop_damaged(self, content: ItemContent, run: Run) -> None:
        """Forget those blocks of a run that are not what was stored in the cache."""
        for index in range(run.first, run.first + run.length):
            block = self._flight.take_out(content, index)
            if block is not None and not is_sound(block):
                self._cached.drop_damaged(content, index)
