"""Extension of dservercore: signed URLs to read datasets and to upload new ones.

Paths, requests, answers and status are those of the signed-URL plugin used with
dserver elsewhere:

    GET  /signed-urls/dataset/<uri>              a dataset's metadata and all its items
    GET  /signed-urls/item/<uri>/<identifier>    one item
    POST /signed-urls/upload/<base_uri>          begin, or begin again, an upload
    POST /signed-urls/upload-complete            {"uri"}: freeze and register it

What this server adds; a client knows it by `dserverfs_signed_urls` in
`GET /config/versions`:

    GET  /signed-urls/dataset/<uri>?items=false
         without `item_urls`
    POST /signed-urls/items/<uri>   {"identifiers": [up to 1,000]}
         -> {"uri", "expiry_seconds", "expiry_timestamp", "item_urls": {identifier: url}}
    POST /signed-urls/upload/<base_uri>
         takes `created_at` (epoch seconds) to keep a copied dataset's date, and
         answers `stored`: the identifiers of the items that need no upload again;
         an item that is too large for one PUT has `in_parts` true in place of a
         URL: see multipart
    GET  /signed-urls/uploads
         -> {"uploads"}: the caller's pending ones, each with uri, base_uri, uuid, name,
         creator_username, started_at, created_at, frozen_at, number_of_items, size_in_bytes
    GET  /signed-urls/upload/<uri>
         the same of one, with `items` as in a manifest, tags, annotations, overlays, and
         `stored`: the identifiers that need no upload
    DELETE /signed-urls/upload/<uri>
         forgets a pending upload and deletes what of it is stored
    POST /signed-urls/upload-complete
         answers 422 with the relpaths in `message` when items are missing or not
         as announced; the upload stays pending

A URI in a path is percent-encoded or as it is. Permissions: search to read,
register to upload, else 403, which is also the answer for an unknown base URI.
Errors are `{"code", "status", "message"}`.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import dservercore.utils
from dservercore import utils_auth
from dservercore.extensions import sql_db
from flask import Response, request
from flask_smorest import Blueprint

from dserverfs.base.errors import Conflict, DserverfsError, NotFound, UsageError
from dserverfs.server.database import completing, uploads
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.upload_request import UploadRequest
from dserverfs.server.database.uploads import KeyedLocks, PendingUpload
from dserverfs.server.routes import multipart, upload_place
from dserverfs.server.routes.answers import answer, json_body
from dserverfs.server.routes.extension import (
    Extension,
    registered_identifiers,
    report,
    require_register,
    require_search,
    require_user,
    stores,
)
from dserverfs.server.routes.upload_place import UPLOAD_EXPIRY_SECONDS
from dserverfs.server.store import layout
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.signing import MAX_OBJECT_BYTES, Signer
from dserverfs.server.store.stores import Place

READ_EXPIRY_SECONDS = 3600
MAX_BATCH = 1000


class _Signing(NamedTuple):
    """URLs of one answer, and when they all end."""

    signer: Signer
    expiry: Mapping[str, Any]


class SignedUrls(Extension):
    """dservercore makes one per app."""

    def __init__(self) -> None:
        self._locks = KeyedLocks()

    def get_blueprint(self) -> Any:
        blueprint = Blueprint("signed_urls", __name__, url_prefix="/signed-urls")
        protected = utils_auth.jwt_required()
        for method, rule, view in (
            ("GET", "/dataset/<path:uri>", self.get_dataset),
            ("GET", "/item/<path:uri>/<identifier>", self.get_item),
            ("POST", "/items/<path:uri>", self.post_items),
            ("GET", "/uploads", self.get_uploads),
            ("GET", "/upload/<path:uri>", self.get_upload),
            ("DELETE", "/upload/<path:uri>", self.delete_upload),
            ("POST", "/upload/<path:base_uri>", self.post_upload),
            ("POST", "/upload-complete", self.post_upload_complete),
        ):
            blueprint.add_url_rule(rule, view.__name__, protected(view), methods=[method])
        blueprint.register_error_handler(DserverfsError, report)
        return blueprint

    def get_dataset(self, uri: str) -> Response:
        """Sign URLs for all there is of a dataset."""
        require_search(uri)
        identifiers = registered_identifiers(uri)
        store, bucket, keys = stores().place(uri)
        signer, expiry = _signing(store, READ_EXPIRY_SECONDS)

        def url(key: str) -> str:
            return signer.get_url(bucket, key)

        overlays = store.names(bucket, keys.overlays, ".json")
        annotations = store.names(bucket, keys.annotations, ".json")
        body: dict[str, Any] = {
            "uri": uri,
            **expiry,
            "admin_metadata_url": url(keys.admin_metadata),
            "manifest_url": url(keys.manifest),
            "readme_url": url(keys.readme),
            "overlay_urls": {name: url(keys.overlay(name)) for name in overlays},
            "annotation_urls": {name: url(keys.annotation(name)) for name in annotations},
            "tags": store.names(bucket, keys.tags),
        }
        if request.args.get("items") != "false":
            body["item_urls"] = {name: url(keys.item(name)) for name in identifiers}
        return answer(body)

    def get_item(self, uri: str, identifier: str) -> Response:
        """Sign a URL for one item."""
        require_search(uri)
        _require_items(uri, [identifier])
        store, bucket, keys = stores().place(uri)
        signer, expiry = _signing(store, READ_EXPIRY_SECONDS)
        url = signer.get_url(bucket, keys.item(identifier))
        return answer({"uri": uri, "identifier": identifier, **expiry, "url": url})

    def post_items(self, uri: str) -> Response:
        """Sign URLs for some items."""
        require_search(uri)
        wanted = json_body().get("identifiers")
        if not isinstance(wanted, list) or not all(isinstance(each, str) for each in wanted):
            raise UsageError("identifiers is not a list of strings", status=422)
        if len(wanted) > MAX_BATCH:
            raise UsageError(f"more than {MAX_BATCH} identifiers in one request", status=400)
        _require_items(uri, wanted)
        store, bucket, keys = stores().place(uri)
        signer, expiry = _signing(store, READ_EXPIRY_SECONDS)
        urls = {name: signer.get_url(bucket, keys.item(name)) for name in wanted}
        return answer({"uri": uri, **expiry, "item_urls": urls})

    def post_upload(self, base_uri: str) -> Response:
        """Begin an upload, or begin it again with what is announced now."""
        username = require_register(base_uri)
        store = stores().of(base_uri)
        announced = UploadRequest.parse(json_body(), max_item_bytes=MAX_OBJECT_BYTES)
        uri = f"{base_uri}/{announced.uuid}"
        with self._locks.holding(announced.uuid):
            before = uploads.find_by_uuid(announced.uuid)
            upload = _announce(uri, base_uri, username, announced, before)
            stores().ensure_bucket(base_uri)
            place = upload_place.prepare(upload, before)
            stored = completing.compare(place, upload).complete
            uploads.save(upload)
            sql_db.session.commit()
        _, bucket, keys = place
        signer, expiry = _signing(store, UPLOAD_EXPIRY_SECONDS)
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
        return answer(
            {
                "uuid": announced.uuid,
                "uri": uri,
                "base_uri": base_uri,
                **expiry,
                "upload_urls": {"readme": readme, "items": items},
                "stored": sorted(stored),
            }
        )

    def get_uploads(self) -> Response:
        """List the caller's pending uploads."""
        pending = uploads.list_of(require_user())
        return answer({"uploads": [_summary(upload) for upload in pending]})

    def get_upload(self, uri: str) -> Response:
        """Describe a pending upload, with what of it is stored."""
        upload = _pending(uri)
        stored = completing.compare(stores().place(uri), upload).complete
        return answer(
            {
                **_summary(upload),
                "items": completing.manifest_of(upload)["items"],
                "tags": upload.request.tags,
                "annotations": upload.request.annotations,
                "overlays": upload.request.overlays,
                "stored": sorted(stored),
            }
        )

    def delete_upload(self, uri: str) -> Response:
        """Forget a pending upload once nothing of it is stored any more."""
        with self._locks.holding(uri.rpartition("/")[2]):
            _pending(uri)
            place = stores().place(uri)
            _require_not_frozen(place, uri)
            upload_place.delete_all(place, uri)
            place.store.delete(place.bucket, [place.keys.registration])
            stores().forget(uri)
            uploads.delete(uri)
            upload_place.note_deleted(uri)
            sql_db.session.commit()
        return answer({"uri": uri, "status": "deleted"})

    def post_upload_complete(self) -> Response:
        """Freeze a pending upload whose items are all there, and register it."""
        uri = json_body().get("uri")
        if not isinstance(uri, str):
            raise UsageError("uri is missing or not a string", status=422)
        base_uri, _, uuid = uri.rpartition("/")
        username = require_register(base_uri)
        with self._locks.holding(uuid):
            upload = uploads.find_by_uri(uri)
            if upload is None and uploads.find_by_uuid(uuid) is not None:
                raise Conflict(f"{uuid} is being uploaded to another base URI", uri=uri)
            if upload is None:
                raise UsageError(
                    f"{uri} has no pending upload; it was never begun or is registered already",
                    uri=uri,
                    status=400,
                )
            _require_same_user(upload, username)
            place = stores().place(uri)
            stored = completing.compare(place, upload)
            completing.require_complete(stored, uri)
            dataset_info = completing.freeze(place, upload, stored.orphans)
            uploads.delete(uri)
            multipart.forget(place, uri)
            dservercore.utils.register_dataset(dataset_info)  # commits both
            StoredMetadata(place).drop_uploaded_readme()
        return answer(
            {"uri": uri, "status": "registered", "name": upload.request.name, "uuid": uuid}
        )


