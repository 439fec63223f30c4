"""What commands ask and tell a mount's daemon of its cache: what it has, its room, pins.

Used by the commander, which finds the items of inodes. Blocking; in threads.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dserverfs.base.items import ItemContent
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache import maintenance, pinning
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.tree.mount_tree import Inode

_TOGETHER = 500  # items that the cache is asked about
MAX_COUNTED = 100_000  # items of a dataset; 2 s


class FoundItem(NamedTuple):
    """An inode that is of an item."""

    inode: Inode
    content: ItemContent


@dataclass(frozen=True)
class CacheCommands:
    """Answers them for one mount, in values of JSON."""

    server: str
    reader: BlockReader
    cache: BlockCache

    def room(self) -> dict[str, Any]:
        """Return where the cache of this mount is, and the fields of its Room."""
        return {"directory": str(self.cache.directory), **maintenance.room(self.cache)._asdict()}

    def items(self, items: Sequence[FoundItem]) -> list[list[Any]]:
        """Return of each: inode, relpath, bytes that are here, whether that is all, pinned."""
        self.reader.flush()
        contents = [item.content for item in items]
        pinned = pinning.pinned(self.cache, contents)
        return [
            [
                inode,
                content.relpath_of(),
                held,
                held == content.size_in_bytes and self.reader.has_all_verified(content),
                content.key in pinned,
            ]
            for (inode, content), held in zip(items, self.reader.held(contents), strict=True)
        ]

    def described(self, contents: Iterable[ItemContent]) -> dict[str, int] | None:
        """Return how much of some items is here and pinned; None if they are too many to count."""
        counted = Counter[str]()
        left = iter(contents)
        while some := list(itertools.islice(left, _TOGETHER)):
            if counted["of_items"] >= MAX_COUNTED:
                return None
            pinned = pinning.pinned(self.cache, some)
            for content, held in zip(some, self.reader.held(some), strict=True):
                counted["items"] += held == content.size_in_bytes
                counted["of_items"] += 1
                counted["size_in_bytes"] += held
                counted["of_size_in_bytes"] += content.size_in_bytes
                counted["pinned_items"] += content.key in pinned
        return dict(counted)

    def pin(self, items: Sequence[FoundItem]) -> int:
        """Pin these items; return how many they are."""
        self.reader.flush()
        pinning.pin(self.cache, self.server, [item.content for item in items])
        return len(items)

    def unpin(self, items: Sequence[FoundItem]) -> int:
        """Strike these items out of what is pinned, before a `release`; return how many were."""
        return self.cache.pins.remove([item.content.key for item in items])

    def release(self) -> None:
        """Let all blocks be evicted again that no pinned item has."""
        pinning.release(self.cache)
