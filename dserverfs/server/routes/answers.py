"""JSON in and out of our routes, in the shapes dservercore's own routes use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Response, request

from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.limits import parse_json


def answer(body: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return `body` as JSON, without the sorting that Flask's own jsonify spends time on."""
    return Response(json.dumps(body), status=status, mimetype="application/json")


def error_answer(status: HTTPStatus, message: str) -> Response:
    return answer({"code": int(status), "status": status.phrase, "message": message}, status)


def json_body() -> Mapping[str, Any]:
    """Return the request's JSON object; raises UsageError (400 no JSON, 422 no object)."""
    try:
        body = parse_json(request.get_data(cache=False), "the body")
    except ProtocolError as error:
        raise UsageError(str(error), status=400) from error
    if not isinstance(body, dict):
        raise UsageError("the body is not a JSON object", status=422)
    return body
