"""Sizes and hashes of a dataset's items as the store has them now, past every cache.

Used to verify datasets. Knows the manifest's identifiers only: a store that is reached
through signed URLs cannot be asked for others. Blocking and thread-safe.
"""

from __future__ import annotations

from dserverfs.base.errors import IntegrityError, NotFound, NotStored
from dserverfs.base.hashes import MD5, Taker, known_hasher
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.retry import Deadline
from dserverfs.reading.ranges import FirstVersion, RangeFetcher
from dserverfs.remote.dserver_http import METADATA_TIMEOUT_S
from dserverfs.remote.objects import ByteRange, StoredObject

RANGE_BYTES = 64 * BLOCK_SIZE  # each with a deadline of its own
RANGE_TIMEOUT_S = 120.0


class StoredItems:
    """Looks at the objects behind items."""

    def __init__(self, ranges: RangeFetcher) -> None:
        self._ranges = ranges

    def size(self, content: ItemContent) -> int | None:
        """Return the size of the stored object; None if there is none."""
        found = self.look(content)
        return None if found is None else found.size_in_bytes

    def require(self, content: ItemContent) -> None:
        """Return if the store surely has the item; else raises IntegrityError, which says why.

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
        """Return size and ETag of the stored object; None if there is none."""
        try:
            return self._ranges.look(content, Deadline(METADATA_TIMEOUT_S))
        except (NotFound, NotStored):
            return None

    def digest(self, content: ItemContent, size_in_bytes: int, *others: Taker) -> str:
        """Return the hash, by the manifest's function, of the `size_in_bytes` that are stored.

        `others` get the same bytes. Raises IntegrityError if the object changes while it is
        read.
        """
        hasher = known_hasher(content.hash_function)

        def take(data: bytes) -> None:
            for taker in (hasher, *others):
                taker.update(data)

        version = FirstVersion(content)
        for start in range(0, size_in_bytes, RANGE_BYTES):
            wanted = ByteRange(start, min(RANGE_BYTES, size_in_bytes - start), size_in_bytes)
            deadline = Deadline(RANGE_TIMEOUT_S)
            self._ranges.fetch(content, wanted, version, take, deadline)
        return hasher.hexdigest()
