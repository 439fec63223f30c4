"""The URLs of an upload: the server's answer to its announcement.

Used by the routes, which fill it, and by the senders. The URLs of a million items
are 700 MB, so they are in a private table of SQLite, which is on the disk if it is
large and gone with its last user. Thread-safe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dserverfs.base.disk_tables import PrivateTable
from dserverfs.base.model import Identifier


class UploadUrl(NamedTuple):
    """A URL for a PUT, and the headers that are signed with it."""

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
    block_hashes: UploadUrl | None = None  # None: the server takes none of this dataset


class UrlTable(Mapping[Identifier, UploadUrl]):
    """URLs by identifier: `add` some at a time, then `complete`."""

    def __init__(self) -> None:
        self._table = PrivateTable("url", "(identifier TEXT, url TEXT, headers TEXT)")

    def add(self, urls: Iterable[tuple[Identifier, UploadUrl]]) -> None:
        """Add URLs; raises sqlite3.Error as the disk does."""
        rows = ((identifier, url, json.dumps(headers)) for identifier, (url, headers) in urls)
        self._table.run_many("INSERT INTO url VALUES (?, ?, ?)", rows)

    def complete(self) -> None:
        """Make it ready to be asked."""
        self._table.run("CREATE INDEX by_identifier ON url (identifier)")

    def __getitem__(self, identifier: Identifier) -> UploadUrl:
        url, headers = self._table.row("url, headers", "identifier", identifier)
        return UploadUrl(url, json.loads(headers))

    def __iter__(self) -> Iterator[Identifier]:
        return (row[0] for row in self._table.rows("SELECT identifier FROM url"))

    def __len__(self) -> int:
        return len(self._table)
