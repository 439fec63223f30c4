"""Extension of dservercore: signed URLs to read datasets and to upload new ones.

Paths, requests, answers and status are those of the signed-URL plugin used with
dserver elsewhere:

    GET  /signed-urls/dataset/<uri>              a dataset's metadata and all its items
    GET  /signed-urls/item/<uri>/<identifier>    one item
    POST /signed-urls/upload/<base_uri>          begin, or begin again, an upload
    POST /signed-urls/upload-complete            {"uri"}: freeze and register it

What this server adds; a client knows it by the name of this module in
`GET /config/versions`:

    GET  /signed-urls/dataset/<uri>?items=false
         without `item_urls`
    POST /signed-urls/items/<uri>   {"identifiers": [up to 1,000]}
         -> {"uri", "expiry_seconds", "expiry_timestamp", "item_urls": {identifier: url}}
    POST /signed-urls/upload/<base_uri>
         takes `created_at` (epoch seconds) to keep a copied dataset's date, and
         answers `stored`: the identifiers of the items that need no upload again
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
from http import HTTPStatus
from typing import Any, NamedTuple

import dservercore.utils
from dservercore import UnknownURIError, utils_auth
from dservercore.extensions import sql_db
from flask import Response, current_app, request
from flask_smorest import Blueprint

from dserverfs import __version__ as __version__
from dserverfs.errors import (
    Conflict,
    DserverfsError,
    NotFound,
    PermissionDenied,
    Unreachable,
    Unsupported,
    UsageError,
)
from dserverfs.server import layout, publish, uploads
from dserverfs.server.answers import answer, error_answer, json_body
from dserverfs.server.extension import Extension
from dserverfs.server.layout import DatasetKeys
from dserverfs.server.objects import ObjectStore
from dserverfs.server.storage import Signer, bucket_of
from dserverfs.server.upload_request import UploadRequest
from dserverfs.server.uploads import KeyedLocks, PendingUpload

READ_EXPIRY_SECONDS = 3600
UPLOAD_EXPIRY_SECONDS = 4 * 3600
MAX_BATCH = 1000

_STATUS: tuple[tuple[type[DserverfsError], HTTPStatus], ...] = (
    (UsageError, HTTPStatus.BAD_REQUEST),
    (PermissionDenied, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Unsupported, HTTPStatus.NOT_IMPLEMENTED),
    (Unreachable, HTTPStatus.BAD_GATEWAY),
)


class _Signing(NamedTuple):
    """URLs of one answer, and when they all end."""

    signer: Signer
    expiry: Mapping[str, Any]


class SignedUrls(Extension):
    """dservercore makes one per app; its store is among the app's extensions."""

    def __init__(self) -> None:
        self._locks = KeyedLocks()

    @property
    def store(self) -> ObjectStore:
        store: ObjectStore = current_app.extensions["dserverfs_store"]
        return store

    def get_blueprint(self) -> Any:
        blueprint = Blueprint("signed_urls", __name__, url_prefix="/signed-urls")
        protected = utils_auth.jwt_required()
        for method, rule, view in (
            ("GET", "/dataset/<path:uri>", self.get_dataset),
            ("GET", "/item/<path:uri>/<identifier>", self.get_item),
            ("POST", "/items/<path:uri>", self.post_items),
            ("POST", "/upload/<path:base_uri>", self.post_upload),
            ("POST", "/upload-complete", self.post_upload_complete),
        ):
            blueprint.add_url_rule(rule, view.__name__, protected(view), methods=[method])
        blueprint.register_error_handler(DserverfsError, _report)
        return blueprint

    def get_dataset(self, uri: str) -> Response:
        """Sign URLs for all there is of a dataset."""
        keys, bucket = self._readable(uri)
        identifiers = _identifiers(uri)
        signer, expiry = self._signing(READ_EXPIRY_SECONDS)

        def url(key: str) -> str:
            return signer.get_url(bucket, key)

        overlays = self.store.names(bucket, keys.overlays, ".json")
        annotations = self.store.names(bucket, keys.annotations, ".json")
        body: dict[str, Any] = {
            "uri": uri,
            **expiry,
            "admin_metadata_url": url(keys.admin_metadata),
            "manifest_url": url(keys.manifest),
            "readme_url": url(keys.readme),
            "overlay_urls": {name: url(keys.overlay(name)) for name in overlays},
            "annotation_urls": {name: url(keys.annotation(name)) for name in annotations},
            "tags": self.store.names(bucket, keys.tags),
        }
        if request.args.get("items") != "false":
            body["item_urls"] = {name: url(keys.item(name)) for name in identifiers}
        return answer(body)

    def get_item(self, uri: str, identifier: str) -> Response:
        """Sign a URL for one item."""
        keys, bucket = self._readable(uri)
        _require_items(uri, [identifier])
        signer, expiry = self._signing(READ_EXPIRY_SECONDS)
        url = signer.get_url(bucket, keys.item(identifier))
        return answer({"uri": uri, "identifier": identifier, **expiry, "url": url})

    def post_items(self, uri: str) -> Response:
        """Sign URLs for some items."""
        keys, bucket = self._readable(uri)
        wanted = json_body().get("identifiers")
        if not isinstance(wanted, list) or not all(isinstance(each, str) for each in wanted):
            raise UsageError("identifiers is not a list of strings", status=422)
        if len(wanted) > MAX_BATCH:
            raise UsageError(f"more than {MAX_BATCH} identifiers in one request", status=400)
        _require_items(uri, wanted)
        signer, expiry = self._signing(READ_EXPIRY_SECONDS)
        urls = {name: signer.get_url(bucket, keys.item(name)) for name in wanted}
        return answer({"uri": uri, **expiry, "item_urls": urls})

    def post_upload(self, base_uri: str) -> Response:
        """Begin an upload, or begin it again with what is announced now."""
        username = _require_register(base_uri)
        bucket = bucket_of(base_uri)
        announced = UploadRequest.parse(json_body(), max_put_bytes=self.store.storage.max_put_bytes)
        uri = f"{base_uri}/{announced.uuid}"
        with self._locks.holding(announced.uuid):
            upload = _announce(uri, base_uri, username, announced)
            self.store.ensure_bucket(bucket)
            stored = publish.compare(self.store, upload).complete
            uploads.save(upload)
            sql_db.session.commit()
        keys = DatasetKeys(self.store.storage.prefix, announced.uuid)
        signer, expiry = self._signing(UPLOAD_EXPIRY_SECONDS)
        items = {}
        for identifier, item in announced.items.items():
            headers = layout.item_headers(item.relpath, item.md5)
            items[identifier] = {
                "url": signer.put_url(bucket, keys.item(identifier), headers),
                "relpath": item.relpath,
                "headers": headers,
            }
        readme = signer.put_url(bucket, keys.readme, {})
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

    def post_upload_complete(self) -> Response:
        """Freeze a pending upload whose items are all there, and register it."""
        uri = json_body().get("uri")
        if not isinstance(uri, str):
            raise UsageError("uri is missing or not a string", status=422)
        base_uri, _, uuid = uri.rpartition("/")
        username = _require_register(base_uri)
        with self._locks.holding(uuid):
            upload = uploads.find_by_uri(uri)
            if upload is None:
                raise UsageError(
                    f"{uri} has no pending upload; it was never begun or is registered already",
                    uri=uri,
                    status=400,
                )
            _require_same_user(upload, username)
            stored = publish.compare(self.store, upload)
            publish.require_complete(stored, uri)
            dataset_info = publish.publish(self.store, upload, stored.orphans)
            uploads.delete(uri)
            dservercore.utils.register_dataset(dataset_info)  # commits both
        return answer(
            {"uri": uri, "status": "registered", "name": upload.request.name, "uuid": uuid}
        )

    def _readable(self, uri: str) -> tuple[DatasetKeys, str]:
        """Return where a dataset is that the caller may search; raises PermissionDenied."""
        base_uri, _, uuid = uri.rpartition("/")
        if not utils_auth.may_access(utils_auth.get_jwt_identity(), uri):
            raise PermissionDenied(f"no permission to search {base_uri}", uri=uri)
        return DatasetKeys(self.store.storage.prefix, uuid), bucket_of(base_uri)

    def _signing(self, expiry_seconds: int) -> _Signing:
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        end = now + datetime.timedelta(seconds=expiry_seconds)
        return _Signing(
            self.store.signer(now=now, expiry_seconds=expiry_seconds),
            {"expiry_seconds": expiry_seconds, "expiry_timestamp": end.isoformat()},
        )


