"""The blocks that are being fetched, and whether anybody waits for them yet.

Used by the reader, which holds its lock while it calls anything here. What nobody
waits for can be dropped: whoever fetches it leaves it then.
"""

from __future__ import annotations

from concurrent.futures import Future

from dserverfs.reading.cache.block_cache import BlockKey
from dserverfs.reading.cache.blocks import Block


class PendingBlocks:
    """The futures of blocks under way."""

    def __init__(self) -> None:
        self._futures: dict[BlockKey, Future[Block]] = {}
        self._unasked: set[BlockKey] = set()  # of those, the ones that nobody waits for

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._futures

    def get(self, key: BlockKey) -> Future[Block] | None:
        return self._futures.get(key)

    def add(self, key: BlockKey) -> Future[Block]:
        """Return a new future of a block that is fetched before anybody asks for it."""
        self._unasked.add(key)
        future = self._futures[key] = Future()
        return future

    def ask(self, key: BlockKey) -> None:
        """Note that somebody waits for the block."""
        self._unasked.discard(key)

    def remove(self, key: BlockKey, future: Future[Block]) -> None:
        """Note that `future` is about to be done; another one of that block stays."""
        if self._futures.get(key) is future:
            del self._futures[key]
            self._unasked.discard(key)

    def is_wanted(self, key: BlockKey, future: Future[Block]) -> bool:
        """Return whether `future` has to become done."""
        return self._futures.get(key) is future

    def drop_if_unasked(self, key: BlockKey) -> bool:
        """Have nobody fetch the block, unless somebody waits for it; return whether it is so."""
        if key not in self._unasked:
            return False
        self._unasked.discard(key)
        del self._futures[key]
        return True

    def drop_unasked(self, item: str) -> None:
        """Have nobody fetch those blocks of the item that nobody waits for."""
        for key in [key for key in self._unasked if key.item == item]:
            self.drop_if_unasked(key)

    def has_of(self, item: str) -> bool:
        """Return whether a block of the item is under way that somebody waits for."""
        return any(key.item == item and key not in self._unasked for key in self._futures)
