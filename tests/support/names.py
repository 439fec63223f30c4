"""The names of datasets on the shared server: each belongs to one file of tests.

Used by the hooks. The files of a run get to its processes in any distribution, and those of
one process share a server: a name that two of them make would be two datasets at times.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
import urllib.parse
from pathlib import Path

# Names that helpers number, or give to datasets that are looked up by their uuids.
_ANYBODYS = re.compile(r"a-dataset|uploaded|edited-\d+")


class Names:
    """The names on the shared server of this process."""

    def __init__(self) -> None:
        self._seen: set[str] = set()  # uris of datasets

    def taken_twice(self, registry: Path, server: Path, file: str) -> str:
        """Enter the names that a file of tests has made; return what is wrong, or "".

        `registry` is a directory of all processes of a run.
        """
        others = []
        for name in self._made(server / "dserver.sqlite"):
            entry = registry / hashlib.sha1(name.encode()).hexdigest()
            registry.mkdir(exist_ok=True)
            try:
                with entry.open("x") as new:
                    new.write(file)
            except FileExistsError:
                if (owner := entry.read_text()) != file:
                    others.append(f"{name} ({owner})")
        return f"makes datasets of names that others make: {', '.join(others)}" if others else ""

    def _made(self, database: Path) -> set[str]:
        """Return the names of datasets that are new since the last call."""
        uri = f"file:{urllib.parse.quote(str(database))}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                found = dict(connection.execute("SELECT uri, name FROM dataset").fetchall())
        except sqlite3.Error:  # there is no server
            return set()
        new = found.keys() - self._seen
        self._seen |= new
        return {found[uri] for uri in new if not _ANYBODYS.fullmatch(found[uri])}
