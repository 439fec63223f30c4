"""What the store holds of a dataset's items now: sizes and hashes, past every cache.

Used where a dataset is verified. Knows the manifest's identifiers only: a store
that is reached through signed URLs cannot be asked what else it holds. Blocking
and thread-safe.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from dserverfs.blocks import BLOCK_SIZE
from dserverfs.errors import (
    DeadlineExceeded,
    IntegrityError,
    NotFound,
    ProtocolError,
    Unreachable,
)
from dserverfs.item_content import ItemContent
from dserverfs.resolver import Resolver
from dserverfs.storage import ByteRange, Storage, StorageRefused
from dserverfs.transport import METADATA_TIMEOUT_S, Deadline, backoff_s
from dserverfs.verify import Hasher, known_hasher

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 4
RANGE_BYTES = 64 * BLOCK_SIZE  # each with a deadline of its own
RANGE_TIMEOUT_S = 120.0


class StoredItems:
    """Looks at the objects behind items."""

    def __init__(self, resolver: Resolver, storage: Storage) -> None:
        self._resolver = resolver
        self._storage = storage

    def size(self, content: ItemContent) -> int | None:
        """Return the size of what is stored; None if nothing is."""
        try:
            return self._asked(
                content,
                lambda url: self._storage.size_of(url, Deadline(METADATA_TIMEOUT_S)),
            )
        except NotFound:
            return None

    def digest(self, content: ItemContent, size_in_bytes: int) -> str:
        """Return the hash, by the manifest's function, of the `size_in_bytes` that are stored.

        Raises IntegrityError if the object changes meanwhile.
        """
        hasher = known_hasher(content.hash_function)
        position = _Position(hasher)
        while position.offset < size_in_bytes:
            self._asked(content, lambda url: self._take(url, position, size_in_bytes))
        return hasher.hexdigest()

    def _take(self, url: str, position: _Position, size_in_bytes: int) -> None:
        """Move `position` on by a range, or by what came of it before it broke off."""
        left = size_in_bytes - position.offset
        self._storage.read_range(
            url,
            ByteRange(position.offset, min(RANGE_BYTES, left), size_in_bytes),
            block_size=BLOCK_SIZE,
            etag=position.etag,
            deadline=Deadline(RANGE_TIMEOUT_S),
            on_etag=position.note_etag,
            on_block=position.take,
        )

    def _asked(self, content: ItemContent, ask: Callable[[str], T]) -> T:
        """Return what `ask` says of the item's URL; a refused one is replaced once."""
        attempt = 0
        refused = False
        while True:
            url = self._resolver.item_url(content.dataset, content.identifier, content.neighbours)
            try:
                return ask(url.url)
            except StorageRefused as error:
                self._resolver.forget_url(content.dataset, content.identifier, url)
                if refused:
                    raise ProtocolError(f"{error}, also with a new URL") from error
                refused = True
            except Unreachable as error:
                attempt += 1
                if attempt >= ATTEMPTS or isinstance(error, DeadlineExceeded):
                    raise
                logger.debug("%s: tried again after: %s", content.dataset.uri, error)
                time.sleep(backoff_s(attempt - 1))


class _Position:
    """How far an object was hashed."""

    def __init__(self, hasher: Hasher) -> None:
        self.offset = 0
        self.etag: str | None = None
        self._hasher = hasher

    def take(self, block: bytes) -> None:
        self._hasher.update(block)
        self.offset += len(block)

    def note_etag(self, etag: str) -> None:
        if self.etag not in (None, etag):
            raise IntegrityError("an object changed while it was read")
        self.etag = etag
