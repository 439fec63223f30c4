"""The files that a staged dataset was refused, as no dataset can hold them: what it lacks.

Used by the staged dataset; the tree notes them there, the freeze and `status` tell them. A
program that copies a directory may report such a file among a thousand others.

On disk: `refused`, a line of JSON for each, appended and not synced: after a power cut some
are not told. A line that cannot be read is passed over.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.errors import ProtocolError
from dserverfs.base.limits import is_text, parse_json, understood
from dserverfs.base.printable import listed

logger = logging.getLogger(__name__)

_FILE = "refused"
MAX_NOTED = 1000
MAX_FILE_BYTES = 8 << 20  # paths of 4 KiB, escaped

LINK = "symbolic link"
SPECIAL = "device, pipe or socket"
NOT_UTF8 = "name that is not UTF-8"
TOO_LONG = "path that is too long"
_REMEDIES = {
    LINK: "cp -rL copies what links point to",
    NOT_UTF8: "give it a name in UTF-8, and copy it again",
    TOO_LONG: "give it a shorter one, and copy it again",
}


class RefusedFile(NamedTuple):
    path: str  # below the dataset's directory
    what: str  # it is


class RefusedFiles:
    """Those of one staged dataset; its owner notes them, any process may ask."""

    def __init__(self, directory: Path, tree: Path) -> None:
        self._file = directory / _FILE
        self._tree = tree
        self._noted: set[RefusedFile] | None = None

    def note(self, path: str, what: str) -> None:
        """Note that a file was refused; one that cannot be noted is not told."""
        if self._noted is None:
            self._noted = set(self._read())
        refused = RefusedFile(path, what)
        if refused in self._noted or len(self._noted) >= MAX_NOTED:
            return
        self._noted.add(refused)
        try:
            fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, f"{json.dumps(refused)}\n".encode("ascii"))
            finally:
                os.close(fd)
        except OSError as error:
            logger.info("%s: %s is not noted: %s", self._file, path, error)

    def missing(self) -> list[RefusedFile]:
        """Return those that are not there in another form by now, and whose directory is."""
        # Of os.path: a Path raises where one of the file is too long to be asked for.
        tree = str(self._tree)
        return [
            refused
            for refused in self._read()
            if not os.path.lexists(f"{tree}/{refused.path}")
            and os.path.isdir(os.path.dirname(f"{tree}/{refused.path}"))
        ]

    def _read(self) -> Iterable[RefusedFile]:
        try:
            with self._file.open("rb") as file:
                lines = file.read(MAX_FILE_BYTES).split(b"\n")[:MAX_NOTED]
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                with understood("a line"):
                    path, what = parse_json(line, "a line")
            except ProtocolError:
                continue
            if isinstance(path, str) and "\0" not in path and is_text(what):
                found.append(RefusedFile(path, what))
        return found


def told(refused: Iterable[RefusedFile]) -> list[str]:
    """Return a line for each kind of file that is missing."""
    paths: dict[str, list[str]] = {}
    for each in refused:
        paths.setdefault(each.what, []).append(each.path)
    return [_told(what, names) for what, names in paths.items()]


def _told(what: str, names: list[str]) -> str:
    was, is_ = ("was", "is") if len(names) == 1 else ("were", "are")
    kind = what if len(names) == 1 else f"{len(names)} times {what}"
    line = f"{listed(names)} {was} refused ({kind}) and {is_} not in the dataset"
    return f"{line}; {remedy}" if (remedy := _REMEDIES.get(what)) else line
