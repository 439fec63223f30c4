"""A large item straight from the store into a file, in parallel ranges, hashed as it arrives.

Used where somebody wants a whole file anyway: a copy in blocks, too, would cost
the disk as much again. Nothing of it goes through the block cache. Blocking.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from dserverfs.base.errors import Cancelled
from dserverfs.base.hashes import hash_file, known_hasher
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.reading.stored_items import StoredItems

# 3 streams saturate two cores, and fill a line to a distant store.
STREAMS = 3
RANGE_BYTES = 16 * BLOCK_SIZE


def download(stored: StoredItems, content: ItemContent, fd: int) -> str:
    """Write an item to the empty file `fd`; return the hash of what was written.

    Raises IntegrityError if what is stored has another size, and what the store
    and the disk say; the file is good for nothing then.
    """
    job = _Download(stored, content, fd)
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

    def __init__(self, stored: StoredItems, content: ItemContent, fd: int) -> None:
        self._stored = stored
        self._content = content
        self._fd = fd
        self._changed = threading.Condition()
        self._starts: Iterator[int] = iter(range(0, content.size_in_bytes, RANGE_BYTES))
        self._ends: dict[int, int] = {}  # by range: up to where it is in the file
        self._etag: str | None = None
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
        self._stored.read(
            self._content, start, min(RANGE_BYTES, size - start), size, write, etag=self._etag_of
        )

    def _etag_of(self, etag: str) -> str:
        """Return the ETag that the object had first."""
        with self._changed:
            self._etag = self._etag or etag
            return self._etag

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
