"""Tokens that can be revoked: each names the generation of its user's tokens that it is of.

A user's generation is a number that grows when the password is changed, when the
tokens are revoked, and when the user is removed; only tokens of the present one
are good. It is kept when the user is gone, so that another of the same name has
none of the tokens. A token without the claim is of generation 0: so the tokens of
version 0.1.0 stay good until they expire or the generation grows.

Needs an app context; the caller of a change commits.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from dservercore.extensions import jwt
from dservercore.sql_models import User
from flask_jwt_extended import create_access_token
from sqlalchemy import Connection, event, text

from dserverfs.server.database import sql

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_token_generation (
        username TEXT PRIMARY KEY,
        generation INTEGER NOT NULL
    )""",
)
_CLAIM = "dserverfs_generation"
_ADVANCE = (
    "INSERT INTO dserverfs_token_generation (username, generation) VALUES (:name, 1)"
    " ON CONFLICT (username) DO UPDATE SET generation = generation + 1"
)


def new_token(username: str, life: datetime.timedelta) -> str:
    """Return a token for `username`, of the present generation."""
    token: str = create_access_token(
        identity=username,
        expires_delta=life,
        additional_claims={_CLAIM: _generation_of(username)},
    )
    return token


def revoke(username: str) -> None:
    """Let no token be good that the user has by now."""
    sql.execute(_ADVANCE, name=username)


@jwt.token_in_blocklist_loader  # type: ignore[untyped-decorator]
def _is_revoked(_header: Mapping[str, Any], claims: Mapping[str, Any]) -> bool:
    """Return whether a token, whose signature is good, is of an earlier generation."""
    return bool(claims.get(_CLAIM, 0) != _generation_of(str(claims.get("sub"))))


@event.listens_for(User, "after_delete")
def _revoke_all(_mapper: object, connection: Connection, user: User) -> None:
    """In the transaction in which the user is removed, from whichever side."""
    connection.execute(text(_ADVANCE), {"name": user.username})


def _generation_of(username: str) -> int:
    statement = "SELECT generation FROM dserverfs_token_generation WHERE username = :username"
    found: int | None = sql.value(statement, username=username)
    return found or 0
