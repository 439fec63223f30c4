"""Answers of our own to routes of dservercore, for their cost or their types.

Paths, rights and status are dservercore's own:

    GET /annotations/<uri>    dservercore makes every value a string
    GET /manifests/<uri>      dservercore parses the manifest and writes it anew, sorted and
                              in memory, which takes 17 s for a million items; here the kept
                              one is sent, with gzip where the client takes that
    GET, POST /uris           dservercore orders and counts all that the user may see with its
                              own table, for a listing without a question; here our search does
    GET /me/summary           dservercore adds up a row of each dataset that the user may see;
                              here the database does
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import dservercore.uri_routes
import dservercore.utils
from dservercore import utils_auth
from flask import Response, abort, request

from dserverfs.server.database import summary
from dserverfs.server.database.retrieve import registered
from dserverfs.server.routes.routing import Asked

_PIECE_BYTES = 1024 * 1024


def get_annotations(asked: Asked) -> Mapping[str, Any]:
    return {"annotations": registered().get_annotations(asked.uri)}


def get_summary(asked: Asked) -> Mapping[str, Any]:
    return summary.summary_of(utils_auth.list_search_base_uris(asked.username))


def list_by_search() -> None:
    """Let dservercore's route of listings and searches ask our search for both."""
    dservercore.uri_routes.list_datasets_by_user = _list_datasets


def _list_datasets(username: str, pagination_parameters: Any, sort_parameters: Any) -> Any:
    """Return a page of all datasets that the user may see; one beyond the last is not found."""
    pagination_parameters.item_count = 0
    listed = dservercore.utils.search_datasets_by_user(
        username, {}, pagination_parameters, sort_parameters
    )
    if not listed and pagination_parameters.page > 1:
        abort(HTTPStatus.NOT_FOUND)
    return listed


def get_manifest(asked: Asked) -> Response:
    kept = registered().get_compressed_manifest(asked.uri)
    response = Response(mimetype="application/json")
    response.vary.add("Accept-Encoding")
    if request.accept_encodings["gzip"]:
        response.content_encoding = "gzip"
    else:
        kept = gzip.decompress(kept)
    response.content_length = len(kept)
    # In pieces: waitress copies what it is handed into its own buffers.
    response.response = _pieces(memoryview(kept))
    return response


def _pieces(content: memoryview) -> Iterator[bytes]:
    for start in range(0, len(content), _PIECE_BYTES):
        yield bytes(content[start : start + _PIECE_BYTES])
