"""What is said of comparing: how an item is compared, and how many bytes were.

Used by `dserverfs status`. Thread-safe.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from dserverfs.base.hashes import Policy
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Dataset
from dserverfs.base.progress import Meter
from dserverfs.reading.hash_pages import HashPages
from dserverfs.reading.item_hashes import ItemHashes

NOTHING = "nothing is compared, as --verify off says"
BY_BLOCK = "each block, before a byte of it is handed out"
WHOLE_FIRST = "whole, before its first byte is handed out"
WHOLE_LAST = "whole, before its last byte is handed out; parts of it are not"
REFUSED = "it cannot be, and is not handed out"
CANNOT = "it cannot be: its hash function is not known"


class ByteCounts(NamedTuple):
    """Bytes of items that came."""

    received: int  # from the store
    by_block: int  # of these compared, each block with its own hash
    as_files: int  # of these compared as whole items
    from_cache: int  # from the disk cache


class Counting:
    """Counts the bytes that come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = ByteCounts(0, 0, 0, 0)
        self._meter = Meter()

    def add(
        self, *, received: int = 0, by_block: int = 0, as_files: int = 0, from_cache: int = 0
    ) -> None:
        with self._lock:
            counts = self._counts
            self._counts = ByteCounts(
                counts.received + received,
                counts.by_block + by_block,
                counts.as_files + as_files,
                counts.from_cache + from_cache,
            )
            if received:
                self._meter.note(self._counts.received)

    @property
    def counts(self) -> ByteCounts:
        return self._counts

    def bytes_per_s(self) -> float | None:
        """Return how many bytes come just now; None if that is not known yet."""
        with self._lock:
            return self._meter.per_s()


class ComparisonReport:
    """Says how items are compared."""

    def __init__(self, hashes: ItemHashes, pages: HashPages, counting: Counting) -> None:
        self._hashes = hashes
        self._pages = pages
        self._counting = counting

    @property
    def counts(self) -> ByteCounts:
        return self._counting.counts

    def bytes_per_s(self) -> float | None:
        return self._counting.bytes_per_s()

    def of_item(self, content: ItemContent) -> str:
        """Return how an item is compared when it is read; may ask the server, for a second."""
        policy = self._hashes.policy
        if policy is Policy.OFF:
            return NOTHING
        if self._pages.are_there(content):
            return BY_BLOCK
        if not self._hashes.can_hash(content):
            return REFUSED if self._hashes.is_strict_with(content) else CANNOT
        if content.number_of_blocks <= 1 or self._hashes.is_strict_with(content):
            return WHOLE_FIRST
        return WHOLE_LAST

    def of_dataset(self, dataset: Dataset) -> str:
        """Return how the items of a dataset of more than one block are; asks the server."""
        if self._hashes.policy is Policy.OFF:
            return NOTHING
        if self._pages.has_source(dataset):
            return BY_BLOCK
        return WHOLE_FIRST if self._hashes.policy is Policy.STRICT else WHOLE_LAST
