"""Hashing items of several blocks, in order, while they are read.

Used for every block that arrives, and for the verdict before an item's last block is
handed out. As many items are hashed at a time as there are cores (MD5 takes 1.1 ms a block
and leaves the interpreter to others), each by one thread, because each block's MD5 goes on
from that of the block before: one item has one core of MD5, 900 MB/s. A block that arrived
out of order is read back when its turn comes. Thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.base.hashes import Policy
from dserverfs.base.items import ItemContent, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache.blocks import Block, DamagedBlock
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.cache_lookup import check_whole, mismatch
from dserverfs.reading.item_drops import ItemDrops
from dserverfs.reading.item_hashes import Hashing, ItemHashes, Verdict
from dserverfs.reading.single_flight import SingleFlight

_WAIT_S = 1.0
THREADS = len(os.sched_getaffinity(0))  # the cores that this process may use


class BlockHashing:
    """Hashes the blocks that arrive."""

    def __init__(
        self, hashes: ItemHashes, flight: SingleFlight, writer: CacheWriter, drops: ItemDrops
    ) -> None:
        self._hashes = hashes
        self._flight = flight
        self._writer = writer
        self._drops = drops
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="verify")
        self._lock = threading.Lock()
        # The items that a thread hashes or will; True if a block came since it began to look.
        self._advancing: dict[Hashing, bool] = {}

    def check(self, content: ItemContent, index: int, block: Block, deadline: Deadline) -> Verdict:
        """Return the verdict on an item, given a block that came from the store.

        Raises IntegrityError if the item is wrong. An item of one block is compared, and so
        is one of several of which this is the last block. A reader of that one got wrong
        bytes before and must fail; nothing of the item stays, and the next reader has it
        fetched anew.
        """
        if self._hashes.policy is Policy.OFF:
            return Verdict.UNKNOWN
        if content.number_of_blocks == 1:
            is_compared = check_whole(content, block.read(0, content.size_in_bytes))
            return Verdict.VERIFIED if is_compared else Verdict.UNKNOWN
        if index < content.number_of_blocks - 1 or self._hashes.recognises(content, index, block):
            return Verdict.UNKNOWN
        verdict = self._verdict(content, block, deadline)
        if verdict is Verdict.CORRUPT:
            raise mismatch(content)
        return verdict

    def mark(self, content: ItemContent, index: int, block: Block, verdict: Verdict) -> bool:
        """Return True if a block makes its item unverified, which is noted: `on_block` is due."""
        if verdict is Verdict.VERIFIED or self._hashes.policy is Policy.OFF:
            return False
        if self._hashes.recognises(content, index, block):
            return False
        self._hashes.mark_unverified(content)
        return True

    def on_block(self, content: ItemContent, index: int) -> None:
        """Hash soon, now that an unverified block is hot."""
        get = self._hashes.begin_hashing if index == 0 else self._hashes.hashing
        hashing = get(content)
        if hashing is not None and hashing.next <= index:
            self._advance_soon(content, hashing)

    def conclude(self, content: ItemContent, hashing: Hashing) -> Verdict:
        """Return the verdict on an item that is hashed to its end; if verified, enter it."""
        verdict = self._hashes.finish(content, hashing)
        if verdict is None:  # another thread has concluded
            is_right = hashing.hasher.hexdigest() == content.hash
            return Verdict.VERIFIED if is_right else Verdict.CORRUPT
        if verdict is Verdict.VERIFIED:
            self._writer.enter_verified(content.key, content.content_key, hashing.serials)
        return verdict

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._hashes.close()

    def _verdict(self, content: ItemContent, last: Block, deadline: Deadline) -> Verdict:
        """Return the verdict given the last block; blocks until all others are hashed.

        UNKNOWN at once if the item is not being read whole.
        """
        # The first block may be behind the last: they come over different connections.
        is_read_whole = self._flight.is_coming(content, 0)
        hashing = (self._hashes.begin_hashing if is_read_whole else self._hashes.hashing)(content)
        if hashing is None:
            return Verdict.UNKNOWN
        final = content.number_of_blocks - 1
        self._advance_soon(content, hashing)
        with hashing.changed:
            while hashing.next < final:
                if hashing.is_given_up or not self._flight.is_coming(content, hashing.next):
                    return Verdict.UNKNOWN
                try:
                    hashing.changed.wait(min(_WAIT_S, deadline.remaining_s()))
                except DeadlineExceeded:
                    return Verdict.UNKNOWN
        with hashing.lock:
            if hashing.next == final:
                hashing.feed(last, content)
        return self.conclude(content, hashing)

    def _advance_soon(self, content: ItemContent, hashing: Hashing) -> None:
        with self._lock:
            is_under_way = hashing in self._advancing
            self._advancing[hashing] = is_under_way
        if not is_under_way:
            with contextlib.suppress(RuntimeError):  # shut down: no reader gets an answer any more
                self._pool.submit(self._advance_until_quiet, content, hashing)

    def _advance_until_quiet(self, content: ItemContent, hashing: Hashing) -> None:
        """Hash what is there, until no block came meanwhile: no second thread waits for this."""
        try:
            while True:
                self._advance(content, hashing)
                with self._lock:
                    if not self._advancing[hashing]:
                        del self._advancing[hashing]
                        return
                    self._advancing[hashing] = False
        except BaseException:
            with self._lock:
                del self._advancing[hashing]
            raise

    def _advance(self, content: ItemContent, hashing: Hashing) -> None:
        """Hash block after block while the next one is hot; the last if it was handed out."""
        while True:
            with hashing.lock:
                if hashing.next == content.number_of_blocks:
                    break
                index = hashing.next
                block = self._flight.find(content, index)
                if block is None:
                    return
                try:
                    hashing.feed(block, content)
                    continue
                except DamagedBlock:
                    pass
            # Else all who wait for this hash take it for one that is coming.
            self._drops.drop_damaged(content, Run(index, 1))
            return
        if not self._hashes.is_current(content, hashing):
            return  # another thread has concluded
        if self.conclude(content, hashing) is Verdict.CORRUPT:
            self._drops.drop(content)
