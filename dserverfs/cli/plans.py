"""Plans: which bytes of which items are wanted, as `dserverfs trace` writes them.

Used by `warm --plan`. A plan may be of another machine, or of a program: each line is looked
at. Pure, but for reading the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.items import BLOCK_SIZE, number_of_blocks
from dserverfs.base.limits import parse_json, size_is_usable, understood
from dserverfs.base.model import DserverURI, Identifier

MAX_LINE_BYTES = 1 << 20


class Wish(NamedTuple):
    """The bytes that are wanted of an item."""

    relpath: str
    hash: str
    ranges: Sequence[tuple[int, int]] | None  # None: all of it

    def blocks(self, size_in_bytes: int) -> list[int]:
        """Return the blocks of an item of that size that have these bytes, in ascending order."""
        if self.ranges is None:
            return [*range(number_of_blocks(size_in_bytes))]
        wanted = {
            block
            for start, end in self.ranges
            for block in range(start // BLOCK_SIZE, number_of_blocks(min(end, size_in_bytes)))
        }
        return sorted(wanted)

    def with_those_of(self, other: Wish | None) -> Wish:
        """Return what either wants of an item; raises UsageError for two contents of it."""
        if other is None:
            return self
        if other.hash != self.hash:
            raise UsageError(f"{self.relpath} has another hash than in a line before")
        if self.ranges is None or other.ranges is None:
            return self._replace(ranges=None)
        return self._replace(ranges=[*other.ranges, *self.ranges])


Plan = dict[DserverURI, dict[Identifier, Wish]]


def read(path: Path) -> Plan:
    """Return what the lines of a file want; raises UsageError with the line that is none."""
    plan: Plan = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                try:
                    uri, identifier, wish = _parsed(line)
                    wishes = plan.setdefault(uri, {})
                    wishes[identifier] = wish.with_those_of(wishes.get(identifier))
                except (ProtocolError, UsageError) as error:
                    raise UsageError(
                        f"{path}, line {number}: is no line of a trace: {error}"
                    ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return plan


def _parsed(line: bytes) -> tuple[DserverURI, Identifier, Wish]:
    value = parse_json(line, "it")
    with understood("it"):
        uri = DserverURI.parse(value["uri"])
        if uri.uuid is None or uri.base_uri is None:
            raise UsageError(f"{uri} is of no dataset in a base URI")
        wish = Wish(str(value["relpath"]), str(value["hash"]), _ranges(value.get("ranges")))
        return uri, Identifier(str(value["identifier"])), wish


def _ranges(value: Any) -> Sequence[tuple[int, int]] | None:
    """Return ranges of bytes; raises ValueError for what are none."""
    if value is None:
        return None
    ranges = [(start, end) for start, end in value]
    for start, end in ranges:
        if not size_is_usable(start) or not size_is_usable(end) or start >= end:
            raise ValueError("a range is [start, end], start before end")
    return ranges
