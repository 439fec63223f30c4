"""Hashes of the users' passwords, beside dservercore's users, which have none.

Needs an app context.
"""

from __future__ import annotations

from dservercore import utils_auth
from dservercore.sql_models import User
from sqlalchemy import Connection, delete, event, select
from werkzeug.security import check_password_hash, generate_password_hash

from dserverfs.server.database import sql, tokens
from dserverfs.server.database.tables import password as password_table

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
    sql.replace_row(password_table, username=username, hash=hashed)


@event.listens_for(User, "after_delete")
def _delete_password(_mapper: object, connection: Connection, user: User) -> None:
    """Delete the password of a deleted user: the name may be given to another one."""
    connection.execute(delete(password_table).where(password_table.c.username == user.username))


def is_right(username: str, password: str) -> bool:
    # PostgreSQL takes no text with a NUL.
    is_known = "\0" not in username and utils_auth.user_exists(username)
    known = _hash_of(username) if is_known else None
    right = check_password_hash(known or _NOBODY, password)
    return right and known is not None


def _hash_of(username: str) -> str | None:
    known = select(password_table.c.hash).where(password_table.c.username == username)
    found: str | None = sql.value(known)
    return found
