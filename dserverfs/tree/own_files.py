"""The directory `.dserverfs` at the top of a mount, which no listing shows: its file `stats`.

Used by the tree, in whose slot 0 these two numbers are. What the file holds is made when it is
opened.
"""

from __future__ import annotations

from collections.abc import Iterator

from dserverfs.base.errors import NotFound
from dserverfs.catalogue.catalogue import OWN_DIRECTORY
from dserverfs.tree.attributes import MUTABLE_S, Attributes, Entry

STATS = "stats"
FIRST_OWN = 1 << 34  # no other directory of slot 0 has so high a number, but for searches
_DIRECTORY, STATS_FILE = FIRST_OWN, FIRST_OWN + 1


class OwnFiles:
    """Those of one mount."""

    def __init__(self, mounted_ns: int) -> None:
        """`mounted_ns` is the mtime of both."""
        self._mounted_ns = mounted_ns

    def top(self) -> Attributes:
        """Return the attributes of the directory."""
        return Attributes(_DIRECTORY, True, 0o555, 0, self._mounted_ns, MUTABLE_S)

    def attributes(self, number: int) -> Attributes:
        if number == _DIRECTORY:
            return self.top()
        if number == STATS_FILE:
            return Attributes(STATS_FILE, False, 0o444, 0, self._mounted_ns, MUTABLE_S)
        raise NotFound(f"no inode {number}")

    def lookup(self, number: int, name: str) -> Attributes:
        """Return the attributes of an entry; raises NotFound."""
        if (number, name) != (_DIRECTORY, STATS):
            raise NotFound(f"nothing named {name!r} in {OWN_DIRECTORY}")
        return self.attributes(STATS_FILE)

    def children(self, cookie: int) -> Iterator[Entry]:
        """Yield the entries of the directory behind `cookie`."""
        if cookie < STATS_FILE:
            yield Entry(STATS, self.attributes(STATS_FILE), STATS_FILE)
