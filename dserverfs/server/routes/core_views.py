"""Routes of dservercore that this server answers in its place, for their cost or their types.

Paths, rights and status are dservercore's own:

    GET /annotations/<uri>    dservercore makes every value a string
    GET /manifests/<uri>      dservercore parses the manifest and writes it anew, sorted and
                              in memory, which takes 17 s for a million items; what is kept
                              is sent here, with gzip where the client takes that
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from http import HTTPStatus

import dservercore.utils
from dservercore import UnknownURIError, utils_auth
from flask import Flask, Response, current_app, request

from dserverfs.server.database.retrieve import Retrieve
from dserverfs.server.routes.answers import answer, error_answer

_PIECE_BYTES = 1024 * 1024


def install(app: Flask) -> None:
    """Put these views in the place of dservercore's."""
    app.view_functions["annotations.annotations"] = _for_readers(_annotations)
    app.view_functions["manifests.manifest"] = _for_readers(_manifest)


def _for_readers(answer_for: Callable[[str], Response]) -> Callable[[str], Response]:
    """Return the view that lets those through who may search the dataset's base URI."""

    def view(uri: str) -> Response:
        username = utils_auth.get_jwt_identity()
        if not utils_auth.user_exists(username):
            return error_answer(HTTPStatus.UNAUTHORIZED, f"there is no user {username}")
        uri = dservercore.utils.url_suffix_to_uri(uri)
        if not utils_auth.may_access(username, uri):
            return error_answer(HTTPStatus.FORBIDDEN, f"no permission to search {uri}")
        try:
            return answer_for(uri)
        except UnknownURIError:
            return error_answer(HTTPStatus.NOT_FOUND, f"{uri} is not registered")

    protected: Callable[[str], Response] = utils_auth.jwt_required()(view)
    return protected


def _annotations(uri: str) -> Response:
    return answer({"annotations": _retrieve().get_annotations(uri)})


def _manifest(uri: str) -> Response:
    kept = _retrieve().get_compressed_manifest(uri)
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


def _retrieve() -> Retrieve:
    found: Retrieve = current_app.retrieve  # type: ignore[attr-defined]
    return found
