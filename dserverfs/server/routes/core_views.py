"""Answers of our own to routes of dservercore, for their cost or their types.

Paths, rights and status are dservercore's own:

    GET /annotations/<uri>    dservercore makes every value a string
    GET /manifests/<uri>      dservercore parses the manifest and writes it anew, sorted and
                              in memory, which takes 17 s for a million items; here the kept
                              one is sent, with gzip where the client takes that
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Response, request

from dserverfs.server.database.retrieve import registered
from dserverfs.server.routes.routing import Asked

_PIECE_BYTES = 1024 * 1024


def get_annotations(asked: Asked) -> Mapping[str, Any]:
    return {"annotations": registered().get_annotations(asked.uri)}


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
