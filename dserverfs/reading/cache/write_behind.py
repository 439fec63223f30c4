"""Writing fetched blocks to the cache behind their readers, many in a transaction.

Used by the block reader. One thread writes: several would wait for each other's
transactions in SQLite (a third of the time of a cold read). Thread-safe.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dserverfs.base import threads
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_files import MAX_BLOCKS_IN_FILE
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, MemoryBlock

logger = logging.getLogger(__name__)

MAX_WAITING = 32  # blocks or batches of small ones, so at most 32 MiB
MAX_BATCH = MAX_BLOCKS_IN_FILE
# The wait for more blocks to write together; readers have them from memory.
LINGER_S = 0.02
# A disk that is slower than the network holds up the fetching of a block for so long;
# then blocks go uncached.
PATIENCE_S = 1.0
CLOSE_TIMEOUT_S = 10.0


class Put(NamedTuple):
    """A block to write: the name that its readers know it by, and its name in the cache."""

    key: BlockKey
    stored_as: BlockKey
    block: MemoryBlock


class _Enter(NamedTuple):
    item: str
    content: str
    serials: Sequence[int]


class _Move(NamedTuple):
    old: BlockKey
    new: BlockKey
    serial: int


class CacheWriter:
    """Takes blocks and writes them; until a block is written, `waiting` returns it."""

    def __init__(
        self,
        cache: BlockCache,
        on_file: Callable[[BlockKey, Block], None] = lambda key, block: None,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`on_file` is told, in the writing thread, of each block that can be had from a file.

        While the disk is far behind, a `put` waits for `patience_s`; then the block goes uncached.
        """
        self._cache = cache
        self._on_file = on_file
        self._patience_s = patience_s
        self._queue: queue.Queue[list[Put] | _Enter | _Move | None] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._waiting: dict[BlockKey, MemoryBlock] = {}
        self._storing = threading.Lock()  # held while a batch is written
        self._thread: threading.Thread | None = None
        self._closed = False

    def announce(self, key: BlockKey, block: MemoryBlock) -> None:
        """Note that the block is about to be put; until then `discard` can still stop it."""
        with self._lock:
            if not self._closed:
                self._waiting[key] = block

    def put(self, key: BlockKey, block: MemoryBlock, stored_as: BlockKey) -> None:
        """Write an announced block soon; blocks while the disk is far behind."""
        # Here, where it just came and is still in the core's cache, and before any transaction.
        block.compute_checksums()
        self._enqueue([Put(key, stored_as, block)])

    def put_many(self, puts: list[Put]) -> None:
        """Announce and put blocks that together are no larger than one."""
        with self._lock:
            if not self._closed:
                self._waiting.update((put.key, put.block) for put in puts)
        self._enqueue(puts)

    def _enqueue(self, puts: list[Put]) -> None:
        with self._lock:
            may_write = self._start_locked()
        if not may_write:
            self._forget(puts)
            return
        try:
            self._queue.put(puts, timeout=self._patience_s)
        except queue.Full:
            self._forget(puts)

    def enter_verified(self, item: str, content: str, serials: Sequence[int]) -> None:
        """As `BlockCache.enter_verified`, after the blocks that were put before."""
        self._rename(_Enter(item, content, serials))

    def move(self, old: BlockKey, new: BlockKey, serial: int) -> None:
        """As `BlockCache.move`, after the blocks that were put before."""
        self._rename(_Move(old, new, serial))

    def _rename(self, entry: _Enter | _Move) -> None:
        with self._lock:
            if not self._start_locked():
                return
        with contextlib.suppress(queue.Full):  # it is compared again another time
            self._queue.put(entry, timeout=self._patience_s)

    def waiting(self, key: BlockKey) -> Block | None:
        """Return a block that is not on the disk yet."""
        return self._waiting.get(key)

    def discard(self, item: str) -> None:
        """Return when no block of an item will be written any more; waits for one batch."""
        with self._lock:
            for key in [key for key in self._waiting if key.item == item]:
                del self._waiting[key]
        with self._storing:
            pass

    def flush(self) -> None:
        """Return when all blocks put before are written."""
        self._queue.join()

    def close(self) -> None:
        """Write the waiting blocks and end the thread, within CLOSE_TIMEOUT_S."""
        end_s = time.monotonic() + CLOSE_TIMEOUT_S
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            with contextlib.suppress(queue.Full):  # the disk hangs
                self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
            thread.join(max(end_s - time.monotonic(), 0.0))

    def _start_locked(self) -> bool:
        """Start the writing thread if need be; return False once closed, or if there is none."""
        if self._closed:
            return False
        if self._thread is None:
            self._thread = threads.started(self._run, name="cache")
        return self._thread is not None

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < MAX_BATCH and isinstance(batch[-1], list):
                try:
                    batch.append(self._queue.get(timeout=LINGER_S))
                except queue.Empty:
                    break
            puts = [put for entry in batch if isinstance(entry, list) for put in entry]
            try:
                self._write(puts, batch[-1])
            except Exception:
                logger.exception("a fault of ours while writing to the cache")
            finally:
                self._forget(puts)
                for _ in batch:
                    self._queue.task_done()
            if batch[-1] is None:
                return

    def _write(self, puts: Sequence[Put], last: list[Put] | _Enter | _Move | None) -> None:
        self._store(puts)
        if isinstance(last, _Enter):
            self._cache.enter_verified(last.item, last.content, last.serials)
        elif isinstance(last, _Move):
            self._cache.move(*last)

    def _store(self, puts: Sequence[Put]) -> None:
        with self._storing:
            wanted = [put for put in puts if self._waiting.get(put.key) is put.block]
            if not wanted:
                return
            files: Mapping[BlockKey, Block] = self._cache.store(
                [(put.stored_as, put.block) for put in wanted],
                {put.stored_as: put.key for put in wanted},
            )
            for put in wanted:
                if put.stored_as in files and self._waiting.get(put.key) is put.block:
                    self._on_file(put.key, files[put.stored_as])

    def _forget(self, puts: Sequence[Put]) -> None:
        """Have these blocks not waited for; another of the same key may be on its way since."""
        with self._lock:
            for put in puts:
                if self._waiting.get(put.key) is put.block:
                    del self._waiting[put.key]
