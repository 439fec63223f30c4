"""What the store holds of a dataset's items now: sizes and hashes, past every cache.

Used where a dataset is verified. Knows the manifest's identifiers only: a store
that is reached through signed URLs cannot be asked what else it holds. Blocking
and thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dserverfs.base.errors import (
    DserverfsError,
    IntegrityError,
    NotConnected,
    NotFound,
    NotStored,
    StorageRefused,
)
from dserverfs.base.hashes import known_hasher
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.retry import FIRST_STALL_S, Deadline, Retries
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import METADATA_TIMEOUT_S
from dserverfs.remote.objects import ByteRange, Storage, StoredObject

T = TypeVar("T")

MD5 = "md5sum_hexdigest"
RANGE_BYTES = 64 * BLOCK_SIZE  # each with a deadline of its own
RANGE_TIMEOUT_S = 120.0


class StoredItems:
    """Looks at the objects behind items."""

    def __init__(self, resolver: Resolver, storage: Storage) -> None:
        self._resolver = resolver
        self._storage = storage

    def size(self, content: ItemContent) -> int | None:
        """Return the size of what is stored; None if nothing is."""
        found = self.look(content)
        return None if found is None else found.size_in_bytes

    def require(self, content: ItemContent) -> None:
        """Return if the store surely has the item; raises IntegrityError with what it has.

        Asks for one byte where the store's ETag is the item's MD5, as S3's is of what was
        put in one piece without a key; else reads it all.
        """
        found = self.look(content)
        if found is None:
            raise IntegrityError("the store has nothing")
        if found.size_in_bytes != content.size_in_bytes:
            raise IntegrityError(f"the store has {found.size_in_bytes} bytes")
        if found.etag == content.hash and content.hash_function == MD5:
            return
        digest = self.digest(content, found.size_in_bytes)
        if digest != content.hash:
            raise IntegrityError(f"the store has content with hash {digest}")

    def look(self, content: ItemContent) -> StoredObject | None:
        """Return what is stored; None if nothing is."""
        try:
            return self._asked(
                content,
                Retries(Deadline(METADATA_TIMEOUT_S)),
                lambda url, limit: self._storage.look(url, limit),
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
        deadline = Deadline(RANGE_TIMEOUT_S)
        retries = Retries(deadline, first_stall_s=FIRST_STALL_S)

        def take(block: bytes) -> None:
            nonlocal offset
            on_block(block)
            offset += len(block)
            deadline.restart()
            retries.progressed()

        def check(found: str) -> None:
            if etag(found) != found:
                raise IntegrityError(f"{content.label} changed while it was read")

        def ask(url: str, limit: Deadline) -> None:
            self._storage.read_range(
                url,
                ByteRange(offset, start + length - offset, size_in_bytes),
                block_size=BLOCK_SIZE,
                etag=None,
                deadline=limit,
                on_etag=check,
                on_block=take,
            )

        self._asked(content, retries, ask)

    def _asked(
        self, content: ItemContent, retries: Retries, ask: Callable[[str, Deadline], T]
    ) -> T:
        """Return what `ask` says of the item's URL."""
        while True:
            limit = retries.limit()
            url = self._resolver.item_url(content.dataset, content.identifier, content.neighbours)
            try:
                return ask(url.url, limit)
            except DserverfsError as error:
                if isinstance(error, StorageRefused):
                    self._resolver.forget_url(content.dataset, content.identifier, url)
                elif isinstance(error, NotConnected) and retries.failures:
                    self._resolver.forget_host(url)
                retries.again(error)
