"""The hashes of an item's blocks, from the object that has those of its dataset.

Used by the pages of hashes. Such an object is trusted if its head is the one that follows
from the manifest: it comes from the same server with the same right. The head is read with
the first hashes of a dataset, or before them where they lie far behind it; later ranges
have to be of the same object. Blocking and thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from dserverfs.base.block_hashes import HASH_BYTES, HEAD_BYTES, place_of, require_head
from dserverfs.base.errors import (
    IntegrityError,
    NotFound,
    NotStored,
    StorageRefused,
)
from dserverfs.base.items import BLOCK_SIZE, HashesPlace, ItemContent
from dserverfs.base.model import BackendURI, Dataset, Identifier
from dserverfs.base.retry import Deadline, Retries
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.signed_urls import SignedURL
from dserverfs.remote.signing import BLOCK_HASHES

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 60.0
# Hashes so far behind the head come in one request with it.
NEAR_BYTES = 256 * 1024
MAX_KNOWN = 10_000  # datasets whose objects were looked at; 300 bytes each


class HashUrls(Protocol):
    """A source of signed URLs of datasets' block hashes: the resolver."""

    def item_url(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> SignedURL:
        """Return a good URL for the item; it comes with that of the hashes. Blocks."""

    def block_hashes_url(self, dataset: Dataset) -> SignedURL | None:
        """Return a good URL; None if the server has no block hashes of it. Blocks."""

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        """Drop a URL that the store refused; the identifier is BLOCK_HASHES."""


class _Answer(NamedTuple):
    content: bytes
    etag: str | None


class HashObjects:
    """Hashes from one server."""

    def __init__(self, urls: HashUrls, storage: Storage) -> None:
        self._urls = urls
        self._storage = storage
        self._lock = threading.Lock()
        self._good: OrderedDict[BackendURI, str | None] = OrderedDict()  # their ETags

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        """Return hashes [first, first+count) of an item's blocks; None if there are none.

        Raises what server and store say, and IntegrityError, with the reason, if the object
        is not the manifest's.
        """
        place = content.hashes_place()
        if place is None:
            return None
        try:
            # The reader asks for it at the same time, and there is one request for both.
            self._urls.item_url(content.dataset, content.identifier, content.neighbours)
            return self._fetch(content.dataset, place, place.first + first, count)
        except (NotFound, NotStored):
            return None
        except IntegrityError:
            with self._lock:
                self._good.pop(content.dataset.uri, None)
            raise

    def has(self, dataset: Dataset) -> bool:
        """Return whether the server has hashes of a dataset's blocks; raises what it says."""
        url = self._urls.block_hashes_url(dataset)
        if url is None:
            return False
        try:
            return self._storage.look(url.url, Deadline(FETCH_TIMEOUT_S)).size_in_bytes > 0
        except (NotFound, NotStored):
            return False

    def _fetch(self, dataset: Dataset, place: HashesPlace, first: int, count: int) -> bytes | None:
        start, length = place_of(first), count * HASH_BYTES
        with self._lock:
            is_known = dataset.uri in self._good
        if is_known:
            found = self._range(dataset, place, start, length)
            return None if found is None else found.content
        if start + length <= NEAR_BYTES:
            found = self._range(dataset, place, 0, start + length)
        else:
            found = self._range(dataset, place, 0, HEAD_BYTES)
        if found is None:
            return None
        require_head(found.content[:HEAD_BYTES], place.head)
        with self._lock:
            self._good[dataset.uri] = found.etag
            if len(self._good) > MAX_KNOWN:
                self._good.popitem(last=False)
        if start + length <= NEAR_BYTES:
            return found.content[start:]
        found = self._range(dataset, place, start, length)
        return None if found is None else found.content

    def _range(
        self, dataset: Dataset, place: HashesPlace, start: int, length: int
    ) -> _Answer | None:
        wanted = ByteRange(start, length, place.object_size)
        with self._lock:
            expected = self._good.get(dataset.uri)

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
