"""Versions of READMEs, annotations and overlays that processes were shown, by digest.

Used by the edits, which note the version each process has read before it writes, and by
the metadata writes, which compare it with the server's before they replace that: so an
editor that was open for an hour does not undo a colleague's change of that hour. Memory
only, bounded; for one thread at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import Any, NewType

Version = NewType("Version", str)
# The pid and start time of a process; None: one that cannot be known.
Reader = tuple[int, int] | None

MAX_READERS = 1000


def version_of_text(content: bytes) -> Version:
    return Version(hashlib.sha256(content).hexdigest())


def version_of_value(value: Any) -> Version:
    """Return the version of a JSON value, however it is written."""
    return version_of_text(json.dumps(value, sort_keys=True).encode())


def version_of_json(text: bytes) -> Version:
    try:
        return version_of_value(json.loads(text))
    except (ValueError, RecursionError):
        return version_of_text(text)


class VersionsRead:
    """The version of each file of one dataset that each process has read last."""

    def __init__(self) -> None:
        self._by_reader: OrderedDict[tuple[str, Reader], Version] = OrderedDict()
        self._by_anybody: dict[str, Version] = {}

    def was_read(self, path: str, reader: Reader, version: Version) -> None:
        """Note what a process was shown, or has written."""
        self._by_anybody[path] = version
        if reader is not None:
            self._by_reader[path, reader] = version
            self._by_reader.move_to_end((path, reader))
            if len(self._by_reader) > MAX_READERS:
                self._by_reader.popitem(last=False)

    def forget(self, path: str) -> None:
        """Note that a file was removed, so that a new one is compared with none."""
        self._by_anybody.pop(path, None)
        for key in [key for key in self._by_reader if key[0] == path]:
            del self._by_reader[key]

    def last_read(self, path: str, reader: Reader) -> Version | None:
        """Return the version a process begins with; None if no process has read the file.

        For a process that has not read it itself that is the version any process was
        shown last: the user may have copied it, changed the copy, and copied that back.
        """
        if reader is not None and (path, reader) in self._by_reader:
            return self._by_reader[path, reader]
        return self._by_anybody.get(path)
