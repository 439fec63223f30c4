"""Routes that add the block hashes of a dataset that is frozen already.

    POST /signed-urls/block-hashes/<uri>     -> {"uri", "expiry_seconds", "expiry_timestamp",
                                                 "url", "headers"}
    POST /signed-urls/block-hashes-complete  {"uri"} -> {"uri", "status": "stored"}

The object, whose form is in `base/block_hashes`, is put by the URL of the first. The second
compares its length and its head with the registered manifest: 422 if they are not right or
nothing was put. One that is stored already stays: 409, for what is frozen does not change.
Uploads have a URL for it in the answer to their announcement, see signed_urls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dservercore.extensions import sql_db
from marshmallow import fields

from dserverfs.base.block_hashes import ManifestDigest
from dserverfs.base.errors import Conflict
from dserverfs.server.database import forms, locks, stored_block_hashes
from dserverfs.server.database.retrieve import registered
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.upload_place import UPLOAD_EXPIRY_SECONDS
from dserverfs.server.routes.routing import Asked
from dserverfs.server.store.stores import Place, Stores

COMPLETE = forms.form(uri=fields.String(required=True))


class BlockHashes:
    """The handlers of one app."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def post_block_hashes(self, asked: Asked) -> Mapping[str, Any]:
        """Sign a URL for them."""
        place, _ = self._lacking(asked.uri)
        signer = place.store.signer(UPLOAD_EXPIRY_SECONDS)
        url = signer.put_url(place.bucket, place.keys.uploaded_block_hashes, {})
        return {"uri": asked.uri, **signer.expiry, "url": url, "headers": {}}

    def post_block_hashes_complete(self, asked: Asked) -> Mapping[str, Any]:
        """Make what was put the dataset's."""
        uri = asked.uri
        with locks.holding(locks.BLOCK_HASHES, uri):
            place, digest = self._lacking(uri)
            if not stored_block_hashes.adopt(place, digest, uri):
                raise Conflict(f"{uri}: its block hashes were not uploaded", uri=uri, status=422)
            place.store.sync()
            stored_block_hashes.note(uri, is_stored=True)
            sql_db.session.commit()
            StoredMetadata(place).drop_uploaded()
        return {"uri": uri, "status": "stored"}

    def _lacking(self, uri: str) -> tuple[Place, ManifestDigest]:
        """Return the place of a dataset without block hashes, and what they are like.

        Raises Conflict for one that has them, or nothing to hash.
        """
        digest = stored_block_hashes.of_manifest(registered().get_manifest(uri))
        place = self._stores.place(uri)
        StoredMetadata(place).admin_metadata()  # raises NotFound: it may be registered by hand
        if not stored_block_hashes.is_taken(place, digest):
            raise Conflict(f"{uri} has no item of more than one block", uri=uri, status=422)
        if stored_block_hashes.is_stored(uri) and stored_block_hashes.is_right(place, digest):
            raise Conflict(f"{uri} has block hashes already", uri=uri)
        return place, digest
