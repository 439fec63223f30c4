"""The access log: one line of JSON for each request that was answered.

    {"time": "2026-03-01T12:00:00.123+01:00", "method": "GET",
     "route": "/signed-urls/dataset/<path:uri>", "status": 200, "ms": 4.1, "bytes": 2310,
     "user": "alice", "address": "192.0.2.7", "request_id": "5f1c..."}

The route is the row of the table of routes: no address as it was asked for, no query, no body
and no header is in a line, so no token, link or password. `user` is who proved to be that user,
else null. A request's id is the client's or its proxy's X-Request-Id, if it is a plain word, else
a new one; the answer has it as well.

A WSGI middleware, the same under waitress and gunicorn, which also tells the metrics. What is
refused before it, as a body that is too large, is not seen. Each line is one write to the
end of the file, so processes can share it, and the file is opened anew when it was moved away.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from flask import Flask, g, request
from flask_jwt_extended import get_jwt_identity

from dserverfs.base.errors import UsageError
from dserverfs.server.routes.metrics import NO_ROUTE, Metrics

SETTING = "DSERVER_ACCESS_LOG"
_STANDARD_OUTPUT = "-"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_KEY = "dserverfs.request"  # in the WSGI environment: what Flask knows of it

_log = logging.getLogger(__name__)


def handler_of(setting: str | None) -> logging.Handler | None:
    """Return what writes the lines; None if no log is wanted. Raises UsageError."""
    if setting is None:
        return None
    if setting == _STANDARD_OUTPUT:
        return _ToOutput(sys.stdout)
    path = Path(setting).expanduser().absolute()
    try:
        path.touch(mode=0o600)
        return _ToFile(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"access log {path}: cannot be written: {error.strerror}") from error


class _SaysOnce(logging.Handler):
    """A line that cannot be written is lost, and its request is not; the first one is told of."""

    _is_told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._is_told:
            self._is_told = True
            _log.warning("a line of the access log cannot be written: %s", sys.exc_info()[1])


class _ToFile(_SaysOnce, logging.handlers.WatchedFileHandler):
    pass


class _ToOutput(_SaysOnce, logging.StreamHandler):  # type: ignore[type-arg]
    pass


class Observed:
    """An app whose requests are counted and logged."""

    def __init__(
        self, app: Callable[..., Iterable[bytes]], metrics: Metrics, handler: logging.Handler | None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._handler = handler

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen = _Seen(environ)

        def started(status: str, headers: list[tuple[str, str]], *failure: Any) -> Any:
            seen.status = int(status[:3])
            return start_response(status, [*headers, ("X-Request-Id", seen.id)], *failure)

        try:
            answer = self._app(environ, started)
        except BaseException:
            self._note(seen)
            raise
        return _Watched(answer, seen, self._note)

    def _note(self, seen: _Seen) -> None:
        seconds = time.monotonic() - seen.begun_s
        self._metrics.observe(seen.method, seen.route or NO_ROUTE, seen.status, seconds)
        if self._handler is not None:
            line = json.dumps(seen.line(seconds))
            self._handler.handle(logging.LogRecord("", logging.INFO, "", 0, line, (), None))


class _Seen:
    """One request, with what is known of it so far."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.begun_s = time.monotonic()
        self.time = datetime.now().astimezone()
        method = str(environ.get("REQUEST_METHOD", ""))
        self.method = method if method in _METHODS else "OTHER"
        self.address = environ.get("REMOTE_ADDR") or None
        sent = str(environ.get("HTTP_X_REQUEST_ID", ""))
        self.id = sent if _ID.match(sent) else secrets.token_hex(16)
        self.route: str | None = None
        self.user: str | None = None
        self.status = 500
        self.bytes = 0
        environ[_KEY] = self

    def line(self, seconds: float) -> dict[str, Any]:
        return {
            "time": self.time.isoformat(timespec="milliseconds"),
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "ms": round(seconds * 1000, 1),
            "bytes": self.bytes,
            "user": self.user,
            "address": self.address,
            "request_id": self.id,
        }


class _Watched:
    """The body of an answer, until the web server closes it."""

    def __init__(self, body: Iterable[bytes], seen: _Seen, on_end: Callable[[_Seen], None]) -> None:
        self._body = body
        self._seen = seen
        self._on_end = on_end

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            self._seen.bytes += len(piece)
            yield piece

    def close(self) -> None:
        try:
            if close := getattr(self._body, "close", None):
                close()
        finally:
            self._on_end(self._seen)


def install(app: Flask, setting: str | None) -> None:
    """Have the requests of an app counted, and logged where the setting says.

    Raises UsageError if that cannot be written.
    """
    metrics = Metrics.of(app)
    app.teardown_request(_tell)
    app.wsgi_app = Observed(app.wsgi_app, metrics, handler_of(setting))  # type: ignore[method-assign]


def _tell(_error: BaseException | None) -> None:
    """Tell the middleware what only Flask knows: the route and the user."""
    seen: _Seen | None = request.environ.get(_KEY)
    if seen is None:
        return
    if request.url_rule is not None:
        seen.route = request.url_rule.rule
    try:
        seen.user = g.get("username") or get_jwt_identity()
    except RuntimeError:  # the request has no token, or no good one
        seen.user = None
