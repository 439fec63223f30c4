"""Routes that sign URLs, to read datasets and to upload new ones.

Paths, requests, answers and status are those of the signed-URL plugin used with
dserver elsewhere:

    GET  /signed-urls/dataset/<uri>              a dataset's metadata and all its items
    GET  /signed-urls/item/<uri>/<identifier>    one item
    POST /signed-urls/upload/<base_uri>          begin, or begin again, an upload
    POST /signed-urls/upload-complete            {"uri"}: freeze and register it

This server adds, as `dserverfs_signed_urls` in `GET /config/versions` says:

    GET  /signed-urls/dataset/<uri>?items=false
         without `item_urls`
    GET  /signed-urls/dataset/<uri>, POST /signed-urls/items/<uri>
         with `block_hashes_url` if they are stored, as `dserverfs_block_hashes` says
    POST /signed-urls/items/<uri>   {"identifiers": [up to 1,000]}
         -> {"uri", "expiry_seconds", "expiry_timestamp", "item_urls": {identifier: url}}
    POST /signed-urls/upload/<base_uri>
         takes `created_at` (epoch seconds) to keep a copied dataset's date, and
         answers `stored`: the identifiers of the items that need no upload again,
         or at all: of a dataset that was derived from another one, see `derived`;
         an item that is too large for one PUT has `in_parts` true in place of a
         URL: see multipart
    GET  /signed-urls/uploads
         -> {"uploads"}: the caller's pending ones, each with uri, base_uri, uuid, name,
         creator_username, started_at, created_at, frozen_at, number_of_items, size_in_bytes
    GET  /signed-urls/upload/<uri>
         the same of one, with `items` as in a manifest, tags, annotations, overlays, and
         `stored`: the identifiers that need no upload
    DELETE /signed-urls/upload/<uri>
         forgets a pending upload and deletes its stored items
         also `block_hashes_url`: {"url", "headers"}, if an item has more than one block: see
         block_hashes
    POST /signed-urls/upload-complete
         answers 422 with the relpaths in `message` when items are missing or not
         as announced; the upload stays pending

A URI in a path is percent-encoded or as it is. Permissions: search to read,
register to upload, else 403, which is also the answer for an unknown base URI.
Errors are `{"code", "status", "message"}`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dservercore.utils
from dservercore.extensions import sql_db
from flask import request
from marshmallow import fields

from dserverfs.base.errors import Conflict, NotFound, UsageError
from dserverfs.base.model import identifier_of
from dserverfs.server.database import (
    completing,
    derived,
    forms,
    locks,
    part_uploads,
    stored_block_hashes,
    upload_place,
    uploads,
)
from dserverfs.server.database.completing import Stored
from dserverfs.server.database.retrieve import registered
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.upload_place import UPLOAD_EXPIRY_SECONDS
from dserverfs.server.database.upload_request import UploadRequest
from dserverfs.server.database.uploads import PendingUpload
from dserverfs.server.routes.metrics import count_signed_urls
from dserverfs.server.routes.routing import Asked, may_search
from dserverfs.server.store import layout
from dserverfs.server.store.signing import MAX_OBJECT_BYTES
from dserverfs.server.store.stores import Place, Stores

READ_EXPIRY_SECONDS = 3600
MAX_BATCH = 1000


ITEMS = forms.form(identifiers=forms.Strings(required=True))
COMPLETE = forms.form(uri=fields.String(required=True))


class SignedUrls:
    """The handlers of one app."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def get_dataset(self, asked: Asked) -> Mapping[str, Any]:
        """Sign URLs for all there is of a dataset."""
        identifiers = registered().get_identifiers(asked.uri)
        store, bucket, keys = self._stores.place(asked.uri)
        signer = store.signer(READ_EXPIRY_SECONDS)

        def url(key: str) -> str:
            return signer.get_url(bucket, key)

        overlays = store.names(bucket, keys.overlays, ".json")
        annotations = store.names(bucket, keys.annotations, ".json")
        body: dict[str, Any] = {
            "uri": asked.uri,
            **signer.expiry,
            "admin_metadata_url": url(keys.admin_metadata),
            "manifest_url": url(keys.manifest),
            "readme_url": url(keys.readme),
            "overlay_urls": {name: url(keys.overlay(name)) for name in overlays},
            "annotation_urls": {name: url(keys.annotation(name)) for name in annotations},
            "tags": store.names(bucket, keys.tags),
        }
        if stored_block_hashes.is_stored(asked.uri):
            body["block_hashes_url"] = url(keys.block_hashes)
        if request.args.get("items") != "false":
            body["item_urls"] = {name: url(keys.item(name)) for name in identifiers}
        count_signed_urls(
            "read", 3 + len(overlays) + len(annotations) + len(body.get("item_urls", ()))
        )
        return body

    def get_item(self, asked: Asked, identifier: str) -> Mapping[str, Any]:
        """Sign a URL for one item."""
        _require_items(asked.uri, [identifier])
        store, bucket, keys = self._stores.place(asked.uri)
        signer = store.signer(READ_EXPIRY_SECONDS)
        url = signer.get_url(bucket, keys.item(identifier))
        count_signed_urls("read", 1)
        return {"uri": asked.uri, "identifier": identifier, **signer.expiry, "url": url}

    def download_url(self, uri: str, relpath: str) -> str:
        """Return a URL from which a browser saves an item as a file; raises NotFound."""
        identifier = identifier_of(relpath)
        _require_items(uri, [identifier])
        store, bucket, keys = self._stores.place(uri)
        signer = store.signer(READ_EXPIRY_SECONDS)
        count_signed_urls("read", 1)
        return signer.download_url(bucket, keys.item(identifier), relpath.rpartition("/")[2])

    def post_items(self, asked: Asked) -> Mapping[str, Any]:
        """Sign URLs for some items."""
        wanted = asked.body["identifiers"]
        forms.require(len(wanted) <= MAX_BATCH, f"more than {MAX_BATCH} identifiers in one request")
        _require_items(asked.uri, wanted)
        store, bucket, keys = self._stores.place(asked.uri)
        signer = store.signer(READ_EXPIRY_SECONDS)
        urls = {name: signer.get_url(bucket, keys.item(name)) for name in wanted}
        count_signed_urls("read", len(urls))
        answer = {"uri": asked.uri, **signer.expiry, "item_urls": urls}
        if stored_block_hashes.is_stored(asked.uri):  # they are read beside the first of these
            answer["block_hashes_url"] = signer.get_url(bucket, keys.block_hashes)
        return answer

    def post_upload(self, asked: Asked) -> Mapping[str, Any]:
        """Begin an upload, or begin it again with the present announcement."""
        base_uri = asked.uri
        store = self._stores.of(base_uri)
        announced = UploadRequest.of(asked.body, max_item_bytes=MAX_OBJECT_BYTES)
        uri = f"{base_uri}/{announced.uuid}"
        with locks.holding(locks.UPLOAD, announced.uuid) as held:
            before = uploads.find_by_uuid(announced.uuid)
            upload = _announce(uri, base_uri, asked.username, announced, before)
            self._stores.ensure_bucket(base_uri)
            place = upload_place.prepare(self._stores, upload, before)
            stored = completing.compare(place, upload)
            if self._copied_from_source(place, upload, stored):
                stored = completing.compare(place, upload)
            hashes_are_taken = stored_block_hashes.is_taken(
                place, stored_block_hashes.of_announced(announced.items)
            )
            if before is not None and hashes_are_taken:
                stored_block_hashes.forget_uploaded(place)  # they may be of other items
            held.require()
            uploads.save(upload)
            sql_db.session.commit()
        _, bucket, keys = place
        signer = store.signer(UPLOAD_EXPIRY_SECONDS)
        items: dict[str, dict[str, Any]] = {}
        for identifier, item in announced.items.items():
            if item.size_in_bytes > store.storage.max_put_bytes:
                items[identifier] = {"relpath": item.relpath, "headers": {}, "in_parts": True}
                continue
            headers = layout.item_headers(item.relpath, item.md5)
            items[identifier] = {
                "url": signer.put_url(bucket, keys.item(identifier), headers),
                "relpath": item.relpath,
                "headers": headers,
            }
        readme = signer.put_url(bucket, keys.uploaded_readme, {})
        count_signed_urls("upload", 1 + sum("url" in item for item in items.values()))
        answer = {
            "uuid": announced.uuid,
            "uri": uri,
            "base_uri": base_uri,
            **signer.expiry,
            "upload_urls": {"readme": readme, "items": items},
            "stored": sorted(stored.complete),
        }
        if hashes_are_taken:
            url = signer.put_url(bucket, keys.uploaded_block_hashes, {})
            answer["block_hashes_url"] = {"url": url, "headers": {}}
        return answer

    def _copied_from_source(self, place: Place, upload: PendingUpload, stored: Stored) -> bool:
        """Have the store copy what it has already, if the caller may read it; return whether."""
        source = derived.source_of(upload)
        if source is None or not may_search(source):
            return False
        return derived.copy_items(self._stores, source, place, upload, stored) > 0

    def get_uploads(self, asked: Asked) -> Mapping[str, Any]:
        """List the caller's pending uploads."""
        return {"uploads": [_summary(upload) for upload in uploads.list_of(asked.username)]}

    def get_upload(self, asked: Asked) -> Mapping[str, Any]:
        """Describe a pending upload, with the items that are stored."""
        upload = _pending(asked)
        stored = completing.compare(self._stores.place_now(asked.uri), upload).complete
        return {
            **_summary(upload),
            "items": completing.manifest_of(upload)["items"],
            "tags": upload.request.tags,
            "annotations": upload.request.annotations,
            "overlays": upload.request.overlays,
            "stored": sorted(stored),
        }

    def delete_upload(self, asked: Asked) -> Mapping[str, Any]:
        """Delete a pending upload and all that is stored of it."""
        uri = asked.uri
        with locks.holding(locks.UPLOAD, uri.rpartition("/")[2]) as held:
            _pending(asked)
            place = self._stores.place_now(uri)
            _require_not_frozen(place, uri)
            upload_place.delete_all(place, uri)
            place.store.delete(place.bucket, [place.keys.registration])
            self._stores.forget(uri)
            held.require()
            uploads.delete(uri)
            upload_place.note_deleted(uri)
            sql_db.session.commit()
        return {"uri": uri, "status": "deleted"}

    def post_upload_complete(self, asked: Asked) -> Mapping[str, Any]:
        """Freeze a pending upload whose items are all there, and register it."""
        uri = asked.uri
        uuid = uri.rpartition("/")[2]
        with locks.holding(locks.UPLOAD, uuid) as held:
            upload = uploads.find_by_uri(uri)
            if upload is None and uploads.find_by_uuid(uuid) is not None:
                raise Conflict(f"{uuid} is being uploaded to another base URI", uri=uri)
            if upload is None:
                raise UsageError(
                    f"{uri} has no pending upload; it was never begun or is registered already",
                    uri=uri,
                    status=400,
                )
            _require_same_user(upload, asked.username)
            place = upload_place.of_pending(self._stores, upload)
            stored = completing.compare_each(place, upload)
            completing.require_complete(stored, uri)
            dataset_info = completing.freeze(place, upload, stored.orphans)
            held.require()
            uploads.delete(uri)
            part_uploads.forget(place, uri)
            dservercore.utils.register_dataset(dataset_info)  # commits both
            StoredMetadata(place).drop_uploaded()
        return {"uri": uri, "status": "registered", "name": upload.request.name, "uuid": uuid}


