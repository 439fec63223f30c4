"""The last errors of mounts, on the disk: a mount that ended, or was killed, is asked about later.

Used by the mount, which writes its own now and then and at its end, and by `status`. The next
mount of the same URI at the same place goes on with them. For one thread at a time.

On disk: a file of at most `MAX_BYTES` for each mount point, replaced unsynced. One that is
damaged, or older than `KEPT_S`, counts as none; the latter is deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.durable_files import write_unsynced
from dserverfs.base.errors import ProtocolError
from dserverfs.base.limits import date_is_usable, is_text, parse_json, understood
from dserverfs.base.local_files import make_private
from dserverfs.base.printable import printable

logger = logging.getLogger(__name__)

MAX_ERRORS = 100  # of a mount
KEPT_S = 7 * 86400.0  # guess: who comes back after a holiday asks for something else
MAX_BYTES = 1 << 20  # of 100 errors, each with two texts of 1,000 letters at most, and a path
_FORMAT = 1


class RecentError(NamedTuple):
    """An error, and how often it was given."""

    path: str  # below the mount point, fit to be printed
    tried: str
    errno: str
    reason: str
    remedy: str | None
    times: int
    first_at: float  # epoch seconds
    last_at: float


def those_below(errors: Iterable[RecentError], top: str, rest: str = "") -> list[RecentError]:
    """Return those at or below a path; "" is the mount point.

    With `rest`, which leads on from `top`, those at or below it, and on the way there.
    """
    way = [printable(top)]
    for name in printable(rest).split("/") if rest else []:
        way.append(f"{way[-1]}/{name}".lstrip("/"))
    end = f"{way[-1]}/"
    return [
        each
        for each in errors
        if end == "/" or f"{each.path}/".startswith(end) or each.path in way[1:]
    ]


class OfMount(NamedTuple):
    """The last errors of what was mounted at a place."""

    path: str
    uri: str
    errors: list[RecentError]


class KeptErrors:
    """Those of one mount point."""

    def __init__(self, directory: Path, mountpoint: Path, uri: str) -> None:
        self._mountpoint = str(mountpoint)
        self._uri = uri
        self._file = directory / hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]
        self._written: list[RecentError] = []

    def load(self) -> list[RecentError]:
        """Return what the last mount of the same URI left; nothing if that cannot be read."""
        kept = _read(self._file)
        return [] if kept is None or kept.uri != self._uri else kept.errors

    def keep(self, errors: Sequence[RecentError]) -> None:
        """Write them, unless they are written; what cannot be written is logged."""
        if list(errors) == self._written:
            return
        self._written = list(errors)
        kept: dict[str, Any] = {"format": _FORMAT, "path": self._mountpoint, "uri": self._uri}
        kept["errors"] = [each._asdict() for each in errors]
        try:
            make_private(self._file.parent)
            write_unsynced(self._file, json.dumps(kept).encode("ascii"))
        except OSError as error:
            logger.info("%s: the last errors are not kept: %s", self._file, error.strerror)


def all_kept(directory: Path, now_s: Callable[[], float] = time.time) -> list[OfMount]:
    """Return the last errors of each mount point; what is old is deleted."""
    found = []
    try:
        files = sorted(each for each in directory.iterdir() if not each.name.endswith(".new"))
    except OSError:
        return []
    for file in files:
        kept = _read(file)
        if kept is not None and kept.errors and kept.errors[-1].last_at > now_s() - KEPT_S:
            found.append(kept)
            continue
        try:
            file.unlink()
        except OSError as error:
            logger.info("%s: is not deleted: %s", file, error.strerror)
    return found


def _read(file: Path) -> OfMount | None:
    """Return what a file has; None if there is none, or it is damaged."""
    try:
        with file.open("rb") as opened, understood("it"):
            kept = parse_json(opened.read(MAX_BYTES), "it")
            if kept["format"] != _FORMAT:
                return None
            errors = [_error(each) for each in kept["errors"][:MAX_ERRORS]]
            return OfMount(str(kept["path"]), printable(str(kept["uri"])), errors)
    except (OSError, ProtocolError) as error:
        logger.debug("%s: is passed over: %s", file, error)
        return None


def _error(values: Any) -> RecentError:
    """Return an error of a file; raises ValueError if it is none."""
    error = RecentError(**values)
    texts = (error.path, error.tried, error.errno, error.reason, error.remedy or "")
    if not all(is_text(each) for each in texts) or not isinstance(error.times, int):
        raise ValueError("its texts are none")
    if not all(isinstance(each, (int, float)) and date_is_usable(each) for each in error[6:]):
        raise ValueError("its dates are none")
    path, tried, number, reason, remedy = map(printable, texts)
    return error._replace(
        path=path, tried=tried, errno=number, reason=reason, remedy=remedy or None
    )
