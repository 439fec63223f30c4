"""The block cache's part in reading: blocks of an item, or of another with the same content.

The only module that knows what a block's three keys stand for: that of its own hash, if
it has one; its item's; and its content's once all of that was verified. Thread-safe;
blocks on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from dserverfs.base.block_hashes import block_hash
from dserverfs.base.errors import IntegrityError
from dserverfs.base.hashes import Policy, digest
from dserverfs.base.items import BLOCK_SIZE, ItemContent, block_length
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, DamagedBlock
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.hash_pages import HashPages

_LOOKED_FOR_AT_ONCE = 512
_MANY = 1 << 20  # blocks of an item that is not looked through: 1 TiB


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


class BlockMismatch(HashMismatch):
    """A block came, and does not have its hash; the others may be right."""


def mismatch(content: ItemContent) -> IntegrityError:
    """Return the error for readers of an item of several blocks that is not the manifest's."""
    return IntegrityError(
        f"{content.label} does not have the hash "
        f"{content.hash} of the manifest; nothing of it is kept"
    )


class CacheLookup:
    """Items on disk."""

    def __init__(
        self, cache: BlockCache, policy: Policy, writer: CacheWriter, hashes: HashPages
    ) -> None:
        self._cache = cache
        self._policy = policy
        self._writer = writer
        self._hashes = hashes

    def find(self, content: ItemContent, index: int) -> Cached | None:
        """Return the block if it is on disk and not known to be wrong."""
        return self.find_many(content, [index])[0]

    def find_many(self, content: ItemContent, indices: Sequence[int]) -> list[Cached | None]:
        """As `find`, for several blocks with one question to the database."""
        hashes = self._hashes.find(content, indices)
        wanted = [
            (key, block_length(content.size_in_bytes, index))
            for index, hash in zip(indices, hashes, strict=True)
            for key in self._keys(content, index, hash)
        ]
        found = iter(self._cache.load_many(wanted))
        return [
            self._best(content, index, hash, list(islice(found, 2 if hash is None else 3)))
            for index, hash in zip(indices, hashes, strict=True)
        ]

    def _keys(self, content: ItemContent, index: int, hash: bytes | None) -> list[BlockKey]:
        """Return the keys that a block may have, the unverified one last."""
        keys = [BlockKey(content.content_key, index), BlockKey(content.key, index)]
        return keys if hash is None else [BlockKey.of_hash(hash), *keys]

    def _best(
        self, content: ItemContent, index: int, hash: bytes | None, found: Sequence[Block | None]
    ) -> Cached | None:
        *verified, own = found
        for block in verified:
            if block is not None:
                return Cached(block, True)
        if own is None:
            return None
        if hash is not None and self._policy is not Policy.OFF:
            return self._compared(content, index, hash, own)
        return self._unverified(content, own)

    def _compared(
        self, content: ItemContent, index: int, hash: bytes, block: Block
    ) -> Cached | None:
        """Return a block that was kept without its hash, if it has it."""
        own = BlockKey(content.key, index)
        try:
            is_right = block_hash(block.read(0, content.size_in_bytes)) == hash
        except DamagedBlock:
            is_right = False
        if not is_right:
            self._cache.drop([own])
            return None
        self._writer.move(own, BlockKey.of_hash(hash), block.serial)
        return Cached(block, True)

    def _unverified(self, content: ItemContent, block: Block) -> Cached | None:
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

    def find_uncompared(self, content: ItemContent, index: int) -> Block | None:
        """Return a block of an item that was kept without being compared."""
        length = block_length(content.size_in_bytes, index)
        return self._cache.load(BlockKey(content.key, index), length)

    def find_small(self, contents: Sequence[ItemContent]) -> list[Block | None]:
        """Return for each item of one block its bytes if no comparison is needed."""
        found = self.find_compared(contents)
        if self._policy is not Policy.OFF:
            return found
        lacking = [place for place, block in enumerate(found) if block is None]
        own = self._cache.load_many(
            [(BlockKey(contents[at].key, 0), contents[at].size_in_bytes) for at in lacking]
        )
        for place, block in zip(lacking, own, strict=True):
            found[place] = block
        return found

    def find_compared(self, contents: Sequence[ItemContent]) -> list[Block | None]:
        """Return for each item of one block its bytes if all of it was compared."""
        return self._cache.load_many(
            [(BlockKey(content.content_key, 0), content.size_in_bytes) for content in contents]
        )

    def has_all(self, content: ItemContent) -> bool:
        """Return True if the whole item is on disk, compared or not."""
        keys = (content.content_key, content.key)
        return any(
            self._cache.count(key) == content.number_of_blocks for key in keys
        ) or self._has_each(content, lambda keys: keys)

    def has_all_verified(self, content: ItemContent) -> bool:
        """Return True if the whole item is on disk, compared."""
        if self._cache.count(content.content_key) == content.number_of_blocks:
            return True
        return self._has_each(content, lambda keys: keys[:-1])

    def _has_each(
        self, content: ItemContent, chosen: Callable[[list[BlockKey]], list[BlockKey]]
    ) -> bool:
        """Return True if each block is on disk by one of the keys that `chosen` returns."""
        number = content.number_of_blocks
        if number < 2:
            return number == 0
        for indices in _portions(range(number)):
            hashes = self._hashes.find(content, indices)
            keys = [
                chosen(self._keys(content, *pair)) for pair in zip(indices, hashes, strict=True)
            ]
            found = iter(self._cache.present([key for each in keys for key in each]))
            if not all([any([next(found) for _ in each]) for each in keys]):
                return False
        return True

    def held(self, contents: Sequence[ItemContent]) -> list[int]:
        """Return how many bytes of each item are on disk, compared or not."""
        small = [content for content in contents if content.number_of_blocks == 1]
        keys = [key for each in small for key in self._keys(each, 0, None)]
        found = iter(self._cache.present(keys))
        held = {id(each): any([next(found), next(found)]) for each in small}
        return [
            each.size_in_bytes * held[id(each)] if id(each) in held else self._held(each)
            for each in contents
        ]

    def _held(self, content: ItemContent) -> int:
        """Return how many bytes of an item of several blocks are on disk."""
        by_item = self._cache.count(content.content_key) + self._cache.count(content.key)
        if content.number_of_blocks > _MANY or self._hashes.find(content, [0]) == [None]:
            return min(by_item * BLOCK_SIZE, content.size_in_bytes)
        return self.held_in(content, range(content.number_of_blocks))

    def held_in(self, content: ItemContent, blocks: Sequence[int]) -> int:
        """Return how many bytes of these blocks are on disk, compared or not."""
        held = 0
        for indices in _portions(blocks):
            hashes = self._hashes.find(content, indices)
            keys = [self._keys(content, *pair) for pair in zip(indices, hashes, strict=True)]
            found = iter(self._cache.present([key for each in keys for key in each]))
            for index, each in zip(indices, keys, strict=True):
                if any([next(found) for _ in each]):
                    held += block_length(content.size_in_bytes, index)
        return held

    def drop(self, content: ItemContent) -> None:
        """Forget every block of the item, and of those like it, and their hashes."""
        for item in (content.key, content.content_key):
            self._cache.drop_item(item)
        self._hashes.forget_item(content)

    def drop_damaged(self, content: ItemContent, index: int) -> None:
        """Forget a block that is not what was stored."""
        (hash,) = self._hashes.find(content, [index])
        first, *others = self._keys(content, index, hash)
        self._cache.drop_damaged(first)
        self._cache.drop(others)


def _portions(blocks: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield blocks, as many at a time as are looked for at once."""
    for first in range(0, len(blocks), _LOOKED_FOR_AT_ONCE):
        yield blocks[first : first + _LOOKED_FOR_AT_ONCE]
