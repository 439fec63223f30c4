"""The comparing of blocks, with parts that answer as they are told and note what they are told."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.model import Identifier
from dserverfs.base.retry import Deadline
from dserverfs.reading.block_hashing import BlockHashing, Checked
from dserverfs.reading.cache.blocks import Block, DamagedBlock, MemoryBlock
from dserverfs.reading.item_hashes import Hashing, ItemHashes
from tests.support.patience import LATE_S
from tests.support.reading_world import DATASET

CONTENT = random.Random(6).randbytes(3 * BLOCK_SIZE + 5)
WAIT_S = LATE_S


def item_of(data: bytes, key: str = "item", function: str = "md5sum_hexdigest") -> ItemContent:
    return ItemContent(
        key=key,
        dataset=DATASET,
        identifier=Identifier("i" * 40),
        size_in_bytes=len(data),
        hash_function=function,
        hash=hashlib.md5(data).hexdigest(),
        neighbours=lambda limit: [],
    )


ITEM, ONE_BLOCK = item_of(CONTENT), item_of(CONTENT[:BLOCK_SIZE], "one block")
BLOCKS = [MemoryBlock(CONTENT[at : at + BLOCK_SIZE]) for at in range(0, len(CONTENT), BLOCK_SIZE)]
WRONG = [MemoryBlock(bytes(len(block.data))) for block in BLOCKS]
LAST = len(BLOCKS) - 1


class Damaged(MemoryBlock):
    def read(self, offset: int, size: int) -> memoryview:
        raise DamagedBlock("damaged")


class ComparingBench:
    """A BlockHashing, and all that it asks and tells."""

    def __init__(self, policy: Policy = Policy.COMPLETE) -> None:
        self.hashes = ItemHashes(policy)
        self.known: dict[int, bytes] = {}  # hashes of blocks
        self.hot: dict[int, Block] = {}
        self.coming: set[int] = set()
        self.requested: list[int] = []
        self.learned: list[bytes] = []
        self.entered: list[tuple[str, str, list[int]]] = []
        self.dropped: list[str] = []
        self.changed = threading.Condition()
        self.pages: Any = SimpleNamespace(
            request=lambda content, index: self.requested.append(index),
            obtain=lambda content, index: self.known.get(index),
            find=lambda content, indices: [self.known.get(index) for index in indices],
            learn=lambda content, hashes: self.learned.append(bytes(hashes)),
            has_some=lambda content: bool(self.known),
        )
        flight: Any = SimpleNamespace(
            find=lambda content, index: self.hot.get(index),
            find_uncompared=lambda content, index: self.hot.get(index),
            is_coming=lambda content, index: index in self.coming or index in self.hot,
        )
        writer: Any = SimpleNamespace(enter_verified=self._enter)
        drops: Any = SimpleNamespace(drop=self._drop, drop_damaged=self._drop_damaged)
        parts: Any = (self.hashes, self.pages, flight, writer, drops)
        self.hashing = BlockHashing(*parts)

    def _enter(self, key: str, content_key: str, serials: Sequence[int]) -> None:
        with self.changed:
            self.entered.append((key, content_key, list(serials)))
            self.changed.notify_all()

    def _drop(self, content: ItemContent) -> None:
        with self.changed:
            self.dropped.append(content.key)
            self.changed.notify_all()

    def _drop_damaged(self, content: ItemContent, run: Run) -> None:
        with self.changed:
            assert run.length == 1
            self.dropped.append(f"block {run.first}")
            self.changed.notify_all()

    def check(self, index: int, block: Block, content: ItemContent = ITEM) -> Checked:
        return self.hashing.check(content, index, block, Deadline(WAIT_S))

    def comes(self, index: int, content: ItemContent = ITEM) -> None:
        """Have a block hot, and tell of it."""
        self.hot[index] = BLOCKS[index]
        self.hashing.on_block(content, index)

    def await_hashed(self, number: int, content: ItemContent = ITEM) -> Hashing:
        hashing = self.hashes.hashing(content)
        assert hashing is not None
        with hashing.changed:
            assert hashing.changed.wait_for(lambda: hashing.next >= number, WAIT_S)
        return hashing

    def await_dropped(self, *names: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.dropped == [*names], WAIT_S)

    def await_idle(self) -> None:
        """Return when no thread hashes any more."""
        self.hashing._pool.shutdown(wait=True)
        self.hashing._pool = ThreadPoolExecutor(1)
