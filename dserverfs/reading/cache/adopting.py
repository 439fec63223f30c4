"""Taking the bytes of a dataset that was frozen here into the cache, without a download.

Used after a freeze. Blocking.
"""

from __future__ import annotations

import logging
import os
import threading

from dserverfs.base.items import BLOCK_SIZE, block_length, content_key, item_key, number_of_blocks
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import DserverURI, Item
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.cache.write_behind import CacheWriter, Put

logger = logging.getLogger(__name__)

# More would push blocks out of the cache that are read; a guess, not measured.
MAX_ADOPTED_BYTES = 8 * 1024**3


def adopt(
    cache: BlockCache,
    uri: DserverURI,
    local: LocalDataset,
    stop: threading.Event,
    *,
    max_bytes: int = MAX_ADOPTED_BYTES,
) -> None:
    """Take the items' bytes over until `stop`; items that fail can be fetched."""
    writer = CacheWriter(cache)
    left = max_bytes
    try:
        for item in local.items.values():
            left -= item.size_in_bytes
            if stop.is_set() or left < 0:
                break
            content = content_key(local.hash_function, item.hash, item.size_in_bytes)
            try:
                key = item_key(uri, item.identifier, item.hash)
                _adopt_item(writer, key, content, local, item)
            except OSError as error:
                logger.info("%s: not taken into the cache: %s", item.relpath, error)
    finally:
        writer.close()


def _adopt_item(
    writer: CacheWriter, key: str, content: str, local: LocalDataset, item: Item
) -> None:
    """Store the blocks of an item as verified: it was hashed as it is now."""
    with local.path_of(item).open("rb", buffering=0) as file:
        for index in range(number_of_blocks(item.size_in_bytes)):
            length = block_length(item.size_in_bytes, index)
            data = os.pread(file.fileno(), length, index * BLOCK_SIZE)
            if len(data) != length or os.fstat(file.fileno()).st_mtime_ns != item.mtime_ns:
                raise OSError("changed after it was frozen")
            put = Put(BlockKey(key, index), BlockKey(content, index), MemoryBlock(data))
            writer.put_many([put])
