"""Answers of our routes: JSON in the shapes of dservercore's own, also for every error.

{...}                          200
{"code", "status", "message"}  for an error, see _STATUS
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

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


def answer(body: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return `body` as JSON, without the sorting that Flask's own jsonify spends time on."""
    return Response(json.dumps(body), status=status, mimetype="application/json")


def error_answer(status: HTTPStatus, message: str) -> Response:
    return answer({"code": int(status), "status": status.phrase, "message": message}, status)


def install(app: Flask) -> None:
    """Answer the errors of all routes, dservercore's included."""
    app.register_error_handler(DserverfsError, _report)
    app.register_error_handler(UnknownURIError, _unknown)
    app.register_error_handler(DatabaseIntegrityError, _conflict)
    for error in _OF_INPUT:
        app.register_error_handler(error, _refused)


def _report(error: DserverfsError) -> Response:
    """Answer with the error's own status, else that of its class."""
    sql_db.session.rollback()
    if error.status is not None:
        return error_answer(HTTPStatus(error.status), str(error))
    for cls, status in _STATUS:
        if isinstance(error, cls):
            return error_answer(status, str(error))
    return error_answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))


def _unknown(error: Exception) -> Response:
    return error_answer(HTTPStatus.NOT_FOUND, f"{error} is not registered")


def _refused(error: Exception) -> Response:
    sql_db.session.rollback()
    return error_answer(HTTPStatus.BAD_REQUEST, "a value is too large, too deep, or no text")


def _conflict(error: Exception) -> Response:
    sql_db.session.rollback()
    return error_answer(HTTPStatus.CONFLICT, "it exists already, or something else needs it")