def _announce(
    uri: str,
    base_uri: str,
    username: str,
    announced: UploadRequest,
    before: PendingUpload | None,
) -> PendingUpload:
    """Return the upload to keep, with the date of its first announcement; raises Conflict."""
    if dservercore.utils.dataset_uri_exists(uri):
        raise Conflict(f"{uri} exists already", uri=uri)
    if before is None:
        return PendingUpload(uri, base_uri, username, time.time(), announced)
    if before.uri != uri:
        # Another user's base URI is not to be known.
        where = before.base_uri if before.username == username else "another base URI"
        raise Conflict(f"{announced.uuid} is being uploaded to {where}", uri=uri)
    _require_same_user(before, username)
    return before._replace(request=announced)


def _pending(asked: Asked) -> PendingUpload:
    """Return the caller's pending upload; raises NotFound or Conflict."""
    upload = uploads.find_by_uri(asked.uri)
    if upload is None:
        raise NotFound(f"{asked.uri} has no pending upload", uri=asked.uri)
    _require_same_user(upload, asked.username)
    return upload


def _summary(upload: PendingUpload) -> dict[str, Any]:
    request = upload.request
    return {
        "uri": upload.uri,
        "base_uri": upload.base_uri,
        "uuid": request.uuid,
        "name": request.name,
        "creator_username": request.creator_username,
        "started_at": upload.started_at,
        "created_at": upload.created_at,
        "frozen_at": request.frozen_at,
        "number_of_items": len(request.items),
        "size_in_bytes": request.size_in_bytes,
    }


def _require_not_frozen(place: Place, uri: str) -> None:
    """Raise Conflict for a dataset that dtool-s3 sees: half completed, or an old one."""
    if upload_place.is_frozen(place):
        raise Conflict(
            f"{uri} is stored as a frozen dataset: complete the upload, nothing is deleted", uri=uri
        )


def _require_items(uri: str, wanted: list[str]) -> None:
    known = registered().get_identifiers(uri)
    for identifier in wanted:
        if identifier not in known:
            raise NotFound(f"{uri} has no item {identifier}", uri=uri)


def _require_same_user(upload: PendingUpload, username: str) -> None:
    if upload.username != username:
        raise Conflict(f"{upload.uri} is being uploaded by {upload.username}", uri=upload.uri)
