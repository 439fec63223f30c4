"""Uploads of items in parts that were begun, in a table: so they outlive a restart.

Parts are deleted when their dataset is registered without them, when the item is
announced with another hash, and when `forget` is called.
"""

from __future__ import annotations

from typing import NamedTuple

from dservercore.extensions import sql_db
from sqlalchemy import ColumnElement, select

from dserverfs.base.errors import NotFound
from dserverfs.server.database import sql
from dserverfs.server.database.tables import multipart
from dserverfs.server.database.upload_request import UploadItem
from dserverfs.server.store import layout
from dserverfs.server.store.signing import MAX_PARTS, MIB
from dserverfs.server.store.stores import Place


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
    for row in sql.execute(select(multipart).where(multipart.c.uri == uri)).all():
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
    sql.replace_row(multipart, uri=uri, identifier=identifier, **begun._asdict())
    sql_db.session.commit()
    return begun


def abort(place: Place, identifier: str, upload_id: str) -> None:
    place.store.abort_parts(place.bucket, place.keys.item(identifier), upload_id)


def find(uri: str, identifier: str) -> PartUpload | None:
    row = sql.first(multipart, *_of_item(uri, identifier))
    if row is None:
        return None
    return PartUpload(row.md5, row.size_in_bytes, row.part_bytes, row.upload_id)


def delete(uri: str, identifier: str) -> None:
    sql.delete_rows(multipart, *_of_item(uri, identifier))


def _of_item(uri: str, identifier: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return multipart.c.uri == uri, multipart.c.identifier == identifier
