"""A manifest, as it arrives: its items, some thousand at a time, and its hash function.

Used by the indexing and by uploads. Pure; for one thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dserverfs.base import limits
from dserverfs.base.errors import ProtocolError
from dserverfs.base.item_stream import Items, ItemStream

# A manifest's keys come sorted, its version before its items.
_HEAD_BYTES = 64 * 1024
_DTOOLCORE_VERSION = re.compile(rb'"dtoolcore_version"\s*:\s*"([0-9A-Za-z.+-]{1,40})"')


class ManifestStream:
    """One manifest: `feed` what arrives, then `close`."""

    def __init__(self) -> None:
        self._stream = ItemStream("the manifest")
        self.hash_function = ""

    def feed(self, piece: bytes) -> Items:
        """Return the items that this piece has completed; as an ItemStream's."""
        items = self._stream.feed(piece)
        self._learn()
        return items

    def close(self) -> Items:
        """Return the last items; raises ProtocolError if it was no manifest."""
        items = self._stream.close()
        self._learn()
        return items

    def _learn(self) -> None:
        name = self._stream.beside_items.get("hash_function", self.hash_function)
        if not limits.is_text(name):
            raise ProtocolError(f"the manifest's hash_function is {limits.quoted(name)}")
        self.hash_function = name


def dtoolcore_version_in(pieces: Iterable[bytes]) -> str | None:
    """Return the version that the beginning of a manifest names; no more of it is taken."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _HEAD_BYTES or b'"items"' in head:
            break
    match = _DTOOLCORE_VERSION.search(head)
    return match[1].decode("ascii") if match else None
