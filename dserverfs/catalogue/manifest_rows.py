"""The items of a manifest as a directory tree, numbered: what an index holds.

Used by the indexing. Pure; for one thread. A million items take 3 s and 400 MB,
because each is a tuple and what can be done for thousands at once is not done in
a loop.

Entries are hostile until checked: an item that cannot be shown under its own
relpath, or whose size, hash or date is none, becomes `.refused-<identifier>` at the
top, so that a copy fails visibly; the others stay as they are. A name that an item
really has is that item's: then a refused one gets another.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from dserverfs.base import limits
from dserverfs.base.errors import ProtocolError
from dserverfs.base.items import REFUSED_PREFIX
from dserverfs.base.model import Item, nanoseconds_of, path_of_entry

_PLAIN_LIMIT_S = 9.2e9  # as far as dates need not be looked at to be shown
# Relpaths of plain letters up to there have neither too many bytes nor too many components.
_PLAIN_LENGTH = limits.MAX_RELPATH_COMPONENTS
_NO_NAMES: frozenset[str] = frozenset()

# Below a directory: name, identifier, size, hash, mtime_ns, refused. Tuples and no objects,
# of which a million take three times as long to make.
Leaf = tuple[str, str, int, str, int, int]
_Directory = dict[str, Any]  # of _Directory: the directories in it, by name

# The columns of an index: row, parent, name, identifier, size, hash, mtime_ns, refused,
# first_child, children.
Row = tuple[Any, ...]

_fields = itemgetter("relpath", "size_in_bytes", "hash", "utc_timestamp")
_name = itemgetter(0)
# Nearly all relpaths are like this, which one match tells of many; others are taken apart.
_COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9_ .+=,@()-]{0,200}"
_PLAIN_RELPATHS = re.compile(rf"(?:{_COMPONENT}[/\n])*")
_PLAIN_DIGESTS = re.compile(r"[0-9A-Fa-f]*")


class ManifestTree:
    """Items in directories: `add` them, then take the `rows`, once."""

    def __init__(self) -> None:
        self._leaves: dict[str, list[Leaf]] = {"": []}  # by the path of their directory
        self._refused: list[Leaf] = []  # without their names
        self.number_of_items = 0
        self.size_in_bytes = 0
        self.unsafe = 0  # how many items have a relpath that must not be used to write files

    def add(self, items: Mapping[str, Any]) -> None:
        """Add items of the manifest, each under its relpath or refused."""
        try:
            relpaths, sizes, digests, moments = zip(*map(_fields, items.values()), strict=True)
            if not _are_plain(relpaths, sizes, digests, moments):
                raise ValueError
            mtimes_ns = [nanoseconds_of(moment) for moment in moments]
        except (KeyError, TypeError, ValueError):
            self._add_singly(items)
            return
        self._count_in(len(items), sum(sizes))
        hashes = [digest.lower() for digest in digests]
        if not _all_usable(items, relpaths):
            for values in zip(relpaths, items, sizes, hashes, mtimes_ns, strict=True):
                self._add_checked(*values)
            return
        leaves = self._leaves
        for relpath, identifier, size, digest, mtime_ns in zip(
            relpaths, items, sizes, hashes, mtimes_ns, strict=True
        ):
            above, _, name = relpath.rpartition("/")
            leaf = (name, identifier, size, digest, mtime_ns, 0)
            try:
                leaves[above].append(leaf)
            except KeyError:
                leaves[above] = [leaf]

    def rows(self) -> Iterator[Row]:
        """Number the nodes breadth first, children sorted by name, and yield them in order."""
        top = self._make_directories()
        self._leaves[""] += self._named_refused(top)
        level = [(0, "", top)]
        yield (0, 0, "", None, 0, "", 0, 0, 1, self._count("", top))
        row = 1
        while level:
            following = row + sum(self._count(path, below) for _, path, below in level)
            next_level = []
            for parent, path, below in level:
                number = self._count(path, below)
                leaves = self._leaves.pop(path, [])
                for child, entry in enumerate(_by_name(leaves, below), row):
                    if isinstance(entry, str):
                        inside = path_of_entry(path, entry)
                        children = self._count(inside, below[entry])
                        yield (child, parent, entry, None, 0, "", 0, 0, following, children)
                        following += children
                        next_level.append((child, inside, below[entry]))
                    else:
                        yield (child, parent, *entry, 0, 0)
                row += number
            level = next_level

    def _add_singly(self, items: Mapping[str, Any]) -> None:
        for identifier, entry in items.items():
            try:
                item = Item.from_json(identifier, entry)
            except ProtocolError:
                self._count_in(1, 0)
                # Whoever uses the manifest itself may take the relpath all the same.
                relpath = entry.get("relpath") if isinstance(entry, dict) else None
                self.unsafe += not isinstance(relpath, str) or not is_safe(relpath, identifier)
                self._refuse(identifier, 0, "", 0)
            else:
                size = item.size_in_bytes
                self._count_in(1, size)
                self._add_checked(item.relpath, identifier, size, item.hash, item.mtime_ns)

    def _count_in(self, number: int, size_in_bytes: int) -> None:
        self.number_of_items += number
        self.size_in_bytes = min(self.size_in_bytes + size_in_bytes, limits.MAX_SIZE_BYTES)

    def _add_checked(
        self, relpath: str, identifier: str, size: int, digest: str, mtime_ns: int
    ) -> None:
        if not is_safe(relpath, identifier):
            self.unsafe += 1
            self._refuse(identifier, size, digest, mtime_ns)
            return
        above, _, name = relpath.rpartition("/")
        leaf = (name, identifier, size, digest, mtime_ns, 0)
        self._leaves.setdefault(above, []).append(leaf)

    def _refuse(self, identifier: str, size: int, digest: str, mtime_ns: int) -> None:
        if not limits.is_identifier(identifier):
            identifier = _sha1(identifier)
        self._refused.append(("", identifier, size, digest, mtime_ns, 1))

    def _refuse_leaves(self, leaves: Iterable[Leaf]) -> None:
        for _, identifier, size, digest, mtime_ns, _ in leaves:
            self.unsafe += 1
            self._refuse(identifier, size, digest, mtime_ns)

    def _named_refused(self, top: _Directory) -> Iterator[Leaf]:
        """Yield refused items under names that no other entry at the top has."""
        taken = {leaf[0] for leaf in self._leaves[""]} | top.keys()
        for leaf in self._refused:
            name = REFUSED_PREFIX + leaf[1]
            while name in taken:
                name += "~"
            taken.add(name)
            yield (name, *leaf[1:])

    def _make_directories(self) -> _Directory:
        """Return the directories; refuse items below a file, and all but one of the same path."""
        for path, leaves in self._leaves.items():
            if len({leaf[0] for leaf in leaves}) < len(leaves):
                self._leaves[path] = self._without_doubles(leaves)
        top: _Directory = {}
        # By directory, of those with files and directories in them.
        files: dict[str, frozenset[str]] = {}
        for path in sorted(self._leaves):
            if path and not self._make_directory(path, top, files):
                self._refuse_leaves(self._leaves[path])
                self._leaves[path] = []
        return top

    def _make_directory(self, path: str, top: _Directory, files: dict[str, frozenset[str]]) -> bool:
        """Return whether there is a directory `path` now; not if a file is in its way."""
        above, directory = "", top
        for name in path.split("/"):
            below = directory.get(name)
            if below is None:
                if above not in files and above in self._leaves:
                    files[above] = frozenset(leaf[0] for leaf in self._leaves[above])
                if name in files.get(above, _NO_NAMES):
                    return False
                below = directory[name] = {}
            above, directory = path_of_entry(above, name), below
        return True

    def _without_doubles(self, leaves: list[Leaf]) -> list[Leaf]:
        """Return the first by identifier of each name, and refuse the others."""
        first: dict[str, Leaf] = {}
        for leaf in sorted(leaves, key=itemgetter(1)):
            if leaf[0] in first:
                self._refuse_leaves([leaf])
            else:
                first[leaf[0]] = leaf
        return list(first.values())

    def _count(self, path: str, below: _Directory) -> int:
        return len(self._leaves.get(path, ())) + len(below)


def _by_name(leaves: list[Leaf], below: _Directory) -> Iterable[Leaf | str]:
    """Return leaves, and names of directories, in the order of their names."""
    leaves.sort(key=_name)
    if not below:
        return leaves
    return heapq.merge(leaves, sorted(below), key=lambda entry: _name_of(entry))


def _name_of(entry: Leaf | str) -> str:
    return entry if isinstance(entry, str) else entry[0]


def _are_plain(
    relpaths: Sequence[Any], sizes: Sequence[Any], digests: Sequence[Any], moments: Sequence[Any]
) -> bool:
    """Return whether these values are like dtool's own, so that none has to be converted."""
    return (
        set(map(type, sizes)) == {int}
        and set(map(type, moments)) <= {int, float}
        and {*map(type, relpaths), *map(type, digests)} == {str}
        and min(sizes) >= 0
        and max(sizes) <= limits.MAX_SIZE_BYTES
        and min(moments) >= 0
        and max(moments) < _PLAIN_LIMIT_S
        and max(map(len, digests)) <= limits.MAX_HASH_LENGTH
        and _PLAIN_DIGESTS.fullmatch("".join(digests)) is not None
    )


def _all_usable(identifiers: Iterable[str], relpaths: Sequence[str]) -> bool:
    """Return whether all are, as far as one match tells; False may be wrong."""
    lines = "\n".join(relpaths) + "\n"
    return (
        lines.count("\n") == len(relpaths)
        and max(map(len, relpaths)) <= _PLAIN_LENGTH
        and _PLAIN_RELPATHS.fullmatch(lines) is not None
        and all(map(str.__eq__, map(_sha1, relpaths), identifiers))
    )


def is_safe(relpath: str, identifier: str) -> bool:
    """Return whether an item may be written under its relpath, and is the one of that relpath."""
    return limits.relpath_is_usable(relpath) and identifier == _sha1(relpath)


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()
