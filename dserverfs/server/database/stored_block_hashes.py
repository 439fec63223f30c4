"""The hashes of a dataset's blocks in a bucket: one object, taken over from who uploads it.

Its form is in `base/block_hashes`. Length and head follow from the manifest, and are
compared; whether the hashes are right only a reader of the items can tell. A signed URL of
an upload is good for longer than the upload takes, so it leads to another key, from which
the object is copied: what is under its own key nobody can put there.

The database has a row for each dataset whose object is stored, and on the disk: so no answer
with its URL costs a request to the store. The state after a stop half way: there may be an
object without a row, which nobody is told of, and which the next attempt replaces or removes.

Needs an app context; the caller commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dserverfs.base.block_hashes import HEAD_BYTES, ManifestDigest, digest_of, require_head
from dserverfs.base.errors import Conflict, IntegrityError, NotFound
from dserverfs.base.model import Identifier
from dserverfs.server.database import sql
from dserverfs.server.database.tables import block_hashes
from dserverfs.server.database.upload_request import UploadItem
from dserverfs.server.store.stores import Place


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


def is_stored(uri: str) -> bool:
    """Return whether a dataset has the object; if it is gone since, the store says so."""
    return sql.first(block_hashes, block_hashes.c.uri == uri) is not None


def note(uri: str, *, is_stored: bool) -> None:
    """Note whether a dataset has the object, once it is on the disk."""
    if is_stored:
        sql.replace_row(block_hashes, uri=uri)
    else:
        sql.delete_rows(block_hashes, block_hashes.c.uri == uri)


def is_right(place: Place, digest: ManifestDigest) -> bool:
    """Return whether length and head of the object are right; another one is removed."""
    try:
        _require(place, place.keys.block_hashes, digest)
    except NotFound:
        return False
    except IntegrityError:
        place.store.delete(place.bucket, [place.keys.block_hashes])
        return False
    return True


def adopt(place: Place, digest: ManifestDigest, uri: str) -> bool:
    """Make what was uploaded the dataset's; return whether it has block hashes now.

    Its own that are there stay: of an attempt before, or of a dataset that was deleted from the
    index and is uploaded again. The caller notes it when the store is synced. Raises Conflict,
    with status 422, if what was uploaded is not right.
    """
    store, bucket, keys = place
    if not is_taken(place, digest):
        return False
    if is_right(place, digest) and not store.is_unsure(bucket, keys.block_hashes):
        return True
    try:
        if store.is_unsure(bucket, keys.uploaded_block_hashes):
            raise NotFound("a power cut may have taken what was uploaded")
        _require(place, keys.uploaded_block_hashes, digest)
        store.copy(bucket, keys.uploaded_block_hashes, keys.block_hashes)
    except NotFound:
        return False
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
