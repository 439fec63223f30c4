"""Frozen datasets as boto3 reads them from an S3 server, beside what was promised."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection

from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.signing import Storage
from tests.support.promises import Promised
from tests.support.servers import ServerHandle

_MAX_BYTES = 1 << 30


def require_frozen(storage: Storage, server: ServerHandle, promised: Collection[Promised]) -> None:
    """Require that each is registered, and in the bucket with all that was planned."""
    bucket, store = storage.bucket, ObjectStore(storage)
    with contextlib.closing(store.client):
        registered = _uuids(server)
        lost = [each.name for each in promised if each.name not in registered]
        assert not lost, f"frozen, and not registered: {lost}"
        for each in promised:
            uuid = registered[each.name]
            prefix = store.read(bucket, f"dtool-{uuid}", limit_in_bytes=1024).decode()
            place = f"{prefix}{uuid}"
            manifest = json.loads(
                store.read(bucket, f"{place}/manifest.json", limit_in_bytes=_MAX_BYTES)
            )
            found = {}
            for identifier, item in manifest["items"].items():
                content = store.read(
                    bucket, f"{place}/data/{identifier}", limit_in_bytes=_MAX_BYTES
                )
                found[item["relpath"]] = hashlib.md5(content).hexdigest()
            each.require_all(found)


def _uuids(server: ServerHandle) -> dict[str, str]:
    """Return the uuid of each registered dataset by its name."""
    found: dict[str, str] = {}
    page = 1
    while True:
        answer = server.post(f"/uris?page={page}&page_size=100", {})
        answer.raise_for_status()
        listed = answer.json()
        for each in listed:
            assert each["name"] not in found, f"{each['name']} is frozen twice"
            found[each["name"]] = each["uuid"]
        if len(listed) < 100:
            return found
        page += 1
