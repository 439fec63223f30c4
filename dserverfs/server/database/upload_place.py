"""The place of an upload in its bucket: no signed URL of other contents leads there.

A URL to put an item pins its MD5 and is good for four hours, however soon the dataset
is frozen. So one that was signed when the same upload announced other contents, or
by an upload of the same uuid that was deleted, could put these into the frozen
dataset. Then the upload goes below a prefix of its own, which the registration key
names, as any other prefix. Items that stay the same are copied there by the store,
up to MAX_COPIED items of one PUT each; the rest is sent again.

The state when a move stops half way: copies that nothing names, before the
registration key is written; after it, an upload in its new place, whose client is
told that nothing was begun and begins again. A power cut may take a registration key
that the store had not on the disk yet, while the pending upload is in the database:
then nobody knows its place, and it gets a new one, of its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from dserverfs.base.errors import Conflict, NotFound
from dserverfs.server.database import completing, part_uploads, sql
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.tables import deleted_upload
from dserverfs.server.database.uploads import PendingUpload
from dserverfs.server.store.stores import Place, Stores

UPLOAD_EXPIRY_SECONDS = 4 * 3600
MAX_COPIED = 10_000  # at 200 a second here: 50 s, of the time that a client waits
_THREADS = 8
_CLOCKS_APART_S = 300.0


def prepare(stores: Stores, upload: PendingUpload, before: PendingUpload | None) -> Place:
    """Return where an upload goes, with its registration key there; it replaces `before`.

    Raises Conflict if that would overwrite a dataset that is frozen there. The caller commits.
    """
    known = stores.known_place(upload.uri)
    place = known or stores.new_place(upload.base_uri, upload.request.uuid)
    is_again = known is not None and before is not None and before.request == upload.request
    if is_again and place.store.is_unsure(place.bucket, place.keys.admin_metadata):
        return place  # completed by half before a power cut: it may not be readable
    if is_frozen(place):
        # Others may have written it, where the bucket is on another server.
        if before is None and stores.is_foreign(upload.base_uri):
            raise _in_the_bucket_already(upload)
        _require_same_items(place, upload)
        if known is None:
            _write_registration(stores, place, upload.uri)
        return place
    is_same = before is not None and before.request.items.items() <= upload.request.items.items()
    if is_same and known is not None:
        return place
    is_fresh = before is None and not _was_deleted_lately(upload.uri)
    below = "" if is_fresh else f"{secrets.token_hex(4)}/"
    new = stores.new_place(upload.base_uri, upload.request.uuid, below=below)
    if before is not None:
        _copy(place, new, upload)
    _write_registration(stores, new, upload.uri)
    if not is_fresh:
        new.store.sync()  # or a power cut could lead back to the place before
    if before is not None:
        delete_all(place, upload.uri)
    return new


def of_pending(stores: Stores, upload: PendingUpload) -> Place:
    """Return where a pending upload is, with its registration key there; see `prepare`."""
    return stores.known_place(upload.uri) or prepare(stores, upload, upload)


def _write_registration(stores: Stores, place: Place, uri: str) -> None:
    place.store.write(place.bucket, place.keys.registration, place.keys.prefix.encode())
    stores.forget(uri)


def delete_all(place: Place, uri: str) -> None:
    """Delete all that an upload has stored at a place, but not the registration key."""
    part_uploads.forget(place, uri)
    found = place.store.iter_objects(place.bucket, place.keys.all)
    place.store.delete(place.bucket, (stored.key for stored in found))


def note_deleted(uri: str) -> None:
    """Remember that URLs of a deleted upload are still good; the caller commits."""
    now = time.time()
    urls_end_at = now + UPLOAD_EXPIRY_SECONDS + _CLOCKS_APART_S
    sql.delete_rows(deleted_upload, deleted_upload.c.urls_end_at < now)
    sql.replace_row(deleted_upload, uri=uri, urls_end_at=urls_end_at)


def is_frozen(place: Place) -> bool:
    """Return whether dtool-s3 sees a dataset there: a half completed or an old one."""
    try:
        StoredMetadata(place).admin_metadata()
    except NotFound:
        return False
    return True


def _require_same_items(place: Place, upload: PendingUpload) -> None:
    """Raise Conflict unless the frozen dataset that is there has the items of the upload.

    It has them after an upload was half completed, and after a user deleted it from the
    index and uploads it again; another in its place would be a frozen one that changes.
    """
    frozen = completing.contents_of(StoredMetadata(place).manifest())
    if frozen != completing.contents_of(completing.manifest_of(upload)):
        raise _in_the_bucket_already(upload)


def _in_the_bucket_already(upload: PendingUpload) -> Conflict:
    return Conflict(
        f"{upload.uri} is in the bucket already, though not registered:"
        " dserverfs serve index registers it",
        uri=upload.uri,
    )


def _was_deleted_lately(uri: str) -> bool:
    row = sql.first(deleted_upload, deleted_upload.c.uri == uri)
    return row is not None and row.urls_end_at > time.time()


def _copy(old: Place, new: Place, upload: PendingUpload) -> None:
    """Copy the items that are stored as they are announced now, and what is beside them."""
    limit = old.store.storage.max_put_bytes  # and of S3 for one copy
    items = upload.request.items
    stored = completing.compare(old, upload).complete
    kept = [identifier for identifier in stored if items[identifier].size_in_bytes <= limit]
    keys: Iterable[tuple[str, str]] = (
        (old.keys.item(identifier), new.keys.item(identifier)) for identifier in kept[:MAX_COPIED]
    )
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as pool:
        list(pool.map(lambda pair: old.store.copy(old.bucket, *pair), keys))
    for key, target in (
        (old.keys.uploaded_readme, new.keys.uploaded_readme),
        (old.keys.uploaded_block_hashes, new.keys.uploaded_block_hashes),
    ):
        with suppress(NotFound):
            old.store.copy(old.bucket, key, target)
