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

from dserverfs.server.database import sql, tokens
from dserverfs.server.database.links import hash_of

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_session (
        secret_hash TEXT PRIMARY KEY,
        username TEXT NOT NULL,
        generation INTEGER NOT NULL,
        expires_at REAL NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS dserverfs_session_username ON dserverfs_session (username)",
)
MAX_OF_USER = 100  # the last ones; a program may log in again for every page


def begin(username: str, life: datetime.timedelta) -> str:
    """Return the secret of a new session, and delete those that have expired."""
    secret = secrets.token_urlsafe(32)
    now_s = time.time()
    sql.execute("DELETE FROM dserverfs_session WHERE expires_at < :now", now=now_s)
    sql.insert(
        "dserverfs_session",
        secret_hash=hash_of(secret),
        username=username,
        generation=tokens.generation_of(username),
        expires_at=now_s + life.total_seconds(),
    )
    sql.execute(
        "DELETE FROM dserverfs_session WHERE username = :username AND rowid NOT IN (SELECT rowid"
        " FROM dserverfs_session WHERE username = :username ORDER BY rowid DESC LIMIT :count)",
        username=username,
        count=MAX_OF_USER,
    )
    return secret


def username_of(secret: str) -> str:
    """Return the user whose session it is; empty if it is none, or is over."""
    row = sql.execute(
        "SELECT username, generation FROM dserverfs_session"
        " WHERE secret_hash = :hash AND expires_at >= :now",
        hash=hash_of(secret),
        now=time.time(),
    ).first()
    if row is None or row.generation != tokens.generation_of(row.username):
        return ""
    return str(row.username)


def end(secret: str) -> None:
    """Delete a session, if it is one."""
    sql.execute("DELETE FROM dserverfs_session WHERE secret_hash = :hash", hash=hash_of(secret))
