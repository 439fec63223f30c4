"""Comparing the blocks that arrive: with their own hashes, or as a part of their item.

Used for every block that arrives. A block that has a hash is compared at once. Items of
several blocks without hashes are hashed in order while they are read, for the verdict
before the last block is handed out: as many items at a time as there are cores (MD5 takes
1.1 ms a block and leaves the interpreter to others), each by one thread, because each
block's MD5 goes on from that of the block before: one item has one core of MD5, 900 MB/s.
A block that arrived out of order is read back when its turn comes. Thread-safe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dserverfs.base.block_hashes import block_hash
from dserverfs.base.errors import DeadlineExceeded
from dserverfs.base.hashes import Policy
from dserverfs.base.items import ItemContent, Run, block_length
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, DamagedBlock
from dserverfs.reading.cache.write_behind import CacheWriter
from dserverfs.reading.cache_lookup import BlockMismatch, check_whole, mismatch
from dserverfs.reading.comparison_report import Counting
from dserverfs.reading.hash_pages import HashPages
from dserverfs.reading.item_drops import ItemDrops
from dserverfs.reading.item_hashes import Hashing, ItemHashes, Verdict
from dserverfs.reading.single_flight import SingleFlight

logger = logging.getLogger(__name__)

_WAIT_S = 1.0
THREADS = len(os.sched_getaffinity(0))  # the cores that this process may use


class Checked(NamedTuple):
    """The verdict on a block's bytes, and the name under which they may be kept."""

    verdict: Verdict
    stored_as: BlockKey


class BlockHashing:
    """Compares the blocks that arrive."""

    def __init__(
        self,
        hashes: ItemHashes,
        pages: HashPages,
        flight: SingleFlight,
        writer: CacheWriter,
        drops: ItemDrops,
    ) -> None:
        self._hashes = hashes
        self._pages = pages
        self._flight = flight
        self._writer = writer
        self._drops = drops
        self.counting = Counting()
        pages.on_late = self._compare_late
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="verify")
        self._lock = threading.Lock()
        # The items that a thread hashes or will; True if a block came since it began to look.
        self._advancing: dict[Hashing, bool] = {}

    def expect(self, content: ItemContent, run: Run) -> None:
        """Have the hashes of these blocks fetched beside them, if they are not here."""
        if self._hashes.policy is not Policy.OFF:
            for index in (run.first, run.first + run.length - 1):
                self._pages.request(content, index)

    def check(self, content: ItemContent, index: int, block: Block, deadline: Deadline) -> Checked:
        """Return the verdict on a block that came from the store, or on its item.

        Raises BlockMismatch if the block does not have its hash, and IntegrityError if the
        item is wrong. An item of one block is compared, and so is one of several, without
        hashes, of which this is the last block. A reader of that one got wrong bytes before
        and must fail; nothing of the item stays, and the next reader has it fetched anew.
        """
        own = BlockKey(content.key, index)
        length = block_length(content.size_in_bytes, index)
        self.counting.add(received=length)
        if self._hashes.policy is Policy.OFF:
            return Checked(Verdict.UNKNOWN, own)
        expected = self._pages.obtain(content, index)
        if expected is not None:
            if block_hash(block.read(0, content.size_in_bytes)) != expected:
                raise BlockMismatch(f"{content.label}: block {index} does not have its hash")
            self.counting.add(by_block=length)
            return Checked(Verdict.VERIFIED, BlockKey.of_hash(expected))
        verdict = self._check_item(content, index, block, deadline)
        is_verified = verdict is Verdict.VERIFIED
        return Checked(verdict, BlockKey(content.content_key, index) if is_verified else own)

    def _check_item(
        self, content: ItemContent, index: int, block: Block, deadline: Deadline
    ) -> Verdict:
        if content.number_of_blocks == 1:
            is_compared = check_whole(content, block.read(0, content.size_in_bytes))
            self.counting.add(as_files=content.size_in_bytes if is_compared else 0)
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
            self._pages.learn(content, hashing.block_hashes)
            self.counting.add(as_files=content.size_in_bytes)
        return verdict

    def has_hashes(self, content: ItemContent) -> bool:
        """Return True if each block is compared with its own hash; never blocks."""
        return self._pages.has_some(content)

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

    def _compare_late(self, content: ItemContent, indices: range) -> None:
        """Compare the blocks that were handed out before their hashes came."""
        if not self._hashes.is_unverified(content):
            return
        for index, expected in zip(indices, self._pages.find(content, indices), strict=True):
            block = self._flight.find_uncompared(content, index)
            try:
                if block is None or block_hash(block.read(0, content.size_in_bytes)) == expected:
                    continue
            except DamagedBlock:
                continue
            logger.warning("%s: block %d was read and does not have its hash", content.label, index)
            self._drops.drop(content)
            return

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
