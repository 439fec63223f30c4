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
    NotStored,
    ProtocolError,
    Unreachable,
)
from dserverfs.item_content import ItemContent
from dserverfs.resolver import Resolver
from dserverfs.storage import ByteRange, Storage, StorageRefused
from dserverfs.transport import METADATA_TIMEOUT_S, Deadline, backoff_s
from dserverfs.verify import known_hasher

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
        except (NotFound, NotStored):
            return None

    def digest(self, content: ItemContent, size_in_bytes: int) -> str:
        """Return the hash, by the manifest's function, of the `size_in_bytes` that are stored.

        Raises IntegrityError if the object changes meanwhile.
        """
        hasher = known_hasher(content.hash_function)
        first: list[str] = []

        def same(etag: str) -> str:
            first.append(etag)
            return first[0]

        for start in range(0, size_in_bytes, RANGE_BYTES):
            length = min(RANGE_BYTES, size_in_bytes - start)
            self.read(content, start, length, size_in_bytes, hasher.update, etag=same)
        return hasher.hexdigest()

    def read(
        self,
        content: ItemContent,
        start: int,
        length: int,
        size_in_bytes: int,
        on_block: Callable[[bytes], None],
        *,
        etag: Callable[[str], str],
    ) -> None:
        """Hand bytes [start, start+length) of an object of that size to `on_block`, in order.

        What breaks off is gone on with where it broke off. `etag` is called with
        the object's ETag before its first byte and returns the one it should
        have: IntegrityError if they differ.
        """
        offset = start

        def take(block: bytes) -> None:
            nonlocal offset
            on_block(block)
            offset += len(block)

        def check(found: str) -> None:
            if etag(found) != found:
                raise IntegrityError(
                    f"{content.dataset.uri}: item {content.identifier} changed while it was read"
                )

        def ask(url: str) -> None:
            self._storage.read_range(
                url,
                ByteRange(offset, start + length - offset, size_in_bytes),
                block_size=BLOCK_SIZE,
                etag=None,
                deadline=Deadline(RANGE_TIMEOUT_S),
                on_etag=check,
                on_block=take,
            )

        self._asked(content, ask)

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
