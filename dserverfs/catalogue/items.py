"""The items of a frozen dataset, made from its manifest: from an index of it, or from all of it.

Used by the tree, the broker and the command line, so that an item has the same key in the
cache and the same name in messages for all of them. No I/O but look-ups in the index,
which may raise ProtocolError. Immutable, and so thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dserverfs.base.block_hashes import ManifestDigest, has_hashes
from dserverfs.base.errors import IntegrityError, NotFound, ProtocolError
from dserverfs.base.items import HashesPlace, ItemContent, item_key
from dserverfs.base.limits import parse_json, quoted, size_is_usable
from dserverfs.base.model import Dataset, DserverURI, Identifier, Item
from dserverfs.catalogue.manifest_index import ManifestIndex, Row
from dserverfs.catalogue.manifest_rows import is_safe
from dserverfs.remote.manifest_parsing import ManifestStream

ROWS_AT_A_TIME = 1000


@dataclass(frozen=True)
class IndexedItems:
    """The items of one dataset by the rows of its index; the order is that of listings."""

    dataset: Dataset
    uri: DserverURI  # names the dataset among those of all servers
    index: ManifestIndex

    def content(self, row: Row) -> ItemContent:
        """Return the content that a row describes; raises NotFound for a directory."""
        if row.identifier is None:
            raise NotFound(f"{self.dataset.uri}: row {row.row} is a directory")
        return ItemContent(
            key=item_key(self.uri, row.identifier, row.hash),
            dataset=self.dataset,
            identifier=row.identifier,
            size_in_bytes=row.size_in_bytes,
            hash_function=self.index.hash_function,
            hash=row.hash,
            neighbours=functools.partial(self.index.identifiers_around, row.row),
            place=row.row,
            is_refused=bool(row.refused),
            items_from=self.contents_from,
            hashes_place=functools.partial(self.index.hashes_place, row.row),
            relpath_of=functools.partial(self.relpath, row),
        )

    def contents_from(self, row: int, limit: int) -> list[ItemContent]:
        """Return the items in the rows [row, row+limit), without the refused ones."""
        return [
            self.content(found)
            for found in self.index.rows_from(row, limit)
            if found.identifier is not None and not found.refused
        ]

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield every item's row with its relpath, the refused ones as well."""
        directories = {0: ""}
        place = 1
        while rows := self.index.rows_from(place, ROWS_AT_A_TIME):
            for row in rows:
                path = directories[row.parent] + row.name
                if row.identifier is None:
                    directories[row.row] = f"{path}/"
                else:
                    yield path, row
            place = rows[-1].row + 1

    def relpaths_with_hash(self, hash: str, limit: int) -> list[str]:
        """Return the paths of the first items with that hash."""
        return [self.relpath(row) for row in self.index.rows_with_hash(hash, limit)]

    def with_relpaths(self) -> Iterator[tuple[str, ItemContent]]:
        """Yield every item with its relpath, the refused ones as well."""
        for path, row in self.rows():
            yield path, self.content(row)

    def item(self, relpath: str, row: Row) -> Item:
        """Return what the manifest says of the item in a row; raises NotFound for a directory."""
        if row.identifier is None:
            raise NotFound(f"{self.dataset.uri}: row {row.row} is a directory")
        return Item(row.identifier, relpath, row.size_in_bytes, row.hash, row.mtime_ns)

    def relpath(self, row: Row) -> str:
        """Return the path below `data`."""
        names, parent = [row.name], row.parent
        while parent:
            directory = self.index.row(parent)
            names.append(directory.name)
            parent = directory.parent
        return "/".join(reversed(names))


