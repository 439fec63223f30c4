"""The blocks that can be read at once, and those that just could not be had.

Used by the reader, which holds its lock while it calls anything here. Knows no
item, no cache and no network.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from dserverfs.blocks import BLOCK_SIZE, Block
from dserverfs.errors import DeadlineExceeded

Key = TypeVar("Key")

# Blocks kept at hand: file descriptors (1 GiB of cache files), and memory for
# those just fetched.
MAX_LOADED = 1024
MAX_LOADED_MEMORY = 64 * BLOCK_SIZE
# The kernel asks again at once for what was refused; so long it is told the same, so
# that nobody waits twice.
FAILURE_KEPT_S = 2.0
MAX_FAILURES = 4096


class LoadedBlocks(Generic[Key]):
    """Blocks in memory or in open files, the least recently used go first."""

    def __init__(self, max_files: int) -> None:
        self._max_blocks = min(MAX_LOADED, max_files)
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        self._memory_in_bytes = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._blocks

    def get(self, key: Key) -> Block | None:
        return self._blocks.get(key)

    def add(self, key: Key, block: Block) -> None:
        """Keep the block in place of one with the same key."""
        self.pop(key)
        self._blocks[key] = block
        self._memory_in_bytes += block.memory_in_bytes
        while len(self._blocks) > self._max_blocks or self._memory_in_bytes > MAX_LOADED_MEMORY:
            _, dropped = self._blocks.popitem(last=False)
            self._memory_in_bytes -= dropped.memory_in_bytes

    def pop(self, key: Key) -> Block | None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self._memory_in_bytes -= block.memory_in_bytes
        return block

    def drop(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.pop(key)

    def clear(self) -> None:
        self._blocks.clear()
        self._memory_in_bytes = 0


class RecentFailures(Generic[Key]):
    """What somebody waited for in vain a moment ago."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._failures: dict[Key, tuple[float, DeadlineExceeded]] = {}

    def note(self, keys: Iterable[Key], error: DeadlineExceeded) -> None:
        now_s = self._clock_s()
        if len(self._failures) > MAX_FAILURES:
            self._failures = {k: kept for k, kept in self._failures.items() if kept[0] > now_s}
        for key in keys:
            self._failures[key] = now_s + FAILURE_KEPT_S, error

    def __bool__(self) -> bool:
        return bool(self._failures)

    def check(self, keys: Iterable[Key]) -> None:
        """Raise what was noted of one of `keys`, if that was a moment ago."""
        for key in keys:
            until_s, error = self._failures.get(key, (0.0, None))
            if error is None:
                continue
            if self._clock_s() < until_s:
                raise error
            del self._failures[key]
