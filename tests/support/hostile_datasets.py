"""Datasets that no server lets in now: what an older one may have, or one that is not ours."""

from __future__ import annotations

import gzip
import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from dserverfs.base.model import Identifier
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle, encoded, new_uuid


def register(server: ServerHandle, name: str, items: Mapping[Identifier, Any]) -> str:
    """Register a dataset with the items in its manifest as they are; return its dserver URI.

    Nothing is stored of them.
    """
    uuid = new_uuid()
    uri = f"{server.backend_uri}/{uuid}"
    manifest = {"items": {}, "hash_function": "md5sum_hexdigest", "dtoolcore_version": "3.19.0"}
    body = {
        "uuid": uuid,
        "base_uri": server.backend_uri,
        "uri": uri,
        "name": name,
        "type": "dataset",
        "readme": "",
        "manifest": manifest,
        "creator_username": "tester",
        "frozen_at": str(time.time()),
        "annotations": {},
        "tags": [],
    }
    server.request("PUT", f"/uris/{encoded(uri)}", body).raise_for_status()
    replace_manifest(server, uri, {**manifest, "items": items})
    return f"{server.base_uri}/{uuid}"


def replace_manifest(server: ServerHandle, uri: str, manifest: Mapping[str, Any]) -> None:
    """Have the server answer another manifest of a dataset than it let in."""
    content = gzip.compress(json.dumps(manifest).encode(), mtime=0)
    with closing(sqlite3.connect(server.data / "dserver.sqlite", timeout=LATE_S)) as database:
        changed = database.execute(
            "UPDATE dserverfs_description SET manifest = ? WHERE uri = ?", (content, uri)
        ).rowcount
        database.commit()
    assert changed == 1


def entry(relpath: object, **others: object) -> dict[str, object]:
    """Return a manifest's entry of an item of no bytes."""
    empty = "d41d8cd98f00b204e9800998ecf8427e"
    return {"relpath": relpath, "size_in_bytes": 0, "hash": empty, "utc_timestamp": 1.5, **others}
