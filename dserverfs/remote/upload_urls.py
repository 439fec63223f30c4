"""Where to PUT what belongs to an upload: the server's answer to an announcement.

Used by the routes, which fill it, and by whatever sends. The URLs of a million items
are 700 MB, so they are in a private table of SQLite, which is on the disk if it is
large and gone when nobody holds it any more. Thread-safe.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dserverfs.base.disk_tables import private_database
from dserverfs.base.model import Identifier


class UploadUrl(NamedTuple):
    """Where to PUT something, and the headers that are signed with it."""

    url: str
    headers: Mapping[str, str]


class UploadUrls(NamedTuple):
    """The server's answer to the start of an upload."""

    uri: str
    readme: UploadUrl
    items: Mapping[Identifier, UploadUrl]
    in_parts: frozenset[Identifier]  # have no URL: too large for one PUT
    stored: frozenset[Identifier]  # need no upload; empty if the server does not say
    good_until_s: float  # CLOCK_BOOTTIME


class UrlTable(Mapping[Identifier, UploadUrl]):
    """URLs by identifier: `add` some at a time, then `complete`."""

    def __init__(self) -> None:
        self._connection = private_database(self)
        self._lock = threading.Lock()
        self._connection.execute("CREATE TABLE url (identifier TEXT, url TEXT, headers TEXT)")

    def add(self, urls: Iterable[tuple[Identifier, UploadUrl]]) -> None:
        """Add URLs; raises sqlite3.Error as the disk does."""
        rows = ((identifier, url, json.dumps(headers)) for identifier, (url, headers) in urls)
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO url VALUES (?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def complete(self) -> None:
        """Make it ready to be asked."""
        self._connection.execute("CREATE INDEX by_identifier ON url (identifier)")

    def __getitem__(self, identifier: Identifier) -> UploadUrl:
        with self._lock:
            row = self._connection.execute(
                "SELECT url, headers FROM url WHERE identifier = ?", (identifier,)
            ).fetchone()
        if row is None:
            raise KeyError(identifier)
        return UploadUrl(row[0], json.loads(row[1]))

    def __iter__(self) -> Iterator[Identifier]:
        with self._lock:
            rows = self._connection.execute("SELECT identifier FROM url").fetchall()
        return iter([row[0] for row in rows])

    def __len__(self) -> int:
        with self._lock:
            count: int = self._connection.execute("SELECT count(*) FROM url").fetchone()[0]
        return count
