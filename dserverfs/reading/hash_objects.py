"""The hashes of an item's blocks, from the object that has those of its dataset.

Used by the pages of hashes. Such an object is trusted if its head is the one that follows
from the manifest: it comes from the same server with the same right. It is read in chunks,
so that the items of a directory do not cost a request each; the head comes with the first
of them, or before it, and all others have to be of the same object. Blocking and
thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from dserverfs.base.block_hashes import HASH_BYTES, HEAD_BYTES, place_of, require_head
from dserverfs.base.errors import (
    IntegrityError,
    NotFound,
    NotStored,
    StorageRefused,
)
from dserverfs.base.items import BLOCK_SIZE, HashesPlace, ItemContent
from dserverfs.base.model import BackendURI, Dataset
from dserverfs.base.retry import Deadline, Retries
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.signed_urls import SignedURL, UrlSource
from dserverfs.remote.signing import BLOCK_HASHES

FETCH_TIMEOUT_S = 60.0
CHUNK_BYTES = 256 * 1024  # the hashes of 8 GiB
MAX_CHUNKS = 32  # in memory
MAX_KNOWN = 10_000  # datasets whose objects were looked at; 300 bytes each


class HashUrls(UrlSource, Protocol):
    """A source of signed URLs of datasets' block hashes, too: the resolver."""

    def block_hashes_url(self, dataset: Dataset) -> SignedURL | None:
        """Return a good URL; None if the server has no block hashes of it. Blocks.

        It comes with those of items. One that the store refused is dropped by `forget_url`,
        with BLOCK_HASHES as the identifier.
        """

    def knows_block_hashes(self, dataset: Dataset) -> bool:
        """Return True if `block_hashes_url` would ask nobody."""


class _Answer(NamedTuple):
    content: bytes
    etag: str | None


class _ObjectKey(NamedTuple):
    """An object; a dataset that was deleted and made again with its uuid has another."""

    dataset: BackendURI
    head: bytes


class _ChunkKey(NamedTuple):
    object: _ObjectKey
    number: int


class HashObjects:
    """Hashes from one server."""

    def __init__(self, urls: HashUrls, storage: Storage) -> None:
        self._urls = urls
        self._storage = storage
        self._lock = threading.Lock()
        # The ETags of those that had the right head.
        self._good: OrderedDict[_ObjectKey, str | None] = OrderedDict()
        self._chunks: OrderedDict[_ChunkKey, bytes] = OrderedDict()
        self._coming: dict[_ChunkKey, Future[bytes | None]] = {}

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        """Return hashes [first, first+count) of an item's blocks; None if there are none.

        Raises what server and store say, and IntegrityError, with the reason, if the object
        is not the manifest's.
        """
        place = content.hashes_place()
        if place is None:
            return None
        start = place_of(place.first + first)
        end = start + count * HASH_BYTES
        try:
            if not self._urls.knows_block_hashes(content.dataset):
                # The reader asks for it at the same time, and there is one request for both.
                self._urls.item_url(content.dataset, content.identifier, content.neighbours)
            chunks = []
            for number in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
                chunk = self._chunk(content.dataset, place, number)
                if chunk is None:
                    return None
                chunks.append(chunk)
        except (NotFound, NotStored):
            return None
        except IntegrityError:
            self.forget(content.dataset)
            raise
        offset = start // CHUNK_BYTES * CHUNK_BYTES
        return b"".join(chunks)[start - offset : end - offset]

    def has(self, dataset: Dataset) -> bool:
        """Return whether the server has hashes of a dataset's blocks; raises what it says."""
        url = self._urls.block_hashes_url(dataset)
        if url is None:
            return False
        try:
            return self._storage.look(url.url, Deadline(FETCH_TIMEOUT_S)).size_in_bytes > 0
        except (NotFound, NotStored):
            return False

    def forget(self, dataset: Dataset) -> None:
        """Read the object anew, from its head on."""
        with self._lock:
            for key in [key for key in self._good if key.dataset == dataset.uri]:
                del self._good[key]
            for chunk in [key for key in self._chunks if key.object.dataset == dataset.uri]:
                del self._chunks[chunk]

    def _chunk(self, dataset: Dataset, place: HashesPlace, number: int) -> bytes | None:
        """Return a chunk, fetched once for all who ask for it."""
        key = _ChunkKey(_ObjectKey(dataset.uri, place.head), number)
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
                return chunk
            coming = self._coming.get(key)
            if coming is None:
                mine = self._coming[key] = Future()
        if coming is not None:
            return coming.result()
        try:
            chunk = self._fetch_chunk(dataset, place, number)
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            if chunk is not None:
                self._chunks[key] = chunk
                if len(self._chunks) > MAX_CHUNKS:
                    self._chunks.popitem(last=False)
        mine.set_result(chunk)
        return chunk

    def _fetch_chunk(self, dataset: Dataset, place: HashesPlace, number: int) -> bytes | None:
        with self._lock:
            is_known = _ObjectKey(dataset.uri, place.head) in self._good
        if number and not is_known and self._beginning(dataset, place, HEAD_BYTES) is None:
            return None
        start = number * CHUNK_BYTES
        length = min(CHUNK_BYTES, place.object_size - start)
        if not number and not is_known:
            return self._beginning(dataset, place, length)
        found = self._range(dataset, place, start, length)
        return None if found is None else found.content

    def _beginning(self, dataset: Dataset, place: HashesPlace, length: int) -> bytes | None:
        """Return the first bytes of the object if it is the manifest's; None if there is none."""
        found = self._range(dataset, place, 0, length)
        if found is None:
            return None
        require_head(found.content[:HEAD_BYTES], place.head)
        with self._lock:
            self._good[_ObjectKey(dataset.uri, place.head)] = found.etag
            if len(self._good) > MAX_KNOWN:
                self._good.popitem(last=False)
        return found.content

    def _range(
        self, dataset: Dataset, place: HashesPlace, start: int, length: int
    ) -> _Answer | None:
        wanted = ByteRange(start, length, place.object_size)
        with self._lock:
            expected = self._good.get(_ObjectKey(dataset.uri, place.head))

        def attempt(limit: Deadline) -> _Answer | None:
            url = self._urls.block_hashes_url(dataset)
            if url is None:
                return None
            etags: list[str] = []
            pieces: list[bytes] = []
            try:
                self._storage.read_range(
                    url.url,
                    wanted,
                    block_size=BLOCK_SIZE,
                    etag=expected,
                    deadline=limit,
                    on_etag=etags.append,
                    on_block=pieces.append,
                )
            except StorageRefused:
                self._urls.forget_url(dataset, BLOCK_HASHES, url)
                raise
            return _Answer(b"".join(pieces), etags[0] if etags else None)

        what = f"block hashes of {dataset.uri}"
        return Retries(Deadline(FETCH_TIMEOUT_S), what=what).run(attempt)
