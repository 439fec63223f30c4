"""Comparing items of several blocks with their manifest's hash while they are read.

Used by the reader, which tells of every block that arrives and asks before it
hands out an item's last one. Blocks are hashed in order by one thread of its
own (MD5 takes 1.1 ms a block and leaves the interpreter to others); one that
arrived out of order is read back when its turn comes. What is not read whole
is not verified. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto

from dserverfs.blocks import Block
from dserverfs.errors import DeadlineExceeded
from dserverfs.item_content import ItemContent
from dserverfs.transport import Deadline
from dserverfs.verify import Hasher, hasher_of

MAX_ITEMS = 256  # being hashed at a time; the one fed longest ago is given up
_WAIT_S = 1.0


class Verdict(Enum):
    """What is known of an item's content."""

    RIGHT = auto()
    WRONG = auto()
    UNKNOWN = auto()


class _Progress:
    """How far an item is hashed."""

    def __init__(self, hasher: Hasher) -> None:
        self.changed = threading.Condition()
        self.hashing = threading.Lock()  # held by the one who hashes
        self.hasher = hasher
        self.next = 0  # Invariant: blocks before this one are in the hash, no other
        self.broken = False  # a block before the end will not come


class Verification:
    """The items that are being read whole."""

    def __init__(self, at_hand: Callable[[ItemContent, int], Block | None]) -> None:
        """`at_hand` returns a block that arrived, from memory or disk; it may block on a disk."""
        self._at_hand = at_hand
        self._lock = threading.Lock()
        self._items: OrderedDict[str, _Progress] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="verify")

    def arrived(self, content: ItemContent, index: int) -> None:
        """Hash what can be hashed, soon, now that a block is at hand."""
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

    def verdict(
        self,
        content: ItemContent,
        last: bytes,
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
        with self._lock:
            self._items.pop(content.key, None)
        with progress.hashing:
            progress.hasher.update(last)
            right = progress.hasher.hexdigest() == content.hash
        return Verdict.RIGHT if right else Verdict.WRONG

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting = list(self._items.values())
            self._items.clear()
        for progress in waiting:
            with progress.changed:
                progress.broken = True
                progress.changed.notify_all()

    def _progress(self, content: ItemContent, *, start: bool) -> _Progress | None:
        with self._lock:
            progress = self._items.get(content.key)
            if progress is None and start:
                hasher = hasher_of(content.hash_function)
                if hasher is None:
                    return None
                progress = self._items[content.key] = _Progress(hasher)
                if len(self._items) > MAX_ITEMS:
                    self._items.popitem(last=False)
            return progress

    def _advance_soon(self, content: ItemContent, progress: _Progress) -> None:
        try:
            self._pool.submit(self._advance, content, progress)
        except RuntimeError:  # shut down: nobody gets an answer any more
            pass

    def _advance(self, content: ItemContent, progress: _Progress) -> None:
        """Hash block after block as long as the next is at hand; never the last."""
        with progress.hashing:
            while progress.next < content.number_of_blocks - 1:
                block = self._at_hand(content, progress.next)
                if block is None:
                    return
                try:
                    progress.hasher.update(block.read(0, content.size_in_bytes))
                except OSError:  # the cache's disk fails; the reader will notice by itself
                    return
                with progress.changed:
                    progress.next += 1
                    progress.changed.notify_all()
