"""The store of a running server, for tests that look behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest

from dserverfs.base.model import identifier_of
from dserverfs.server.store.signing import Storage
from tests.support.servers import ServerHandle


def storage_of(server: ServerHandle) -> Storage:
    directory = server.data / "store"
    identity = json.loads((directory / "s3.json").read_text())["identities"][0]
    credentials = identity["credentials"][0]
    ports = json.loads((directory / "ports.json").read_text())
    return Storage(
        endpoint=f"http://127.0.0.1:{ports['s3.port']}",
        access_key=credentials["accessKey"],
        secret_key=credentials["secretKey"],
        bucket=server.backend_uri.removeprefix("s3://"),
    )


class StoredItems(NamedTuple):
    """The objects of a dataset's items, past the dserver."""

    bucket: str
    client: Any
    uuid: str

    @classmethod
    def of(cls, server: ServerHandle, uri: str) -> StoredItems:
        """`uri` may be of any kind that ends in the uuid."""
        storage = storage_of(server)
        session = boto3.session.Session(
            storage.access_key, storage.secret_key, region_name=storage.region
        )
        client = session.client("s3", endpoint_url=storage.endpoint)
        return cls(storage.bucket, client, uri.rpartition("/")[2])

    def at(self, relpath: str) -> dict[str, str]:
        """Return an item's place, for the client."""
        return {"Bucket": self.bucket, "Key": f"{self.uuid}/data/{identifier_of(relpath)}"}

    def put(self, relpath: str, content: bytes) -> None:
        self.client.put_object(**self.at(relpath), Body=content)

    def delete(self, relpath: str) -> None:
        self.client.delete_object(**self.at(relpath))


def set_dtool_s3(monkeypatch: pytest.MonkeyPatch, storage: Storage, cache: Path) -> None:
    """Tell dtool-s3 where the bucket is and with which keys."""
    monkeypatch.setenv(f"DTOOL_S3_ENDPOINT_{storage.bucket}", storage.endpoint)
    monkeypatch.setenv(f"DTOOL_S3_ACCESS_KEY_ID_{storage.bucket}", storage.access_key)
    monkeypatch.setenv(f"DTOOL_S3_SECRET_ACCESS_KEY_{storage.bucket}", storage.secret_key)
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(cache / "dtool-cache"))


def children_of(server: ServerHandle) -> list[int]:
    """Return the process ids of what the server has started."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(child) for child in children.read_text().split()]


def weed_of(server: ServerHandle) -> int:
    """Return the process id of the server's `weed`."""
    (child,) = children_of(server)
    assert "weed" in Path(f"/proc/{child}/cmdline").read_text()
    return child
