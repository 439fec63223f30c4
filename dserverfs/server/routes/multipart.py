"""Routes for items that are too large for one PUT, in signed parts.

    POST /signed-urls/upload-parts           {"uri", "identifier"}
         -> {"stored": true}, or {"stored": false, "part_bytes", "etags": {number: etag}}
    POST /signed-urls/upload-parts/sign      {"uri", "identifier", "parts": {number: md5}}
         -> {"expiry_seconds", "expiry_timestamp", "urls": {number: {"url", "headers"}}}
    POST /signed-urls/upload-parts/complete  {"uri", "identifier", "etags": [etag, ...]}
         -> {"stored": true}

The first begins an upload in parts, or takes one up again that was begun for the same
item with the same hash, and tells which parts are there. Parts count from 1; each but the
last has `part_bytes`. The store checks each against the MD5 that its URL pins. It cannot
check the MD5 of the whole item without reading it again: for that one the server trusts the
client, which must hash the whole in the pass in which it hashes the parts.

Uploads in parts are in the table `dserverfs_multipart`, so they outlive a restart;
parts are deleted when their dataset is registered without them, when the item is
announced with another hash, and when `forget` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dservercore.extensions import sql_db
from marshmallow import fields, validate
from sqlalchemy import text

from dserverfs.base.errors import Conflict, NotFound, UsageError
from dserverfs.base.model import Identifier
from dserverfs.server.database import forms, uploads
from dserverfs.server.database.upload_request import UploadItem, is_md5
from dserverfs.server.database.uploads import KeyedLocks
from dserverfs.server.routes.routing import Asked
from dserverfs.server.store import layout
from dserverfs.server.store.signing import MAX_PARTS, MIB
from dserverfs.server.store.stores import Place, Stores

PART_EXPIRY_SECONDS = 4 * 3600
MAX_BATCH = 1000

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


class _Begun(NamedTuple):
    """One row of the table."""

    md5: str
    size_in_bytes: int
    part_bytes: int
    upload_id: str

    @property
    def number_of_parts(self) -> int:
        return -(-self.size_in_bytes // self.part_bytes)


_SUBJECT = {"uri": fields.String(required=True), "identifier": fields.String(required=True)}
BEGIN = forms.form(**_SUBJECT)
SIGN = forms.form(
    **_SUBJECT,
    parts=fields.Dict(required=True, validate=validate.Length(min=1, max=MAX_BATCH)),
)
COMPLETE = forms.form(**_SUBJECT, etags=forms.Strings(required=True))


class Multipart:
    """The handlers of one app."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._locks = KeyedLocks()

    def post_begin(self, asked: Asked) -> Mapping[str, Any]:
        """Begin the upload of an item in parts, or take it up again."""
        uri, identifier = _subject(asked)
        item = _announced(uri, identifier)
        place = self._stores.place(uri)
        if item.size_in_bytes <= place.store.storage.max_put_bytes:
            # The store would check the MD5 of the parts, and nobody that of the item.
            raise UsageError(f"{item.relpath} fits in one PUT and goes in no parts", status=422)
        with self._locks.holding(uri + identifier):
            if _is_stored(place, identifier, item):
                return {"stored": True}
            begun = _find(uri, identifier)
            etags = None
            if begun is not None and begun.md5 == item.md5:
                etags = _stored_parts(place, identifier, begun)
            if begun is None or etags is None:
                if begun is not None:
                    _abort(place, identifier, begun.upload_id)
                begun, etags = _begin(place, uri, identifier, item), {}
        return {"stored": False, "part_bytes": begun.part_bytes, "etags": etags}

    def post_sign(self, asked: Asked) -> Mapping[str, Any]:
        """Sign URLs for some parts."""
        uri, identifier = _subject(asked)
        begun = _require_begun(uri, identifier)
        store, bucket, keys = self._stores.place(uri)
        signer = store.signer(PART_EXPIRY_SECONDS)
        urls = {}
        for number, md5 in asked.body["parts"].items():
            if not (number.isdecimal() and 1 <= int(number) <= begun.number_of_parts):
                raise UsageError(f"{number!r} is no part from 1 to {begun.number_of_parts}")
            if not is_md5(md5):
                raise UsageError(f"part {number}: {md5!r} is not an MD5 as 32 hex digits")
            headers = {"Content-MD5": layout.content_md5(md5)}
            url = signer.part_url(
                bucket, keys.item(identifier), begun.upload_id, int(number), headers
            )
            urls[number] = {"url": url, "headers": headers}
        return {**signer.expiry, "urls": urls}

    def post_complete(self, asked: Asked) -> Mapping[str, Any]:
        """Make the item of its parts."""
        uri, identifier = _subject(asked)
        etags = asked.body["etags"]
        with self._locks.holding(uri + identifier):
            begun = _require_begun(uri, identifier)
            store, bucket, keys = self._stores.place(uri)
            key = keys.item(identifier)
            stored = {part.number: part for part in store.parts(bucket, key, begun.upload_id)}
            numbers = range(1, begun.number_of_parts + 1)
            wrong = [
                number
                for number in numbers
                if number not in stored or stored[number].size_in_bytes != _size(begun, number)
            ]
            if wrong or len(etags) != begun.number_of_parts:
                shown = ", ".join(map(str, wrong[:5])) or "their number"
                raise Conflict(f"{uri}: parts of {identifier} not as begun: {shown}", status=422)
            store.complete_parts(bucket, key, begun.upload_id, [etag.strip('"') for etag in etags])
            _delete(uri, identifier)
            sql_db.session.commit()
        return {"stored": True}


