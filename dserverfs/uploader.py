"""Uploading a frozen dataset from a local directory, through signed URLs.

Items are PUT in parallel, straight from their files. Nothing is registered
before all of them are stored; an upload that breaks off can be repeated. Blocking.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dserverfs.errors import DserverfsError, ProtocolError, Unreachable, UsageError
from dserverfs.model import Identifier, Item
from dserverfs.resolver import Resolver, UploadUrl
from dserverfs.storage import Storage

THREADS = 8
ATTEMPTS = 3


class LocalDataset(NamedTuple):
    """A frozen dataset in a directory of dtool's layout."""

    admin_metadata: Mapping[str, Any]
    readme: bytes
    hash_function: str
    items: Mapping[Identifier, Item]
    timestamps: Mapping[Identifier, float]
    data_directory: Path
    tags: list[str]
    annotations: Mapping[str, Any]
    overlays: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> LocalDataset:
        """Read everything but the items' bytes; raises UsageError if it is no frozen dataset."""
        metadata = directory / ".dtool"
        try:
            admin = json.loads((metadata / "dtool").read_text("utf-8"))
            manifest = json.loads((metadata / "manifest.json").read_text("utf-8"))
            items = {
                Identifier(identifier): Item.from_json(identifier, entry)
                for identifier, entry in manifest["items"].items()
            }
            timestamps = {
                Identifier(identifier): float(entry["utc_timestamp"])
                for identifier, entry in manifest["items"].items()
            }
            readme = (directory / "README.yml").read_bytes()
            hash_function = manifest["hash_function"]
        except (OSError, ValueError, KeyError, AttributeError, ProtocolError) as error:
            raise UsageError(f"{directory}: not a frozen dataset: {error}") from error
        if admin.get("type") != "dataset":
            raise UsageError(f"{directory}: is not frozen")
        tags = metadata / "tags"
        return cls(
            admin,
            readme,
            hash_function,
            items,
            timestamps,
            directory / "data",
            sorted(path.name for path in tags.iterdir()) if tags.is_dir() else [],
            _json_files(metadata / "annotations"),
            _json_files(metadata / "overlays"),
        )

    def description(self) -> dict[str, Any]:
        """Return what the server wants to know before it signs."""
        admin = self.admin_metadata
        return {
            "uuid": admin["uuid"],
            "name": admin["name"],
            "creator_username": admin["creator_username"],
            "created_at": admin.get("created_at", admin["frozen_at"]),
            "frozen_at": admin["frozen_at"],
            "hash_function": self.hash_function,
            "items": [
                {
                    "relpath": item.relpath,
                    "size_in_bytes": item.size_in_bytes,
                    "hash": item.hash,
                    "utc_timestamp": self.timestamps[identifier],
                }
                for identifier, item in self.items.items()
            ],
            "tags": self.tags,
            "annotations": self.annotations,
            "overlays": self.overlays,
        }


class Uploader:
    """Puts datasets on one server."""

    def __init__(self, resolver: Resolver, storage: Storage) -> None:
        self._resolver = resolver
        self._storage = storage

    def upload(self, dataset: LocalDataset, base_uri: str) -> str:
        """Upload and register; return the dataset's URI in its backend.

        Raises Conflict if it is registered already, PermissionDenied, and what
        the store says. After an error it can be called again.
        """
        urls = self._resolver.start_upload(base_uri, dataset.description())
        missing = dataset.items.keys() - urls.items.keys()
        if missing:
            raise ProtocolError(f"{urls.uri}: no upload URL for item {min(missing)}")

        def put(item: Item) -> None:
            path = dataset.data_directory / item.relpath
            with path.open("rb") as file:
                self._put(urls.items[item.identifier], file, item.size_in_bytes)

        with ThreadPoolExecutor(THREADS, thread_name_prefix="upload") as pool:
            for done in [pool.submit(put, item) for item in dataset.items.values()]:
                done.result()
        readme = UploadUrl(urls.readme_url, {})
        self._put(readme, io.BytesIO(dataset.readme), len(dataset.readme))
        self._resolver.complete_upload(urls.uri, len(dataset.items))
        return urls.uri

    def _put(self, target: UploadUrl, content: BinaryIO, size_in_bytes: int) -> None:
        failure: DserverfsError | None = None
        for _ in range(ATTEMPTS):
            try:
                self._storage.write_object(target.url, target.headers, content, size_in_bytes)
                return
            except Unreachable as error:
                failure = error
        assert failure is not None
        raise failure


def _json_files(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        return {}
    return {path.stem: json.loads(path.read_text("utf-8")) for path in directory.glob("*.json")}
