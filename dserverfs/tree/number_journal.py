"""The inode numbers of a mount, kept outside the daemon, for the one that takes its place.

A file without a name, which outlives the process that writes it. What a number stands for is
written there before the kernel is told of it: a line of JSON for each, with a key and a value; a
later line of the same key counts, and a value of null takes the number away. Used by the tree,
whose parts each have kinds of keys; they know what the values mean:

    head                    format, format of manifest indexes, time of the mount
    slot N                  a dataset: frozen, or staged
    became N                the frozen dataset that a staged one became
    upper PLACE             a path above the datasets
    shown PLACE             a base URI that was shown
    own N PLACE             a path in a frozen dataset that is no item
    node N NUMBER           a local file: device, inode, and its names in directories
    search NUMBER           a path below `.find`, and where a link leads to
    edited URI NUMBER       the path of a file that was changed

A line that was not written to its end is not read: the kernel was not told of it. Beyond
MAX_BYTES nothing is kept, and no daemon can take the mount over. Thread-safe.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from dserverfs.base.errors import ProtocolError
from dserverfs.catalogue.manifest_index import FORMAT_VERSION

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_BYTES = 256 * 1024 * 1024  # 2.5 million files that were made since the last daemon began
HEAD = "head"

# By all of a key but its end, what there is by its end; None: it was taken away.
Known = Mapping[tuple[Any, ...], Mapping[Any, Any]]


class Note(Protocol):
    """Keeps what a key stands for; None: nothing any more."""

    def __call__(self, *key: Any, value: Any) -> None: ...


def formats() -> list[int]:
    """Return the formats of this version, which have to be the same for numbers to stay."""
    return [FORMAT, FORMAT_VERSION]


class NumberJournal:
    """That of one mount; with no file it keeps nothing."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd
        self._size_in_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def create(cls, mounted_ns: int) -> NumberJournal:
        """Return a new one; `mounted_ns` is shown of what has no other time."""
        journal = cls(os.memfd_create("dserverfs-numbers"))
        journal.note(HEAD, value=[*formats(), mounted_ns])
        return journal

    @property
    def fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def note(self, *key: Any, value: Any) -> None:
        """Keep what a key stands for; None: nothing any more."""
        if self._fd is None:
            return
        line = json.dumps([key, value], separators=(",", ":")).encode("ascii") + b"\n"
        with self._lock:
            self._size_in_bytes += len(line)
            try:
                if self._size_in_bytes <= MAX_BYTES and os.write(self._fd, line) == len(line):
                    return
            except OSError as error:
                logger.debug("the journal of inode numbers: %s", error)
            os.ftruncate(self._fd, 0)
            self._fd = None
        logger.warning(
            "the mount has given too many inode numbers: if its daemon dies now, the mount does"
        )

    def of(self, *prefix: Any) -> Note:
        """Return `note` for keys that begin so."""
        return functools.partial(self.note, *prefix)


NOTHING = NumberJournal()


def known(content: bytes) -> Known:
    """Return what a journal holds; raises ProtocolError if that is not what this version writes."""
    found: dict[tuple[Any, ...], dict[Any, Any]] = {}
    lines = content.split(b"\n")
    try:
        for line in lines[:-1]:  # behind the last is nothing, or what was not written to its end
            (*prefix, end), value = json.loads(line)
            found.setdefault(tuple(prefix), {})[end] = value
        version, index_format, mounted_ns = found[()][HEAD]
    except (ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"the journal of inode numbers cannot be read: {error!r}") from error
    if [version, index_format] != formats() or not isinstance(mounted_ns, int):
        raise ProtocolError(
            f"inode numbers of this mount have format {version}.{index_format}, and this version"
            f" gives those of {FORMAT}.{FORMAT_VERSION}: mount it again"
        )
    return found


def mounted_ns(known: Known) -> int:
    return int(known[()][HEAD][2])


def of_kind(known: Known, *prefix: Any) -> dict[Any, Any]:
    """Return what is known of the keys that begin with `prefix`, by their ends."""
    found = known.get(prefix, {})
    return {end: value for end, value in found.items() if value is not None}


def following(known: Known, first: int, *prefix: Any) -> int:
    """Return the number behind all that were given, also of what was taken away."""
    return max(known.get(prefix, ()), default=first - 1) + 1
