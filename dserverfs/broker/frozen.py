"""A frozen dataset as dtoolcore wants it: dictionaries, texts and paths.

Made by the session, one for each dataset and process. Thread-safe.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dserverfs.base import dtool_layout as keys
from dserverfs.base.errors import (
    ChangedMeanwhile,
    IntegrityError,
    NotFound,
    ProtocolError,
    Unsupported,
)
from dserverfs.base.items import ItemContent, item_key
from dserverfs.base.limits import parse_json, parse_timestamp, quoted, size_is_usable
from dserverfs.base.model import Dataset, DserverURI, Identifier, Item, identifier_of
from dserverfs.broker.admin_metadata import VERSION, AdminMetadata
from dserverfs.broker.ahead import Ahead, Bounds
from dserverfs.broker.item_files import ItemFiles, directory_of
from dserverfs.broker.metadata import FRESH_S, FrozenMetadata
from dserverfs.catalogue.manifest_rows import is_safe
from dserverfs.catalogue.refreshed import loaded
from dserverfs.client import Client
from dserverfs.remote.signing import is_asked_whole
from dserverfs.remote.versions import Version
from dserverfs.writing.edits.editable import Kind, Target, target_of

MIB = 1024 * 1024
# Fetched ahead of a program that reads one item after the other.
FETCHING = Bounds(threads=8, keys=64, cost=256 * MIB)
HASHING = Bounds(threads=4, keys=64, cost=1 << 62)  # nothing is kept of what is hashed
SIZE_THREADS = 16


class FrozenDataset:
    """One dataset."""

    def __init__(
        self,
        dataset: Dataset,
        server: str,
        client: Client,
        cache_directory: Path,
        on_change: Callable[[Dataset], None],
    ) -> None:
        """`cache_directory` is dtool's own."""
        self.dataset = dataset
        self._on_change = on_change
        self._uri = DserverURI(server, dataset.base_uri, dataset.uuid)
        self._client = client
        self._files = ItemFiles(
            client.reader,
            client.ranges,
            directory_of(cache_directory, self._uri),
            client.resolver.require_signed_urls,
        )
        self._metadata = FrozenMetadata(client.resolver, dataset)
        self._read: dict[str, Version] = {}  # what may change, as this process was told it
        self._lock = threading.RLock()
        self._manifest: dict[str, Any] | None = None
        self._identifiers: list[Identifier] = []
        self._places: dict[Identifier, int] = {}
        self._readme: tuple[bytes, float] | None = None  # and until when it is believed
        self._fetching: Ahead[Identifier, Path] | None = None
        self._sizes: dict[str, int] = {}  # by relpath, of what is stored
        self._sizes_until_s = 0.0
        self._hashing: Ahead[str, str] | None = None

    def close(self) -> None:
        """Fetch nothing more ahead."""
        # Not under the lock, which their threads take.
        for ahead in (self._fetching, self._hashing):
            if ahead is not None:
                ahead.close()

    def admin_metadata(self) -> dict[str, Any]:
        """Return what dtool keeps in `.dtool/dtool`; the version of dtoolcore is the manifest's."""
        known = {
            "uuid": self.dataset.uuid,
            "name": self.dataset.name,
            "type": "dataset",
            "creator_username": self.dataset.creator_username,
            "created_at": self.dataset.created_at,
            "frozen_at": self.dataset.frozen_at,
        }
        return AdminMetadata(known, self._dtoolcore_version)

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, not to be changed; fetched once and kept on disk."""
        with self._lock:
            if self._manifest is None:
                self._manifest = self._load_manifest()
                self._identifiers = [Identifier(key) for key in self._manifest["items"]]
                self._places = {key: place for place, key in enumerate(self._identifiers)}
            return self._manifest

    def readme(self) -> bytes:
        with self._lock:
            if self._readme is None or time.monotonic() >= self._readme[1]:
                until_s = time.monotonic() + FRESH_S
                self._readme = self._client.resolver.readme(self.dataset), until_s
            return self._readme[0]

    def item_path(self, identifier: str) -> Path:
        """Return the path of a local file with an item's verified content; blocks.

        Items that are asked for one after the other are fetched in parallel, ahead.
        """
        with self._lock:
            self.manifest()
            if self._fetching is None:
                self._fetching = Ahead(
                    self._identifiers,
                    self._fetch,
                    self._cost,
                    FETCHING,
                )
            fetching = self._fetching
        return fetching.get(Identifier(identifier))

    def _cost(self, identifier: Identifier) -> int:
        """Return an item's size, or 0: a neighbour without one is no fault of an item's."""
        entry = self.manifest()["items"][identifier]
        size = entry.get("size_in_bytes") if isinstance(entry, dict) else None
        return size if isinstance(size, int) and size_is_usable(size) else 0

    def handles(self) -> list[str]:
        """Return the relpaths of the items that the store holds; asks it for each."""
        with self._lock:
            if time.monotonic() >= self._sizes_until_s:
                self._sizes = self._ask_sizes()
                self._sizes_until_s = time.monotonic() + FRESH_S
                self._hashing = None
            return list(self._sizes)

    def size(self, handle: str) -> int:
        """Return the size of what is stored of an item; raises NotFound."""
        with self._lock:
            if handle not in self._sizes:
                self.handles()
            size = self._sizes.get(handle)
        if size is None:
            raise NotFound(f"{self.dataset.uri}: nothing is stored of item {handle!r}")
        return size

    def hash(self, handle: str) -> str:
        """Return the hash of what is stored of an item; others are hashed ahead."""
        self.size(handle)
        with self._lock:
            if self._hashing is None:
                sizes = self._sizes
                self._hashing = Ahead(list(sizes), self._hash, sizes.__getitem__, HASHING)
                self._hashing.start()
            hashing = self._hashing
        return hashing.get(handle)

    def timestamp(self, handle: str) -> float:
        """Return an item's date, which the manifest alone has."""
        try:
            entry = self.manifest()["items"][identifier_of(handle)]
            return parse_timestamp(entry["utc_timestamp"])
        except KeyError as error:
            raise NotFound(f"{self.dataset.uri} has no item {handle!r}") from error

    # Metadata

    def get_text(self, key: str) -> str:
        """Return what dtool's disk layout has at `key`; raises NotFound."""
        text, target = self._text(key), target_of(key)
        if target is not None:
            self._note_read(target, text.encode("utf-8"))
        return text

    def _text(self, key: str) -> str:
        if key == keys.README:
            return self.readme().decode("utf-8")
        if key == keys.ADMIN_METADATA:
            return json.dumps(self.admin_metadata())
        if key == keys.MANIFEST:
            return json.dumps(self.manifest(), indent=2, sort_keys=True)
        directory, _, name = key.rpartition("/")
        if directory in (keys.OVERLAYS, keys.ANNOTATIONS):
            kind = directory.rpartition("/")[2]
            return self._metadata.content(kind, name.removesuffix(".json")).decode("utf-8")
        if directory == keys.TAGS and name in self.tags():
            return ""
        raise NotFound(f"{self.dataset.uri}: has no {key}")

    def names(self, kind: str) -> list[str]:
        """Return the names of all overlays or annotations."""
        return self._metadata.names(kind)

    def tags(self) -> list[str]:
        return self._metadata.tags()

    def put_admin_metadata(self, admin_metadata: Mapping[str, Any]) -> None:
        """Rename it, which is the only change of it there is; raises Unsupported for others."""
        known = self.admin_metadata()
        changed = {key for key, value in admin_metadata.items() if known.get(key, value) != value}
        if changed - {"name"}:
            raise Unsupported(
                f"{self.dataset.uri} is frozen: {', '.join(sorted(changed))} cannot be changed"
            )
        if changed:
            self._client.metadata_writes.rename(self.dataset, str(admin_metadata["name"]))
            self._tell_change()

    def put_text(self, key: str, text: str) -> None:
        """Change README, a tag, an annotation or an overlay; raises Unsupported.

        And ChangedMeanwhile, if this process has read it and it is something else now.
        """
        target, content = target_of(key), text.encode("utf-8")
        if target is None or target.kind is Kind.NAME:
            raise Unsupported(f"{self.dataset.uri} is frozen: {key} cannot be changed")
        try:
            self._client.editable_files.put(target, self.dataset, content, self._read.get(key))
        except ChangedMeanwhile:
            self._tell_change()  # so that the other's is read next
            raise
        if key in self._read:
            self._note_read(target, content)
        self._tell_change()

    def delete_key(self, key: str) -> None:
        """Delete a tag, an annotation or an overlay; raises Unsupported."""
        target = target_of(key)
        if target is None or not target.can_be_removed:
            raise Unsupported(f"{self.dataset.uri} is frozen: {key} cannot be deleted")
        self._client.editable_files.delete(target, self.dataset)
        self._tell_change()

    def _note_read(self, target: Target, content: bytes) -> None:
        """Remember the version that this process knows, if one is compared."""
        version = target.version_of(content)
        if version is not None:
            self._read[target.path] = version

    def publish(self, expiry_s: int | None) -> str:
        """Return a link by which dtool-http reads the dataset; raises Unsupported."""
        return self._client.metadata_writes.publish(self.dataset, expiry_s)

    def _tell_change(self) -> None:
        """Have everything that can change asked anew."""
        self._metadata.forget()
        with self._lock:
            self._readme = None
        self._on_change(self.dataset)

    def _load_manifest(self) -> dict[str, Any]:
        kept = loaded(lambda: self._client.catalogue.manifest(self.dataset))
        try:
            manifest = parse_json(kept if isinstance(kept, bytes) else kept.read_bytes(), "it")
            if not isinstance(manifest["items"], dict):
                raise TypeError("its items are not an object")
        except (OSError, KeyError, TypeError, ProtocolError) as error:
            self._client.catalogue.drop_manifest(self.dataset)
            raise ProtocolError(
                f"{self.dataset.uri}: its manifest cannot be read ({error}); it will be fetched"
                " anew"
            ) from error
        assert isinstance(manifest, dict)
        self._require_safe(manifest["items"])
        return manifest

    def _require_safe(self, items: Mapping[str, Any]) -> None:
        """Raise IntegrityError if dtool would write an item anywhere but below its own directory.

        It takes the relpaths of a manifest as they are.
        """
        for identifier, entry in items.items():
            relpath = entry.get("relpath") if isinstance(entry, dict) else None
            if not isinstance(relpath, str) or not is_safe(relpath, identifier):
                raise IntegrityError(
                    f"{self.dataset.uri}: its manifest is refused: item {identifier} has"
                    f" {quoted(relpath)} for its relpath, which it must not have",
                    uri=self.dataset.uri,
                )

    def _dtoolcore_version(self) -> str | None:
        """Return what the manifest says, of which the beginning is enough if it is long."""
        if self._manifest is None and not is_asked_whole(self.dataset):
            return self._client.resolver.dtoolcore_version(self.dataset)
        version = self.manifest().get(VERSION)
        return version if isinstance(version, str) else None

    def _item(self, identifier: Identifier) -> Item:
        try:
            entry = self.manifest()["items"][identifier]
        except KeyError as error:
            raise NotFound(f"{self.dataset.uri} has no item {identifier}") from error
        return Item.from_json(identifier, entry)

    def _content(self, item: Item) -> ItemContent:
        return ItemContent(
            key=item_key(self._uri, item.identifier, item.hash),
            dataset=self.dataset,
            identifier=item.identifier,
            size_in_bytes=item.size_in_bytes,
            hash_function=str(self.manifest().get("hash_function", "")),
            hash=item.hash,
            neighbours=_Around(self._identifiers, self._places[item.identifier]),
            relpath_of=lambda: item.relpath,
        )

    def _fetch(self, identifier: Identifier) -> Path:
        item = self._item(identifier)
        return self._files.fetch(self._content(item), item)

    def _ask_sizes(self) -> dict[str, int]:
        self.manifest()
        self._client.resolver.require_signed_urls()
        items = [self._item(identifier) for identifier in self._identifiers]
        # Made here: the threads must not wait for the lock, which we hold.
        contents = [self._content(item) for item in items]
        with ThreadPoolExecutor(SIZE_THREADS, thread_name_prefix="sizes") as pool:
            sizes = pool.map(self._client.stored.size, contents)
            return {
                item.relpath: size
                for item, size in zip(items, sizes, strict=True)
                if size is not None
            }

    def _hash(self, relpath: str) -> str:
        content = self._content(self._item(identifier_of(relpath)))
        return self._client.stored.digest(content, self.size(relpath))


class _Around:
    """The items nearest to one in the manifest, in the order in which dtool reads them."""

    def __init__(self, identifiers: Sequence[Identifier], place: int) -> None:
        self._identifiers = identifiers
        self._place = place

    def __call__(self, limit: int) -> Sequence[Identifier]:
        first, end = max(0, self._place - limit), self._place + limit
        near = range(first, min(end, len(self._identifiers)))
        nearest = sorted(near, key=lambda place: abs(place - self._place))[:limit]
        return [self._identifiers[place] for place in nearest]
