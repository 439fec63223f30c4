"""Local datasets to upload, uploaders with faults before them, and what arrived."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import UUID
from dserverfs.base.retry import Deadline
from dserverfs.client import Client
from dserverfs.writing.upload.uploader import Uploader
from tests.support.faulty_put_front import Detour, PutFront
from tests.support.servers import ServerHandle

SMALL = {f"small-{i:02}": f"content {i}".encode() * 20 for i in range(30)}


def local_dataset(directory: Path, contents: Mapping[str, bytes], **admin: Any) -> LocalDataset:
    """Write items directly below `directory`, as a staged dataset may have them; describe them."""
    items = ItemTable()
    for relpath, content in contents.items():
        path = directory / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        md5 = hashlib.md5(content).hexdigest()
        items.add(relpath, len(content), md5, 1600000000 * 10**9, 1600000000.0)
    return LocalDataset(
        admin_metadata={
            "uuid": str(uuid.uuid4()),
            "name": "uploaded",
            "creator_username": "grumpy",
            "created_at": 1650000000.25,
            "frozen_at": time.time(),
            "type": "dataset",
            **admin,
        },
        readme=b"---\ndescription: uploaded\n",
        hash_function="md5sum_hexdigest",
        items=items,
        path_of=lambda item: directory / item.relpath,
        tags=["a-tag"],
        annotations={"n": 5},
        overlays={},
    )


@dataclass(frozen=True)
class Site:
    """A server, a client of it, and a front before its store."""

    server: ServerHandle
    client: Client
    front: PutFront
    storage: Detour

    @property
    def base_uri(self) -> str:
        return self.server.backend_uri

    @property
    def uploader(self) -> Uploader:
        """An uploader whose PUTs go by way of the front."""
        return Uploader(self.client.resolver, self.storage)

    def is_registered(self, dataset: LocalDataset) -> bool:
        return bool(self.client.resolver.datasets_by_uuid(UUID(dataset.admin_metadata["uuid"])))

    def stored(self, dataset: LocalDataset) -> dict[str, bytes]:
        """Return all items as the server has them registered and the store has them."""
        return stored(self.client, dataset, self.base_uri)


def stored(client: Client, dataset: LocalDataset, base_uri: str) -> dict[str, bytes]:
    resolver = client.resolver
    registered = resolver.dataset_by_uuid(UUID(dataset.admin_metadata["uuid"]), base_uri)
    manifest = b"".join(resolver.manifest_pieces(registered))
    entries = json.loads(manifest)["items"]
    contents = {}
    for identifier, entry in entries.items():
        url = resolver.item_url(registered, identifier, lambda count: list(entries)[:count])
        content = client._storage.read_object(url.url, Deadline(60))
        assert hashlib.md5(content).hexdigest() == entry["hash"]
        contents[entry["relpath"]] = content
    return contents
