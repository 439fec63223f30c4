"""What a traced command read: which bytes of which items, and its form as a line of JSON.

Used by mounts, which note the reads of processes; by clients in programs that a traced command
runs, which write lines to a file; and by the command `trace`. `warm --plan` takes the lines.
"""

from __future__ import annotations

import bisect
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.errors import ProtocolError
from dserverfs.base.items import ItemContent
from dserverfs.base.limits import parse_json, understood
from dserverfs.base.model import DserverURI

logger = logging.getLogger(__name__)

MAX_RANGES = 64  # of an item; of more, those that lie closest are told as one
MAX_FILE_BYTES = 1 << 30  # a line has some 600
MAX_LINE_BYTES = 1 << 20


class Range(NamedTuple):
    """Bytes [start, end) of an item."""

    start: int
    end: int


class TracedItem:
    """The bytes of one item that a command was given."""

    def __init__(self, content: ItemContent) -> None:
        self.content = content
        self.ranges: list[Range] = []  # ascending, apart from each other
        self.first_read_s: float | None = None  # since 1970

    def add(self, start: int, end: int) -> None:
        """Note that these bytes were read."""
        ranges = self.ranges
        first = bisect.bisect_left(ranges, start, key=lambda each: each.end)
        last = bisect.bisect_right(ranges, end, lo=first, key=lambda each: each.start)
        if first < last:
            start = min(start, ranges[first].start)
            end = max(end, ranges[last - 1].end)
        ranges[first:last] = [Range(start, end)]
        if len(ranges) > MAX_RANGES:
            at = min(range(len(ranges) - 1), key=lambda i: ranges[i + 1].start - ranges[i].end)
            ranges[at : at + 2] = [Range(ranges[at].start, ranges[at + 1].end)]

    def read(self, offset: int, length: int, now_s: float) -> None:
        """Note that a program was given these bytes at a time, in seconds since 1970."""
        if self.first_read_s is None:
            self.first_read_s = now_s
        if length:
            self.add(offset, offset + length)

    def facts(self, server: str) -> dict[str, Any]:
        """Return the line of JSON, of an item of that server."""
        content, dataset = self.content, self.content.dataset
        return {
            "uri": str(DserverURI(server, dataset.base_uri, dataset.uuid)),
            "name": dataset.name,
            "identifier": content.identifier,
            "relpath": content.relpath_of(),
            "size_in_bytes": content.size_in_bytes,
            "hash_function": content.hash_function,
            "hash": content.hash,
            "ranges": list(self.ranges),
            "first_read_at": self.first_read_s,
        }


class TraceFile:
    """The file in which this process writes what it reads of a server.

    A line for each time that an item was closed, so that a process that is killed loses what it
    has open, and a forked one begins with its own. Thread-safe. What cannot be written is told in
    the log, once, and nothing fails for it.
    """

    def __init__(self, path: Path, server: str, clock_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._server = server
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._open: set[TracedItem] = set()
        self._is_useless = False

    def opened(self, content: ItemContent) -> TracedItem:
        """Return where to note what is read of an item, until `closed`."""
        item = TracedItem(content)
        with self._lock:
            self._open.add(item)
        return item

    def read(self, item: TracedItem, offset: int, length: int) -> None:
        with self._lock:
            item.read(offset, length, self._clock_s())

    def closed(self, item: TracedItem) -> None:
        with self._lock:
            if item in self._open:
                self._open.remove(item)
                self._write_locked(item)

    def read_whole(self, content: ItemContent) -> None:
        """Note that a program was given all of an item."""
        item = self.opened(content)
        self.read(item, 0, content.size_in_bytes)
        self.closed(item)

    def close(self) -> None:
        """Write what is open still, as the process ends."""
        with self._lock:
            while self._open:
                self._write_locked(self._open.pop())

    def _write_locked(self, item: TracedItem) -> None:
        if self._is_useless:
            return
        line = json.dumps(item.facts(self._server)).encode() + b"\n"
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._path, flags, 0o600)
            try:
                # Whole lines, also of several processes: each is one write at the end.
                if os.fstat(fd).st_size < MAX_FILE_BYTES:
                    os.write(fd, line)
                    return
                problem = f"has {MAX_FILE_BYTES} bytes"
            finally:
                os.close(fd)
        except OSError as error:
            problem = error.strerror or str(error)
        self._is_useless = True
        logger.warning("%s: what is read is not recorded any more: %s", self._path, problem)


def lines_in(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the lines of a TraceFile; None for one that is none, of a disk that was full."""
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
            try:
                yield _parsed(line)
            except ProtocolError:
                yield None


def _parsed(line: bytes) -> dict[str, Any]:
    facts = parse_json(line, "a line of a trace")
    with understood("a line of a trace"):
        read_s = facts["first_read_at"]
        return {
            **facts,
            "uri": str(facts["uri"]),
            "identifier": str(facts["identifier"]),
            "ranges": [[int(start), int(end)] for start, end in facts["ranges"]],
            "first_read_at": None if read_s is None else float(read_s),
        }
