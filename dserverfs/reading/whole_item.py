"""A large item straight from the store into a file, in parallel ranges, hashed as it arrives.

Used for programs that want a file: a copy in blocks beside it would cost the disk as
much again, so nothing of it goes through the block cache. Blocking.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from dserverfs.base.errors import Cancelled
from dserverfs.base.hashes import hash_file, known_hasher
from dserverfs.base.items import BLOCK_SIZE, ItemContent
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
    threads = [
        threading.Thread(target=job.fetch, name=f"download-{number}", daemon=True)
        for number in range(STREAMS)
    ]
    for thread in threads:
        thread.start()
    try:
        return job.hash()
    finally:
        job.end()
        for thread in threads:
            thread.join()


class _Download:
    """One item on its way to one file."""

    def __init__(self, ranges: RangeFetcher, content: ItemContent, fd: int) -> None:
        self._fetcher = ranges
        self._content = content
        self._fd = fd
        self._changed = threading.Condition()
        self._starts: Iterator[int] = iter(range(0, content.size_in_bytes, RANGE_BYTES))
        self._ends: dict[int, int] = {}  # by range: up to where it is in the file
        self._version = FirstVersion(content)
        self._failure: BaseException | None = None

    def fetch(self) -> None:
        """Fetch range after range, in a thread, until there is none left."""
        try:
            while (start := self._take()) is not None:
                self._fetch(start)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, which waits
            self._fail(error)

    def hash(self) -> str:
        """Return the hash of the file when all of it is there."""
        hasher = known_hasher(self._content.hash_function)
        offset = 0
        while offset < self._content.size_in_bytes:
            end = self._wait_for(offset)
            offset += hash_file(self._fd, hasher, offset=offset, length=end - offset)
        return hasher.hexdigest()

    def end(self) -> None:
        """Have the threads fetch nothing more."""
        self._fail(Cancelled("the download was ended"))

    def _take(self) -> int | None:
        with self._changed:
            if self._failure is not None:
                raise self._failure
            start = next(self._starts, None)
            if start is not None:
                self._ends[start] = start
            return start

    def _fetch(self, start: int) -> None:
        offset = start

        def write(block: bytes) -> None:
            nonlocal offset
            view = memoryview(block)
            while view:
                count = os.pwrite(self._fd, view, offset)
                offset += count
                view = view[count:]
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                self._ends[start] = offset
                self._changed.notify_all()

        size = self._content.size_in_bytes
        wanted = ByteRange(start, min(RANGE_BYTES, size - start), size)
        deadline = Deadline(RANGE_TIMEOUT_S)
        self._fetcher.fetch(self._content, wanted, self._version, write, deadline)

    def _wait_for(self, offset: int) -> int:
        """Return up to where the file is there, further than `offset`; raises what went wrong."""
        start = offset - offset % RANGE_BYTES
        with self._changed:
            while self._ends.get(start, 0) <= offset:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            return self._ends[start]

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
