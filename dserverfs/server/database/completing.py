"""From a pending upload to a frozen dataset in the bucket.

The state after a stop half way: items are there, and perhaps some of the dataset's
metadata; nothing lists or serves it before its admin metadata and its row in the
database are written, in this order, and doing it again from the start is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import dtoolcore

from dserverfs.base.errors import Conflict, NotFound
from dserverfs.base.hashes import MD5
from dserverfs.base.model import Identifier, identifier_of
from dserverfs.server.database import stored_block_hashes
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.upload_request import UploadItem
from dserverfs.server.database.uploads import PendingUpload
from dserverfs.server.store import layout
from dserverfs.server.store.bucket import StoredObject
from dserverfs.server.store.stores import Place

_SHOWN = 5  # relpaths named in a message


class Stored(NamedTuple):
    """The stored items, compared with the announced ones."""

    complete: frozenset[Identifier]
    missing: tuple[str, ...]  # relpaths
    different: tuple[str, ...]  # relpaths
    orphans: tuple[str, ...]  # keys of items no longer announced


def compare(place: Place, upload: PendingUpload) -> Stored:
    """Compare by listing: one request per 1,000 items, and one per item of doubtful content."""
    return _compared(place, upload, place.store.iter_objects(place.bucket, place.keys.items))


def compare_each(place: Place, upload: PendingUpload) -> Stored:
    """Compare as `compare`, and ask for each item that the listing lacks, until one is not there.

    Of a SeaweedFS cluster whose filer has died a listing can lack whole directories.
    """
    return _compared(place, upload, _stored_items(place, upload.request.items))


def _compared(place: Place, upload: PendingUpload, found: Iterable[StoredObject]) -> Stored:
    keys = place.keys
    announced = upload.request.items
    complete: set[Identifier] = set()
    different = []
    orphans = []
    for stored in found:
        identifier = Identifier(stored.key[len(keys.items) :])
        item = announced.get(identifier)
        if item is None:
            orphans.append(stored.key)
        elif not stored.is_sure:
            continue  # counts as missing, and is sent again
        elif _is_stored(place, stored, item):
            complete.add(identifier)
        else:
            different.append(item.relpath)
    there = complete | {identifier_of(relpath) for relpath in different}
    missing = [item.relpath for key, item in announced.items() if key not in there]
    return Stored(frozenset(complete), tuple(missing), tuple(different), tuple(orphans))


def _stored_items(
    place: Place, announced: Mapping[Identifier, UploadItem]
) -> Iterator[StoredObject]:
    keys, unlisted = place.keys, set(announced)
    for stored in place.store.iter_objects(place.bucket, keys.items):
        unlisted.discard(Identifier(stored.key[len(keys.items) :]))
        yield stored
    for identifier in sorted(unlisted):
        found = place.store.find(place.bucket, keys.item(identifier))
        if found is None:
            return
        yield found


def _is_stored(place: Place, stored: StoredObject, item: UploadItem) -> bool:
    if stored.size_in_bytes != item.size_in_bytes:
        return False
    if stored.etag == item.md5:
        return True
    # Encryption and multipart make other ETags. The signed URL pinned
    # Content-MD5 together with this metadata, so the store has checked it.
    try:
        return place.store.metadata(place.bucket, stored.key).get("checksum") == item.md5
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


def freeze(place: Place, upload: PendingUpload, orphans: tuple[str, ...]) -> dict[str, Any]:
    """Write the dataset's metadata and return them as dservercore registers them.

    Call only when all items are there. Raises UsageError for a README that is not text, and
    Conflict for block hashes that are not those of the items.
    """
    store, bucket, keys = place
    metadata = StoredMetadata(place)
    readme = metadata.adopt_readme()
    digest = stored_block_hashes.of_announced(upload.request.items)
    has_hashes = stored_block_hashes.adopt(place, digest, upload.uri)
    manifest = manifest_of(upload)
    store.delete(bucket, orphans)
    metadata.replace_all(
        overlays=upload.request.overlays,
        annotations=upload.request.annotations,
        tags=upload.request.tags,
    )
    store.write(bucket, keys.manifest, layout.json_text(manifest))
    store.write(bucket, keys.readme_txt, layout.README_TXT.encode())
    store.write(bucket, keys.structure, layout.structure_json(upload.request.uuid).encode())
    admin_metadata = admin_metadata_of(upload)
    metadata.put_admin_metadata(admin_metadata)  # last: now dtool-s3 sees a frozen dataset
    store.sync()  # once it is registered its writer may delete the only other copy
    stored_block_hashes.note(upload.uri, is_stored=has_hashes)
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
        "hash_function": MD5,
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


def contents_of(manifest: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
    """Return the content of each item of a manifest, to compare two manifests."""
    return {
        identifier: (item.get("hash"), item.get("size_in_bytes"), item.get("relpath"))
        for identifier, item in manifest["items"].items()
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
