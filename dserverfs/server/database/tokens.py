"""Tokens that can be revoked: each names the generation of its user's tokens that it is of.

A user's generation is a number that grows when the password is changed, when the
tokens are revoked, and when the user is removed; only tokens of the present one
are good. It is kept when the user is gone, so that another of the same name has
none of the tokens. A token without the claim is of generation 0: so the tokens of
version 0.1.0 stay good until they expire or the generation grows.

A token that was given for a password can be exchanged for a later one of the same
generation until SESSION_LIFE has gone by since; others, such as those of `serve token`, end
when they were meant to.

Needs an app context; the caller of a change commits.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

from dservercore.extensions import jwt
from dservercore.sql_models import User
from flask_jwt_extended import create_access_token
from sqlalchemy import Connection, event, select

from dserverfs.server.database import dialects, sql
from dserverfs.server.database.tables import token_generation

SESSION_LIFE = datetime.timedelta(days=90)
_CLAIM = "dserverfs_generation"
_SESSION_END = "dserverfs_renewable_until"  # in epoch seconds


def new_token(username: str, life: datetime.timedelta) -> str:
    """Return a token for `username`, of the present generation."""
    return _token(username, life, {_CLAIM: generation_of(username)})


def new_session(username: str, life: datetime.timedelta) -> str:
    """Return a token for `username` that can be renewed."""
    end_s = int(time.time() + SESSION_LIFE.total_seconds())
    return _token(username, life, {_CLAIM: generation_of(username), _SESSION_END: end_s})


def renewed(claims: Mapping[str, Any], life: datetime.timedelta) -> str | None:
    """Return a token in the place of a good one that has these claims; None if it may not be.

    Of the same generation: one that is revoked meanwhile has no successor.
    """
    end_s = claims.get(_SESSION_END)
    if not isinstance(end_s, int) or end_s <= time.time():
        return None
    life = min(life, datetime.timedelta(seconds=end_s - time.time()))
    kept = {_CLAIM: claims.get(_CLAIM, 0), _SESSION_END: end_s}
    return _token(str(claims["sub"]), life, kept)


def _token(username: str, life: datetime.timedelta, claims: Mapping[str, int]) -> str:
    token: str = create_access_token(
        identity=username, expires_delta=life, additional_claims=dict(claims)
    )
    return token


def revoke(username: str) -> None:
    """Let no token be good that the user has by now."""
    sql.execute(_advance(sql.dialect_name(), username))


@jwt.token_in_blocklist_loader  # type: ignore[untyped-decorator]
def _is_revoked(_header: Mapping[str, Any], claims: Mapping[str, Any]) -> bool:
    """Return whether a token, whose signature is good, is of an earlier generation."""
    return bool(claims.get(_CLAIM, 0) != generation_of(str(claims.get("sub"))))


@event.listens_for(User, "after_delete")
def _revoke_all(_mapper: object, connection: Connection, user: User) -> None:
    """In the transaction in which the user is removed, from whichever side."""
    connection.execute(_advance(connection.dialect.name, user.username))


def generation_of(username: str) -> int:
    """Return the number that all good tokens of the user have."""
    present = select(token_generation.c.generation).where(token_generation.c.username == username)
    found: int | None = sql.value(present)
    return found or 0


def _advance(dialect_name: str, username: str) -> Any:
    """Return a statement by which the user's generation grows, whoever else lets it grow."""
    return dialects.upsert(
        dialect_name,
        token_generation,
        {"username": username, "generation": 1},
        {"generation": token_generation.c.generation + 1},
    )
