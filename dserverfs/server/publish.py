"""From a pending upload to a frozen dataset in the bucket.

What is there when this stops half way: items, and perhaps some of the dataset's
metadata; nothing lists or serves it before its admin metadata and its row in the
database are written, in this order, and doing it again from the start is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import dtoolcore

from dserverfs.errors import Conflict, NotFound, UsageError
from dserverfs.model import Identifier, identifier_of
from dserverfs.server import layout
from dserverfs.server.layout import DatasetKeys
from dserverfs.server.objects import ObjectStore, StoredObject
from dserverfs.server.storage import bucket_of
from dserverfs.server.upload_request import HASH_FUNCTION, UploadItem
from dserverfs.server.uploads import PendingUpload

MAX_README_BYTES = 16 * 1024**2  # guess: a README is a page of YAML, and goes into the search
_SHOWN = 5  # relpaths named in a message


class Stored(NamedTuple):
    """How what is stored compares with what was announced."""

    complete: frozenset[Identifier]
    missing: tuple[str, ...]  # relpaths
    different: tuple[str, ...]  # relpaths
    orphans: tuple[str, ...]  # keys of items no longer announced


def compare(store: ObjectStore, upload: PendingUpload) -> Stored:
    """Compare by listing: one request per 1,000 items, and one per item of doubtful content."""
    bucket = bucket_of(upload.base_uri)
    keys = DatasetKeys(store.storage.prefix, upload.request.uuid)
    announced = upload.request.items
    complete: set[Identifier] = set()
    different = []
    orphans = []
    for stored in store.iter_objects(bucket, keys.items):
        identifier = Identifier(stored.key[len(keys.items) :])
        item = announced.get(identifier)
        if item is None:
            orphans.append(stored.key)
        elif _is_stored(store, bucket, stored, item):
            complete.add(identifier)
        else:
            different.append(item.relpath)
    there = complete | {identifier_of(relpath) for relpath in different}
    missing = [item.relpath for key, item in announced.items() if key not in there]
    return Stored(frozenset(complete), tuple(missing), tuple(different), tuple(orphans))


def _is_stored(store: ObjectStore, bucket: str, stored: StoredObject, item: UploadItem) -> bool:
    if stored.size_in_bytes != item.size_in_bytes:
        return False
    if stored.etag == item.md5:
        return True
    # Encryption and multipart make other ETags. The signed URL pinned
    # Content-MD5 together with this metadata, so the store has checked it.
    try:
        return store.metadata(bucket, stored.key).get("checksum") == item.md5
    except NotFound:
        return False


def require_complete(stored: Stored, uri: str) -> None:
    """Raise Conflict with the names of the items that are missing or not as announced."""
    faults = []
    if stored.missing:
        faults.append(f"{_named(stored.missing)} not uploaded")
    if stored.different:
        faults.append(f"{_named(stored.different)} stored with another content or size")
    if faults:
        raise Conflict(f"{uri} cannot be completed: {'; '.join(faults)}", uri=uri, status=422)


def _named(relpaths: tuple[str, ...]) -> str:
    shown = ", ".join(sorted(relpaths)[:_SHOWN])
    more = len(relpaths) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def publish(store: ObjectStore, upload: PendingUpload, orphans: tuple[str, ...]) -> dict[str, Any]:
    """Write the dataset's metadata and return what dservercore registers.

    Call only when all items are there. Raises UsageError for a README that is not text.
    """
    bucket = bucket_of(upload.base_uri)
    keys = DatasetKeys(store.storage.prefix, upload.request.uuid)
    readme = _readme(store, bucket, keys)
    manifest = manifest_of(upload)
    store.delete(bucket, orphans)
    _replace_metadata(store, bucket, keys, upload)
    _write_json(store, bucket, keys.manifest, manifest)
    store.write(bucket, keys.readme_txt, layout.README_TXT.encode())
    store.write(bucket, keys.structure, layout.structure_json(upload.request.uuid).encode())
    store.write(bucket, keys.registration, store.storage.prefix.encode())
    admin_metadata = admin_metadata_of(upload)
    # Last: from here on dtool-s3 sees a frozen dataset. It reads the object's
    # metadata, not its content.
    store.write(
        bucket,
        keys.admin_metadata,
        json.dumps(admin_metadata).encode(),
        {name: str(value) for name, value in admin_metadata.items()},
    )
    return {
        **{name: value for name, value in admin_metadata.items() if name != "dtoolcore_version"},
        "uri": upload.uri,
        "base_uri": upload.base_uri,
        "readme": readme,
        "manifest": manifest,
        "annotations": dict(upload.request.annotations),
        "tags": list(upload.request.tags),
        "number_of_items": len(upload.request.items),
        "size_in_bytes": upload.request.size_in_bytes,
    }


def manifest_of(upload: PendingUpload) -> dict[str, Any]:
    return {
        "dtoolcore_version": dtoolcore.__version__,
        "hash_function": HASH_FUNCTION,
        "items": {
            identifier: {
                "hash": item.md5,
                "relpath": item.relpath,
                "size_in_bytes": item.size_in_bytes,
                "utc_timestamp": item.utc_timestamp,
            }
            for identifier, item in upload.request.items.items()
        },
    }


def admin_metadata_of(upload: PendingUpload) -> dict[str, Any]:
    return {
        "uuid": upload.request.uuid,
        "dtoolcore_version": dtoolcore.__version__,
        "name": upload.request.name,
        "type": "dataset",
        "creator_username": upload.request.creator_username,
        "created_at": upload.created_at,
        "frozen_at": upload.request.frozen_at,
    }


def _readme(store: ObjectStore, bucket: str, keys: DatasetKeys) -> str:
    """Return the README; one that was not uploaded is made empty, as dtool's is."""
    try:
        content = store.read(bucket, keys.readme, limit_in_bytes=MAX_README_BYTES + 1)
    except NotFound:
        store.write(bucket, keys.readme, b"")
        return ""
    if len(content) > MAX_README_BYTES:
        raise UsageError(f"README.yml is larger than {MAX_README_BYTES} bytes", status=400)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("README.yml is not UTF-8 text", status=400) from error


def _replace_metadata(
    store: ObjectStore, bucket: str, keys: DatasetKeys, upload: PendingUpload
) -> None:
    """Write overlays, annotations and tags; remove those of an earlier attempt."""
    texts: dict[str, Any] = {}
    for name, overlay in upload.request.overlays.items():
        texts[keys.overlay(name)] = overlay
    for name, annotation in upload.request.annotations.items():
        texts[keys.annotation(name)] = annotation
    tags = {keys.tag(tag) for tag in upload.request.tags}
    for key, value in texts.items():
        _write_json(store, bucket, key, value)
    for key in tags:
        store.write(bucket, key, b"")
    wanted = texts.keys() | tags
    for prefix in (keys.overlays, keys.annotations, keys.tags):
        found = [stored.key for stored in store.iter_objects(bucket, prefix)]
        store.delete(bucket, (key for key in found if key not in wanted))


def _write_json(store: ObjectStore, bucket: str, key: str, value: Mapping[str, Any]) -> None:
    """Write JSON as dtoolcore does."""
    store.write(bucket, key, json.dumps(value, indent=2, sort_keys=True).encode())
