"""A large item straight from the store into a file, in parallel ranges, hashed as it arrives.

Used for programs that want a file: a copy in blocks beside it would cost the disk as
much again, so nothing of it goes through the block cache. Blocking.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple

from dserverfs.base import pools
from dserverfs.base.errors import Cancelled
from dserverfs.base.hashes import known_hasher
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.local_files import write_all
from dserverfs.base.retry import Deadline
from dserverfs.reading.ranges import FirstVersion, RangeFetcher
from dserverfs.reading.stored_items import RANGE_TIMEOUT_S
from dserverfs.remote.objects import ByteRange

# 3 streams saturate two cores, and fill a line to a distant store.
STREAMS = 3
RANGE_BYTES = 16 * BLOCK_SIZE
AHEAD = 2  # ranges that wait for a stream, so that none waits for the one that is hashed


def download(ranges: RangeFetcher, content: ItemContent, fd: int) -> str:
    """Write an item to the empty file `fd`; return the hash of what was written.

    Raises IntegrityError if what is stored has another size, and what the store
    and the disk say; the file is good for nothing then.
    """
    job = _Download(ranges, content, fd)
    hasher = known_hasher(content.hash_function)
    # Begun one after the other: a manifest may say that an item has 2**63 bytes.
    starts = iter(range(0, content.size_in_bytes, RANGE_BYTES))
    begun: deque[_Range] = deque()
    with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:

        def begin(count: int) -> None:
            for start in islice(starts, count):
                arrived: SimpleQueue[int] = SimpleQueue()
                fetched = pools.begun(pool, partial(job.fetch, start, arrived))
                begun.append(_Range(start, arrived, fetched))

        try:
            begin(STREAMS + AHEAD)
            while begun:
                offset, arrived, fetched = begun.popleft()
                while count := arrived.get():
                    hasher.update(os.pread(fd, count, offset))
                    offset += count
                fetched.result()
                begin(1)
        finally:
            job.ended.set()
    return hasher.hexdigest()


class _Range(NamedTuple):
    """A range on its way to the file."""

    start: int
    arrived: SimpleQueue[int]  # numbers of bytes, in order; 0 when no more will come
    fetched: Future[None]


class _Download:
    """One item on its way to one file."""

    def __init__(self, ranges: RangeFetcher, content: ItemContent, fd: int) -> None:
        self._ranges = ranges
        self._content = content
        self._fd = fd
        self._version = FirstVersion(content)
        self.ended = threading.Event()

    def fetch(self, start: int, arrived: SimpleQueue[int]) -> None:
        """Write the range that begins there; raises Cancelled when the download has ended."""
        offset = start

        def write(block: bytes) -> None:
            nonlocal offset
            self._check()
            write_all(self._fd, block, offset)
            offset += len(block)
            arrived.put(len(block))

        size = self._content.size_in_bytes
        wanted = ByteRange(start, min(RANGE_BYTES, size - start), size)
        try:
            self._check()
            deadline = Deadline(RANGE_TIMEOUT_S)
            self._ranges.fetch(self._content, wanted, self._version, write, deadline)
        finally:
            arrived.put(0)

    def _check(self) -> None:
        if self.ended.is_set():
            raise Cancelled("the download was ended")
