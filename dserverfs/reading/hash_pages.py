"""The hashes of items' blocks: at hand, in the cache, or on their way from the server.

Used by those who compare blocks and look for them. The hashes of an item are fetched
beside its first block, a page at a time, and kept in the block cache: those that a server
gave for its own item alone, those of an item that was compared as a whole for all with its
content. An item without any is read as the policy says for it. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from dserverfs.base.block_hashes import HASH_BYTES
from dserverfs.base.errors import DserverfsError, IntegrityError
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Dataset
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import PAGE, BlockKey, length_of_page
from dserverfs.reading.cache.blocks import DamagedBlock, MemoryBlock

logger = logging.getLogger(__name__)

MAX_MEMORY_BYTES = 32 * 1024 * 1024
MAX_NOTED = 10_000  # datasets without hashes, and pages that did not come
# A reader waits for them no longer, once it has its block: they were asked for before that, so
# on a busy machine they are late only if the block is.
WAIT_S = 1.0
# Until they are asked for again: of a dataset that has none, and after a failure.
ABSENT_S = 600.0
RETRY_S = 30.0
THREADS = 4
_ENTRY_BYTES = 500  # of a page, beside its hashes


class HashSource(Protocol):
    """The origin of hashes: the objects of a server."""

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        """Return hashes [first, first+count) of an item; blocks.

        None if its dataset has none, b"" if others of its items have some.
        """

    def has(self, dataset: Dataset) -> bool:
        """Return whether there are hashes of a dataset's items. Blocks."""

    def forget(self, dataset: Dataset) -> None:
        """Ask anew for those of a dataset."""


class NoHashes:
    """The origin of no hashes."""

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        return None

    def has(self, dataset: Dataset) -> bool:
        return False

    def forget(self, dataset: Dataset) -> None:
        """Do nothing."""


class _PageKey(NamedTuple):
    item: str  # ItemContent.key
    page: int


