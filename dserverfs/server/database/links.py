"""Links to published datasets; of each only the hash of its token is kept.

Needs an app context. The caller commits.
"""

from __future__ import annotations

import hashlib
import time
from typing import NamedTuple

from dservercore.sql_models import User
from sqlalchemy import Connection, event, text

from dserverfs.server.database import sql

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_publication (
        token_hash TEXT PRIMARY KEY,
        uri TEXT NOT NULL,
        username TEXT NOT NULL,
        expires_at REAL NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS dserverfs_publication_uri ON dserverfs_publication (uri)",
)


class Link(NamedTuple):
    uri: str
    username: str  # of its maker
    expires_at: float  # epoch seconds


def add(token: str, link: Link) -> None:
    """Keep a link, and delete those that have expired."""
    sql.execute("DELETE FROM dserverfs_publication WHERE expires_at < :now", now=time.time())
    sql.insert("dserverfs_publication", token_hash=hash_of(token), **link._asdict())


def find(token: str) -> Link | None:
    row = sql.execute(
        "SELECT uri, username, expires_at FROM dserverfs_publication WHERE token_hash = :hash",
        hash=hash_of(token),
    ).first()
    return None if row is None else Link(*row)


def delete(uri: str) -> int:
    """Delete all links to a dataset; return how many there were."""
    statement = "DELETE FROM dserverfs_publication WHERE uri = :uri"
    deleted: int = sql.execute(statement, uri=uri).rowcount
    return deleted


@event.listens_for(User, "after_delete")
def _delete_links(_mapper: object, connection: Connection, user: User) -> None:
    """Delete the links of a deleted user: the name may be given to another one."""
    connection.execute(
        text("DELETE FROM dserverfs_publication WHERE username = :name"), {"name": user.username}
    )


def hash_of(token: str) -> str:
    """Return what is kept in place of a random text that opens something."""
    return hashlib.sha256(token.encode()).hexdigest()
