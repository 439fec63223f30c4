"""Pinning items: their blocks stay in the cache, and those that nothing pins are let go.

Used by who pins and unpins; the record of what is pinned is `pins`. An item may be pinned
before its blocks are here: the cache holds each that comes. Blocks are shared, by their own
hashes or those of whole items, so none is let go by the item that it came for: all that
pinned items still need is looked up first. That takes 20 us a block, once an `unpin`.
Raises CacheUnusable and LocalDiskError. After a crash blocks may be held that nothing
pins, until the next `release`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from dserverfs.base.items import ItemContent, number_of_blocks
from dserverfs.base.model import DserverURI
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import PAGE, BlockKey
from dserverfs.reading.cache.kept_hashes import hashes_kept
from dserverfs.reading.cache.maintenance import usable
from dserverfs.reading.cache.pins import PinnedItem

MAX_BLOCKS = 1 << 24  # of an item: 16 TiB
_TOGETHER = 200  # blocks that are looked for at once


def pin(cache: BlockCache, server: str, contents: Sequence[ItemContent]) -> None:
    """Have the blocks of items stay, those that are here and those that come."""
    datasets = {content.dataset.uri: content.dataset for content in contents}
    for dataset in datasets.values():
        uri = str(DserverURI(server, dataset.base_uri, dataset.uuid))
        items = [
            PinnedItem(
                uri,
                content.relpath_of(),
                content.key,
                content.content_key,
                content.size_in_bytes,
            )
            for content in contents
            if content.dataset.uri == dataset.uri and not content.is_refused
            # A manifest may have any size; so many blocks no cache has.
            if content.number_of_blocks <= MAX_BLOCKS
        ]
        cache.pins.add(uri, dataset.name, items)
        with usable(cache) as table:
            for keys in _keys(cache, items):
                table.pin(keys)


def release(cache: BlockCache) -> None:
    """Let all blocks be evicted again that no pinned item has."""
    with usable(cache) as table:
        # Held blocks before items: what is pinned and held after the first is not among them.
        held = table.pinned_rows()
        for keys in _keys(cache, cache.pins.items()):
            held -= table.rows_of(keys)
        table.release(held)


def forget(cache: BlockCache) -> None:
    """Unpin all."""
    for dataset in cache.pins.datasets():
        cache.pins.remove_dataset(dataset.uri)
    release(cache)


def is_here(cache: BlockCache, item: PinnedItem) -> bool:
    """Return whether the cache has every block of an item."""
    blocks = _blocks(cache, item)
    with usable(cache) as table:
        while some := list(itertools.islice(blocks, _TOGETHER)):
            there = table.present([key for keys in some for key in keys])
            if not all(there.intersection(keys) for keys in some):
                return False
    return True


def _keys(cache: BlockCache, items: Iterable[PinnedItem]) -> Iterator[list[str]]:
    """Yield the keys that the blocks of items, and their hashes, may have, some at a time."""
    blocks = itertools.chain.from_iterable(
        itertools.chain(_blocks(cache, item), _pages(item)) for item in items
    )
    while some := list(itertools.islice(blocks, _TOGETHER)):
        yield [key for keys in some for key in keys]


def _blocks(cache: BlockCache, item: PinnedItem) -> Iterator[list[str]]:
    """Yield for each block of an item the keys that it may have."""
    number = number_of_blocks(item.size_in_bytes)
    for first in range(0, number, PAGE):
        indices = range(first, min(number, first + PAGE))
        keys = [[BlockKey(name, index).as_text() for name in _names(item)] for index in indices]
        if number > 1:
            for name in _names(item):
                hashes = hashes_kept(cache, name, item.size_in_bytes, first // PAGE)
                for each, hash in zip(keys, hashes, strict=False):  # none, or as many
                    each.append(BlockKey.of_hash(hash).as_text())
        yield from keys


def _pages(item: PinnedItem) -> Iterator[list[str]]:
    """Yield for each page of the hashes of an item's blocks the keys that it may have."""
    number = number_of_blocks(item.size_in_bytes)
    for page in range(-(-number // PAGE) if number > 1 else 0):
        yield [
            BlockKey.of_hashes(name, item.size_in_bytes, page).as_text() for name in _names(item)
        ]


def _names(item: PinnedItem) -> tuple[str, str]:
    return item.content, item.key


def pinned(cache: BlockCache, contents: Iterable[ItemContent]) -> set[str]:
    """Return the keys of those items that are pinned, or whose content is."""
    contents = list(contents)
    there = cache.pins.among(
        {name for content in contents for name in (content.key, content.content_key)}
    )
    return {each.key for each in contents if there.intersection((each.key, each.content_key))}
