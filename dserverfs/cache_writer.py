"""Writing fetched blocks to the cache, behind the readers' backs, many in a transaction.

Used by the reader. One thread writes: several at a time wait for each other's
transactions in SQLite (a third of the time of a cold read). Thread-safe.
"""

from __future__ import annotations

import queue
import threading

from dserverfs.blocks import Block, MemoryBlock
from dserverfs.cache import BlockCache, BlockKey

MAX_WAITING = 32  # blocks or batches of small ones, so at most 32 MiB
MAX_BATCH = 16
# A disk that is slower than the network holds up fetching for so long a block, and
# after that blocks go uncached.
PATIENCE_S = 1.0
CLOSE_TIMEOUT_S = 10.0


class CacheWriter:
    """Takes blocks and writes them; what is not written yet can be had back."""

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self._queue: queue.Queue[list[tuple[BlockKey, bytes]] | None] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._waiting: dict[BlockKey, MemoryBlock] = {}
        self._storing = threading.Lock()  # held while a batch is written
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, key: BlockKey, data: bytes) -> None:
        """Write the block soon; blocks while the disk is far behind."""
        self.put_many([(key, data)])

    def put_many(self, blocks: list[tuple[BlockKey, bytes]]) -> None:
        """As `put`, for blocks that together are no larger than one."""
        with self._lock:
            if self._closed:
                return
            self._waiting.update((key, MemoryBlock(data)) for key, data in blocks)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cache", daemon=True)
                self._thread.start()
        try:
            self._queue.put(blocks, timeout=PATIENCE_S)
        except queue.Full:
            self._forget([key for key, _ in blocks])

    def waiting(self, key: BlockKey) -> Block | None:
        """Return a block that is not on the disk yet."""
        return self._waiting.get(key)

    def discard(self, keys: list[BlockKey]) -> None:
        """Return when none of these blocks will be written any more; waits for one batch."""
        self._forget(keys)
        with self._storing:
            pass

    def flush(self) -> None:
        """Return when everything put before is written."""
        self._queue.join()

    def close(self) -> None:
        """Write what is waiting and end the thread, within CLOSE_TIMEOUT_S."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < MAX_BATCH and batch[-1] is not None:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            taken = [block for blocks in batch if blocks for block in blocks]
            try:
                with self._storing:
                    self._cache.store([block for block in taken if block[0] in self._waiting])
            finally:
                self._forget([key for key, _ in taken])
                for _ in batch:
                    self._queue.task_done()
            if batch[-1] is None:
                return

    def _forget(self, keys: list[BlockKey]) -> None:
        with self._lock:
            for key in keys:
                self._waiting.pop(key, None)
