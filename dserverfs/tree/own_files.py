"""The directory `.dserverfs` at the top of a mount, which no listing shows, and its files.

Used by the tree, in whose slot 0 their numbers are. `stats` has the mount's figures, made when
it is opened. `control` says where the daemon listens; it is in a mount alone whose device was
given to the daemon, which then knows neither its mount point nor its device number.
"""

from __future__ import annotations

from collections.abc import Iterator

from dserverfs.base.errors import NotFound
from dserverfs.catalogue.catalogue import OWN_DIRECTORY
from dserverfs.tree.attributes import MUTABLE_S, Attributes, Entry

STATS = "stats"
CONTROL = "control"
FIRST_OWN = 1 << 34  # no other directory of slot 0 has so high a number, but for searches
_DIRECTORY, STATS_FILE, CONTROL_FILE = FIRST_OWN, FIRST_OWN + 1, FIRST_OWN + 2


class OwnFiles:
    """Those of one mount."""

    def __init__(self, mounted_ns: int, control: bytes | None = None) -> None:
        """`mounted_ns` is the mtime of all. Without the content `control` there is no such file."""
        self._mounted_ns = mounted_ns
        self.control = control

    def top(self) -> Attributes:
        """Return the attributes of the directory."""
        return Attributes(_DIRECTORY, True, 0o555, 0, self._mounted_ns, MUTABLE_S)

    def attributes(self, number: int) -> Attributes:
        if number == _DIRECTORY:
            return self.top()
        if number == STATS_FILE:
            return Attributes(STATS_FILE, False, 0o444, 0, self._mounted_ns, MUTABLE_S)
        if number == CONTROL_FILE and self.control is not None:
            size = len(self.control)
            return Attributes(CONTROL_FILE, False, 0o444, size, self._mounted_ns, MUTABLE_S)
        raise NotFound(f"no inode {number}")

    def lookup(self, number: int, name: str) -> Attributes:
        """Return the attributes of an entry; raises NotFound."""
        for entry in self.children(0) if number == _DIRECTORY else ():
            if entry.name == name:
                return entry.attributes
        raise NotFound(f"nothing named {name!r} in {OWN_DIRECTORY}")

    def children(self, cookie: int) -> Iterator[Entry]:
        """Yield the entries of the directory behind `cookie`."""
        if cookie < STATS_FILE:
            yield Entry(STATS, self.attributes(STATS_FILE), STATS_FILE)
        if cookie < CONTROL_FILE and self.control is not None:
            yield Entry(CONTROL, self.attributes(CONTROL_FILE), CONTROL_FILE)
