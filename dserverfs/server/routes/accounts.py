"""Routes that give tokens for passwords, renew them, and tell that the server is there.

    POST /token          {"username", "password"} -> {"token", "status": "success"}
    POST /auth/token     the same, where upstream's web application looks for it
    POST /auth/refresh   -> {"token", "token_type": "Bearer"}; 400 if this token is not renewed
    GET  /auth/info      -> {"provider": "password", "token_url", ...}; needs no token
    GET  /config/health  -> {"status": "healthy"}; needs no token

After too many wrong passwords the answer is 429 with Retry-After.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Response, request
from flask_jwt_extended import get_jwt
from marshmallow import fields

from dserverfs.base.errors import UsageError
from dserverfs.base.limits import is_text
from dserverfs.server.database import forms, passwords, tokens
from dserverfs.server.routes.answers import error_answer
from dserverfs.server.routes.guesses import Guesses
from dserverfs.server.routes.routing import Asked

LOGIN_TOKEN_LIFE = datetime.timedelta(days=7)


LOGIN = forms.form(username=fields.String(required=True), password=fields.String(required=True))


class Accounts:
    """The handlers of one app."""

    def __init__(self) -> None:
        self._guesses = Guesses()

    def post_token(self, asked: Asked) -> Mapping[str, Any] | Response:
        """Exchange a username and a password for a token."""
        username, password = asked.body["username"], asked.body["password"]
        forms.require(
            is_text(username + password), "username or password has text that UTF-8 cannot hold"
        )
        address = request.remote_addr or ""
        if wait_s := self._guesses.begin(username, address):
            refused = error_answer(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"too many wrong passwords; try again in {math.ceil(wait_s)} s",
            )
            refused.headers["Retry-After"] = str(math.ceil(wait_s))
            return refused
        if not passwords.is_right(username, password):
            return error_answer(HTTPStatus.UNAUTHORIZED, "wrong username or password")
        self._guesses.was_right(username, address)
        token = tokens.new_session(username, LOGIN_TOKEN_LIFE)
        return {"token": token, "username": username, "token_type": "Bearer", "status": "success"}

    def post_auth_token(self, asked: Asked) -> Mapping[str, Any] | Response:
        return self.post_token(asked)


def post_refresh(asked: Asked) -> Mapping[str, Any]:
    """Exchange the token of the request for one that lasts longer."""
    token = tokens.renewed(get_jwt(), LOGIN_TOKEN_LIFE)
    if token is None:
        raise UsageError("this token is not renewed; log in again", status=400)
    return {"token": token, "token_type": "Bearer"}


def get_auth_info(asked: Asked) -> Mapping[str, Any]:
    """Say how one logs in; upstream's plugins answer so, with the page of their provider."""
    return {
        "provider": "password",
        "login_url": None,
        "configured": False,  # is about a provider elsewhere
        "token_url": "/auth/token",
    }


def get_health(asked: Asked) -> Mapping[str, Any]:
    return {"status": "healthy"}
