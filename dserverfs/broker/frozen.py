"""A frozen dataset in the form that dtoolcore wants: dictionaries, texts and paths.

Made by the session, one for each dataset and process. The catalogue has the answers, so
the broker gives the same ones as a mount, also while the server is away. Thread-safe.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dserverfs.base import dtool_layout as keys
from dserverfs.base.errors import NotFound, Unsupported
from dserverfs.base.limits import parse_timestamp
from dserverfs.base.model import Dataset, Identifier, identifier_of
from dserverfs.base.pools import each
from dserverfs.base.printable import listed
from dserverfs.base.versions import Version
from dserverfs.broker.admin_metadata import VERSION, AdminMetadata
from dserverfs.broker.ahead import Ahead, Bounds
from dserverfs.broker.problems import needs_server
from dserverfs.catalogue.catalogue import FRESH_S
from dserverfs.catalogue.items import ManifestItems
from dserverfs.catalogue.refreshed import loaded
from dserverfs.client import Client
from dserverfs.reading.item_files import ItemFiles, directory_of
from dserverfs.writing.edits.editable import Kind, Target, target_of

MIB = 1024 * 1024
# Fetched ahead of a program that reads one item after the other.
FETCHING = Bounds(threads=8, keys=64, cost=256 * MIB)
HASHING = Bounds(threads=4, keys=64, cost=1 << 62)  # nothing is kept of what is hashed
SIZE_THREADS = 16


class FrozenDataset:
    """One dataset."""

    def __init__(self, dataset: Dataset, client: Client, cache_directory: Path) -> None:
        """`cache_directory` is dtool's own."""
        self.dataset = dataset
        self._client = client
        self._catalogue = client.catalogue
        self._editable = client.editable_files
        self._uri = client.catalogue.uri_of(dataset)
        self._files = ItemFiles(
            client.reader,
            client.ranges,
            directory_of(cache_directory, self._uri),
            client.require_signed_urls,
        )
        self._read: dict[str, Version] = {}  # by key, of what this process was told
        self._lock = threading.RLock()
        self._manifest: dict[str, Any] | None = None
        self._items: ManifestItems | None = None
        self._fetching: Ahead[Identifier, Path] | None = None
        self._sizes: dict[str, int] = {}  # by relpath, in the store
        self._sizes_until_s = 0.0
        self._hashing: Ahead[str, str] | None = None

    def close(self) -> None:
        """Fetch nothing more ahead."""
        # Not under the lock, which their threads take.
        for ahead in (self._fetching, self._hashing):
            if ahead is not None:
                ahead.close()

    def admin_metadata(self) -> dict[str, Any]:
        """Return the content of `.dtool/dtool`; the version of dtoolcore is the manifest's."""
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
                self._manifest = self._catalogue.parsed_manifest(self.dataset)
            return self._manifest

    # Items

    def item_path(self, identifier: str) -> Path:
        """Return the path of a local file with an item's verified content; blocks.

        Items that are asked for one after the other are fetched in parallel, ahead.
        """
        with self._lock:
            items = self._manifest_items()
            if self._fetching is None:
                self._fetching = Ahead(items.identifiers, self._fetch, items.size, FETCHING)
            fetching = self._fetching
        return fetching.get(Identifier(identifier))

    def handles(self) -> list[str]:
        """Return the relpaths of the items that the store holds, with a request for each."""
        with self._lock:
            if time.monotonic() >= self._sizes_until_s:
                self._sizes = self._ask_sizes()
                self._sizes_until_s = time.monotonic() + FRESH_S
                self._hashing = None
            return list(self._sizes)

    def size(self, handle: str) -> int:
        """Return the size of an item in the store; raises NotFound."""
        with self._lock:
            if handle not in self._sizes:
                self.handles()
            size = self._sizes.get(handle)
        if size is None:
            raise NotFound(f"{self.dataset.uri}: nothing is stored of item {handle!r}")
        return size

    def hash(self, handle: str) -> str:
        """Return the hash of an item in the store; others are hashed ahead."""
        self.size(handle)
        with self._lock:
            if self._hashing is None:
                sizes = self._sizes
                self._hashing = Ahead(list(sizes), self._hash, sizes.__getitem__, HASHING)
                self._hashing.start()
            hashing = self._hashing
        return hashing.get(handle)

    def timestamp(self, handle: str) -> float:
        """Return an item's date, which only the manifest has."""
        try:
            entry = self.manifest()["items"][identifier_of(handle)]
            return parse_timestamp(entry["utc_timestamp"])
        except KeyError as error:
            raise NotFound(f"{self.dataset.uri} has no item {handle!r}") from error

    # Metadata

    def get_text(self, key: str) -> str:
        """Return the text at a key of dtool's disk layout; raises NotFound."""
        if key == keys.ADMIN_METADATA:
            return json.dumps(self.admin_metadata())
        if key == keys.MANIFEST:
            return json.dumps(self.manifest(), indent=2, sort_keys=True)
        target = target_of(key)
        if target is None:
            raise NotFound(f"{self.dataset.uri}: has no {key}")
        content = self._editable.content(target, self.dataset)
        self._note_read(target, content)
        return content.decode("utf-8")

    def names(self, kind: str) -> list[str]:
        """Return the names of all overlays or annotations."""
        metadata = loaded(lambda: self._catalogue.metadata(self.dataset))
        return sorted({"overlays": metadata.overlays, "annotations": metadata.annotations}[kind])

    def tags(self) -> list[str]:
        return sorted(loaded(lambda: self._catalogue.metadata(self.dataset)).tags)

    def put_admin_metadata(self, admin_metadata: Mapping[str, Any]) -> None:
        """Rename it, which is the only change of it there is; raises Unsupported for others."""
        known = self.admin_metadata()
        changed = {key for key, value in admin_metadata.items() if known.get(key, value) != value}
        if changed - {"name"}:
            raise Unsupported(
                f"{self.dataset.uri} is frozen: {listed(sorted(changed))} cannot be changed"
            )
        if changed:
            with needs_server(f"{self._uri}: the name cannot be changed"):
                self._client.metadata_writes.rename(self.dataset, str(admin_metadata["name"]))
            self._catalogue.forget(self.dataset)

    def put_text(self, key: str, text: str) -> None:
        """Change README, a tag, an annotation or an overlay; raises Unsupported.

        And ChangedMeanwhile, if it has changed since this process read it.
        """
        target, content = target_of(key), text.encode("utf-8")
        if target is None or target.kind is Kind.NAME:
            raise Unsupported(f"{self.dataset.uri} is frozen: {key} cannot be changed")
        with needs_server(f"{self._uri}: {key} cannot be changed"):
            self._editable.put(target, self.dataset, content, self._read.get(key))
        if key in self._read:
            self._note_read(target, content)

    def delete_key(self, key: str) -> None:
        """Delete a tag, an annotation or an overlay; raises Unsupported."""
        target = target_of(key)
        if target is None or not target.can_be_removed:
            raise Unsupported(f"{self.dataset.uri} is frozen: {key} cannot be deleted")
        with needs_server(f"{self._uri}: {key} cannot be deleted"):
            self._editable.delete(target, self.dataset)
        self._read.pop(key, None)

    def publish(self, expiry_s: int | None) -> str:
        """Return a link by which dtool-http reads the dataset; raises Unsupported."""
        with needs_server(f"{self._uri}: cannot be published"):
            return self._client.metadata_writes.publish(self.dataset, expiry_s)

    def _note_read(self, target: Target, content: bytes) -> None:
        """Remember the version that this process knows, if one is compared."""
        version = target.version_of(content)
        if version is not None:
            self._read[target.path] = version

    def _manifest_items(self) -> ManifestItems:
        with self._lock:
            if self._items is None:
                self._items = ManifestItems(self.dataset, self._uri, self.manifest())
            return self._items

    def _dtoolcore_version(self) -> str | None:
        """Return the manifest's version of dtoolcore; of a long one the beginning is enough."""
        if self._manifest is None and not self._catalogue.manifest_is_short(self.dataset):
            return self._catalogue.dtoolcore_version(self.dataset)
        version = self.manifest().get(VERSION)
        return version if isinstance(version, str) else None

    def _fetch(self, identifier: Identifier) -> Path:
        items = self._manifest_items()
        item = items.item(identifier)
        return self._files.fetch(items.content(item), item)

    def _ask_sizes(self) -> dict[str, int]:
        manifest_items = self._manifest_items()
        items = [manifest_items.item(identifier) for identifier in manifest_items.identifiers]
        contents = [manifest_items.content(item) for item in items]
        with needs_server(f"{self._uri}: the stored items cannot be compared"):
            self._client.require_signed_urls()
            with ThreadPoolExecutor(SIZE_THREADS, thread_name_prefix="sizes") as pool:
                sizes = list(each(pool, self._client.stored.size, contents))
        return {
            item.relpath: size for item, size in zip(items, sizes, strict=True) if size is not None
        }

    def _hash(self, relpath: str) -> str:
        items = self._manifest_items()
        content = items.content(items.item(identifier_of(relpath)))
        return self._client.stored.digest(content, self.size(relpath))
