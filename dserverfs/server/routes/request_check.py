"""The check of every request before a route sees it.

dservercore changes users, base URIs and rights by what it has read before, and replaces a dataset
by deleting it: such requests take turns. Its routes parse a body before they ask for its sender's
rights, and answer 500 to numbers that SQLite cannot hold, to JSON that is nested too deeply and to
text that UTF-8 cannot hold. Here such input is refused, in JSON, as by our own routes.
"""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from typing import Any

import dservercore.utils
from flask import Flask, g, request
from flask_jwt_extended import verify_jwt_in_request

from dserverfs.base.errors import Conflict, NotFound, ProtocolError, Unsupported, UsageError
from dserverfs.base.limits import parse_json
from dserverfs.server.database import locks, upload_place
from dserverfs.server.database.completing import contents_of
from dserverfs.server.database.locks import Held
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.routes.routing import Right, require
from dserverfs.server.store.stores import Stores

MAX_PAGE = 1_000_000_000  # times a page's 100 it is an offset that SQLite can hold
_OF_DSERVERCORE = (
    *("base-uris", "users", "uris", "uuids", "manifests", "readmes", "annotations", "tags"),
)
_OF_RIGHTS = ("base-uris", "users")
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class RequestCheck:
    """The check of each request of one app, before its route sees it."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def install(self, app: Flask) -> None:
        app.before_request(self._check)
        app.teardown_request(_release)

    def _check(self) -> None:
        """Raise why the request is refused."""
        if "\0" in request.path or any("\0" in value for value in request.args.values()):
            raise UsageError("the address has a NUL", status=400)
        for name in ("page", "page_size"):
            value = request.args.get(name)
            if value is not None and not _is_number(value):
                raise UsageError(f"{name} is not a number from 1 to {MAX_PAGE}", status=422)
        endpoint = request.endpoint or ""
        if endpoint == "uris.uri_put":
            self._check_registration()
        elif endpoint.partition(".")[0] in _OF_DSERVERCORE and request.is_json:
            _checked_json()
        if request.method in ("PUT", "DELETE"):
            if endpoint.partition(".")[0] in _OF_RIGHTS:
                _hold(locks.holding(locks.RIGHTS))
            elif endpoint.partition(".")[0] == "uris":
                _hold(locks.holding(locks.CHANGE, _requested_uri()))

    def _check_registration(self) -> None:
        """Ask for the right before a manifest is parsed, then check the dataset."""
        uri = _requested_uri()
        verify_jwt_in_request()
        require(Right.USER | Right.REGISTER, uri.rpartition("/")[0])
        body = _checked_json() if request.is_json else {}
        if not isinstance(body, dict) or not isinstance(body.get("base_uri"), str):
            raise UsageError("base_uri is missing or not a string", status=422)
        if body.get("uri") != uri:
            raise UsageError(f"uri is not {uri}, which the address says", status=400)
        self._require_items_as_frozen(uri, body.get("manifest"))

    def _require_items_as_frozen(self, uri: str, manifest: Any) -> None:
        """Refuse other items than those of the dataset that is frozen in the bucket.

        Registering may replace the description of a dataset, and not its items.
        """
        items = manifest.get("items") if isinstance(manifest, dict) else None
        if not isinstance(items, dict) or not all(
            isinstance(each, dict) for each in items.values()
        ):
            return  # dservercore refuses it
        try:
            place = self._stores.place_now(uri)
            if not upload_place.is_frozen(place):
                return
        except (Unsupported, NotFound):
            return  # of no store, so nothing is frozen there
        if contents_of({"items": items}) != contents_of(StoredMetadata(place).manifest()):
            raise Conflict(f"{uri} is frozen with other items", uri=uri)
        place.store.sync()  # who wrote it to the store may delete the only other copy


def _requested_uri() -> str:
    uri: str = dservercore.utils.url_suffix_to_uri((request.view_args or {})["uri"])
    return uri


def _hold(lock: AbstractContextManager[Held]) -> None:
    """Hold a lock until the request has ended."""
    lock.__enter__()
    g.dserverfs_lock = lock


def _release(_error: BaseException | None) -> None:
    """Let go of the lock of a request that has one."""
    lock = g.pop("dserverfs_lock", None)
    if lock is not None:
        lock.__exit__(None, None, None)


def _is_number(value: str) -> bool:
    # Python takes long for a number of a million digits.
    is_short = value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_PAGE))
    return is_short and 1 <= int(value) <= MAX_PAGE


def _checked_json() -> Any:
    """Return the body; refuse one that is nested too deeply, or has half of a surrogate pair."""
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
