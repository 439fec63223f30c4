"""Answers of our routes: JSON in the shapes of dservercore's own, also for every error.

{...}                          200
{"code", "status", "message"}  for an error, see _STATUS; with Retry-After if it passes
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from dservercore import UnknownURIError
from dservercore.extensions import sql_db
from flask import Flask, Response
from sqlalchemy.exc import (
    DataError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import IntegrityError as DatabaseIntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from dserverfs.base.errors import (
    Busy,
    Conflict,
    DserverfsError,
    IntegrityError,
    NotFound,
    PermissionDenied,
    Unreachable,
    Unsupported,
    UsageError,
)
from dserverfs.server.database import trouble

_STATUS: tuple[tuple[type[DserverfsError], HTTPStatus], ...] = (
    (UsageError, HTTPStatus.BAD_REQUEST),
    (PermissionDenied, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Unsupported, HTTPStatus.NOT_IMPLEMENTED),
    (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unreachable, HTTPStatus.BAD_GATEWAY),
    (IntegrityError, HTTPStatus.BAD_GATEWAY),  # the store has what no dtool wrote
)
# Input that nothing has refused raises these in Python, SQLite and PostgreSQL.
_OF_INPUT = (RecursionError, UnicodeError, OverflowError, DataError)
# Two requests that met: what one read the other has changed since.
_MET = (DatabaseIntegrityError, StaleDataError, ObjectDeletedError)
_OF_DATABASE = (
    *(OperationalError, InterfaceError, InternalError, ProgrammingError, PoolTimeoutError),
)
HANDLED = (DserverfsError, UnknownURIError, *_MET, *_OF_INPUT, *_OF_DATABASE)

_trouble_log = trouble.TroubleLog()


def answer(body: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return `body` as JSON, without the sorting that Flask's own jsonify spends time on."""
    return Response(json.dumps(body), status=status, mimetype="application/json")


def error_answer(status: HTTPStatus, message: str, retry_after_s: int = 0) -> Response:
    body = {"code": int(status), "status": status.phrase, "message": message}
    answered = answer(body, status)
    if retry_after_s:
        answered.headers["Retry-After"] = str(retry_after_s)
    return answered


class Told(NamedTuple):
    """What is said of an error."""

    status: HTTPStatus
    message: str
    retry_after_s: int = 0


def told(error: Exception) -> Told:
    """Return how an error that is HANDLED is answered, and roll back what it broke off."""
    try:
        sql_db.session.rollback()
    except SQLAlchemyError:
        sql_db.session.remove()
    if isinstance(error, Busy):
        return Told(_status_of(error), str(error), math.ceil(error.retry_after_s))
    if isinstance(error, DserverfsError):
        return Told(_status_of(error), str(error))
    if isinstance(error, _OF_DATABASE):
        _trouble_log.tell(error)
        message = f"the database {trouble.meaning(error)}"
        return Told(HTTPStatus.SERVICE_UNAVAILABLE, message, trouble.RETRY_AFTER_S)
    if isinstance(error, UnknownURIError):
        return Told(HTTPStatus.NOT_FOUND, f"{error} is not registered")
    if isinstance(error, _MET):
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
