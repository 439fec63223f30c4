"""Inode numbers of local files; a number stays with its file through renames.

Used by the staged tree. A number belongs to a local inode for as long as the
kernel knows it or it is open, through renames, for all its hard links, and after
its last name is gone; no number is given twice, not by a daemon that takes the place of another
one either: it is told what the journal says, and what has a name still keeps its number. Pure but
for what the caller says it saw; not thread-safe.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from dserverfs.base.errors import NotFound, StaleInode
from dserverfs.tree.number_journal import NOTHING, Note

Key = tuple[int, int]  # st_dev, st_ino
# Of what another daemon has told the kernel: nobody knows how often, so it is never forgotten.
_ALWAYS = 1 << 62


class Node:
    """A local file or directory."""

    __slots__ = ("__weakref__", "fds", "key", "links", "lookups", "number")

    def __init__(self, number: int, key: Key) -> None:
        self.number = number
        self.key = key
        self.links: list[tuple[Node, str]] = []  # (directory, name), of those that were seen
        self.fds: list[int] = []  # open ones, for when no name is left
        self.lookups = 0  # how many times the kernel was told of it and did not forget


class Nodes:
    """The nodes of one directory tree."""

    def __init__(
        self, root: str, key: Key, root_number: int, first_number: int, note: Note = NOTHING.note
    ) -> None:
        """`root` is the directory's path, the others' numbers begin at `first_number`."""
        self.root = Node(root_number, key)
        self._root_path = root
        self._note = note
        self._next = first_number
        # A node lives while the kernel knows it, it is open, or one below it lives.
        self._by_key: weakref.WeakValueDictionary[Key, Node] = weakref.WeakValueDictionary()
        self._by_key[self.root.key] = self.root
        self._held: dict[int, Node] = {root_number: self.root}

    def restore(
        self, known: Mapping[int, Any], following: int, is_there: Callable[[str, Key], bool]
    ) -> None:
        """Take the numbers of another daemon, as its journal has them; before anything is seen.

        New ones begin with `following`. What a local path leads to is asked by `is_there`: a
        number whose inode has no name any more leads to nothing.
        """
        made: dict[int, Node | None] = {self.root.number: self.root}

        def node_of(number: int) -> Node | None:
            if number not in made:
                made[number] = None  # in a circle there is none
                *key, links = known.get(number) or (0, 0, ())
                node = Node(number, (key[0], key[1]))
                parents = [(node_of(parent), name) for parent, name in links]
                node.links = [
                    (parent, name)
                    for parent, name in parents
                    if parent is not None and is_there(f"{self.local(parent)}/{name}", node.key)
                ]
                made[number] = node if node.links else None
            return made[number]

        for number in sorted(known):
            node = node_of(number)
            if node is not None:  # of two numbers of one inode the kernel has forgotten the first
                node.lookups = _ALWAYS
                self._by_key[node.key] = self._held[number] = node
                self._tell(node)
        if following > self._next and following - 1 not in self._held:
            self._note(following - 1, value=None)
        self._next = following

    def get(self, number: int) -> Node:
        """Return the node; raises NotFound if the kernel was told to forget it."""
        try:
            return self._held[number]
        except KeyError:
            raise StaleInode(f"{self._root_path}: no inode {number}") from None

    def seen(self, directory: Node, name: str, status: os.stat_result) -> Node:
        """Return the node of an entry that was found on disk."""
        key = (status.st_dev, status.st_ino)
        node = self._by_key.get(key)
        if node is None:
            node = self._by_key[key] = Node(self._next, key)
            self._next += 1
        self._held[node.number] = node  # until the kernel, which is told now, forgets it
        if (directory, name) not in node.links:
            node.links = [link for link in node.links if self._still(link, key)]
            node.links.append((directory, name))
            self._tell(node)
        return node

    def tell(self, number: int) -> None:
        """Note that the kernel is told of a node that was `seen`."""
        self._held[number].lookups += 1

    def forget(self, number: int, times: int) -> None:
        """Note that the kernel forgot the node that many times."""
        node = self._held.get(number)
        if node is None or node is self.root:
            return
        node.lookups -= times
        self._let_go(node)

    def opened(self, node: Node, fd: int) -> None:
        node.fds.append(fd)
        self._held[node.number] = node

    def closed(self, node: Node, fd: int) -> None:
        node.fds.remove(fd)
        self._let_go(node)

    def removed(self, directory: Node, name: str, key: Key) -> None:
        """Note that an entry, of the inode `key`, is gone."""
        node = self._by_key.get(key)
        if node is None:
            return
        node.links = [link for link in node.links if link != (directory, name)]
        self._tell(node)

    def deleted(self, key: Key) -> None:
        """Note that the last name of an inode is gone: its key may come again."""
        node = self._by_key.pop(key, None)
        if node is not None:
            node.links = []
            self._tell(node)

    def path(self, node: Node) -> str:
        """Return the relative path, "" for the root; raises NotFound if it has no name."""
        parts: list[str] = []
        while node is not self.root:
            if not node.links:
                raise NotFound(f"{self._root_path}: inode {node.number} has no name any more")
            node, name = node.links[0]
            parts.append(name)
        return "/".join(reversed(parts))

    def local(self, node: Node) -> str:
        """Return the path on the local disk."""
        path = self.path(node)
        return f"{self._root_path}/{path}" if path else self._root_path

    def paths(self) -> dict[str, int]:
        """Return the numbers of all nodes that are known, by relative path."""
        numbers = {}
        for node in list(self._by_key.values()):
            if node is self.root or node.links:
                numbers[self.path(node)] = node.number
                self._held[node.number] = node
        return numbers

    def _still(self, link: tuple[Node, str], key: Key) -> bool:
        """Return whether a name still leads to that inode; another process may have changed it."""
        directory, name = link
        try:
            status = os.lstat(f"{self.local(directory)}/{name}")
        except (OSError, NotFound):
            return False
        return (status.st_dev, status.st_ino) == key

    def _tell(self, node: Node) -> None:
        """Have the journal know the names of a node."""
        links = [[directory.number, name] for directory, name in node.links]
        self._note(node.number, value=[*node.key, links] if links else None)

    def _let_go(self, node: Node) -> None:
        if node.lookups <= 0 and not node.fds:
            self._held.pop(node.number, None)
