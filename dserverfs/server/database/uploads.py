"""Pending uploads: announced, signed for, not complete yet. In dservercore's database.

They survive a restart. The caller commits; a pending upload is deleted in the
transaction that registers its dataset, so it is always exactly one of the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select

from dserverfs.server.database import sql
from dserverfs.server.database.tables import upload as upload_table
from dserverfs.server.database.upload_request import UploadRequest


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
    return _find(upload_table.c.uri == uri)


def find_by_uuid(uuid: str) -> PendingUpload | None:
    return _find(upload_table.c.uuid == uuid)


def list_of(username: str) -> list[PendingUpload]:
    """Return the user's pending uploads, oldest first."""
    of_user = select(upload_table).where(upload_table.c.username == username)
    rows = sql.execute(of_user.order_by(upload_table.c.started_at, upload_table.c.uri))
    return [_from_row(row) for row in rows]


def owner_of(uri: str) -> str | None:
    """Return the user who began the pending upload of a dataset; None if there is none."""
    of_upload = select(upload_table.c.username).where(upload_table.c.uri == uri)
    username: str | None = sql.value(of_upload)
    return username


def save(upload: PendingUpload) -> None:
    """Keep the upload; replaces an earlier announcement of its URI."""
    sql.replace_row(
        upload_table,
        uri=upload.uri,
        uuid=upload.request.uuid,
        base_uri=upload.base_uri,
        username=upload.username,
        started_at=upload.started_at,
        request=upload.request.to_json(),
    )


def delete(uri: str) -> bool:
    """Delete a pending upload; return whether it was there."""
    return sql.delete_rows(upload_table, upload_table.c.uri == uri) > 0


def number_in(base_uri: str) -> int:
    """Return how many pending uploads a base URI has."""
    of_base_uri = select(func.count()).where(upload_table.c.base_uri == base_uri)
    number: int = sql.value(of_base_uri)
    return number


def _find(condition: ColumnElement[bool]) -> PendingUpload | None:
    row = sql.first(upload_table, condition)
    return None if row is None else _from_row(row)


def _from_row(row: Any) -> PendingUpload:
    request = UploadRequest.from_json(row.request)
    return PendingUpload(row.uri, row.base_uri, row.username, row.started_at, request)
