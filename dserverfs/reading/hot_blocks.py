"""The blocks that can be read at once, and those that just could not be had.

Used by the reader, which holds its lock while it calls anything here. Knows no
item, no cache and no network.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading.cache.blocks import Block, FileBlock

Key = tuple[str, int]  # an item's, and the number of a block in it

# Blocks kept at hand: file descriptors (1 GiB of cache files), and memory for
# those just fetched.
MAX_LOADED = 1024
MAX_LOADED_MEMORY = 64 * BLOCK_SIZE
# The kernel asks again at once for what was refused; so long it is told the same, so
# that nobody waits twice.
FAILURE_KEPT_S = 2.0
MAX_FAILURES = 4096


class Shelf(dict[int, Block]):
    """The blocks of one item that can be read at once, by their number in it.

    May be looked up without the lock that its changes are made under.
    """

    __slots__ = ("__weakref__", "readers")

    def __init__(self) -> None:
        super().__init__()
        self.readers = 0  # how many have it and did not give it back


class LoadedBlocks:
    """Blocks in memory or in open files; those not used for long go first.

    Who finds a block sets its `used`, which gives it a second chance when there are
    too many: to look one up moves nothing. A block in memory may have a file behind it,
    which takes its place when memory is short.
    """

    def __init__(self, max_files: int) -> None:
        self._max_blocks = min(MAX_LOADED, max_files)
        self._shelves: WeakValueDictionary[str, Shelf] = WeakValueDictionary()
        self._order: OrderedDict[Key, Shelf] = OrderedDict()
        # Invariant: those of `_order` that are in memory, and the files behind them.
        self._in_memory: OrderedDict[Key, Block | None] = OrderedDict()
        self._memory_in_bytes = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._order

    def shelf(self, item: str) -> Shelf:
        """Return where the item's blocks are, now and later, as long as somebody holds it."""
        shelf = self._shelves.get(item)
        if shelf is None:
            shelf = self._shelves[item] = Shelf()
        return shelf

    def get(self, key: Key) -> Block | None:
        shelf = self._order.get(key)
        return None if shelf is None else shelf[key[1]]

    def add(self, key: Key, block: Block) -> None:
        """Keep the block in place of one with the same key."""
        self.pop(key)
        item, number = key
        shelf = self._order[key] = self.shelf(item)
        shelf[number] = block
        if block.memory_in_bytes:
            self._in_memory[key] = None
            self._memory_in_bytes += block.memory_in_bytes
        self._shrink()

    def put_behind(self, key: Key, file: Block) -> None:
        """Have the file of a block in memory; in its place at once if it is not in memory."""
        if key in self._in_memory:
            self._in_memory[key] = file
        else:
            self.add(key, file)

    def pop(self, key: Key) -> Block | None:
        shelf = self._order.pop(key, None)
        if shelf is None:
            return None
        block = shelf.pop(key[1])
        self._in_memory.pop(key, None)
        self._memory_in_bytes -= block.memory_in_bytes
        return block

    def drop(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.pop(key)

    def drop_item(self, item: str) -> None:
        """Drop every block of an item that is here."""
        self.drop([(item, number) for number in self._shelves.get(item, ())])

    def leave_memory(self, item: str) -> None:
        """Let the item's blocks be read from the files behind them, where there are any."""
        for key in [key for key in self._in_memory if key[0] == item]:
            if self._in_memory[key] is not None:
                self._leave_memory(key)

    def close_removed(self, lock: threading.Lock) -> None:
        """Let go of files that were removed from the cache, so that their space is free again.

        `lock` is the one that the caller of everything else holds.
        """
        with lock:
            held = [(key, shelf[key[1]]) for key, shelf in self._order.items()]
            held += [(key, file) for key, file in self._in_memory.items() if file is not None]
        removed = {
            (key, id(file))
            for key, file in held
            if isinstance(file, FileBlock) and file.is_removed()
        }
        if not removed:
            return
        with lock:
            for key, _ in removed:
                if (key, id(self._in_memory.get(key))) in removed:
                    self._in_memory[key] = None
                elif (key, id(self.get(key))) in removed:
                    self.pop(key)

    def clear(self) -> None:
        self.drop(list(self._order))

    def _shrink(self) -> None:
        while self._memory_in_bytes > MAX_LOADED_MEMORY:
            self._leave_memory(next(iter(self._in_memory)))
        while len(self._order) > self._max_blocks:
            key, shelf = next(iter(self._order.items()))
            block = shelf[key[1]]
            if block.used:
                block.used = False
                self._order.move_to_end(key)
            else:
                self.pop(key)

    def _leave_memory(self, key: Key) -> None:
        file = self._in_memory[key]
        block = self.pop(key)
        if file is not None and block is not None:
            file.used = block.used
            self.add(key, file)


class RecentFailures:
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
