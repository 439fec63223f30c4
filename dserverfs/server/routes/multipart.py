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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dservercore.extensions import sql_db
from marshmallow import fields, validate

from dserverfs.base.errors import Conflict, NotFound, UsageError
from dserverfs.base.model import Identifier
from dserverfs.server.database import forms, locks, part_uploads, uploads
from dserverfs.server.database.part_uploads import PartUpload
from dserverfs.server.database.upload_request import UploadItem, is_md5
from dserverfs.server.routes.routing import Asked
from dserverfs.server.store import layout
from dserverfs.server.store.stores import Stores

PART_EXPIRY_SECONDS = 4 * 3600
MAX_BATCH = 1000

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

    def post_begin(self, asked: Asked) -> Mapping[str, Any]:
        """Begin the upload of an item in parts, or take it up again."""
        uri, identifier = _subject(asked)
        item = _announced(uri, identifier)
        place = self._stores.place(uri)
        if item.size_in_bytes <= place.store.storage.max_put_bytes:
            # The store would check the MD5 of the parts, and nobody that of the item.
            raise UsageError(f"{item.relpath} fits in one PUT and goes in no parts", status=422)
        with locks.holding(locks.ITEM, uri + identifier):
            if part_uploads.is_stored(place, identifier, item):
                return {"stored": True}
            begun = part_uploads.find(uri, identifier)
            etags = None
            if begun is not None and begun.md5 == item.md5:
                etags = part_uploads.stored_parts(place, identifier, begun)
            if begun is None or etags is None:
                if begun is not None:
                    part_uploads.abort(place, identifier, begun.upload_id)
                begun, etags = part_uploads.begin(place, uri, identifier, item), {}
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
        with locks.holding(locks.ITEM, uri + identifier):
            begun = _require_begun(uri, identifier)
            store, bucket, keys = self._stores.place(uri)
            key = keys.item(identifier)
            stored = {part.number: part for part in store.parts(bucket, key, begun.upload_id)}
            numbers = range(1, begun.number_of_parts + 1)
            wrong = [
                number
                for number in numbers
                if number not in stored or stored[number].size_in_bytes != begun.size_of(number)
            ]
            if wrong or len(etags) != begun.number_of_parts:
                shown = ", ".join(map(str, wrong[:5])) or "their number"
                raise Conflict(f"{uri}: parts of {identifier} not as begun: {shown}", status=422)
            store.complete_parts(bucket, key, begun.upload_id, [etag.strip('"') for etag in etags])
            part_uploads.delete(uri, identifier)
            sql_db.session.commit()
        return {"stored": True}


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


def _require_begun(uri: str, identifier: str) -> PartUpload:
    begun = part_uploads.find(uri, identifier)
    if begun is None:
        raise Conflict(f"{uri}: the upload of {identifier} in parts was not begun", uri=uri)
    return begun
