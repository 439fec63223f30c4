"""A directory of a mount that is open, to be listed a few entries at a time.

Used by the file system. For one thread at a time: the event loop.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from dserverfs.base.errors import DserverfsError, NotFound
from dserverfs.tree.attributes import MUTABLE_S, Entry
from dserverfs.tree.mount_tree import Inode, Tree


class ListingLost(DserverfsError):
    """Nobody knows what a directory that changes held when its listing was begun."""


class OpenDirectory:
    """A directory that is being listed.

    The kernel takes 20 entries at a time: looking each time for where to go on made
    a listing of 100,000 take 20 s.
    """

    def __init__(self, tree: Tree, inode: Inode, *, goes_on: bool = False) -> None:
        """If it `goes_on`, a daemon before has begun to list it."""
        self._tree = tree
        self.inode = inode
        self._goes_on = goes_on
        self._entries: Iterator[Entry] = iter(())
        self._held: list[Entry] = []  # what `_entries` begin with after all
        self._place: int | None = None  # the cookie that both go on behind
        self._begun_s: float | None = None  # when what is held first was
        # Of a directory that changes, as they were when it was opened or rewound: cookies stay
        # good.
        self._names: list[str] | None = None

    def begin(self) -> None:
        """Raise what keeps the directory from being listed, lest it be opened.

        Many a program takes an error while it lists for the end of the directory.
        """
        place = self._tree.locate(self.inode)
        if place.staged is not None and place.staged.require_listable(place.number):
            return
        if self._tree.names(self.inode) is not None:
            return
        first = next(self._entries_behind(0), None)
        self._held = [] if first is None else [first]
        self._place, self._begun_s = 0, time.monotonic()

    def behind(self, cookie: int) -> Iterator[Entry]:
        """Return the entries behind a cookie; those taken are gone. They may raise NotLoaded.

        Raises ListingLost: to leave out an entry would be worse.
        To ask for the next is to say that the kernel took the one before.
        """
        if cookie == 0 or self._names is None:
            names = self._tree.names(self.inode)
            if names is not None and cookie and self._goes_on:
                raise ListingLost("the mount's daemon ended while the directory was listed")
            if names is not None:
                self._names = names
        if self._names is None:
            return self._entries_behind(cookie)
        return self._named_behind(self._names, cookie)

    def put_back(self, cookie: int, entry: Entry) -> None:
        """Have the next listing behind `cookie` begin with `entry`."""
        # Not a chain before a chain: of those there would be one for each reply, each
        # asking the next (1,000,000 entries took 38 s of CPU more).
        self._held = [entry]
        self._place = cookie

    def _entries_behind(self, cookie: int) -> Iterator[Entry]:
        if self._begun_s is not None and time.monotonic() - self._begun_s > MUTABLE_S:
            self._place = None  # it was opened long before it is listed
        self._begun_s = None
        if self._place != cookie:
            self._entries = self._tree.children(self.inode, cookie)
            self._held = []
        self._place = None
        return itertools.chain(self._held, self._entries)

    def _named_behind(self, names: list[str], cookie: int) -> Iterator[Entry]:
        for place, name in enumerate(names[cookie:], cookie + 1):
            try:
                attributes = self._tree.lookup(self.inode, name)
            except NotFound:
                continue  # removed meanwhile, or nothing that can be in a dataset
            yield Entry(name, attributes, place)
            self._tree.kernel_learned(
                Inode(attributes.number)
            )  # it was taken: the next is asked for
