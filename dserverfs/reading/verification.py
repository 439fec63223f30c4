"""Comparing items of several blocks with their manifest's hash while they are read.

Used by the reader, which tells of every block that arrives and asks before it
hands out what completes an item. Blocks are hashed in order by one thread of
its own (MD5 takes 1.1 ms a block and leaves the interpreter to others); one that
arrived out of order is read back when its turn comes. Whoever must not go on
before the end has the missing blocks fetched, by `compare`. Thread-safe.

An item is right (compared here, or every block of it came verified from the
cache), doubtful (an unverified block of it was handed out), or neither. A block that
has to be fetched again, of an item that was right, is unverified as the first one was;
`strict` keeps a digest of each block, so that it need not compare the whole again.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum, auto
from typing import NamedTuple, Protocol

from dserverfs.base.errors import DeadlineExceeded, DserverfsError, IntegrityError
from dserverfs.base.hashes import Hasher, Policy, hasher_of
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache.blocks import Block, DamagedBlock
from dserverfs.reading.read_ahead import ReadAhead

logger = logging.getLogger(__name__)

MAX_ITEMS = 256  # being hashed at a time; the one fed longest ago is given up
MAX_KNOWN_BLOCKS = 1024 * 1024  # of items compared here; 8 bytes each, 90 with a digest
COMPARE_THREADS = 4
COMPARE_TIMEOUT_S = 120.0
# `strict` waits for the whole of items up to this size: 1-3 s from a server nearby.
STRICT_LIMIT_BYTES = 256 * 1024 * 1024
_WAIT_S = 1.0


class Verdict(Enum):
    """What is known of an item's content."""

    RIGHT = auto()
    WRONG = auto()
    UNKNOWN = auto()


class Blocks(Protocol):
    """Where blocks come from and who has to know of the outcome: the reader."""

    def at_hand(self, content: ItemContent, index: int) -> Block | None:
        """Return a block that arrived, from memory or disk; may block on a disk."""

    def obtain(self, content: ItemContent, index: int, deadline: Deadline) -> Block:
        """Return a block, fetched if need be; blocks. Raises what fetching raises."""

    def want_ahead(self, content: ItemContent, run: Run) -> None:
        """Have the blocks of `run` fetched in the background."""

    def all_verified(self, content: ItemContent) -> bool:
        """Return whether the cache has every block of the item, verified."""

    def found_right(self, content: ItemContent, serials: Sequence[int]) -> None:
        """Take note that these blocks are the item."""

    def found_wrong(self, content: ItemContent) -> Exception:
        """Forget everything of the item; return what to tell its readers."""


class _Known(NamedTuple):
    """By what the blocks of an item that was compared are recognised."""

    serials: Sequence[int]  # empty: came verified from the cache
    digests: Sequence[bytes]  # empty: what is fetched again is unverified


_CAME_VERIFIED = _Known((), ())


class _Progress:
    """How far an item is hashed."""

    def __init__(self, hasher: Hasher, *, keeps_digests: bool) -> None:
        self.changed = threading.Condition()
        self.hashing = threading.Lock()  # held by the one who hashes
        self.hasher = hasher
        self.next = 0  # Invariant: blocks before this one are in the hash, no other
        self.serials = array("Q")  # of these blocks
        self.digests: list[bytes] | None = [] if keeps_digests else None
        self.broken = False  # a block before the end will not come

    def feed(self, block: Block, content: ItemContent) -> None:
        """Hash the next block; the caller holds `hashing`. Raises DamagedBlock."""
        data = block.read(0, content.size_in_bytes)
        self.hasher.update(data)
        self.serials.append(block.serial)
        if self.digests is not None:
            self.digests.append(_digest(data))
        with self.changed:
            self.next += 1
            self.changed.notify_all()


