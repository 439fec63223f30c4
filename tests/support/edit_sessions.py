"""Sessions and files of edits, without a server."""

from __future__ import annotations

import errno
import uuid

import pytest

from dserverfs.base.model import Dataset
from dserverfs.writing.edits.journal import LIMIT_BYTES, EditSession, Note

README = "README.yml"
WRITER = (7, 1)
DATASET = Dataset.from_json(
    {"uri": "s3://b/u", "base_uri": "s3://b", "uuid": str(uuid.uuid4()), "name": "n"}
    | {"creator_username": "c", "created_at": 1.0, "frozen_at": 1.0}
)
NOTE = Note(DATASET, README, is_complete=False, changed_at=1.0)


def notes_on_disk(session: EditSession) -> list[Note]:
    directory = session._directory
    return [Note.from_json(path.read_text()) for path in sorted(directory.glob("*.json"))]


def room(session: EditSession) -> int:
    """Return how many bytes more there is room for."""
    free = LIMIT_BYTES - session._size_in_bytes
    session.reserve(free)
    with pytest.raises(OSError, match="at most") as raised:
        session.reserve(1)
    assert raised.value.errno == errno.ENOSPC
    session.reserve(0)
    session.reserve(-free)
    return free
