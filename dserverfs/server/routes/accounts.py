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
from collections.abc import Mapping
from typing import Any

from flask import Response
from flask_jwt_extended import get_jwt
from marshmallow import fields

from dserverfs.base.errors import UsageError
from dserverfs.server.database import forms, tokens
from dserverfs.server.routes.answers import error_answer
from dserverfs.server.routes.logins import Logins
from dserverfs.server.routes.routing import Asked

LOGIN_TOKEN_LIFE = datetime.timedelta(days=7)


LOGIN = forms.form(username=fields.String(required=True), password=fields.String(required=True))


class Accounts:
    """The handlers of one app."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    def post_token(self, asked: Asked) -> Mapping[str, Any] | Response:
        """Exchange a username and a password for a token."""
        username, password = asked.body["username"], asked.body["password"]
        if refusal := self._logins.refusal(username, password):
            return error_answer(refusal.status, refusal.message, refusal.wait_s)
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
