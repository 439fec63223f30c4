"""What every request is checked for before a route sees it, and what faults of input become.

dservercore's routes parse what they get before they ask who sends it, and answer 500
to numbers that SQLite cannot hold, to JSON that is nested too deeply and to text that
UTF-8 cannot hold. Here such input is refused, in JSON, as by our own routes.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import dservercore.utils
from dservercore.extensions import sql_db
from flask import Flask, Response, request
from flask_jwt_extended import verify_jwt_in_request
from sqlalchemy.exc import IntegrityError

from dserverfs.base.errors import (
    Conflict,
    DserverfsError,
    NotFound,
    ProtocolError,
    Unsupported,
    UsageError,
)
from dserverfs.base.limits import parse_json
from dserverfs.server.database.completing import contents_of
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.routes import upload_place
from dserverfs.server.routes.answers import error_answer
from dserverfs.server.routes.extension import report, require_register, require_user, stores

MAX_PAGE = 1_000_000_000  # times a page's 100 it is an offset that SQLite can hold
_OF_DSERVERCORE = (
    *("base-uris", "users", "uris", "uuids", "manifests", "readmes", "annotations", "tags"),
)
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# What input makes of Python and SQLite where nothing has refused it before.
_OF_INPUT = (RecursionError, UnicodeError, OverflowError)


def install(app: Flask) -> None:
    """Check each request of the app."""
    app.before_request(_check)
    app.register_error_handler(DserverfsError, report)
    app.register_error_handler(IntegrityError, _conflict)
    for error in _OF_INPUT:
        app.register_error_handler(error, _refused)


def _check() -> Response | None:
    """Return why the request is refused, or None."""
    if "\0" in request.path or any("\0" in value for value in request.args.values()):
        raise UsageError("the address has a NUL", status=400)
    for name in ("page", "page_size"):
        value = request.args.get(name)
        if value is not None and not _is_number(value):
            raise UsageError(f"{name} is not a number from 1 to {MAX_PAGE}", status=422)
    endpoint = request.endpoint or ""
    if endpoint == "uris.uri_put":
        _check_registration()
    elif endpoint.partition(".")[0] in _OF_DSERVERCORE and request.is_json:
        _checked_json()
    return None


def _check_registration() -> None:
    """Ask for the right before a manifest is parsed, and what the dataset is."""
    uri = dservercore.utils.url_suffix_to_uri((request.view_args or {})["uri"])
    verify_jwt_in_request()
    require_user()
    require_register(uri.rpartition("/")[0])
    body = _checked_json() if request.is_json else {}
    if not isinstance(body, dict) or not isinstance(body.get("base_uri"), str):
        raise UsageError("base_uri is missing or not a string", status=422)
    if body.get("uri") != uri:
        raise UsageError(f"uri is not {uri}, which the address says", status=400)
    _require_items_as_frozen(uri, body.get("manifest"))


def _is_number(value: str) -> bool:
    # Python takes long for a number of a million digits.
    is_short = value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_PAGE))
    return is_short and 1 <= int(value) <= MAX_PAGE


def _require_items_as_frozen(uri: str, manifest: Any) -> None:
    """Refuse other items than those of the dataset that is frozen in the bucket.

    Who may register may replace what is known of a dataset, and not what it consists of.
    """
    items = manifest.get("items") if isinstance(manifest, dict) else None
    if not isinstance(items, dict) or not all(isinstance(item, dict) for item in items.values()):
        return  # dservercore refuses it
    try:
        place = stores().place(uri)
        if not upload_place.is_frozen(place):
            return
    except (Unsupported, NotFound):
        return  # of no store, so nothing is frozen there
    if contents_of({"items": items}) != contents_of(StoredMetadata(place).manifest()):
        raise Conflict(f"{uri} is frozen with other items", uri=uri)


def _checked_json() -> Any:
    """Return the body; refuse what is nested too deeply, and half of a surrogate pair."""
    content = request.get_data(cache=True)
    if not content:
        return None
    try:
        value = parse_json(content, "the body")
    except ProtocolError as error:
        raise UsageError(str(error), status=400) from error
    if _MAYBE_SURROGATE.search(content) and not _is_text(value):
        raise UsageError("the body has text that UTF-8 cannot hold", status=400)
    return value


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(error: Exception) -> Response:
    sql_db.session.rollback()
    return error_answer(HTTPStatus.BAD_REQUEST, "a value is too large, too deep, or no text")


def _conflict(error: Exception) -> Response:
    sql_db.session.rollback()
    return error_answer(HTTPStatus.CONFLICT, "it exists already, or something else needs it")
