"""Extension of dservercore: tokens for passwords, and a sign of life.

    POST /token          {"username", "password"} -> {"token", "status": "success"}
    GET  /config/health  -> {"status": "healthy"}; needs no token

dservercore itself keeps users but no passwords; their hashes are kept here. Who has
given too many wrong ones is answered 429 with Retry-After.
"""

from __future__ import annotations

import datetime
import math
from http import HTTPStatus
from typing import Any

from dservercore import utils_auth
from dservercore.extensions import sql_db
from dservercore.sql_models import User
from flask import Response, request
from flask_smorest import Blueprint
from sqlalchemy import Connection, event, text
from werkzeug.security import check_password_hash, generate_password_hash

from dserverfs.base.errors import UsageError
from dserverfs.base.limits import is_text
from dserverfs.server.database import tokens
from dserverfs.server.routes.answers import answer, error_answer, json_body
from dserverfs.server.routes.extension import Extension
from dserverfs.server.routes.guesses import Guesses

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


class Accounts(Extension):
    """dservercore makes one per app."""

    def __init__(self) -> None:
        self._guesses = Guesses()

    def get_blueprint(self) -> Any:
        blueprint = Blueprint("accounts", __name__)
        blueprint.add_url_rule("/token", "post_token", self.post_token, methods=["POST"])
        blueprint.add_url_rule("/config/health", "get_health", get_health, methods=["GET"])
        blueprint.register_error_handler(UsageError, _report)
        return blueprint

    def post_token(self) -> Response:
        """Exchange a username and a password for a token."""
        body = json_body()
        username, password = body.get("username"), body.get("password")
        if not isinstance(username, str) or not isinstance(password, str):
            raise UsageError("username and password must both be there and be strings", status=422)
        if not is_text(username + password):
            raise UsageError("username or password has text that UTF-8 cannot hold", status=400)
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
        return answer({"token": token, "status": "success"})


def get_health() -> Response:
    return answer({"status": "healthy"})


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


def _report(error: UsageError) -> Response:
    return error_answer(HTTPStatus(error.status or HTTPStatus.BAD_REQUEST), str(error))