class Verification:
    """The items that are being read whole, and what is known of others."""

    def __init__(self, blocks: Blocks, policy: Policy, strict_limit_in_bytes: int) -> None:
        self._blocks = blocks
        self._policy = policy
        self._strict_limit_in_bytes = strict_limit_in_bytes
        self._lock = threading.Lock()
        self._items: OrderedDict[str, _Progress] = OrderedDict()
        self._right: OrderedDict[str, _Known] = OrderedDict()
        self._right_blocks = 0
        self._doubtful: set[str] = set()
        self._told_large: set[str] = set()
        self._comparing: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self._compare_pool = ThreadPoolExecutor(COMPARE_THREADS, thread_name_prefix="compare")

    def held_back(self, content: ItemContent, *, whole: bool) -> Future[None] | None:
        """Return what to wait for before any of its bytes at hand may be handed out, if anything.

        `whole` says that the caller has all others. Raises IntegrityError if the
        policy forbids to hand out what cannot be compared.
        """
        if self._policy is Policy.OFF or content.number_of_blocks == 0:
            return None
        known = hasher_of(content.hash_function) is not None
        if self._is_strict_with(content):
            if not known:
                raise IntegrityError(
                    f"{content.label} cannot be compared by its"
                    f" {content.hash_function}, and --verify strict hands out nothing else"
                )
            # An item of one block was compared when it came.
            right = content.number_of_blocks == 1 or self.is_right(content)
            return None if right else self.compare(content)
        if self._policy is Policy.STRICT and content.key not in self._told_large:
            self._told_large.add(content.key)
            logger.info(
                "%s is larger than %d MiB: parts of it are handed out uncompared",
                content.label,
                self._strict_limit_in_bytes // 1024**2,
            )
        return self.compare(content) if whole and known and self.is_doubtful(content) else None

    def lets_pass(self, content: ItemContent, *, whole: bool) -> bool:
        """Return whether `held_back` is certain to return None; cheap."""
        if self._policy is Policy.STRICT:
            return False
        return not whole or self._policy is Policy.OFF or content.key not in self._doubtful

    def is_right(self, content: ItemContent) -> bool:
        """Return whether every byte handed out of it, and every one at hand, is the manifest's."""
        return content.key in self._right

    def is_doubtful(self, content: ItemContent) -> bool:
        """Return whether a byte of it was handed out that was not compared yet."""
        return content.key in self._doubtful

    def recognises(self, content: ItemContent, index: int, block: Block) -> bool:
        """Return whether the block was part of the item when it was compared here."""
        known = self._right.get(content.key)
        if known is None or not known.serials:
            return False
        if block.serial and known.serials[index] == block.serial:
            return True
        try:
            return bool(known.digests) and known.digests[index] == _digest(
                block.read(0, content.size_in_bytes)
            )
        except DamagedBlock:
            return False

    def doubt(self, content: ItemContent) -> None:
        """Note that an unverified block is about to be handed out."""
        with self._lock:
            self._doubtful.add(content.key)
            self._right_blocks -= len(self._right.pop(content.key, _CAME_VERIFIED).serials)

    def arrived(self, content: ItemContent, index: int) -> None:
        """Hash what can be hashed, soon, now that an unverified block is at hand."""
        progress = self._progress(content, start=index == 0)
        if progress is not None and progress.next <= index:
            self._advance_soon(content, progress)

    def failed(self, content: ItemContent) -> None:
        """Let nobody wait for an item of which a block could not be fetched."""
        with self._lock:
            progress = self._items.pop(content.key, None)
        if progress is not None:
            with progress.changed:
                progress.broken = True
                progress.changed.notify_all()

    def forget(self, content: ItemContent) -> None:
        """Begin anew with an item that was dropped."""
        self.failed(content)
        with self._lock:
            self._doubtful.discard(content.key)
            self._right_blocks -= len(self._right.pop(content.key, _CAME_VERIFIED).serials)

    def verdict(
        self,
        content: ItemContent,
        last: Block,
        is_coming: Callable[[int], bool],
        deadline: Deadline,
    ) -> Verdict:
        """Return what the item is, given its last block; blocks until all others are hashed.

        UNKNOWN at once if it is not being read whole: `is_coming` says whether a
        block is at hand or under way.
        """
        # The first block may be behind the last: they come over different connections.
        progress = self._progress(content, start=is_coming(0))
        final = content.number_of_blocks - 1
        if progress is None:
            return Verdict.UNKNOWN
        self._advance_soon(content, progress)
        with progress.changed:
            while progress.next < final:
                if progress.broken or not is_coming(progress.next):
                    return Verdict.UNKNOWN
                try:
                    progress.changed.wait(min(_WAIT_S, deadline.remaining_s()))
                except DeadlineExceeded:
                    return Verdict.UNKNOWN
        with progress.hashing:
            if progress.next == final:
                progress.feed(last, content)
        return self._finish(content, progress)

    def compare(self, content: ItemContent) -> Future[None]:
        """Return what is done when the item was compared; fails if it is wrong or cannot be had.

        At once if it is right. One comparison at a time serves all who ask.
        """
        with self._lock:
            if content.key in self._right:
                done: Future[None] = Future()
                done.set_result(None)
                return done
            future = self._comparing.get(content.key)
            if future is not None:
                return future
            future = self._comparing[content.key] = Future()
        try:
            self._compare_pool.submit(self._compare, content, future)
        except RuntimeError as error:  # shut down
            future.set_exception(error)
        return future

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._compare_pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting = list(self._items.values())
            self._items.clear()
        for progress in waiting:
            with progress.changed:
                progress.broken = True
                progress.changed.notify_all()

    def _compare(self, content: ItemContent, future: Future[None]) -> None:
        failure: BaseException | None = None
        try:
            failure = self._compare_now(content, Deadline(COMPARE_TIMEOUT_S))
        except DserverfsError as error:
            failure = error
        except Exception as error:
            logger.exception("%s: a fault of ours while comparing", content.dataset.uri)
            failure = error
        with self._lock:
            del self._comparing[content.key]
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)

    def _compare_now(self, content: ItemContent, deadline: Deadline) -> BaseException | None:
        """Return None if the item is right, else what to tell; blocks. Raises as `obtain` does."""
        if not self.is_doubtful(content) and self._blocks.all_verified(content):
            self._note_right(content, _CAME_VERIFIED)
            return None
        fetched: tuple[int, Block] | None = None
        ahead = ReadAhead()
        while True:
            deadline.remaining_s()
            progress = self._progress(content, start=True)
            if progress is None or self.is_right(content):
                return None
            with progress.hashing:
                index = progress.next
                if index < content.number_of_blocks:
                    block = fetched[1] if fetched and fetched[0] == index else None
                    fetched = None
                    if block is None:
                        block = self._blocks.at_hand(content, index)
                    try:
                        if block is not None:
                            progress.feed(block, content)
                            continue
                    except DamagedBlock:
                        pass
            if index >= content.number_of_blocks:
                wrong = self._finish(content, progress) is Verdict.WRONG
                return self._blocks.found_wrong(content) if wrong else None
            run = ahead.plan(index * BLOCK_SIZE, BLOCK_SIZE, content.number_of_blocks)
            if run.length:
                self._blocks.want_ahead(content, run)
            fetched = index, self._blocks.obtain(content, index, deadline)

    def _progress(self, content: ItemContent, *, start: bool) -> _Progress | None:
        with self._lock:
            progress = self._items.get(content.key)
            if progress is None and start:
                hasher = hasher_of(content.hash_function)
                if hasher is None:
                    return None
                progress = self._items[content.key] = _Progress(
                    hasher, keeps_digests=self._is_strict_with(content)
                )
                if len(self._items) > MAX_ITEMS:
                    self._items.popitem(last=False)
            return progress

    def _advance_soon(self, content: ItemContent, progress: _Progress) -> None:
        try:
            self._pool.submit(self._advance, content, progress)
        except RuntimeError:  # shut down: nobody gets an answer any more
            pass

    def _advance(self, content: ItemContent, progress: _Progress) -> None:
        """Hash block after block as long as the next is at hand; the last if it was handed out."""
        while True:
            with progress.hashing:
                if progress.next == content.number_of_blocks:
                    break
                block = self._blocks.at_hand(content, progress.next)
                if block is None:
                    return
                try:
                    progress.feed(block, content)
                except DamagedBlock:  # the reader will notice by itself
                    return
        with self._lock:
            if self._items.get(content.key) is not progress:
                return  # somebody else came to the end of it
        if self._finish(content, progress) is Verdict.WRONG:
            self._blocks.found_wrong(content)

    def _finish(self, content: ItemContent, progress: _Progress) -> Verdict:
        """Return the verdict on an item that is hashed to its end, and tell if it is right."""
        with self._lock:
            first = self._items.get(content.key) is progress
            if first:
                del self._items[content.key]
        if progress.hasher.hexdigest() != content.hash:
            if first:
                logger.warning(
                    "%s was read whole and does not have the manifest's hash",
                    content.label,
                )
            return Verdict.WRONG
        if first:
            self._note_right(content, _Known(progress.serials, progress.digests or ()))
            self._blocks.found_right(content, progress.serials)
        return Verdict.RIGHT

    def _note_right(self, content: ItemContent, known: _Known) -> None:
        with self._lock:
            self._doubtful.discard(content.key)
            before = self._right.pop(content.key, _CAME_VERIFIED)
            self._right_blocks += len(known.serials) - len(before.serials)
            self._right[content.key] = known
            while self._right_blocks > MAX_KNOWN_BLOCKS or len(self._right) > MAX_KNOWN_BLOCKS:
                _, dropped = self._right.popitem(last=False)
                self._right_blocks -= len(dropped.serials)

    def _is_strict_with(self, content: ItemContent) -> bool:
        """Return whether nothing of the item is handed out before all of it was compared."""
        return (
            self._policy is Policy.STRICT and content.size_in_bytes <= self._strict_limit_in_bytes
        )


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()
