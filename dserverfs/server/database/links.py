"""Links to published datasets; of each only the hash of its token is kept.

Needs an app context. The caller commits.
"""

from __future__ import annotations

import hashlib
import time
from typing import NamedTuple

from dservercore.sql_models import User
from sqlalchemy import Connection, delete, event, select

from dserverfs.server.database import sql
from dserverfs.server.database.tables import publication


class Link(NamedTuple):
    uri: str
    username: str  # of its maker
    expires_at: float  # epoch seconds


def add(token: str, link: Link) -> None:
    """Keep a link, and delete those that have expired."""
    sql.delete_rows(publication, publication.c.expires_at < time.time())
    sql.insert_row(publication, token_hash=hash_of(token), **link._asdict())


def find(token: str) -> Link | None:
    of_link = select(publication.c.uri, publication.c.username, publication.c.expires_at)
    row = sql.execute(of_link.where(publication.c.token_hash == hash_of(token))).first()
    return None if row is None else Link(*row)


def delete_all(uri: str) -> int:
    """Delete all links to a dataset; return how many there were."""
    return sql.delete_rows(publication, publication.c.uri == uri)


@event.listens_for(User, "after_delete")
def _delete_links(_mapper: object, connection: Connection, user: User) -> None:
    """Delete the links of a deleted user: the name may be given to another one."""
    connection.execute(delete(publication).where(publication.c.username == user.username))


def hash_of(token: str) -> str:
    """Return what is kept in place of a random text that opens something."""
    return hashlib.sha256(token.encode()).hexdigest()
