"""What the channel is told of contents of small items, so that it pushes them into the page cache.

The channel asks for those of rows that will be opened soon. It is told what is at hand, in memory
or the disk cache, and was compared with the manifest as a whole; nothing is fetched for it, and
what is not told is read as ever. An item that turns out wrong is taken back from the channel, and
then from the kernel: what was looked up before is not told any more. Thread-safe; one thread looks
up and tells.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import ItemContent
from dserverfs.catalogue.refreshed import loaded
from dserverfs.mount import invalidation
from dserverfs.mount.channel.contents import MAX_PACK_BYTES, packed
from dserverfs.mount.channel.link import Link
from dserverfs.mount.told_rows import ToldRows
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.item_order import Stretch
from dserverfs.reading.small_items import is_small

logger = logging.getLogger(__name__)

PROBED = 8  # items of a stretch: if none of them is at hand, the others are not looked for


class ToldContents:
    """Those of one mount."""

    def __init__(self, link: Link, told: ToldRows, reader: BlockReader) -> None:
        self._link = link
        self._told = told
        self._reader = reader
        self._lock = threading.Lock()
        self._times_dropped = 0  # items; no look-up from before is told
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="contents")
        reader.drops.watch(self._dropped)

    def ask(self, base: int, wanted: Stretch) -> None:
        """Have contents of a stretch of rows told soon."""
        with contextlib.suppress(RuntimeError):  # shut down
            self._pool.submit(self._tell, base, wanted)

    def close(self) -> None:
        """Tell nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _tell(self, base: int, wanted: Stretch) -> None:
        covered, items = wanted.length, list[ItemContent]()
        times_dropped = self._times_dropped
        found: list[tuple[int, Buffer]] = []
        try:
            dataset = self._told.dataset(base)
            if dataset is not None:
                items = loaded(lambda: dataset.contents_from(wanted.first, wanted.length))
                covered, items = _chosen(items, wanted)
                found = self._found(items[:PROBED])
                if found:  # else they are being fetched, or will be
                    found += self._found(items[PROBED:])
        except DserverfsError as error:
            logger.debug("contents of small items are not told: %s", error)
        except Exception:
            logger.exception("a fault of ours: contents of small items are not told")
        pack = packed(found) if found else b""
        with self._lock:
            if self._times_dropped != times_dropped:
                pack = b""
            self._link.tell_contents(base, wanted, covered, pack)

    def _found(self, items: Sequence[ItemContent]) -> list[tuple[int, Buffer]]:
        """Return the contents of those items that are at hand, with their rows."""
        read = self._reader.small.compared(items)
        return [
            (item.place, data) for item, data in zip(items, read, strict=True) if data is not None
        ]

    def _dropped(self, content: ItemContent) -> None:
        """Take back what was told of an item that turned out wrong; in any thread."""
        with self._lock:
            self._times_dropped += 1
        if is_small(content):
            for inode in self._told.inodes_of(content):
                invalidation.of_pages(self._link, inode, content.key)


def _chosen(items: Sequence[ItemContent], wanted: Stretch) -> tuple[int, list[ItemContent]]:
    """Return how many rows of a stretch a pack has room for, and the small items of these."""
    chosen: list[ItemContent] = []
    size_in_bytes = 0
    for item in reversed(items) if wanted.descending else items:
        if is_small(item):
            size_in_bytes += item.size_in_bytes
            if size_in_bytes > MAX_PACK_BYTES:
                rows = item.place - wanted.first
                return wanted.length - 1 - rows if wanted.descending else rows, chosen
            chosen.append(item)
    return wanted.length, chosen
