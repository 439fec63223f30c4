"""The hashes of a dataset's blocks in a bucket: one object, taken over from who uploads it.

Its form is in `base/block_hashes`. Length and head follow from the manifest, and are
compared; whether the hashes are right only a reader of the items can tell. A signed URL of
an upload is good for longer than the upload takes, so it leads to another key, from which
the object is copied: what is under its own key nobody can put there.

The state after a stop half way: a pending upload may have an object under that key that is not
its own, for `adopt` copies before it is sure that nothing else was put meanwhile; the next
attempt replaces or removes it. Where the dataset is frozen already the object is noted in the
database as being added until the store has it on the disk, and not served while it is.

Needs an app context; the caller commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dserverfs.base.block_hashes import HEAD_BYTES, ManifestDigest, digest_of, require_head
from dserverfs.base.errors import Conflict, IntegrityError, NotFound
from dserverfs.base.model import Identifier
from dserverfs.server.database import sql
from dserverfs.server.database.upload_request import UploadItem
from dserverfs.server.store.stores import Place

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_adding_block_hashes (
        uri TEXT PRIMARY KEY
    )""",
)


def of_announced(items: Mapping[Identifier, UploadItem]) -> ManifestDigest:
    """Return what the object of announced items is like."""
    return digest_of((key, item.md5, item.size_in_bytes) for key, item in items.items())


def of_manifest(manifest: Mapping[str, Any]) -> ManifestDigest:
    """Return what the object of a registered dataset is like."""
    return digest_of(
        (Identifier(key), str(item["hash"]).lower(), item["size_in_bytes"])
        for key, item in manifest["items"].items()
    )


def is_taken(place: Place, digest: ManifestDigest) -> bool:
    """Return whether there is something to hash, and one PUT holds it."""
    limit = place.store.storage.max_put_bytes
    return digest.number_of_hashes > 0 and digest.size_in_bytes <= limit


def is_stored(place: Place, uri: str) -> bool:
    """Return whether a frozen dataset has the object; one request."""
    if _is_being_added(uri):
        return False
    try:
        place.store.size(place.bucket, place.keys.block_hashes)
    except NotFound:
        return False
    return True


def has_its_own(place: Place, digest: ManifestDigest, uri: str) -> bool:
    """Return whether a frozen dataset has the object; one that is another's is removed."""
    return not _is_being_added(uri) and _is_right(place, digest)


def note_adding(uri: str) -> None:
    """Serve no object of this dataset from now on."""
    sql.replace("dserverfs_adding_block_hashes", uri=uri)


def note_added(uri: str) -> None:
    """Serve it again: there is none, or it is the dataset's own and on the disk."""
    sql.execute("DELETE FROM dserverfs_adding_block_hashes WHERE uri = :uri", uri=uri)


def _is_being_added(uri: str) -> bool:
    statement = "SELECT 1 FROM dserverfs_adding_block_hashes WHERE uri = :uri"
    return sql.value(statement, uri=uri) is not None


def adopt(place: Place, digest: ManifestDigest, uri: str) -> bool:
    """Make what was uploaded the dataset's; return whether it has block hashes now.

    Without an upload those that are there stay if they are its own: of an attempt before.
    Raises Conflict, with status 422, if what was uploaded is not right.
    """
    store, bucket, keys = place
    if not is_taken(place, digest):
        return False
    try:
        if store.is_unsure(bucket, keys.uploaded_block_hashes):
            raise NotFound("a power cut may have taken what was uploaded")
        _require(place, keys.uploaded_block_hashes, digest)
        store.copy(bucket, keys.uploaded_block_hashes, keys.block_hashes)
    except NotFound:
        return not store.is_unsure(bucket, keys.block_hashes) and _is_right(place, digest)
    except IntegrityError as error:
        raise _refusal(uri, error) from error
    try:
        _require(place, keys.block_hashes, digest)
    except IntegrityError as error:  # it was replaced in between
        store.delete(bucket, [keys.block_hashes])
        raise _refusal(uri, error) from error
    return True


def forget_uploaded(place: Place) -> None:
    """Delete what was uploaded for an earlier announcement."""
    place.store.delete(place.bucket, [place.keys.uploaded_block_hashes])


def _is_right(place: Place, digest: ManifestDigest) -> bool:
    """Return whether length and head of the object are right; another one is removed."""
    try:
        _require(place, place.keys.block_hashes, digest)
    except NotFound:
        return False
    except IntegrityError:
        place.store.delete(place.bucket, [place.keys.block_hashes])
        return False
    return True


def _require(place: Place, key: str, digest: ManifestDigest) -> None:
    """Raise IntegrityError, with the reason, unless length and head are right; NotFound."""
    size = place.store.size(place.bucket, key)
    if size != digest.size_in_bytes:
        raise IntegrityError(
            f"its block hashes have {size} bytes, those of its items {digest.size_in_bytes}"
        )
    require_head(place.store.read(place.bucket, key, limit_in_bytes=HEAD_BYTES), digest.head)


def _refusal(uri: str, error: IntegrityError) -> Conflict:
    return Conflict(f"{uri} cannot be completed: {error}", uri=uri, status=422)
