"""The keys of blocks in the cache: what each is a block of, in which format. Pure."""

from __future__ import annotations

from typing import NamedTuple

from dserverfs.base.block_hashes import HASH_BYTES
from dserverfs.base.items import BLOCK_SIZE, number_of_blocks

FORMAT_VERSION = 4
# The item of a block that is named by its own hash.
BLAKE3 = "=blake3:"
# The item of a page of hashes, before the size and the key of the item that has them.
HASHES = "hashes:"
PAGE = 8192  # hashes in a page: 256 KiB for 8 GiB of an item


class BlockKey(NamedTuple):
    """A block of an item in a dataset on a server, or of a content that many items may have."""

    item: str  # ItemContent.key, or its content_key
    block: int

    @classmethod
    def of_hash(cls, hash: bytes) -> BlockKey:
        """Return the key of the block with that hash, wherever it is a block of."""
        return cls(BLAKE3 + hash.hex(), 0)

    @classmethod
    def of_hashes(cls, item: str, size_in_bytes: int, page: int) -> BlockKey:
        """Return the key of a page of hashes of the blocks of an item, or of a content."""
        return cls(f"{HASHES}{size_in_bytes}:{item}", page)

    @property
    def names_content(self) -> bool:
        """Whether it is of the hash of the block."""
        return self.item.startswith(BLAKE3)

    @property
    def owner(self) -> str:
        """The item or content whose block it is, or whose hashes; a hash of a block has none."""
        return self.item.split(":", 2)[2] if self.item.startswith(HASHES) else self.item

    def as_text(self) -> str:
        return f"{prefix_of(self.item)}{self.block}"


def prefix_of(item: str) -> str:
    """Return the prefix of the keys of an item's blocks, which no other item's have."""
    return f"{FORMAT_VERSION}:{BLOCK_SIZE}:{item}:"


def range_of(item: str) -> tuple[str, str]:
    """Return the two keys between which those of an item's blocks lie."""
    prefix = prefix_of(item)
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)


def length_of_page(size_in_bytes: int, page: int) -> int:
    """Return how many bytes a page of the hashes of an item of that size has."""
    return min(PAGE, number_of_blocks(size_in_bytes) - page * PAGE) * HASH_BYTES
