"""The bytes of small items that are here and were compared with the manifest, many at a time.

Used by a mount's channel, which hands them to the kernel before a program asks for them.
Nothing is fetched. Thread-safe; blocks on the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from dserverfs.base.hashes import Buffer, Policy
from dserverfs.base.items import ItemContent
from dserverfs.reading.cache.block_files import MIN_FILE_SIZE
from dserverfs.reading.cache.blocks import DamagedBlock
from dserverfs.reading.cache_lookup import CacheLookup
from dserverfs.reading.comparison_report import Counting
from dserverfs.reading.item_hashes import ItemHashes
from dserverfs.reading.single_flight import SingleFlight

# Larger ones lie in files of the cache, and one read of them is little beside their bytes.
SMALL_BYTES = MIN_FILE_SIZE


def is_small(content: ItemContent) -> bool:
    """Return whether an item is one of these; an empty one has nothing to hand out."""
    return 0 < content.size_in_bytes < SMALL_BYTES


class SmallItems:
    """Looks them up."""

    def __init__(
        self, hashes: ItemHashes, flight: SingleFlight, cached: CacheLookup, counting: Counting
    ) -> None:
        self._hashes = hashes
        self._flight = flight
        self._cached = cached
        self._counting = counting

    def compared(self, contents: Sequence[ItemContent]) -> list[Buffer | None]:
        """Return for each small item all its bytes; None if they are not here, or not compared."""
        found = self._in_memory(contents)
        lacking = [place for place, data in enumerate(found) if data is None]
        blocks = self._cached.find_compared([contents[place] for place in lacking])
        came = 0
        for place, block in zip(lacking, blocks, strict=True):
            if block is not None:
                size = contents[place].size_in_bytes
                with contextlib.suppress(DamagedBlock):
                    found[place] = block.read(0, size)
                    came += size
        self._counting.add(from_cache=came)
        return found

    def _in_memory(self, contents: Sequence[ItemContent]) -> list[Buffer | None]:
        if self._hashes.policy is Policy.OFF:  # nobody compares what is in memory
            return [None] * len(contents)
        return [
            data if data is not None and self._hashes.can_hash(content) else None
            for content, data in zip(contents, self._flight.in_memory(contents), strict=True)
        ]
