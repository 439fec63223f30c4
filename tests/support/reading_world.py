"""Readers of items on a store that can be told to do wrong, with a cache of their own."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dserverfs.base.block_hashes import HASH_BYTES, block_hash
from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import UUID, BackendURI, Dataset, Identifier
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.hot_blocks import MAX_MEMORY_BYTES, HotBlocks
from dserverfs.remote.objects import Storage
from dserverfs.remote.signed_urls import SignedURL
from tests.support.faulty_store import FaultyStore, Handler, faulty_store
from tests.support.patience import LATE_S

CONTENT = random.Random(1).randbytes(5 * BLOCK_SIZE + 777)
DATASET = Dataset(UUID("u"), BackendURI("s3://b/u"), "s3://b", "n", "c", 0.0, 0.0, 1, len(CONTENT))


class OneUrl:
    """Hands out the faulty store's URL, and counts."""

    def __init__(self, store: FaultyStore) -> None:
        self._store = store
        self.forgotten = 0

    def item_url(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> SignedURL:
        return self.signed()

    def signed(self) -> SignedURL:
        return SignedURL(self._store.url, float("inf"))

    def forget_host(self, url: SignedURL) -> None:
        """Keep it."""

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        self.forgotten += 1


class Hashes:
    """Gives the block hashes of one content, when it may."""

    def __init__(self, content: bytes) -> None:
        self.hashes = b"".join(
            block_hash(content[start : start + BLOCK_SIZE])
            for start in range(0, len(content), BLOCK_SIZE)
        )
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = 0
        self.failure: DserverfsError | None = None
        self.are_there = True

    def has(self, dataset: Dataset) -> bool:
        return self.are_there

    def forget(self, dataset: Dataset) -> None:
        """Remember nothing anyway."""

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        self.asked += 1
        assert self.may_answer.wait(LATE_S)
        if self.failure is not None:
            raise self.failure
        if not self.are_there:
            return None
        return self.hashes[first * HASH_BYTES : (first + count) * HASH_BYTES]


class World:
    """A store, a cache directory, and readers on them."""

    def __init__(
        self,
        store: FaultyStore,
        directory: Path,
        verify: Policy = Policy.COMPLETE,
        *,
        max_memory_in_bytes: int = MAX_MEMORY_BYTES,
        cache_size: int | None = None,
        **limits: Any,
    ) -> None:
        """`limits` are those of a BlockReader."""
        self.store = store
        self.urls = OneUrl(store)
        self.storage = Storage()
        self.hot = HotBlocks(max_memory_in_bytes=max_memory_in_bytes)
        self.cache = BlockCache(directory, size_limit=cache_size, on_removal=self.hot.close_removed)
        self.cache.open()
        self.reader = self.new_reader(verify=verify, **limits)

    def new_reader(self, **limits: Any) -> BlockReader:
        return BlockReader(self.urls, self.storage, self.cache, self.hot, **limits)

    def content(self, size: int = len(CONTENT), key: str = "key") -> ItemContent:
        return ItemContent(
            key=key,
            dataset=DATASET,
            identifier=Identifier("i" * 40),
            size_in_bytes=size,
            hash_function="md5sum_hexdigest",
            hash=hashlib.md5(self.store.content).hexdigest(),
            neighbours=lambda limit: [],
        )

    def close(self) -> None:
        self.reader.close()
        self.cache.close()
        self.storage.close()


@contextlib.contextmanager
def reading_world(content: bytes, directory: Path) -> Iterator[World]:
    """Have a store with that content, and a reader with its cache in a directory."""
    with faulty_store(content) as store:
        world = World(store, directory)
        yield world
        world.close()


class LoneItem(ItemContent):
    """An item that passes for the only one with its content, though the store has one for all."""

    @property
    def content_key(self) -> str:
        return f"={self.key}"


def wrong_bytes(handler: Handler) -> None:
    size = len(handler.store.content)
    headers = {"Content-Range": f"bytes 0-{size - 1}/{size}"}
    handler.answer(206, bytes(size), headers)
