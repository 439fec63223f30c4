"""The hashes of an item's blocks that the cache has. Blocking; reads without a server."""

from __future__ import annotations

from collections.abc import Sequence

from dserverfs.base.block_hashes import split
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey, length_of_page
from dserverfs.reading.cache.blocks import DamagedBlock


def hashes_kept(cache: BlockCache, item: str, size_in_bytes: int, page: int) -> Sequence[bytes]:
    """Return a page of the hashes of an item, or of a content; none if it is not here."""
    length = length_of_page(size_in_bytes, page)
    block = cache.load(BlockKey.of_hashes(item, size_in_bytes, page), length)
    try:
        return [] if block is None else split(block.read(0, length))
    except DamagedBlock:
        return []
