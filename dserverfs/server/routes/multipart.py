"""Extension of dservercore: items that are too large for one PUT, in signed parts.

    POST /signed-urls/upload-parts           {"uri", "identifier"}
         -> {"stored": true}, or {"stored": false, "part_bytes", "etags": {number: etag}}
    POST /signed-urls/upload-parts/sign      {"uri", "identifier", "parts": {number: md5}}
         -> {"expiry_seconds", "expiry_timestamp", "urls": {number: {"url", "headers"}}}
    POST /signed-urls/upload-parts/complete  {"uri", "identifier", "etags": [etag, ...]}
         -> {"stored": true}

The first begins, or takes up again what was begun for the same item of the same
hash, and tells which parts are there. Parts count from 1 and have `part_bytes`
but for the last. The store checks each against the MD5 that its URL pins. The
MD5 of the whole item it cannot check without reading it again: that one is the
client's word, who must hash the whole in the pass in which it hashes the parts.

What is begun is in the table `dserverfs_multipart`, so it outlives a restart;
parts are deleted when their dataset is registered without them, when the item is
announced with another hash, and when `forget` is called.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

from dservercore import utils_auth
from dservercore.extensions import sql_db
from flask import Response
from flask_smorest import Blueprint
from sqlalchemy import text

from dserverfs.base.errors import Conflict, DserverfsError, NotFound, UsageError
from dserverfs.base.model import Identifier
from dserverfs.server.database import uploads
from dserverfs.server.database.upload_request import UploadItem, is_md5
from dserverfs.server.database.uploads import KeyedLocks
from dserverfs.server.routes.answers import answer, json_body
from dserverfs.server.routes.extension import Extension, report, require_register, stores
from dserverfs.server.store import layout
from dserverfs.server.store.signing import MAX_PARTS, MIB
from dserverfs.server.store.stores import Place

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


class Multipart(Extension):
    """dservercore makes one per app."""

    def __init__(self) -> None:
        self._locks = KeyedLocks()

    def get_blueprint(self) -> Any:
        blueprint = Blueprint("multipart", __name__, url_prefix="/signed-urls/upload-parts")
        protected = utils_auth.jwt_required()
        for rule, view in (
            ("", self.post_begin),
            ("/sign", self.post_sign),
            ("/complete", self.post_complete),
        ):
            blueprint.add_url_rule(rule, view.__name__, protected(view), methods=["POST"])
        blueprint.register_error_handler(DserverfsError, report)
        return blueprint

    def post_begin(self) -> Response:
        """Begin the upload of an item in parts, or take it up again."""
        body = json_body()
        uri, identifier = _subject(body)
        item = _announced(uri, identifier)
        place = stores().place(uri)
        if item.size_in_bytes <= place.store.storage.max_put_bytes:
            # The store would check the MD5 of the parts, and nobody that of the item.
            raise UsageError(f"{item.relpath} fits in one PUT and goes in no parts", status=422)
        with self._locks.holding(uri + identifier):
            if _is_stored(place, identifier, item):
                return answer({"stored": True})
            begun = _find(uri, identifier)
            etags = None
            if begun is not None and begun.md5 == item.md5:
                etags = _stored_parts(place, identifier, begun)
            if begun is None or etags is None:
                if begun is not None:
                    _abort(place, identifier, begun.upload_id)
                begun, etags = _begin(place, uri, identifier, item), {}
        return answer({"stored": False, "part_bytes": begun.part_bytes, "etags": etags})

    def post_sign(self) -> Response:
        """Sign URLs for some parts."""
        body = json_body()
        uri, identifier = _subject(body)
        begun = _require_begun(uri, identifier)
        parts = body.get("parts")
        if not isinstance(parts, dict) or not 0 < len(parts) <= MAX_BATCH:
            raise UsageError(f"parts is not an object of 1 to {MAX_BATCH} parts", status=422)
        store, bucket, keys = stores().place(uri)
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        signer = store.signer(now=now, expiry_seconds=PART_EXPIRY_SECONDS)
        urls = {}
        for number, md5 in parts.items():
            if not (number.isdecimal() and 1 <= int(number) <= begun.number_of_parts):
                raise UsageError(f"{number!r} is no part from 1 to {begun.number_of_parts}")
            if not is_md5(md5):
                raise UsageError(f"part {number}: {md5!r} is not an MD5 as 32 hex digits")
            headers = {"Content-MD5": layout.content_md5(md5)}
            url = signer.part_url(
                bucket, keys.item(identifier), begun.upload_id, int(number), headers
            )
            urls[number] = {"url": url, "headers": headers}
        end = now + datetime.timedelta(seconds=PART_EXPIRY_SECONDS)
        expiry = {"expiry_seconds": PART_EXPIRY_SECONDS, "expiry_timestamp": end.isoformat()}
        return answer({**expiry, "urls": urls})

    def post_complete(self) -> Response:
        """Make the item of its parts."""
        body = json_body()
        uri, identifier = _subject(body)
        etags = body.get("etags")
        if not isinstance(etags, list) or not all(isinstance(etag, str) for etag in etags):
            raise UsageError("etags is not a list of strings", status=422)
        with self._locks.holding(uri + identifier):
            begun = _require_begun(uri, identifier)
            place = stores().place(uri)
            store, bucket, keys = place
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
        return answer({"stored": True})


def forget(place: Place, uri: str) -> None:
    """Delete all parts of a dataset that are of no use any more; who calls commits."""
    rows = sql_db.session.execute(
        text("SELECT identifier, upload_id FROM dserverfs_multipart WHERE uri = :uri"), {"uri": uri}
    ).all()
    for row in rows:
        _abort(place, row.identifier, row.upload_id)
        _delete(uri, row.identifier)


def _subject(body: Mapping[str, Any]) -> tuple[str, Identifier]:
    """Return whose parts a request is about; raises PermissionDenied, Conflict for another user."""
    uri, identifier = body.get("uri"), body.get("identifier")
    if not isinstance(uri, str) or not isinstance(identifier, str):
        raise UsageError("uri or identifier is missing or not a string", status=422)
    username = require_register(uri.rpartition("/")[0])
    owner = uploads.owner_of(uri)
    if owner is None:
        raise UsageError(f"{uri} has no pending upload", uri=uri, status=400)
    if owner != username:
        raise Conflict(f"{uri} is being uploaded by {owner}", uri=uri)
    return uri, Identifier(identifier)


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
