"""The store of a running server, for tests that look behind it."""

from __future__ import annotations

import json
from pathlib import Path

from dserverfs.server.storage import Storage
from tests.serving import ServerHandle


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


def weed_of(server: ServerHandle) -> int:
    """Return the process id of the server's `weed`."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    (child,) = children.read_text().split()
    assert "weed" in Path(f"/proc/{child}/cmdline").read_text()
    return int(child)
