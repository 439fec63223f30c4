"""What is open in a mount: directories that are being listed, items, local files, bytes.

Used by the operations, which number them. For one thread at a time: the event loop.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

import pyfuse3
from pyfuse3 import EntryAttributes, FileNameT, InodeT, ModeT, ReaddirToken

from dserverfs.tree.frozen_dataset import MUTABLE_S, Entry
from dserverfs.tree.mount_tree import Inode, Tree


class OpenDirectory:
    """A directory that is being listed.

    The kernel takes 20 entries at a time: looking each time for where to go on made
    a listing of 100,000 take 20 s.
    """

    def __init__(self, tree: Tree, inode: Inode) -> None:
        self._tree = tree
        self.inode = inode
        self._entries: Iterator[Entry] = iter(())
        self._held: list[Entry] = []  # what `_entries` begin with after all
        self._place: int | None = None  # the cookie that both go on behind
        self._begun_s: float | None = None  # when what is held first was

    def begin(self) -> None:
        """Have the first entries at hand."""
        first = next(self.behind(0), None)
        self._held = [] if first is None else [first]
        self._place, self._begun_s = 0, time.monotonic()

    def behind(self, cookie: int) -> Iterator[Entry]:
        """Return the entries behind a cookie; those taken are gone."""
        if self._begun_s is not None and time.monotonic() - self._begun_s > MUTABLE_S:
            self._place = None  # it was opened long before it is listed
        self._begun_s = None
        if self._place != cookie:
            self._entries = self._tree.children(self.inode, cookie)
            self._held = []
        self._place = None
        return itertools.chain(self._held, self._entries)

    def put_back(self, cookie: int, entry: Entry) -> None:
        """Have the next listing behind `cookie` begin with `entry`."""
        # Not a chain before a chain: of those there would be one for each reply, each
        # asking the next (1,000,000 entries took 38 s of CPU more).
        self._held = [entry]
        self._place = cookie


# Where a listing goes on behind `.` and `..`, which come first; no other entry's cookie.
_DOT, _DOT_DOT = 1 << 62, (1 << 62) + 1
# libfuse's FUSE_UNKNOWN_INO: nobody compares a directory by its parent's entry.
_UNKNOWN_INODE = 0xFFFFFFFF


def tell_dots(token: ReaddirToken, cookie: int, inode: InodeT) -> int:
    """Tell `.` and `..` if a listing of `inode` is there yet; return behind what it goes on.

    The kernel takes their numbers and kinds alone, and counts no look-up for them.
    """
    if cookie not in (0, _DOT, _DOT_DOT):
        return cookie
    entry = EntryAttributes()
    entry.st_mode = ModeT(stat.S_IFDIR)
    for name, number, behind in ((".", inode, _DOT), ("..", _UNKNOWN_INODE, _DOT_DOT)):
        if cookie < behind:
            entry.st_ino = InodeT(number)
            pyfuse3.readdir_reply(token, FileNameT(name.encode()), entry, behind)
    return 0


class OpenFile(NamedTuple):
    """A local file that is read as it is."""

    fd: int

    def read_nowait(self, offset: int, size: int) -> bytes | None:
        """Return what is read if it is in the page cache; None if a thread has to."""
        buffer = bytearray(size)
        try:
            read = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        # Less than asked for is the end of the file, or of what is in memory.
        return bytes(buffer) if read == size else None


class OpenBytes(NamedTuple):
    content: bytes
