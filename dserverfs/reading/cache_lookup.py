"""The block cache's part in reading: blocks of an item, or of another with the same content.

The only module that knows what a block's two keys stand for: its item's, and its
content's once that was verified. Thread-safe; blocks on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dserverfs.base.errors import IntegrityError
from dserverfs.base.hashes import Policy, digest
from dserverfs.base.items import ItemContent, block_length
from dserverfs.reading.cache.block_cache import BlockCache, BlockKey
from dserverfs.reading.cache.blocks import Block, DamagedBlock
from dserverfs.reading.cache.write_behind import CacheWriter


class Cached(NamedTuple):
    """A block out of the cache."""

    block: Block
    is_verified: bool  # or need not be


class HashMismatch(IntegrityError):
    """The whole item came, and does not have the manifest's hash."""


def check_whole(content: ItemContent, data: bytes | memoryview) -> bool:
    """Return True if `data`, an item in one block, was compared; raises HashMismatch.

    A block takes 1.1 ms of MD5: too little to hand out anything unchecked.
    """
    found = digest(content.hash_function, data)
    if found is not None and found != content.hash:
        raise HashMismatch(f"{content.label} has hash {found}, the manifest says {content.hash}")
    return found is not None


def mismatch(content: ItemContent) -> IntegrityError:
    """Return the error for readers of an item of several blocks that is not the manifest's."""
    return IntegrityError(
        f"{content.label} does not have the hash "
        f"{content.hash} of the manifest; nothing of it is kept"
    )


class CacheLookup:
    """Items on disk."""

    def __init__(self, cache: BlockCache, policy: Policy, writer: CacheWriter) -> None:
        self._cache = cache
        self._policy = policy
        self._writer = writer

    def find(self, content: ItemContent, index: int) -> Cached | None:
        """Return the block if it is on disk and not known to be wrong."""
        return self.find_many(content, [index])[0]

    def find_many(self, content: ItemContent, indices: Sequence[int]) -> list[Cached | None]:
        """As `find`, for several blocks with one question to the database."""
        lengths = [block_length(content.size_in_bytes, index) for index in indices]
        found = self._cache.load_many(
            [
                (BlockKey(key, index), length)
                for key in (content.content_key, content.key)
                for index, length in zip(indices, lengths, strict=True)
            ]
        )
        return [
            Cached(verified, True) if verified is not None else self._unverified(content, own)
            for verified, own in zip(found[: len(indices)], found[len(indices) :], strict=True)
        ]

    def _unverified(self, content: ItemContent, block: Block | None) -> Cached | None:
        if block is None:
            return None
        if self._policy is Policy.OFF:
            return Cached(block, True)
        if content.number_of_blocks > 1:
            return Cached(block, False)
        try:  # it was kept without being compared
            if check_whole(content, block.read(0, content.size_in_bytes)):
                self._writer.enter_verified(content.key, content.content_key, [block.serial])
        except (DamagedBlock, HashMismatch):
            self._cache.drop([BlockKey(content.key, 0)])
            return None
        return Cached(block, True)

    def find_small(self, contents: Sequence[ItemContent]) -> list[Block | None]:
        """Return for each item of one block its bytes if no comparison is needed."""
        sizes = [content.size_in_bytes for content in contents]
        verified = [BlockKey(content.content_key, 0) for content in contents]
        own = [BlockKey(content.key, 0) for content in contents]
        blocks = self._cache.load_many(
            [*zip(verified, sizes, strict=True), *zip(own, sizes, strict=True)]
        )
        return [
            block or (other if self._policy is Policy.OFF else None)
            for block, other in zip(blocks[: len(own)], blocks[len(own) :], strict=True)
        ]

    def has_all(self, content: ItemContent) -> bool:
        """Return True if the whole item is on disk, compared or not."""
        keys = (content.content_key, content.key)
        return any(self._cache.count(key) == content.number_of_blocks for key in keys)

    def has_all_verified(self, content: ItemContent) -> bool:
        return self._cache.count(content.content_key) == content.number_of_blocks

    def drop(self, content: ItemContent) -> None:
        """Forget every block of the item, and of those like it."""
        for item in (content.key, content.content_key):
            self._cache.drop_item(item)

    def drop_damaged(self, content: ItemContent, index: int) -> None:
        """Forget a block that is not what was stored."""
        self._cache.drop_damaged(BlockKey(content.content_key, index))
        self._cache.drop([BlockKey(content.key, index)])
