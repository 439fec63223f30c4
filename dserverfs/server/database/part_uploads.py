"""Uploads of items in parts that were begun, in a table: so they outlive a restart.

Parts are deleted when their dataset is registered without them, when the item is
announced with another hash, and when `forget` is called.
"""

from __future__ import annotations

from typing import NamedTuple

from dservercore.extensions import sql_db

from dserverfs.base.errors import NotFound
from dserverfs.server.database import sql
from dserverfs.server.database.upload_request import UploadItem
from dserverfs.server.store import layout
from dserverfs.server.store.signing import MAX_PARTS, MIB
from dserverfs.server.store.stores import Place

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_multipart (
        uri TEXT NOT NULL,
        identifier TEXT NOT NULL,
        md5 TEXT NOT NULL,
        size_in_bytes INTEGER NOT NULL,
        part_bytes INTEGER NOT NULL,
        upload_id TEXT NOT NULL,
        PRIMARY KEY (uri, identifier)
    )""",
)


class PartUpload(NamedTuple):
    """An item whose upload in parts was begun."""

    md5: str
    size_in_bytes: int
    part_bytes: int
    upload_id: str

    @property
    def number_of_parts(self) -> int:
        return -(-self.size_in_bytes // self.part_bytes)

    def size_of(self, number: int) -> int:
        """Return the size that a part must have; 0 for a number that is none of a part."""
        left = self.size_in_bytes - (number - 1) * self.part_bytes
        return max(0, min(left, self.part_bytes))


def forget(place: Place, uri: str) -> None:
    """Delete all parts that are left of a dataset's uploads; the caller commits."""
    statement = "SELECT identifier, upload_id FROM dserverfs_multipart WHERE uri = :uri"
    for row in sql.execute(statement, uri=uri).all():
        abort(place, row.identifier, row.upload_id)
        delete(uri, row.identifier)


def is_stored(place: Place, identifier: str, item: UploadItem) -> bool:
    """Return whether the item was made of its parts already, and the answer was lost."""
    key = place.keys.item(identifier)
    try:
        metadata = place.store.metadata(place.bucket, key)
    except NotFound:
        return False
    if place.store.is_unsure(place.bucket, key):
        return False
    return metadata.get("checksum") == item.md5


def stored_parts(place: Place, identifier: str, begun: PartUpload) -> dict[str, str] | None:
    """Return the ETags of the parts that are there and whole; None if the store lost the upload."""
    key = place.keys.item(identifier)
    try:
        stored = place.store.parts(place.bucket, key, begun.upload_id)
    except NotFound:
        return None
    return {
        str(part.number): part.etag
        for part in stored
        if part.size_in_bytes == begun.size_of(part.number)
    }


def begin(place: Place, uri: str, identifier: str, item: UploadItem) -> PartUpload:
    least = -(-item.size_in_bytes // MAX_PARTS)
    part_bytes = max(place.store.storage.part_bytes, -(-least // MIB) * MIB)
    metadata = {"handle": layout.handle_of(item.relpath), "checksum": item.md5}
    upload_id = place.store.begin_parts(place.bucket, place.keys.item(identifier), metadata)
    begun = PartUpload(item.md5, item.size_in_bytes, part_bytes, upload_id)
    sql.replace("dserverfs_multipart", uri=uri, identifier=identifier, **begun._asdict())
    sql_db.session.commit()
    return begun


def abort(place: Place, identifier: str, upload_id: str) -> None:
    place.store.abort_parts(place.bucket, place.keys.item(identifier), upload_id)


def find(uri: str, identifier: str) -> PartUpload | None:
    row = sql.execute(
        "SELECT md5, size_in_bytes, part_bytes, upload_id FROM dserverfs_multipart"
        " WHERE uri = :uri AND identifier = :identifier",
        uri=uri,
        identifier=identifier,
    ).first()
    return None if row is None else PartUpload(*row)


def delete(uri: str, identifier: str) -> None:
    statement = "DELETE FROM dserverfs_multipart WHERE uri = :uri AND identifier = :identifier"
    sql.execute(statement, uri=uri, identifier=identifier)
