"""Blocks kept at hand: those just fetched, checked or read.

Used by the reader, under its lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from dserverfs.blocks import BLOCK_SIZE, Block
from dserverfs.cache import BlockKey

MAX_BLOCKS = 1024  # file descriptors: 1 GiB of cache files
MAX_MEMORY = 64 * BLOCK_SIZE


class LoadedBlocks:
    """The blocks used last, as many as there are file descriptors and memory for."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[BlockKey, Block] = OrderedDict()
        self._memory = 0

    def get(self, key: BlockKey) -> Block | None:
        return self._blocks.get(key)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._blocks

    def add(self, key: BlockKey, block: Block) -> None:
        """Keep a block, as the one used last."""
        self.drop([key])
        self._blocks[key] = block
        self._memory += block.memory_in_bytes
        while len(self._blocks) > MAX_BLOCKS or self._memory > MAX_MEMORY:
            _, dropped = self._blocks.popitem(last=False)
            self._memory -= dropped.memory_in_bytes

    def drop(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            block = self._blocks.pop(key, None)
            if block is not None:
                self._memory -= block.memory_in_bytes

    def clear(self) -> None:
        self._blocks.clear()
        self._memory = 0
