"""Sessions of browsers: each is a random text in a cookie, of which only the hash is kept.

A session opens the pages and no other route, for a browser sends the cookie to every port of
the host. It ends at its time, when its user logs out, and with the user's tokens: when the
password is changed, the tokens are revoked, or the user is removed.

Needs an app context; the caller of a change commits.
"""

from __future__ import annotations

import datetime
import secrets
import time

from sqlalchemy import select

from dserverfs.server.database import sql, tokens
from dserverfs.server.database.links import hash_of
from dserverfs.server.database.tables import session

MAX_OF_USER = 100  # the last ones; a program may log in again for every page


def begin(username: str, life: datetime.timedelta) -> str:
    """Return the secret of a new session, and delete those that have expired."""
    secret = secrets.token_urlsafe(32)
    now_s = time.time()
    sql.delete_rows(session, session.c.expires_at < now_s)
    sql.insert_row(
        session,
        secret_hash=hash_of(secret),
        username=username,
        generation=tokens.generation_of(username),
        expires_at=now_s + life.total_seconds(),
    )
    of_user = session.c.username == username
    last = select(session.c.secret_hash).where(of_user).order_by(session.c.expires_at.desc())
    sql.delete_rows(session, of_user, session.c.secret_hash.not_in(last.limit(MAX_OF_USER)))
    return secret


def username_of(secret: str) -> str:
    """Return the user whose session it is; empty if it is none, or is over."""
    row = sql.first(
        session, session.c.secret_hash == hash_of(secret), session.c.expires_at >= time.time()
    )
    if row is None or row.generation != tokens.generation_of(row.username):
        return ""
    return str(row.username)


def end(secret: str) -> None:
    """Delete a session, if it is one."""
    sql.delete_rows(session, session.c.secret_hash == hash_of(secret))
