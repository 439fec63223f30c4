"""Routes that give tokens for passwords, and tell that the server is there.

    POST /token          {"username", "password"} -> {"token", "status": "success"}
    GET  /config/health  -> {"status": "healthy"}; needs no token

dservercore itself keeps users but no passwords; their hashes are kept here. After too many
wrong ones the answer is 429 with Retry-After.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from dservercore import utils_auth
from dservercore.extensions import sql_db
from dservercore.sql_models import User
from flask import Response, request
from marshmallow import fields
from sqlalchemy import Connection, event, text
from werkzeug.security import check_password_hash, generate_password_hash

from dserverfs.base.limits import is_text
from dserverfs.server.database import forms, tokens
from dserverfs.server.routes.answers import error_answer
from dserverfs.server.routes.guesses import Guesses
from dserverfs.server.routes.routing import Asked

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_password (
        username TEXT PRIMARY KEY,
        hash TEXT NOT NULL
    )""",
)
LOGIN_TOKEN_LIFE = datetime.timedelta(days=7)
_METHOD = "scrypt:32768:8:1"

# Checked when the user is unknown, so that the time of the answer tells nothing.
_NOBODY = generate_password_hash("", method=_METHOD)


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
        if not _password_is_right(username, password):
            return error_answer(HTTPStatus.UNAUTHORIZED, "wrong username or password")
        self._guesses.was_right(username, address)
        token = tokens.new_token(username, LOGIN_TOKEN_LIFE)
        return {"token": token, "status": "success"}


def get_health(asked: Asked) -> Mapping[str, Any]:
    return {"status": "healthy"}


def has_password(username: str) -> bool:
    return _hash_of(username) is not None


def set_password(username: str, password: str) -> None:
    """Replace the user's password, and revoke what an earlier one gave; the caller commits."""
    if has_password(username):
        tokens.revoke(username)
    sql_db.session.execute(
        text("INSERT OR REPLACE INTO dserverfs_password (username, hash) VALUES (:name, :hash)"),
        {"name": username, "hash": generate_password_hash(password, method=_METHOD)},
    )


@event.listens_for(User, "after_delete")
def _delete_password(_mapper: object, connection: Connection, user: User) -> None:
    """Let nobody who is given the name later have the password, too; in the same transaction."""
    connection.execute(
        text("DELETE FROM dserverfs_password WHERE username = :name"), {"name": user.username}
    )


def _password_is_right(username: str, password: str) -> bool:
    known = _hash_of(username) if utils_auth.user_exists(username) else None
    right = check_password_hash(known or _NOBODY, password)
    return right and known is not None


def _hash_of(username: str) -> str | None:
    found: str | None = sql_db.session.execute(
        text("SELECT hash FROM dserverfs_password WHERE username = :name"), {"name": username}
    ).scalar()
    return found