class ManifestItems:
    """The items of one dataset whose manifest is in memory; the order is the manifest's."""

    def __init__(self, dataset: Dataset, uri: DserverURI, manifest: Mapping[str, Any]) -> None:
        self.identifiers = [Identifier(key) for key in manifest["items"]]
        self._dataset = dataset
        self._uri = uri
        self._entries: Mapping[str, Any] = manifest["items"]
        self._hash_function = str(manifest.get("hash_function", ""))
        self._places = {key: place for place, key in enumerate(self.identifiers)}
        self._lock = threading.Lock()
        self._hashes: tuple[ManifestDigest, Mapping[Identifier, int]] | None = None

    def item(self, identifier: Identifier) -> Item:
        """Return what the manifest says; raises NotFound, and ProtocolError if that is no item."""
        return Item.from_json(identifier, self._entry(identifier))

    def size(self, identifier: Identifier) -> int:
        """Return the item's size, or 0 if the manifest gives none that an item can have."""
        entry = self._entry(identifier)
        size = entry.get("size_in_bytes") if isinstance(entry, dict) else None
        return size if isinstance(size, int) and size_is_usable(size) else 0

    def content(self, item: Item) -> ItemContent:
        """Return the content of an item that `item` returned."""
        return ItemContent(
            key=item_key(self._uri, item.identifier, item.hash),
            dataset=self._dataset,
            identifier=item.identifier,
            size_in_bytes=item.size_in_bytes,
            hash_function=self._hash_function,
            hash=item.hash,
            neighbours=functools.partial(self._nearest, self._places[item.identifier]),
            hashes_place=functools.partial(self._hashes_place, item.identifier),
            relpath_of=lambda: item.relpath,
        )

    def _hashes_place(self, identifier: Identifier) -> HashesPlace | None:
        with self._lock:
            if self._hashes is None:
                self._hashes = self._numbered_hashes()
            digest, first = self._hashes
        if identifier not in first:
            return None
        return HashesPlace(digest.head, digest.size_in_bytes, first[identifier])

    def _numbered_hashes(self) -> tuple[ManifestDigest, Mapping[Identifier, int]]:
        digest = ManifestDigest()
        first = {}
        for identifier in sorted(self.identifiers):
            if has_hashes(self.size(identifier)):
                item = self.item(identifier)
                first[identifier] = digest.number_of_hashes
                digest.add(identifier, item.hash, item.size_in_bytes)
        return digest, first

    def _entry(self, identifier: Identifier) -> Any:
        try:
            return self._entries[identifier]
        except KeyError as error:
            raise NotFound(f"{self._dataset.uri} has no item {identifier}") from error

    def _nearest(self, place: int, limit: int) -> Sequence[Identifier]:
        first, end = max(0, place - limit), min(place + limit, len(self.identifiers))
        nearest = sorted(range(first, end), key=lambda other: abs(other - place))[:limit]
        return [self.identifiers[other] for other in nearest]


def relpaths_of_hashes(
    pieces: Iterable[bytes], hashes: Collection[str], limit: int
) -> dict[str, list[str]]:
    """Return the paths of the first items with each hash, of a manifest as it arrives.

    Raises ProtocolError if it is none. Items that a listing refuses are left out.
    """
    found: dict[str, list[str]] = {hash: [] for hash in hashes}
    stream = ManifestStream()

    def take(items: Mapping[str, Any]) -> None:
        for identifier, entry in items.items():
            hash = entry.get("hash") if isinstance(entry, dict) else None
            relpaths = found.get(hash.lower()) if isinstance(hash, str) else None
            if relpaths is None or len(relpaths) >= limit:
                continue
            with contextlib.suppress(ProtocolError):
                item = Item.from_json(identifier, entry)
                if is_safe(item.relpath, identifier):
                    relpaths.append(item.relpath)

    for piece in pieces:
        take(stream.feed(piece))
    take(stream.close())
    return found


def parse_manifest(dataset: Dataset, text: bytes) -> dict[str, Any]:
    """Return a manifest that dtool may use.

    Raises ProtocolError if it is none, and IntegrityError if dtool, which takes relpaths
    as they are, would write an item anywhere but below its own directory.
    """
    manifest = parse_json(text, f"{dataset.uri}: its manifest")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("items"), dict):
        raise ProtocolError(f"{dataset.uri}: its manifest has no items")
    for identifier, entry in manifest["items"].items():
        relpath = entry.get("relpath") if isinstance(entry, dict) else None
        if not isinstance(relpath, str) or not is_safe(relpath, identifier):
            raise IntegrityError(
                f"{dataset.uri}: its manifest is refused: item {identifier} has"
                f" {quoted(relpath)} for its relpath, which it must not have",
                uri=dataset.uri,
            )
    return manifest
