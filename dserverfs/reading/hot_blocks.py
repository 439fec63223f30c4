"""The hot blocks: those that can be read at once, from memory or from an open file.

Used by `single_flight`, which holds `lock` while it calls anything here but
`attach_file` and `close_removed`: these take it themselves, in the threads of the block
cache. Knows neither cache nor network.
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from weakref import WeakValueDictionary

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_files import SharedFile
from dserverfs.reading.cache.blocks import Block, FileBlock

Key = tuple[str, int]  # an item's, and the index of a block in it

# 16 GiB of one item, or as many small ones: what a training job reads again and again. A block
# takes 1 KB of memory, in a mount's channel as well, and the file that it is in a descriptor.
MAX_BLOCKS = 16 * 1024
# For blocks that were just fetched.
MAX_MEMORY_BYTES = 64 * BLOCK_SIZE


class BlockMap(dict[int, Block]):
    """The hot blocks of one version of an item, by index.

    May be looked up without the lock that its changes are made under. When the item is
    dropped the map is emptied for good, and the next reader that opens the item gets
    another one: so no count of drops is kept of items without readers.
    """

    __slots__ = ("__weakref__", "is_dropped", "on_drop", "readers")

    def __init__(self) -> None:
        super().__init__()
        self.is_dropped = False  # the bytes turned out to be wrong
        self.readers = 0  # open items that have it
        self.on_drop: list[Callable[[], None]] = []  # how they are told


class HotBlocks:
    """Hot blocks of all items, bounded; the least recently used go first.

    A reader that finds a block sets its `used`, which gives it a second chance when there
    are too many: a look-up moves nothing. A block in memory may have a file attached,
    which takes its place when memory is short.
    """

    def __init__(
        self,
        *,
        max_blocks: int = MAX_BLOCKS,
        max_files: int | None = None,
        max_memory_in_bytes: int = MAX_MEMORY_BYTES,
    ) -> None:
        """`max_files` is by default a quarter of the files that this process may open."""
        self.lock = threading.Lock()
        self._max_blocks = max_blocks
        # The mount allows itself more open files than most processes have.
        may_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self._max_files = may_open if max_files is None else max_files
        self._max_memory_in_bytes = max_memory_in_bytes
        self._maps: WeakValueDictionary[str, BlockMap] = WeakValueDictionary()
        self._order: OrderedDict[Key, BlockMap] = OrderedDict()
        self._files: dict[SharedFile, set[Key]] = {}  # the blocks that are in each
        # Invariant: the blocks of `_order` that are in memory, and the files attached to them.
        self._in_memory: OrderedDict[Key, Block | None] = OrderedDict()
        self._memory_in_bytes = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._order

    def map_of(self, item: str) -> BlockMap:
        """Return the item's live map; it stays the item's while it is held, until a drop."""
        blocks = self._maps.get(item)
        if blocks is None:
            blocks = self._maps[item] = BlockMap()
        return blocks

    def get(self, key: Key) -> Block | None:
        blocks = self._order.get(key)
        return None if blocks is None else blocks[key[1]]

    def add(self, key: Key, block: Block) -> None:
        """Keep the block in place of one with the same key."""
        self.pop(key)
        item, index = key
        blocks = self._order[key] = self.map_of(item)
        blocks[index] = block
        if block.memory_in_bytes:
            self._in_memory[key] = None
            self._memory_in_bytes += block.memory_in_bytes
        self._uses(key, block)
        self._shrink()

    def pop(self, key: Key) -> Block | None:
        blocks = self._order.pop(key, None)
        if blocks is None:
            return None
        block = blocks.pop(key[1])
        self._uses_no_more(key, block)
        self._uses_no_more(key, self._in_memory.pop(key, None))
        self._memory_in_bytes -= block.memory_in_bytes
        return block

    def drop_item(self, item: str) -> list[Callable[[], None]]:
        """Drop every block of an item, and its map; return the calls that tell its readers."""
        blocks = self._maps.pop(item, None)
        if blocks is None:
            return []
        self._pop_all([(item, index) for index in blocks])
        blocks.is_dropped = True
        return [*blocks.on_drop]

    def spill_to_files(self, item: str) -> None:
        """Read the item's blocks from the files attached to them from now on."""
        for key in [key for key in self._in_memory if key[0] == item]:
            if self._in_memory[key] is not None:
                self._spill(key)

    def attach_file(self, key: Key, file: Block) -> None:
        """Attach the on-disk copy of a block; it is used at once if the block left memory."""
        with self.lock:
            if key in self._in_memory:
                self._attach(key, file)
                self._shrink()
            else:
                self.add(key, file)

    def close_removed(self, files: Collection[SharedFile] | None = None) -> None:
        """Close files that were removed from the cache, so that their space is free again.

        Only some of `files`, if they are given: to look at each takes 1 us.
        """
        if files is None:
            with self.lock:
                files = list(self._files)
        gone = {file for file in files if file.is_removed()}
        if not gone:
            return
        with self.lock:
            for file in gone:
                for key in [*self._files.get(file, ())]:
                    if key in self._in_memory:
                        self._attach(key, None)
                    else:
                        self.pop(key)

    def clear(self) -> None:
        self._pop_all(list(self._order))

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        in_memory = 0
        for key, blocks in self._order.items():
            assert key[1] in blocks, f"{key} is hot, and not in its map"
            assert self._maps.get(key[0]) is blocks, f"{key} is in a map of old"
            in_memory += blocks[key[1]].memory_in_bytes
            assert (key in self._in_memory) == bool(blocks[key[1]].memory_in_bytes), key
        assert in_memory == self._memory_in_bytes, "the bytes in memory are miscounted"
        assert self._in_memory.keys() <= self._order.keys()
        in_files = [(key, blocks[key[1]]) for key, blocks in self._order.items()]
        in_files += [(key, file) for key, file in self._in_memory.items() if file is not None]
        files: dict[SharedFile, set[Key]] = {}
        for key, block in in_files:
            if isinstance(block, FileBlock):
                files.setdefault(block.file, set()).add(key)
        assert files == self._files, "the files are miscounted"
        assert len(self._order) <= self._max_blocks
        assert len(self._files) <= self._max_files

    def _pop_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.pop(key)

    def _shrink(self) -> None:
        while self._memory_in_bytes > self._max_memory_in_bytes:
            self._spill(next(iter(self._in_memory)))
        while len(self._order) > self._max_blocks or len(self._files) > self._max_files:
            key, blocks = next(iter(self._order.items()))
            block = blocks[key[1]]
            if block.used:
                block.used = False
                self._order.move_to_end(key)
            else:
                self.pop(key)

    def _attach(self, key: Key, file: Block | None) -> None:
        """Attach a file to a block in memory, or none any more."""
        self._uses_no_more(key, self._in_memory[key])
        self._in_memory[key] = file
        self._uses(key, file)

    def _uses(self, key: Key, block: Block | None) -> None:
        if isinstance(block, FileBlock):
            self._files.setdefault(block.file, set()).add(key)

    def _uses_no_more(self, key: Key, block: Block | None) -> None:
        if isinstance(block, FileBlock):
            keys = self._files[block.file]
            keys.discard(key)
            if not keys:
                del self._files[block.file]

    def _spill(self, key: Key) -> None:
        file = self._in_memory[key]
        block = self.pop(key)
        if file is not None and block is not None:
            file.used = block.used
            self.add(key, file)