class HashPages:
    """Hashes of blocks, by item and index."""

    def __init__(
        self,
        cache: BlockCache,
        source: HashSource,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_come: Callable[[ItemContent, range], None] = lambda content, indices: None
        self._cache = cache
        self._source = source
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._keeping = 0  # pages that have come
        self._pages: OrderedDict[str, dict[int, bytes]] = OrderedDict()  # by item
        self._bytes = 0
        self._coming: dict[_PageKey, threading.Event] = {}  # set with the hashes, or without
        self._not_before_s: OrderedDict[object, float] = OrderedDict()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hashes")

    def close(self) -> None:
        """Let nobody wait any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for coming in self._coming.values():
                coming.set()

    def has_some(self, content: ItemContent) -> bool:
        """Return True if hashes of the item are in memory; never blocks."""
        return content.key in self._pages

    def find(self, content: ItemContent, indices: Sequence[int]) -> list[bytes | None]:
        """Return the hashes of blocks that are here; blocks on the disk."""
        if content.number_of_blocks < 2:
            return [None] * len(indices)
        pages = {page: self._page(content, page) for page in {index // PAGE for index in indices}}
        return [_in_page(pages[index // PAGE], index) for index in indices]

    def request(self, content: ItemContent, index: int) -> None:
        """Have the hashes around a block fetched, if they are neither here nor known not to be."""
        key = _PageKey(content.key, index // PAGE)
        if content.number_of_blocks < 2 or self._page(content, key.page) is not None:
            return
        with self._lock:
            is_wanted = self._in_memory(key) is None and not (
                self._is_noted_locked(key) or self._is_noted_locked(content.dataset.uri)
            )
            coming = self._begin_locked(key) if is_wanted else None
        if coming is not None:
            self._submit(content, key, coming)

    def renew(self, content: ItemContent, index: int) -> None:
        """Have the hashes around a block that does not have its own fetched anew.

        They may be what is wrong. Until others come, these count.
        """
        key = _PageKey(content.key, index // PAGE)
        with self._lock:
            if self._is_noted_locked(_renewed(key)):
                return
            self._note_locked(_renewed(key), RETRY_S)
            coming = self._begin_locked(key)
        if coming is not None:
            self._source.forget(content.dataset)
            self._submit(content, key, coming)

    def _begin_locked(self, key: _PageKey) -> threading.Event | None:
        """Return what is to come; None if it is coming already."""
        if key in self._coming:
            return None
        coming = self._coming[key] = threading.Event()
        return coming

    def _submit(self, content: ItemContent, key: _PageKey, coming: threading.Event) -> None:
        try:
            self._pool.submit(self._come, content, key, coming)
        except RuntimeError:  # shut down
            self._answer(key, coming, None)

    def obtain(self, content: ItemContent, index: int) -> bytes | None:
        """Return the hash of a block; waits for it if it is coming, but not for long."""
        if content.number_of_blocks < 2:
            return None
        key = _PageKey(content.key, index // PAGE)
        page = self._in_memory(key)
        if page is None:
            with self._lock:
                coming = self._coming.get(key)
                may_wait = not self._is_noted_locked(_slow(content))
            if coming is not None and may_wait and not coming.wait(WAIT_S):
                self._note(_slow(content), RETRY_S)  # or each item would wait
            page = self._page(content, key.page)
        return _in_page(page, index)

    def are_there(self, content: ItemContent) -> bool:
        """Return whether there are hashes of an item's blocks; waits as `obtain`."""
        if content.number_of_blocks < 2:
            return False
        self.request(content, 0)
        return self.obtain(content, 0) is not None

    def has_source(self, dataset: Dataset) -> bool:
        """Return whether the server has hashes of a dataset; blocks, raises DserverfsError."""
        return self._source.has(dataset)

    def learn(self, content: ItemContent, hashes: bytes | bytearray) -> None:
        """Keep the hashes of all blocks of an item that was compared as a whole."""
        if content.number_of_blocks < 2:
            return
        for page, start in enumerate(range(0, len(hashes), PAGE * HASH_BYTES)):
            part = bytes(hashes[start : start + PAGE * HASH_BYTES])
            self._remember(_PageKey(content.key, page), part)
            self._cache.store([(_of_content(content, page), MemoryBlock(part))])

    def forget_item(self, content: ItemContent) -> None:
        """Drop all hashes of an item that turned out to be wrong."""
        with self._lock:
            for page in list(self._pages.get(content.key, ())):
                self._drop_locked(_PageKey(content.key, page))
        for key in (_of_item(content, 0), _of_content(content, 0)):
            self._cache.drop_item(key.item)

    def wait(self) -> None:
        """Return when no hashes are on their way, and those that came are kept."""
        with self._idle:
            self._idle.wait_for(lambda: not self._coming and not self._keeping)

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        pages = [page for item in self._pages.values() for page in item.values()]
        assert sum(map(_size, pages)) == self._bytes, "the bytes of pages are miscounted"
        assert self._bytes <= MAX_MEMORY_BYTES or len(self._pages) == 1
        assert all(self._pages.values()), "an item without pages is kept"

    def _in_memory(self, key: _PageKey) -> bytes | None:
        return self._pages.get(key.item, _NO_PAGES).get(key.page)

    def _page(self, content: ItemContent, page: int) -> bytes | None:
        """Return a page from memory or the cache."""
        key = _PageKey(content.key, page)
        found = self._in_memory(key)
        if found is not None:
            return found
        with self._lock:
            if self._is_noted_locked(_not_here(key)):
                return None  # so that no block of an item without hashes costs a question
        length = length_of_page(content.size_in_bytes, page)
        for block in self._cache.load_many(
            [(_of_content(content, page), length), (_of_item(content, page), length)]
        ):
            if block is not None:
                try:
                    found = bytes(block.read(0, length))
                except DamagedBlock:
                    continue
                self._remember(key, found)
                return found
        self._note(_not_here(key), RETRY_S)
        return None

    def _come(self, content: ItemContent, key: _PageKey, coming: threading.Event) -> None:
        """Fetch a page, tell those who wait for it, and keep it."""
        page = None
        try:
            page = self._fetch(content, key)
        except Exception:
            self._note(key, RETRY_S)
            logger.exception("%s: a fault of ours with block hashes", content.dataset.uri)
        self._answer(key, coming, page)
        if page is None:
            return
        try:
            self._cache.store([(_of_item(content, key.page), MemoryBlock(page))])
            first = key.page * PAGE
            self.on_come(content, range(first, first + len(page) // HASH_BYTES))
        finally:
            with self._idle:
                self._keeping -= 1
                self._idle.notify_all()

    def _answer(self, key: _PageKey, coming: threading.Event, page: bytes | None) -> None:
        with self._idle:
            del self._coming[key]
            if page is not None:
                self._keeping += 1
                self._remember_locked(key, page)
            self._idle.notify_all()
        coming.set()

    def _fetch(self, content: ItemContent, key: _PageKey) -> bytes | None:
        """Return a page; None if there is none now, which is noted."""
        length = length_of_page(content.size_in_bytes, key.page)
        try:
            page = self._source.fetch(content, key.page * PAGE, length // HASH_BYTES)
            if page == b"":
                self._note(key, ABSENT_S)
                return None
            if page is not None and len(page) != length:
                raise IntegrityError("its block hashes end too soon")
            if page is None:
                self._note(content.dataset.uri, ABSENT_S)
            return page
        except IntegrityError as error:
            self._note(content.dataset.uri, ABSENT_S)
            logger.warning("%s is read without block hashes: %s", content.dataset.uri, error)
        except DserverfsError as error:
            self._note(key, RETRY_S)
            logger.info("%s: no block hashes for now: %s", content.dataset.uri, error)
        return None

    def _note(self, what: object, seconds: float) -> None:
        with self._lock:
            self._note_locked(what, seconds)

    def _note_locked(self, what: object, seconds: float) -> None:
        self._not_before_s[what] = self._clock_s() + seconds
        if len(self._not_before_s) > MAX_NOTED:
            self._not_before_s.popitem(last=False)

    def _is_noted_locked(self, what: object) -> bool:
        return self._clock_s() < self._not_before_s.get(what, 0.0)

    def _remember(self, key: _PageKey, page: bytes) -> None:
        with self._lock:
            self._remember_locked(key, page)

    def _remember_locked(self, key: _PageKey, page: bytes) -> None:
        self._not_before_s.pop(_not_here(key), None)  # it is, or will be
        self._drop_locked(key)
        self._pages.setdefault(key.item, {})[key.page] = page
        self._pages.move_to_end(key.item)
        self._bytes += _size(page)
        while self._bytes > MAX_MEMORY_BYTES and len(self._pages) > 1:
            oldest = next(iter(self._pages))
            for number in list(self._pages[oldest]):
                self._drop_locked(_PageKey(oldest, number))

    def _drop_locked(self, key: _PageKey) -> None:
        pages = self._pages.get(key.item, _NO_PAGES)
        if key.page in pages:
            self._bytes -= _size(pages.pop(key.page))
            if not pages:
                del self._pages[key.item]


_NO_PAGES: dict[int, bytes] = {}


def _renewed(key: _PageKey) -> tuple[str, _PageKey]:
    """Return what is noted of a page that was fetched anew."""
    return "renewed", key


def _not_here(key: _PageKey) -> tuple[str, _PageKey]:
    """Return what is noted of a page that the cache does not have."""
    return "not here", key


def _slow(content: ItemContent) -> tuple[str, str]:
    """Return what is noted of a dataset whose hashes did not come in time."""
    return "slow", content.dataset.uri


def _size(page: bytes) -> int:
    return len(page) + _ENTRY_BYTES


def _in_page(page: bytes | None, index: int) -> bytes | None:
    start = index % PAGE * HASH_BYTES
    return None if page is None else page[start : start + HASH_BYTES]


def _of_item(content: ItemContent, page: int) -> BlockKey:
    return BlockKey.of_hashes(content.key, content.size_in_bytes, page)


def _of_content(content: ItemContent, page: int) -> BlockKey:
    return BlockKey.of_hashes(content.content_key, content.size_in_bytes, page)
