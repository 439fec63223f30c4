"""Hashes of the users' passwords, beside dservercore's users, which have none.

Needs an app context.
"""

from __future__ import annotations

from dservercore import utils_auth
from dservercore.sql_models import User
from sqlalchemy import Connection, event, text
from werkzeug.security import check_password_hash, generate_password_hash

from dserverfs.server.database import sql, tokens

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_password (
        username TEXT PRIMARY KEY,
        hash TEXT NOT NULL
    )""",
)
_METHOD = "scrypt:32768:8:1"

# Of no password. Checked when the user is unknown, so that the time of the answer tells nothing.
_NOBODY = f"{_METHOD}$salt$none"


def has_password(username: str) -> bool:
    return _hash_of(username) is not None


def set_password(username: str, password: str) -> None:
    """Replace the user's password, and revoke the tokens of an earlier one; the caller commits."""
    if has_password(username):
        tokens.revoke(username)
    hashed = generate_password_hash(password, method=_METHOD)
    sql.replace("dserverfs_password", username=username, hash=hashed)


@event.listens_for(User, "after_delete")
def _delete_password(_mapper: object, connection: Connection, user: User) -> None:
    """Delete the password of a deleted user: the name may be given to another one."""
    connection.execute(
        text("DELETE FROM dserverfs_password WHERE username = :name"), {"name": user.username}
    )


def is_right(username: str, password: str) -> bool:
    known = _hash_of(username) if utils_auth.user_exists(username) else None
    right = check_password_hash(known or _NOBODY, password)
    return right and known is not None


def _hash_of(username: str) -> str | None:
    statement = "SELECT hash FROM dserverfs_password WHERE username = :name"
    found: str | None = sql.value(statement, name=username)
    return found
