"""Pending uploads: announced, signed for, not complete yet. In dservercore's database.

They survive a restart. The caller commits; a pending upload is deleted in the
transaction that registers its dataset, so it is always exactly one of the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dserverfs.server.database import sql
from dserverfs.server.database.upload_request import UploadRequest

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_upload (
        uri TEXT PRIMARY KEY,
        uuid TEXT NOT NULL UNIQUE,
        base_uri TEXT NOT NULL,
        username TEXT NOT NULL,
        started_at REAL NOT NULL,
        request TEXT NOT NULL
    )""",
)


_SELECT = "SELECT uri, base_uri, username, started_at, request FROM dserverfs_upload"


class PendingUpload(NamedTuple):
    uri: str
    base_uri: str
    username: str  # whose token started it
    started_at: float  # epoch seconds, of the first announcement
    request: UploadRequest

    @property
    def created_at(self) -> float:
        """When the dataset was created: as its client says, else when its upload began."""
        if self.request.created_at is not None:
            return self.request.created_at
        return self.started_at


def find_by_uri(uri: str) -> PendingUpload | None:
    return _find("uri", uri)


def find_by_uuid(uuid: str) -> PendingUpload | None:
    return _find("uuid", uuid)


def list_of(username: str) -> list[PendingUpload]:
    """Return the user's pending uploads, oldest first."""
    statement = f"{_SELECT} WHERE username = :username ORDER BY started_at, uri"
    return [_from_row(row) for row in sql.execute(statement, username=username)]


def owner_of(uri: str) -> str | None:
    """Return the user who began the pending upload of a dataset; None if there is none."""
    statement = "SELECT username FROM dserverfs_upload WHERE uri = :uri"
    username: str | None = sql.value(statement, uri=uri)
    return username


def save(upload: PendingUpload) -> None:
    """Keep the upload; replaces an earlier announcement of its URI."""
    sql.replace(
        "dserverfs_upload",
        uri=upload.uri,
        uuid=upload.request.uuid,
        base_uri=upload.base_uri,
        username=upload.username,
        started_at=upload.started_at,
        request=upload.request.to_json(),
    )


def delete(uri: str) -> None:
    sql.execute("DELETE FROM dserverfs_upload WHERE uri = :uri", uri=uri)


def number_in(base_uri: str) -> int:
    """Return how many pending uploads a base URI has."""
    statement = "SELECT count(*) FROM dserverfs_upload WHERE base_uri = :base_uri"
    number: int = sql.value(statement, base_uri=base_uri)
    return number


def _find(column: str, value: str) -> PendingUpload | None:
    row = sql.execute(f"{_SELECT} WHERE {column} = :value", value=value).first()
    return None if row is None else _from_row(row)


def _from_row(row: Any) -> PendingUpload:
    request = UploadRequest.from_json(row.request)
    return PendingUpload(row.uri, row.base_uri, row.username, row.started_at, request)
