"""The hashes of an item's blocks, from an overlay of its dataset.

Used by the pages of hashes for servers that keep no object of them. An overlay comes whole,
and is kept in memory for the other items. Blocking and thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

from dserverfs.base import hash_overlay
from dserverfs.base.block_hashes import HASH_BYTES
from dserverfs.base.errors import IntegrityError, NotFound, NotStored, ProtocolError
from dserverfs.base.items import ItemContent
from dserverfs.base.model import BackendURI, Dataset, Identifier
from dserverfs.reading.hash_pages import HashSource
from dserverfs.remote.signed_urls import UrlSource

MAX_KEPT_BYTES = 32 * 1024 * 1024
_ENTRY_BYTES = 250  # of an item, beside its text

_Texts = Mapping[Identifier, str]


class OverlaySource(UrlSource, Protocol):
    """A source of overlays with hashes, too: the resolver."""

    def hash_overlay(self, dataset: Dataset) -> bytes | None:
        """Return a dataset's overlay; None if it has none. Blocks.

        Its URL comes with those of items.
        """


class HashOverlays:
    """Hashes from one server."""

    def __init__(self, source: OverlaySource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._coming = threading.Lock()  # one overlay at a time: most are small
        self._kept: OrderedDict[BackendURI, _Texts] = OrderedDict()
        self._bytes = 0

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        """Return hashes [first, first+count) of an item's blocks.

        None if there is no overlay, or nothing in it, b"" if it has none of this item. Raises
        what server and store say, and IntegrityError, with the reason, for one of another form.
        """
        try:
            # The reader asks for it at the same time, and there is one request for both.
            self._source.item_url(content.dataset, content.identifier, content.neighbours)
            texts = self._texts(content.dataset)
        except (NotFound, NotStored):
            return None
        if not texts:
            return None
        text = texts.get(content.identifier)
        hashes = hash_overlay.hashes_in(text, content.hash, content.size_in_bytes)
        if text is not None and hashes is None:
            raise IntegrityError("its block hashes, an overlay, are of another item")
        return (hashes or b"")[first * HASH_BYTES : (first + count) * HASH_BYTES]

    def has(self, dataset: Dataset) -> bool:
        """Return whether a dataset has hashes; raises what the server says."""
        try:
            return bool(self._texts(dataset))
        except (NotFound, NotStored):
            return False

    def forget(self, dataset: Dataset) -> None:
        """Read the overlay anew."""
        with self._lock:
            self._drop_locked(dataset.uri)

    def _texts(self, dataset: Dataset) -> _Texts:
        kept = self._at_hand(dataset.uri)
        if kept is not None:
            return kept
        with self._coming:
            kept = self._at_hand(dataset.uri)  # by the download that was waited for
            if kept is not None:
                return kept
            overlay = self._source.hash_overlay(dataset)
            if overlay is None:
                return {}
            try:
                texts = hash_overlay.parse(overlay)
            except ProtocolError as error:
                raise IntegrityError(str(error)) from error
            with self._lock:
                self._kept[dataset.uri] = texts
                self._bytes += _size(texts)
                while self._bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
                    self._drop_locked(next(iter(self._kept)))
            return texts

    def _at_hand(self, dataset: BackendURI) -> _Texts | None:
        with self._lock:
            kept = self._kept.get(dataset)
            if kept is not None:
                self._kept.move_to_end(dataset)
            return kept

    def _drop_locked(self, dataset: BackendURI) -> None:
        texts = self._kept.pop(dataset, None)
        if texts is not None:
            self._bytes -= _size(texts)


class FirstOf:
    """Hashes from the first of several sources that has them."""

    def __init__(self, sources: Sequence[HashSource]) -> None:
        self._sources = sources

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        of_others = None
        for source in self._sources:
            found = source.fetch(content, first, count)
            if found:
                return found
            if found is not None:
                of_others = found
        return of_others

    def has(self, dataset: Dataset) -> bool:
        return any(source.has(dataset) for source in self._sources)

    def forget(self, dataset: Dataset) -> None:
        for source in self._sources:
            source.forget(dataset)


def _size(texts: _Texts) -> int:
    return sum(len(text) + _ENTRY_BYTES for text in texts.values())
