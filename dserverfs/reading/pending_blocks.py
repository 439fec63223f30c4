"""The blocks that are being fetched, those that just failed, and the versions of objects.

Used by `single_flight`, which holds its lock while it calls anything here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block

# The kernel asks again at once for a read that failed: for so long it gets the same
# answer, so that no program waits twice.
FAILURE_KEPT_S = 2.0
MAX_FAILURES = 4096
MAX_ETAGS = 4096


class PendingBlocks:
    """The futures of blocks under way, and whether a reader waits for them yet."""

    def __init__(self) -> None:
        self._futures: dict[BlockKey, Future[Block]] = {}
        self._unasked: set[BlockKey] = set()  # Invariant: of those, the ones no reader waits for

    def __bool__(self) -> bool:
        return bool(self._futures)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._futures

    def get(self, key: BlockKey) -> Future[Block] | None:
        return self._futures.get(key)

    def add(self, key: BlockKey) -> Future[Block]:
        """Return a new future of a block that is fetched before a reader asks for it."""
        self._unasked.add(key)
        future = self._futures[key] = Future()
        return future

    def ask(self, keys: Iterable[BlockKey]) -> None:
        """Note that a reader waits for these blocks."""
        self._unasked.difference_update(keys)

    def remove(self, key: BlockKey, future: Future[Block]) -> None:
        """Note that `future` is about to be done; another one of that block stays."""
        if self._futures.get(key) is future:
            del self._futures[key]
            self._unasked.discard(key)

    def is_wanted(self, key: BlockKey, future: Future[Block]) -> bool:
        """Return True unless the block was dropped since `future` was made."""
        return self._futures.get(key) is future

    def drop_if_unasked(self, key: BlockKey) -> bool:
        """Leave the block unless a reader waits for it; return True if it is left."""
        if key not in self._unasked:
            return False
        self._unasked.discard(key)
        del self._futures[key]
        return True

    def drop_unasked(self, item: str) -> None:
        """Leave those blocks of the item that no reader waits for."""
        for key in [key for key in self._unasked if key.item == item]:
            self.drop_if_unasked(key)

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        assert self._unasked <= self._futures.keys(), "a block that is not under way is unasked"
        assert not any(future.done() for future in self._futures.values()), "one is done"

    def has_of(self, item: str) -> bool:
        """Return True if a reader waits for a block of the item."""
        return any(key.item == item and key not in self._unasked for key in self._futures)


class RecentFailures:
    """The blocks that did not come in time a moment ago."""

    def __init__(self, kept_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._kept_s = kept_s
        self._clock_s = clock_s
        self._failures: dict[BlockKey, tuple[float, DeadlineExceeded]] = {}

    def note(self, keys: Iterable[BlockKey], error: DeadlineExceeded) -> None:
        now_s = self._clock_s()
        if len(self._failures) > MAX_FAILURES:
            self._failures = {k: kept for k, kept in self._failures.items() if kept[0] > now_s}
        for key in keys:
            self._failures[key] = now_s + self._kept_s, error

    def __bool__(self) -> bool:
        return bool(self._failures)

    def check(self, keys: Iterable[BlockKey]) -> None:
        """Raise the error that was noted of one of `keys` a moment ago."""
        for key in keys:
            until_s, error = self._failures.get(key, (0.0, None))
            if error is None:
                continue
            if self._clock_s() < until_s:
                raise error
            del self._failures[key]


class ObjectVersions:
    """The ETags of objects that were read lately: the bytes of an item are all of one version."""

    def __init__(self) -> None:
        self._etags: OrderedDict[str, str] = OrderedDict()

    def get(self, item: str) -> str | None:
        return self._etags.get(item)

    def is_same(self, item: str, etag: str) -> bool:
        """Return False if another ETag was seen before; note the first."""
        known = self._etags.setdefault(item, etag)
        if len(self._etags) > MAX_ETAGS:
            self._etags.popitem(last=False)
        return known == etag

    def forget(self, item: str) -> None:
        """Take any version of the object from now on."""
        self._etags.pop(item, None)