def _announce(uri: str, base_uri: str, username: str, announced: UploadRequest) -> PendingUpload:
    """Return the upload to keep, with the date of its first announcement; raises Conflict."""
    if dservercore.utils.dataset_uri_exists(uri):
        raise Conflict(f"{uri} exists already", uri=uri)
    before = uploads.find_by_uuid(announced.uuid)
    if before is None:
        return PendingUpload(uri, base_uri, username, time.time(), announced)
    if before.uri != uri:
        raise Conflict(f"{announced.uuid} is being uploaded to {before.base_uri}", uri=uri)
    _require_same_user(before, username)
    return before._replace(request=announced)


def _identifiers(uri: str) -> frozenset[str]:
    try:
        identifiers: frozenset[str] = current_app.retrieve.get_identifiers(uri)  # type: ignore[attr-defined]
    except UnknownURIError as error:
        raise NotFound(f"{uri} is not registered", uri=uri) from error
    return identifiers


def _require_items(uri: str, wanted: list[str]) -> None:
    known = _identifiers(uri)
    for identifier in wanted:
        if identifier not in known:
            raise NotFound(f"{uri} has no item {identifier}", uri=uri)


def _require_register(base_uri: str) -> str:
    """Return who asks; raises PermissionDenied without the right to register there."""
    username: str = utils_auth.get_jwt_identity()
    if not utils_auth.may_register(username, base_uri):
        raise PermissionDenied(f"no permission to register in {base_uri}", uri=base_uri)
    return username


def _require_same_user(upload: PendingUpload, username: str) -> None:
    if upload.username != username:
        raise Conflict(f"{upload.uri} is being uploaded by {upload.username}", uri=upload.uri)


def _report(error: DserverfsError) -> Response:
    """Answer with the error's own status, else that of its class."""
    sql_db.session.rollback()
    if error.status is not None:
        return error_answer(HTTPStatus(error.status), str(error))
    for cls, status in _STATUS:
        if isinstance(error, cls):
            return error_answer(status, str(error))
    return error_answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