def forget(place: Place, uri: str) -> None:
    """Delete all parts that are left of a dataset's uploads; the caller commits."""
    rows = sql_db.session.execute(
        text("SELECT identifier, upload_id FROM dserverfs_multipart WHERE uri = :uri"), {"uri": uri}
    ).all()
    for row in rows:
        _abort(place, row.identifier, row.upload_id)
        _delete(uri, row.identifier)


def _subject(asked: Asked) -> tuple[str, Identifier]:
    """Return the dataset and the item that a request is about; raises Conflict for another user."""
    owner = uploads.owner_of(asked.uri)
    if owner is None:
        raise UsageError(f"{asked.uri} has no pending upload", uri=asked.uri, status=400)
    if owner != asked.username:
        raise Conflict(f"{asked.uri} is being uploaded by {owner}", uri=asked.uri)
    return asked.uri, Identifier(asked.body["identifier"])


def _announced(uri: str, identifier: Identifier) -> UploadItem:
    upload = uploads.find_by_uri(uri)
    item = None if upload is None else upload.request.items.get(identifier)
    if item is None:
        raise NotFound(f"{uri} has no item {identifier}", uri=uri)
    return item


def _is_stored(place: Place, identifier: str, item: UploadItem) -> bool:
    """Return whether the item was made of its parts already, and the answer was lost."""
    try:
        metadata = place.store.metadata(place.bucket, place.keys.item(identifier))
    except NotFound:
        return False
    return metadata.get("checksum") == item.md5


def _stored_parts(place: Place, identifier: str, begun: _Begun) -> dict[str, str] | None:
    """Return the ETags of the parts that are there and whole; None if the store lost the upload."""
    key = place.keys.item(identifier)
    try:
        stored = place.store.parts(place.bucket, key, begun.upload_id)
    except NotFound:
        return None
    return {
        str(part.number): part.etag
        for part in stored
        if part.size_in_bytes == _size(begun, part.number)
    }


def _size(begun: _Begun, number: int) -> int:
    """Return the size that a part has to have; 0 for one that is none."""
    left = begun.size_in_bytes - (number - 1) * begun.part_bytes
    return max(0, min(left, begun.part_bytes))


def _begin(place: Place, uri: str, identifier: str, item: UploadItem) -> _Begun:
    least = -(-item.size_in_bytes // MAX_PARTS)
    part_bytes = max(place.store.storage.part_bytes, -(-least // MIB) * MIB)
    metadata = {"handle": layout.handle_of(item.relpath), "checksum": item.md5}
    upload_id = place.store.begin_parts(place.bucket, place.keys.item(identifier), metadata)
    begun = _Begun(item.md5, item.size_in_bytes, part_bytes, upload_id)
    sql_db.session.execute(
        text(
            "INSERT OR REPLACE INTO dserverfs_multipart"
            " (uri, identifier, md5, size_in_bytes, part_bytes, upload_id)"
            " VALUES (:uri, :identifier, :md5, :size_in_bytes, :part_bytes, :upload_id)"
        ),
        {"uri": uri, "identifier": identifier, **begun._asdict()},
    )
    sql_db.session.commit()
    return begun


def _abort(place: Place, identifier: str, upload_id: str) -> None:
    place.store.abort_parts(place.bucket, place.keys.item(identifier), upload_id)


def _require_begun(uri: str, identifier: str) -> _Begun:
    begun = _find(uri, identifier)
    if begun is None:
        raise Conflict(f"{uri}: the upload of {identifier} in parts was not begun", uri=uri)
    return begun


def _find(uri: str, identifier: str) -> _Begun | None:
    row = sql_db.session.execute(
        text(
            "SELECT md5, size_in_bytes, part_bytes, upload_id FROM dserverfs_multipart"
            " WHERE uri = :uri AND identifier = :identifier"
        ),
        {"uri": uri, "identifier": identifier},
    ).first()
    return None if row is None else _Begun(*row)


def _delete(uri: str, identifier: str) -> None:
    sql_db.session.execute(
        text("DELETE FROM dserverfs_multipart WHERE uri = :uri AND identifier = :identifier"),
        {"uri": uri, "identifier": identifier},
    )