def _signing(store: ObjectStore, expiry_seconds: int) -> _Signing:
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    end = now + datetime.timedelta(seconds=expiry_seconds)
    return _Signing(
        store.signer(now=now, expiry_seconds=expiry_seconds),
        {"expiry_seconds": expiry_seconds, "expiry_timestamp": end.isoformat()},
    )


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
        # Where somebody else's is, is nobody's to know.
        where = before.base_uri if before.username == username else "another base URI"
        raise Conflict(f"{announced.uuid} is being uploaded to {where}", uri=uri)
    _require_same_user(before, username)
    return before._replace(request=announced)


def _pending(uri: str) -> PendingUpload:
    """Return the caller's pending upload; raises PermissionDenied, NotFound or Conflict."""
    username = require_register(uri.rpartition("/")[0])
    upload = uploads.find_by_uri(uri)
    if upload is None:
        raise NotFound(f"{uri} has no pending upload", uri=uri)
    _require_same_user(upload, username)
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
    """Raise Conflict for what dtool-s3 takes for a dataset: half completed, or an old one."""
    if upload_place.is_frozen(place):
        raise Conflict(
            f"{uri} is stored as a frozen dataset: complete the upload, nothing is deleted", uri=uri
        )


def _require_items(uri: str, wanted: list[str]) -> None:
    known = registered_identifiers(uri)
    for identifier in wanted:
        if identifier not in known:
            raise NotFound(f"{uri} has no item {identifier}", uri=uri)


def _require_same_user(upload: PendingUpload, username: str) -> None:
    if upload.username != username:
        raise Conflict(f"{upload.uri} is being uploaded by {upload.username}", uri=upload.uri)
