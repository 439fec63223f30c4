"""The store of a running server, for tests that look behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
