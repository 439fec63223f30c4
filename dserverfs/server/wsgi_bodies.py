"""The limit of each body by its head, for an app that another web server than ours runs.

`bodies` has it for waitress, before a byte of the body is read. gunicorn lets the app read
the body: here a middleware refuses one whose length is too large, and ends the reading of
one without a length where its limit is. Safe to share between threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from werkzeug.exceptions import RequestEntityTooLarge

from dserverfs.server.request_limits import WITHOUT_TOKEN_BYTES, max_body_bytes, signed_by

_BEARER = "Bearer "
_OF_LOGIN = ("/token", "/auth/token", "/browse/login")


class LimitedBodies:
    """An app with limits of what it is sent; tokens are those that the key has signed."""

    def __init__(self, app: Callable[..., Iterable[bytes]], public_key_pem: str) -> None:
        self._app = app
        self._is_ours = signed_by(public_key_pem)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # gunicorn's name for what waitress calls REQUEST_URI, of which pages make links.
        environ.setdefault("REQUEST_URI", _target(str(environ.get("RAW_URI", "/"))))
        length = int(environ.get("CONTENT_LENGTH") or 0)
        is_chunked = bool(environ.get("HTTP_TRANSFER_ENCODING"))
        path = str(environ.get("PATH_INFO", ""))
        has_token = (is_chunked or length > WITHOUT_TOKEN_BYTES) and self._has_token(environ)
        limit = max_body_bytes(str(environ["REQUEST_METHOD"]), path, has_token=has_token)
        if length > limit:
            if not has_token and path not in _OF_LOGIN:
                message = "the token is missing, expired, or not of this server"
                return _refused(HTTPStatus.UNAUTHORIZED, message, start_response)
            message = f"the body has {length} bytes, more than {limit}"
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, start_response)
        if is_chunked:
            environ["wsgi.input"] = _Limited(environ["wsgi.input"], limit)
        return self._app(environ, start_response)

    def _has_token(self, environ: dict[str, Any]) -> bool:
        authorization = str(environ.get("HTTP_AUTHORIZATION", ""))
        return authorization.startswith(_BEARER) and self._is_ours(authorization[len(_BEARER) :])


class _Limited:
    """The body of a request, as WSGI has it, which raises RequestEntityTooLarge after `limit`."""

    def __init__(self, body: Any, limit: int) -> None:
        self._body = body
        self._left = limit

    def read(self, size: int = -1) -> bytes:
        return self._counted(self._body.read(self._at_most(size)))

    def readline(self, size: int = -1) -> bytes:
        return self._counted(self._body.readline(self._at_most(size)))

    def __iter__(self) -> Iterable[bytes]:
        while line := self.readline():
            yield line

    def _at_most(self, size: int | None) -> int:
        most = self._left + 1
        return most if size is None or size < 0 else min(size, most)

    def _counted(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise RequestEntityTooLarge
        return piece


def _target(raw: str) -> str:
    """Return the path and query of a request's target, which may be a whole URL."""
    scheme, separator, rest = raw.partition("://")
    if not separator or "/" in scheme or "?" in scheme:
        return raw
    return "/" + rest.partition("/")[2]


def _refused(status: HTTPStatus, message: str, start_response: Any) -> Iterable[bytes]:
    body = json.dumps({"code": status.value, "status": status.phrase, "message": message}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
