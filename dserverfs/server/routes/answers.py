"""Answers of our routes: JSON in the shapes of dservercore's own, also for every error.

{...}                          200
{"code", "status", "message"}  for an error, see _STATUS
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from dservercore import UnknownURIError
from dservercore.extensions import sql_db
from flask import Flask, Response
from sqlalchemy.exc import IntegrityError as DatabaseIntegrityError

from dserverfs.base.errors import (
    Conflict,
    DserverfsError,
    IntegrityError,
    NotFound,
    PermissionDenied,
    Unreachable,
    Unsupported,
    UsageError,
)

_STATUS: tuple[tuple[type[DserverfsError], HTTPStatus], ...] = (
    (UsageError, HTTPStatus.BAD_REQUEST),
    (PermissionDenied, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Unsupported, HTTPStatus.NOT_IMPLEMENTED),
    (Unreachable, HTTPStatus.BAD_GATEWAY),
    (IntegrityError, HTTPStatus.BAD_GATEWAY),  # the store has what no dtool wrote
)
# Input that nothing has refused raises these in Python and SQLite.
_OF_INPUT = (RecursionError, UnicodeError, OverflowError)
HANDLED = (DserverfsError, UnknownURIError, DatabaseIntegrityError, *_OF_INPUT)


def answer(body: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return `body` as JSON, without the sorting that Flask's own jsonify spends time on."""
    return Response(json.dumps(body), status=status, mimetype="application/json")


def error_answer(status: HTTPStatus, message: str) -> Response:
    return answer({"code": int(status), "status": status.phrase, "message": message}, status)


class Told(NamedTuple):
    """What is said of an error."""

    status: HTTPStatus
    message: str


def told(error: Exception) -> Told:
    """Return how an error that is HANDLED is answered, and roll back what it broke off."""
    sql_db.session.rollback()
    if isinstance(error, DserverfsError):
        return Told(_status_of(error), str(error))
    if isinstance(error, UnknownURIError):
        return Told(HTTPStatus.NOT_FOUND, f"{error} is not registered")
    if isinstance(error, DatabaseIntegrityError):
        return Told(HTTPStatus.CONFLICT, "it exists already, or something else needs it")
    return Told(HTTPStatus.BAD_REQUEST, "a value is too large, too deep, or no text")


def install(app: Flask) -> None:
    """Answer the errors of all routes, dservercore's included."""
    for kind in HANDLED:
        app.register_error_handler(kind, lambda error: error_answer(*told(error)))


def _status_of(error: DserverfsError) -> HTTPStatus:
    """Return the error's own status, else that of its class."""
    if error.status is not None:
        return HTTPStatus(error.status)
    for cls, status in _STATUS:
        if isinstance(error, cls):
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR
