"""Extension of dservercore: links by which datasets can be read without a token, by dtool-http.

    POST /publications/<uri>  {"expiry_seconds": up to 604,800}
         -> {"uri", "url", "expiry_seconds", "expiry_timestamp"}

As dtool-s3 does it: an object `http_manifest.json` holds signed URLs of all there
is of the dataset, and `url` is the dataset's address with the signature of this
object. Whoever has the link can read the dataset until it expires; nothing takes
it back before. S3 signs for seven days at most.

Needs the right to register in the dataset's base URI (403), since the link gives
others the right to read. A dataset that is not registered is a 404.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from dservercore import utils_auth
from flask import Response
from flask_smorest import Blueprint

from dserverfs import __version__ as __version__
from dserverfs.errors import DserverfsError, UsageError
from dserverfs.server.answers import answer, json_body
from dserverfs.server.extension import (
    Extension,
    registered_identifiers,
    report,
    require_register,
    stores,
)
from dserverfs.server.stored_metadata import StoredMetadata

MAX_EXPIRY_SECONDS = 7 * 24 * 3600


class Publication(Extension):
    """dservercore makes one per app."""

    def get_blueprint(self) -> Any:
        blueprint = Blueprint("publication", __name__, url_prefix="/publications")
        protected = utils_auth.jwt_required()
        blueprint.add_url_rule(
            "/<path:uri>", "post_publication", protected(self.post_publication), methods=["POST"]
        )
        blueprint.register_error_handler(DserverfsError, report)
        return blueprint

    def post_publication(self, uri: str) -> Response:
        """Write the dataset's HTTP manifest and sign the way to it."""
        require_register(uri.rpartition("/")[0])
        identifiers = registered_identifiers(uri)
        expiry_seconds = _expiry_seconds(json_body().get("expiry_seconds"))
        place = stores().place(uri)
        store, bucket, keys = place
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        signer = store.signer(now=now, expiry_seconds=expiry_seconds)

        def url(key: str) -> str:
            return signer.get_url(bucket, key)

        overlays = store.names(bucket, keys.overlays, ".json")
        annotations = store.names(bucket, keys.annotations, ".json")
        manifest = {
            "admin_metadata": StoredMetadata(place).admin_metadata(),
            "item_urls": {name: url(keys.item(name)) for name in sorted(identifiers)},
            "overlays": {name: url(keys.overlay(name)) for name in overlays},
            "annotations": {name: url(keys.annotation(name)) for name in annotations},
            "tags": store.names(bucket, keys.tags),
            "readme_url": url(keys.readme),
            "manifest_url": url(keys.manifest),
        }
        store.write(bucket, keys.http_manifest, json.dumps(manifest, indent=2).encode())
        address, _, signature = url(keys.http_manifest).partition("?")
        end = now + datetime.timedelta(seconds=expiry_seconds)
        return answer(
            {
                "uri": uri,
                "url": f"{address.rpartition('/')[0]}?{signature}",
                "expiry_seconds": expiry_seconds,
                "expiry_timestamp": end.isoformat(),
            }
        )


def _expiry_seconds(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError("expiry_seconds is missing or not a number", status=422)
    if not 0 < value <= MAX_EXPIRY_SECONDS:
        raise UsageError(
            f"expiry_seconds is {value}, not within 1 and {MAX_EXPIRY_SECONDS} (seven days)",
            status=400,
        )
    return value
