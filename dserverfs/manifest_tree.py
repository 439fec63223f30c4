"""The items of a manifest as a directory tree, numbered: what an index holds.

Used by the indexing. Pure; for one thread. A million items take 3 s and 400 MB,
because each is a tuple and what can be done for thousands at once is not done in
a loop.

Relpaths are hostile until checked: an item that cannot be shown under its own
becomes `.refused-<identifier>` at the top, so that a copy fails visibly.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from dserverfs.errors import ProtocolError
from dserverfs.limits import is_identifier, relpath_is_usable
from dserverfs.model import Item, identifier_of

REFUSED_PREFIX = ".refused-"
_PLAIN_LIMIT_S = 1e11
_SIZE_LIMIT = 1 << 62
_MTIME_LIMIT_NS = 1 << 62

# Below a directory: name, identifier, size, hash, mtime_ns, refused. Tuples and no objects,
# of which a million take three times as long to make.
Leaf = tuple[str, str, int, str, int, int]
_Directory = dict[str, Any]  # of _Directory: the directories in it, by name

# The columns of an index: row, parent, name, identifier, size, hash, mtime_ns, refused,
# first_child, children.
Row = tuple[Any, ...]

_fields = itemgetter("relpath", "size_in_bytes", "hash", "utc_timestamp")
_name = itemgetter(0)
# What nearly all are, as one match tells of many; any other is taken apart.
_COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9_ .+=,@()-]{0,200}"
_PLAIN_RELPATHS = re.compile(rf"(?:{_COMPONENT}[/\n])*")
_IDENTIFIERS = re.compile(r"(?:[0-9a-f]{40}\n)*")


class ManifestTree:
    """Items in directories: `add` them, then take the `rows`, once."""

    def __init__(self) -> None:
        self._leaves: dict[str, list[Leaf]] = {"": []}  # by the path of their directory
        self._refused: dict[str, Leaf] = {}  # by the name they are shown under
        self.number_of_items = 0
        self.size_in_bytes = 0

    def add(self, items: Mapping[str, Any]) -> None:
        """Add items of the manifest; raises ProtocolError if one is none."""
        try:
            relpaths, sizes, digests, moments = zip(*map(_fields, items.values()), strict=True)
            if not _are_plain(sizes, moments, relpaths + digests):
                raise ValueError
            mtimes_ns = [round(moment * 1_000_000) * 1000 for moment in moments]
        except (KeyError, TypeError, ValueError):
            self._add_singly(items)
            return
        self.number_of_items += len(items)
        self.size_in_bytes += sum(sizes)
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
        self._leaves[""] += self._refused.values()
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
                        inside = _join(path, entry)
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
            item = Item.from_json(identifier, entry)
            if item.size_in_bytes >= _SIZE_LIMIT or abs(item.mtime_ns) >= _MTIME_LIMIT_NS:
                raise ProtocolError(f"item {identifier} has a size or date that cannot be")
            self.number_of_items += 1
            self.size_in_bytes += item.size_in_bytes
            self._add_checked(
                item.relpath, identifier, item.size_in_bytes, item.hash, item.mtime_ns
            )

    def _add_checked(
        self, relpath: str, identifier: str, size: int, digest: str, mtime_ns: int
    ) -> None:
        above, _, name = relpath.rpartition("/")
        leaf = (name, identifier, size, digest, mtime_ns, 0)
        # At the top as well, where they are shown.
        is_taken = name.startswith(REFUSED_PREFIX) or relpath.startswith(REFUSED_PREFIX)
        if is_taken or not is_identifier(identifier) or not relpath_is_usable(relpath):
            self._refuse(above, leaf)
        else:
            self._leaves.setdefault(above, []).append(leaf)

    def _refuse(self, above: str, leaf: Leaf) -> None:
        name, identifier, size, digest, mtime_ns, _ = leaf
        known = identifier if is_identifier(identifier) else identifier_of(_join(above, name))
        name = f"{REFUSED_PREFIX}{known}"
        self._refused[name] = (name, identifier, size, digest, mtime_ns, 1)

    def _make_directories(self) -> _Directory:
        """Return the directories; refuse what has a file in its way, or another of its path."""
        for path, leaves in self._leaves.items():
            if len({leaf[0] for leaf in leaves}) < len(leaves):
                self._leaves[path] = self._without_doubles(path, leaves)
        top: _Directory = {}
        files: dict[str, set[str]] = {}  # by directory, of those with directories in them
        for path in sorted(self._leaves):
            if path and not self._make_directory(path, top, files):
                for leaf in self._leaves[path]:
                    self._refuse(path, leaf)
                self._leaves[path] = []
        return top

    def _make_directory(self, path: str, top: _Directory, files: dict[str, set[str]]) -> bool:
        """Return whether there is a directory `path` now; not if a file is in its way."""
        above, directory = "", top
        for name in path.split("/"):
            below = directory.get(name)
            if below is None:
                if above not in files:
                    files[above] = {leaf[0] for leaf in self._leaves.get(above, ())}
                if name in files[above]:
                    return False
                below = directory[name] = {}
            above, directory = _join(above, name), below
        return True

    def _without_doubles(self, path: str, leaves: list[Leaf]) -> list[Leaf]:
        """Return the first by identifier of each name, and refuse the others."""
        first: dict[str, Leaf] = {}
        for leaf in sorted(leaves, key=itemgetter(1)):
            if leaf[0] in first:
                self._refuse(path, leaf)
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


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _are_plain(sizes: Sequence[Any], moments: Sequence[Any], texts: Iterable[Any]) -> bool:
    """Return whether these are what dtool writes, so that nothing has to be converted."""
    return (
        set(map(type, sizes)) == {int}
        and set(map(type, moments)) <= {int, float}
        and set(map(type, texts)) == {str}
        and min(sizes) >= 0
        and max(sizes) < _SIZE_LIMIT
        and min(moments) >= 0
        and max(moments) < _PLAIN_LIMIT_S
    )


def _all_usable(identifiers: Iterable[str], relpaths: Sequence[str]) -> bool:
    """Return whether all are, as far as two matches tell; False may be wrong."""
    lines = "\n".join(relpaths) + "\n"
    return (
        lines.count("\n") == len(relpaths)
        and _PLAIN_RELPATHS.fullmatch(lines) is not None
        and _IDENTIFIERS.fullmatch("\n".join(identifiers) + "\n") is not None
    )
