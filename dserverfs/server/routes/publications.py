"""Routes that publish a dataset: links by which anybody reads it, until they expire.

    POST   /signed-urls/publish/<uri>  {"expiry_seconds"} (or nothing)
           -> {"uri", "url", "path", "expiry_seconds", "expiry_timestamp"}
    DELETE /signed-urls/publish/<uri>  -> {"uri", "revoked": how many links}
    GET    /published/<token>/http_manifest.json

To publish needs the rights to register and to search, or a user who may only make
datasets could read others'; a link is good as long as its maker has both. The link is a
dataset's URI to dtool-http, which adds `/http_manifest.json` to its path: so this server
answers it, and not the store by a signed URL. The answer is made when it is asked for,
with URLs of the store that end when the link does; those that were handed out stay good
until then also if the link is revoked.

A link ends after DTOOL_S3_PUBLISH_EXPIRY seconds, as dtool-s3's, at most and by
default 7 days, which is all that S3 signs for.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Mapping
from typing import Any

import dservercore.utils
from dservercore import utils_auth
from dservercore.extensions import sql_db
from flask import Response

from dserverfs.base.errors import NotFound
from dserverfs.server.database import forms, links
from dserverfs.server.database.links import Link
from dserverfs.server.database.retrieve import registered
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.routes.answers import answer
from dserverfs.server.routes.routing import Asked
from dserverfs.server.store.settings import MAX_EXPIRY_SECONDS, ServerSettings
from dserverfs.server.store.stores import Stores

FORM = forms.form(expiry_seconds=forms.Count(load_default=None, allow_none=True))


class Publications:
    """The handlers of one app; their state is all in the database."""

    def __init__(self, stores: Stores, settings: ServerSettings) -> None:
        self._stores = stores
        self._settings = settings

    def post_publish(self, asked: Asked) -> Mapping[str, Any]:
        """Make a link to a dataset."""
        uri, expiry_seconds = asked.uri, self._expiry_s(asked.body["expiry_seconds"])
        if not dservercore.utils.dataset_uri_exists(uri):
            raise NotFound(f"{uri} is not registered", uri=uri)
        StoredMetadata(self._stores.place(uri)).admin_metadata()  # raises NotFound
        token = secrets.token_urlsafe(32)
        now = time.time()
        links.add(token, Link(uri, asked.username, now + expiry_seconds))
        sql_db.session.commit()
        path = f"/published/{token}"
        end = datetime.datetime.fromtimestamp(now + expiry_seconds, datetime.timezone.utc)
        return {
            "uri": uri,
            "url": self._settings.public_url + path,
            "path": path,  # for a client that reaches the server by another address
            "expiry_seconds": expiry_seconds,
            "expiry_timestamp": end.isoformat(),
        }

    def delete_publish(self, asked: Asked) -> Mapping[str, Any]:
        """End all links to a dataset."""
        revoked = links.delete_all(asked.uri)
        sql_db.session.commit()
        return {"uri": asked.uri, "revoked": revoked}

    def get_published(self, asked: Asked, token: str) -> Mapping[str, Any]:
        """Answer dtool-http, which looks for a redirect before it asks for the manifest."""
        return {"uri": self._found(token).uri}

    def get_http_manifest(self, asked: Asked, token: str) -> Response:
        """Answer with the document by which dtool-http reads a dataset."""
        uri, _, expires_at = self._found(token)
        store, bucket, keys = place = self._stores.place(uri)
        metadata = StoredMetadata(place)
        signer = store.signer(max(1, int(expires_at - time.time())))

        def url(key: str) -> str:
            return signer.get_url(bucket, key)

        identifiers = registered().get_identifiers(uri)
        annotations = store.names(bucket, keys.annotations, ".json")
        response = answer(
            {
                "admin_metadata": metadata.admin_metadata(),
                "item_urls": {name: url(keys.item(name)) for name in identifiers},
                "overlays": {name: url(keys.overlay(name)) for name in metadata.overlay_names()},
                "annotations": {name: url(keys.annotation(name)) for name in annotations},
                "tags": metadata.tags(),
                "readme_url": url(keys.readme),
                "manifest_url": url(keys.manifest),
            }
        )
        response.headers["Cache-Control"] = "no-store"
        return response

    def _expiry_s(self, wanted: int | None) -> int:
        if wanted is None:
            return self._settings.publish_expiry_s()
        forms.require(
            0 < wanted <= MAX_EXPIRY_SECONDS,
            f"expiry_seconds is not between 1 and {MAX_EXPIRY_SECONDS}",
        )
        return wanted

    def _found(self, token: str) -> Link:
        """Return the link of a token; raises NotFound for no good link."""
        found = links.find(token)
        if (
            found is None
            or found.expires_at <= time.time()
            or not dservercore.utils.dataset_uri_exists(found.uri)
            or not utils_auth.may_access(found.username, found.uri)
            or not utils_auth.may_register(found.username, found.uri.rpartition("/")[0])
        ):
            raise NotFound("this link has expired, was revoked or never was")
        return found
