"""A large item straight from the store into a file, in parallel ranges, hashed in order.

Used for programs that want a file: a copy in blocks beside it would cost the disk as
much again, so nothing of it goes through the block cache. Blocking.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from dserverfs.base.errors import Cancelled
from dserverfs.base.hashes import hash_file, known_hasher
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.local_files import write_all
from dserverfs.base.retry import Deadline
from dserverfs.reading.ranges import FirstVersion, RangeFetcher
from dserverfs.reading.stored_items import RANGE_TIMEOUT_S
from dserverfs.remote.objects import ByteRange

# 3 streams saturate two cores, and fill a line to a distant store.
STREAMS = 3
RANGE_BYTES = 16 * BLOCK_SIZE


def download(ranges: RangeFetcher, content: ItemContent, fd: int) -> str:
    """Write an item to the empty file `fd`; return the hash of what was written.

    Raises IntegrityError if what is stored has another size, and what the store
    and the disk say; the file is good for nothing then.
    """
    job = _Download(ranges, content, fd)
    # Begun one after the other: a manifest may say that an item has 2**63 bytes.
    starts = iter(range(0, content.size_in_bytes, RANGE_BYTES))
    begun: deque[tuple[int, Future[None]]] = deque()
    with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:

        def begin(count: int) -> None:
            begun.extend((start, pool.submit(job.fetch, start)) for start in islice(starts, count))

        try:
            begin(STREAMS)
            while begun:
                start, fetched = begun.popleft()
                fetched.result()
                begin(1)
                job.hash(start)
        finally:
            job.ended.set()
    return job.hasher.hexdigest()


class _Download:
    """One item on its way to one file."""

    def __init__(self, ranges: RangeFetcher, content: ItemContent, fd: int) -> None:
        self._ranges = ranges
        self._content = content
        self._fd = fd
        self._version = FirstVersion(content)
        self.hasher = known_hasher(content.hash_function)
        self.ended = threading.Event()

    def fetch(self, start: int) -> None:
        """Write the range that begins there; raises Cancelled when the download has ended."""
        offset = start

        def write(block: bytes) -> None:
            nonlocal offset
            if self.ended.is_set():
                raise Cancelled("the download was ended")
            write_all(self._fd, block, offset)
            offset += len(block)

        wanted = ByteRange(start, self._end(start) - start, self._content.size_in_bytes)
        deadline = Deadline(RANGE_TIMEOUT_S)
        self._ranges.fetch(self._content, wanted, self._version, write, deadline)

    def hash(self, start: int) -> None:
        """Hash the range that begins there, which is in the file."""
        hash_file(self._fd, self.hasher, offset=start, length=self._end(start) - start)

    def _end(self, start: int) -> int:
        return min(self._content.size_in_bytes, start + RANGE_BYTES)
