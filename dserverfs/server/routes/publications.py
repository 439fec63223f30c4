"""Extension of dservercore: datasets published for whoever has a link, until it expires.

    POST   /signed-urls/publish/<uri>  {"expiry_seconds"} (or nothing)
           -> {"uri", "url", "path", "expiry_seconds", "expiry_timestamp"}
    DELETE /signed-urls/publish/<uri>  -> {"uri", "revoked": how many links}
    GET    /published/<token>/http_manifest.json

To publish needs the rights to register and to search, or who may only make datasets
could read others'; a link is good as long as its maker has both. The link is a
dataset's URI to dtool-http, which adds `/http_manifest.json` to its path: so it is
this server that answers, and not the store by a signed URL. What it answers is made
when it is asked, with URLs of the store that end when the link does; those that
somebody has already stay good until then also if the link is revoked.

A link ends after DTOOL_S3_PUBLISH_EXPIRY seconds, as dtool-s3's, at most and by
default 7 days, which is all that S3 signs for. Only hashes of links are kept.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
import time
from typing import Any

import dservercore.utils
from dservercore import utils_auth
from dservercore.extensions import sql_db
from dservercore.sql_models import User
from dtoolcore.utils import get_config_value
from flask import Response, current_app, request
from flask_smorest import Blueprint
from sqlalchemy import Connection, event, text

from dserverfs.base.errors import DserverfsError, NotFound, UsageError
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.routes.answers import answer, json_body
from dserverfs.server.routes.extension import (
    Extension,
    report,
    require_register,
    require_search,
    stores,
)

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_publication (
        token_hash TEXT PRIMARY KEY,
        uri TEXT NOT NULL,
        username TEXT NOT NULL,
        expires_at REAL NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS dserverfs_publication_uri ON dserverfs_publication (uri)",
)

MAX_EXPIRY_SECONDS = 7 * 24 * 3600
_SETTING = "DTOOL_S3_PUBLISH_EXPIRY"


class Publications(Extension):
    """dservercore makes one per app; its state is all in the database."""

    def get_blueprint(self) -> Any:
        blueprint = Blueprint("publications", __name__)
        protected = utils_auth.jwt_required()
        publish = "/signed-urls/publish/<path:uri>"
        blueprint.add_url_rule(publish, "post_publish", protected(post_publish), methods=["POST"])
        blueprint.add_url_rule(
            publish, "delete_publish", protected(delete_publish), methods=["DELETE"]
        )
        blueprint.add_url_rule("/published/<token>", "get_published", get_published)
        blueprint.add_url_rule(
            "/published/<token>/http_manifest.json", "get_http_manifest", get_http_manifest
        )
        blueprint.register_error_handler(DserverfsError, report)
        return blueprint


def default_expiry_seconds() -> int:
    """Return how long links last; raises UsageError for a setting that is no number of seconds."""
    value = get_config_value(_SETTING)
    if value is None or value == "":  # for ever to dtool-s3, which makes objects public then
        return MAX_EXPIRY_SECONDS
    try:
        seconds = int(value)
    except ValueError:
        seconds = 0
    if seconds <= 0:
        raise UsageError(f"{_SETTING}={value}: must be a number of seconds")
    return min(seconds, MAX_EXPIRY_SECONDS)


def post_publish(uri: str) -> Response:
    """Make a link to a dataset."""
    username = require_register(uri.rpartition("/")[0])
    require_search(uri)
    expiry_seconds = _wanted_expiry()
    if not dservercore.utils.dataset_uri_exists(uri):
        raise NotFound(f"{uri} is not registered", uri=uri)
    StoredMetadata(stores().place(uri)).admin_metadata()  # raises NotFound
    token = secrets.token_urlsafe(32)
    now = time.time()
    sql_db.session.execute(
        text("DELETE FROM dserverfs_publication WHERE expires_at < :now"), {"now": now}
    )
    sql_db.session.execute(
        text(
            "INSERT INTO dserverfs_publication (token_hash, uri, username, expires_at)"
            " VALUES (:token_hash, :uri, :username, :expires_at)"
        ),
        {
            "token_hash": _hash(token),
            "uri": uri,
            "username": username,
            "expires_at": now + expiry_seconds,
        },
    )
    sql_db.session.commit()
    path = f"/published/{token}"
    end = datetime.datetime.fromtimestamp(now + expiry_seconds, datetime.timezone.utc)
    return answer(
        {
            "uri": uri,
            "url": request.host_url.rstrip("/") + path,
            "path": path,  # for a client that reaches the server by another address
            "expiry_seconds": expiry_seconds,
            "expiry_timestamp": end.isoformat(),
        }
    )


def delete_publish(uri: str) -> Response:
    """Let no link to a dataset be good any more."""
    require_register(uri.rpartition("/")[0])
    statement = text("DELETE FROM dserverfs_publication WHERE uri = :uri")
    revoked = sql_db.session.execute(statement, {"uri": uri}).rowcount
    sql_db.session.commit()
    return answer({"uri": uri, "revoked": revoked})


def get_published(token: str) -> Response:
    """Answer dtool-http, which looks whether it is redirected before it asks for the manifest."""
    uri, _ = _published(token)
    return answer({"uri": uri})


def get_http_manifest(token: str) -> Response:
    """Answer what dtool-http reads a dataset by."""
    uri, expires_at = _published(token)
    store, bucket, keys = place = stores().place(uri)
    metadata = StoredMetadata(place)
    now = datetime.datetime.now(datetime.timezone.utc)
    remaining_s = max(1, int(expires_at - now.timestamp()))
    signer = store.signer(now=now, expiry_seconds=remaining_s)

    def url(key: str) -> str:
        return signer.get_url(bucket, key)

    retrieve: Any = current_app.retrieve  # type: ignore[attr-defined]
    annotations = store.names(bucket, keys.annotations, ".json")
    body = {
        "admin_metadata": metadata.admin_metadata(),
        "item_urls": {name: url(keys.item(name)) for name in retrieve.get_identifiers(uri)},
        "overlays": {name: url(keys.overlay(name)) for name in metadata.overlay_names()},
        "annotations": {name: url(keys.annotation(name)) for name in annotations},
        "tags": metadata.tags(),
        "readme_url": url(keys.readme),
        "manifest_url": url(keys.manifest),
    }
    response = answer(body)
    response.headers["Cache-Control"] = "no-store"
    return response


def _published(token: str) -> tuple[str, float]:
    """Return the URI a link is for and when it ends; raises NotFound for no good link."""
    row = sql_db.session.execute(
        text(
            "SELECT uri, username, expires_at FROM dserverfs_publication"
            " WHERE token_hash = :token_hash"
        ),
        {"token_hash": _hash(token)},
    ).first()
    if (
        row is None
        or row.expires_at <= time.time()
        or not dservercore.utils.dataset_uri_exists(row.uri)
        or not utils_auth.may_access(row.username, row.uri)
        or not utils_auth.may_register(row.username, row.uri.rpartition("/")[0])
    ):
        raise NotFound("this link has expired, was revoked or never was")
    return row.uri, row.expires_at


def _wanted_expiry() -> int:
    body = json_body() if request.content_length else {}
    seconds = body.get("expiry_seconds")
    if seconds is None:
        return default_expiry_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise UsageError("expiry_seconds is not an integer", status=422)
    if not 0 < seconds <= MAX_EXPIRY_SECONDS:
        raise UsageError(f"expiry_seconds is not between 1 and {MAX_EXPIRY_SECONDS}", status=400)
    return seconds


@event.listens_for(User, "after_delete")
def _delete_links(_mapper: object, connection: Connection, user: User) -> None:
    """Let nobody who is given the name later have links out, in the same transaction."""
    connection.execute(
        text("DELETE FROM dserverfs_publication WHERE username = :name"), {"name": user.username}
    )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
