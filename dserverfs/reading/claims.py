"""Claims: items of one block that only the prefetch fetches.

Used by the prefetch. Thread-safe. Invariant: a claimed item is settled or released.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from dserverfs.base.items import ItemContent
from dserverfs.reading.block_filling import BlockFiller
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.hot_blocks import HotBlocks
from dserverfs.reading.pending_blocks import PendingBlocks
from dserverfs.reading.single_flight import Missing


class Claim(NamedTuple):
    """An item of one block that only the claim's owner fetches."""

    content: ItemContent
    future: Future[Block]

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.content.key, 0)


class Claims:
    """Gives out claims and takes them back."""

    def __init__(
        self, hot: HotBlocks, pending: PendingBlocks, writer: CacheWriter, filler: BlockFiller
    ) -> None:
        self._hot = hot
        self._pending = pending
        self._writer = writer
        self._filler = filler

    def claim(self, contents: Sequence[ItemContent]) -> list[Claim]:
        """Return a claim on each item of one block that is neither hot nor under way."""
        claims = []
        with self._hot.lock:
            for content in contents:
                key = BlockKey(content.key, 0)
                is_hot = key in self._hot or self._writer.waiting(key) is not None
                if not is_hot and key not in self._pending:
                    claims.append(Claim(content, self._pending.add(key)))
        return claims

    def settle(self, settled: Sequence[tuple[Claim, Block]]) -> None:
        """Hand out claimed items."""
        with self._hot.lock:
            for claim, block in settled:
                self._pending.remove(claim.key, claim.future)
                self._hot.add(claim.key, block)
        for claim, block in settled:
            claim.future.set_result(block)

    def release(self, claims: Sequence[Claim]) -> None:
        """Give claims back: an item that a reader waits for is fetched in the usual way."""
        with self._hot.lock:
            awaited = [each for each in claims if not self._pending.drop_if_unasked(each.key)]
        for claim in awaited:
            self._filler.fetch(claim.content, [Missing(0, claim.future)])
