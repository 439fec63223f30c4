"""waitress's reading of requests, with a limit of each body that its head decides.

waitress has one limit for all, reads the body before the app sees the request, and
answers its own refusals as text. Runs in its loop, so nothing here waits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.utilities import Error, RequestEntityTooLarge

from dserverfs.server.request_limits import WITHOUT_TOKEN_BYTES, max_body_bytes, signed_by

_BEARER = "Bearer "
_OF_LOGIN = ("/token", "/auth/token", "/browse/login")


def limited_channel(
    public_key_pem: str, kind: type[WatchedChannel] | None = None
) -> type[WatchedChannel]:
    """Return the class for waitress's connections; tokens are those that the key has signed.

    `kind` is what they are without the limits, by default without TLS.
    """

    class Parser(_LimitedParser):
        is_token = staticmethod(signed_by(public_key_pem))

    return type("LimitedChannel", (kind or WatchedChannel,), {"parser_class": Parser})


class WatchedChannel(HTTPChannel):  # type: ignore[misc]
    """One connection, with the times that `slow_clients` looks at."""

    is_shaking_hands = False  # of TLS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.moved_s = self.request_s = time.monotonic()
        super().__init__(*arguments, **options)

    def received(self, data: bytes) -> bool:
        self.moved_s = time.monotonic()
        if self.request is None:
            self.request_s = self.moved_s
        return bool(super().received(data))

    def send(self, data: bytes, do_close: bool = True) -> int:
        count: int = super().send(data, do_close=do_close)
        if count:
            self.moved_s = time.monotonic()
        return count


class _LimitedParser(HTTPRequestParser):  # type: ignore[misc]
    """One request. `adj` is waitress's name for its settings, and is read for the limit."""

    is_token: Callable[[str], bool]
    adj: Any
    error: Any
    _lacks_token = False

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        authorization = self.headers.get("AUTHORIZATION", "")
        # Verifying takes 0.1 ms, and does not matter for bodies that need no token.
        has_token = (
            (self.chunked or self.content_length > WITHOUT_TOKEN_BYTES)
            and authorization.startswith(_BEARER)
            and type(self).is_token(authorization[len(_BEARER) :])
        )
        self._lacks_token = not has_token and self.path not in _OF_LOGIN
        limit = max_body_bytes(self.command, self.path, has_token=has_token)
        self.adj = _Settings(self.adj, limit + 1)  # waitress refuses a body that reaches it

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if isinstance(self.error, RequestEntityTooLarge) and self._lacks_token:
            # A client reacts to an expired token otherwise than to a size.
            self.error = _Unauthorized("the token is missing, expired, or not of this server")
        if self.error is not None and not isinstance(self.error, _InJson):
            self.error = _InJson(self.error)
        return consumed


class _Unauthorized(Error):  # type: ignore[misc]
    code = 401
    reason = "Unauthorized"


class _Settings:
    """waitress's settings, but for the largest body."""

    def __init__(self, settings: Any, max_request_body_size: int) -> None:
        self._settings = settings
        self.max_request_body_size = max_request_body_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)


class _InJson:
    """An error of waitress's, answered in the form of all others."""

    def __init__(self, error: Any) -> None:
        self._error = error

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        code, reason = self._error.code, self._error.reason
        body = {"code": code, "status": reason, "message": str(self._error.body)}
        return (
            f"{code} {reason}",
            [("Content-Type", "application/json")],
            json.dumps(body).encode(),
        )
