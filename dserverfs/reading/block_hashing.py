"""Comparing the blocks that arrive: with their own hashes, or as a part of their item.

Used for every block that arrives. A block that has a hash is compared at once. Items of
several blocks without hashes are hashed in order while they are read, for the verdict
before the last block is handed out: as many items at a time as there are cores (MD5 takes
1.1 ms a block and leaves the interpreter to others), each by one thread, because each
block's MD5 goes on from that of the block before: one item has one core of MD5, 900 MB/s.
A block that arrived out of order is read back when its turn comes. What is fetched ahead
keeps near to what is hashed: else fetching takes the cores from hashing, which then ends
long after it, and reads most blocks back from the disk. Thread-safe.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
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
TURN = 16  # blocks of one item before those of others that wait
# Blocks from the one that is hashed to the first of a run, at which the run is fetched.
MAX_LAG = 16
# Whoever reads so many blocks farther on is not the reader that hashing follows: it would wait
# for all between. Twice what one reader has asked for and not hashed.
FAR = 128


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
        pages.on_come = self._compare_late
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="verify")
        self._lock = threading.Lock()
        # The items that a thread hashes or will; True if a block came since it began to look.
        self._advancing: dict[Hashing, bool] = {}
        # Of these items alone: runs to fetch later, and the first block of each.
        self._put_off: dict[Hashing, list[tuple[int, Callable[[], None]]]] = {}

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
        if self._hashes.policy is Policy.OFF:
            self.counting.add(received=length)
            return Checked(Verdict.UNKNOWN, own)
        expected = self._pages.obtain(content, index)
        if expected is not None:
            if block_hash(block.read(0, content.size_in_bytes)) != expected:
                raise BlockMismatch(f"{content.label}: block {index} does not have its hash")
            self.counting.add(received=length, by_block=length)
            return Checked(Verdict.VERIFIED, BlockKey.of_hash(expected))
        self.counting.add(received=length)
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
        """Return True if a block makes its item unverified, which is noted: `on_block` is due.

        Raises IntegrityError if it was hashed with other bytes before, and so handed out.
        """
        if verdict is Verdict.VERIFIED or self._hashes.policy is Policy.OFF:
            return False
        if self._hashes.recognises(content, index, block):
            return False
        self._hashes.mark_unverified(content)
        hashing = self._hashes.hashing(content)
        if hashing is not None and not hashing.agrees(index, block, content):
            # It has left the cache since, and came again: one of the two is wrong.
            logger.warning("%s: block %d came twice, with different bytes", content.label, index)
            raise mismatch(content)
        return True

    def on_block(self, content: ItemContent, index: int) -> None:
        """Hash soon, now that an unverified block is hot."""
        get = self._hashes.begin_hashing if index == 0 else self._hashes.hashing
        hashing = get(content)
        if hashing is not None and hashing.next <= index:
            self._advance_soon(content, hashing)

    def when_near(self, content: ItemContent, first: int, fetch: Callable[[], None]) -> None:
        """Have blocks from `first` on fetched, but later if hashing is on its way to them."""
        hashing = self._hashes.hashing(content)
        with self._lock:
            # In order: the thread that has an item's last block waits for all before it.
            if (
                hashing is not None
                and hashing in self._advancing
                and (hashing in self._put_off or first - hashing.next > MAX_LAG)
                and first - hashing.next <= FAR
            ):
                self._put_off.setdefault(hashing, []).append((first, fetch))
                return
        fetch()

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
        for hashing in list(self._advancing):
            self._end(hashing)
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
            self._take_turn(content, hashing)

    def _take_turn(self, content: ItemContent, hashing: Hashing) -> None:
        try:
            self._pool.submit(self._advance_for_a_turn, content, hashing)
        except RuntimeError:  # shut down: no reader gets an answer any more
            self._end(hashing)

    def _advance_for_a_turn(self, content: ItemContent, hashing: Hashing) -> None:
        """Hash what is there; queue for another turn if that was not all, or a block came since."""
        try:
            has_more = self._advance(content, hashing)
        except BaseException:
            self._end(hashing)
            raise
        with self._lock:
            has_more = self._advancing.get(hashing, False) or has_more
            if has_more:
                self._advancing[hashing] = False
                put_off = []
            else:  # under the same lock: a block that comes after it begins a turn of its own
                put_off = self._end_locked(hashing)
        for _, fetch in put_off:
            fetch()
        if has_more:
            self._take_turn(content, hashing)

    def _end(self, hashing: Hashing) -> None:
        """Hash no more of an item until a block of it comes; nothing waits for that."""
        with self._lock:
            put_off = self._end_locked(hashing)
        for _, fetch in put_off:
            fetch()

    def _end_locked(self, hashing: Hashing) -> list[tuple[int, Callable[[], None]]]:
        """Forget the turns of an item; return the runs that were put off, to be fetched."""
        self._advancing.pop(hashing, None)
        return self._put_off.pop(hashing, [])

    def _fetch_near(self, hashing: Hashing) -> None:
        """Have those runs fetched that hashing has come near to."""
        if hashing not in self._put_off:
            return
        with self._lock:
            put_off = self._put_off.pop(hashing, [])
            far = [run for run in put_off if run[0] - hashing.next > MAX_LAG]
            if far:
                self._put_off[hashing] = far
        for first, fetch in put_off:
            if (first, fetch) not in far:
                fetch()

    def _advance(self, content: ItemContent, hashing: Hashing) -> bool:
        """Hash block after block while the next one is hot; the last if it was handed out.

        Returns True if there may be more of them after this turn.
        """
        for _ in range(TURN):
            with hashing.lock:
                if hashing.next == content.number_of_blocks:
                    break
                index = hashing.next
                block = self._flight.find(content, index)
                if block is None:
                    return False
                try:
                    hashing.feed(block, content)
                    is_damaged = False
                except DamagedBlock:
                    is_damaged = True
            if is_damaged:
                # Else all who wait for this hash take it for one that is coming.
                self._drops.drop_damaged(content, Run(index, 1))
                return False
            self._fetch_near(hashing)
        else:
            return True
        if not self._hashes.is_current(content, hashing):
            return False  # another thread has concluded
        if self.conclude(content, hashing) is Verdict.CORRUPT:
            self._drops.drop(content)
        return False
