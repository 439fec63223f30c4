"""The open files and directories of one mount, by handle, also of a daemon before this one.

Used by the operations, in the event loop. The channel opens items by itself, and a daemon whose
place this one took had files open: what is read of these is opened here when it is used. What was
open for writing is lost with the daemon: nobody knows which writes were on their way, so each
write through it fails from then on, and no half of a file is taken for the whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable

from pyfuse3 import FileHandleT, InodeT

from dserverfs.base.errors import DserverfsError
from dserverfs.base.items import ItemContent
from dserverfs.mount.channel.frozen import FIRST_HANDLE
from dserverfs.mount.channel.handles import NO_HANDLES, Inherited, Use
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.open_item import OpenItem
from dserverfs.tree.filesystem import FileSystem
from dserverfs.tree.listing import OpenDirectory
from dserverfs.tree.mount_tree import Inode
from dserverfs.tree.open_files import OpenFile
from dserverfs.tree.steps import Steps

# Makes the steps of an operation, and returns what they return.
Finish = Callable[[Steps[ItemContent | OpenFile]], Awaitable[ItemContent | OpenFile]]


class WriterLost(DserverfsError):
    """A file was open for writing in a daemon that has ended."""


class LostFile:
    """A file that was open for writing in a daemon before: it is read, and not written to."""

    keeps_pages = False
    has_size = True

    def __init__(self, file_system: FileSystem, inode: Inode) -> None:
        self._fs = file_system
        self._inode = inode
        self._opened: ItemContent | OpenFile | None = None

    def read(self, offset: int, size: int) -> Steps[bytes]:
        if self._opened is None:
            self._opened = yield from self._fs.open(self._inode, os.O_RDONLY, 0)
        if isinstance(self._opened, ItemContent):
            raise WriterLost("its dataset is frozen: open the file again")
        return (yield from self._opened.read(offset, size))

    def write(self, offset: int, data: bytes) -> Steps[int]:
        raise self.error()

    def sync(self, *, data_only: bool) -> Steps[None]:
        raise self.error()

    def error(self) -> WriterLost:
        """Return what is raised by every change through it."""
        path = self._fs.describe(self._inode)
        return WriterLost(f"{path}: the mount's daemon ended while it was written: write it again")

    def close(self) -> None:
        if self._opened is not None and not isinstance(self._opened, ItemContent):
            self._opened.close()


class OpenHandles:
    """Those of one mount."""

    def __init__(
        self,
        file_system: FileSystem,
        reader: BlockReader,
        on_wrong: Callable[[ItemContent, InodeT], None],
        inherited: Inherited = NO_HANDLES,
    ) -> None:
        """`on_wrong` is called in any thread, of an item whose bytes turned out wrong.

        `inherited` were opened by a daemon before.
        """
        self._fs = file_system
        self._reader = reader
        self._on_wrong = on_wrong
        self._last = inherited.last
        self.files: dict[FileHandleT, OpenItem | OpenFile] = {}
        self.directories: dict[FileHandleT, OpenDirectory] = {}
        self.inodes: dict[FileHandleT, InodeT] = {}  # of what the files have open
        self._inherited: dict[int, int] = {}  # inodes of what is not opened yet, by handle
        for number, (inode, use) in inherited.opened.items():
            handle = FileHandleT(number)
            if use == Use.LISTS:
                self.directories[handle] = file_system.directory_again(Inode(inode))
            else:
                self.inodes[handle] = InodeT(inode)
                if use == Use.WRITES:
                    self.files[handle] = LostFile(file_system, Inode(inode))
                else:
                    self._inherited[handle] = inode

    def new(self) -> FileHandleT:
        self._last += 1
        return FileHandleT(self._last)

    def keep(self, opened: ItemContent | OpenFile, inode: InodeT) -> FileHandleT:
        """Return a new handle of what was opened."""
        handle = self.new()
        self._keep_as(handle, opened, inode)
        return handle

    def close(self, handle: FileHandleT) -> None:
        """Close a file; raises KeyError for no handle."""
        del self.inodes[handle]
        if self._inherited.pop(handle, None) is None:
            self.files.pop(handle).close()

    def close_of_channel(self, fh: int) -> None:
        """Close what the channel had opened, if it was open here, too."""
        handle = FileHandleT(fh)
        self.inodes.pop(handle, None)
        if (opened := self.files.pop(handle, None)) is not None:
            opened.close()

    async def open(self, fh: int, inode: int, finish: Finish) -> None:
        """Open what is open elsewhere, and not here."""
        if self._is_elsewhere(fh):
            found = await finish(self._fs.open(Inode(inode), os.O_RDONLY, 0))
            if self._is_elsewhere(fh):  # not by another read meanwhile
                self._keep_as(FileHandleT(fh), found, InodeT(inode))

    def at_once(self, fh: int, inode: int) -> OpenItem | OpenFile | None:
        """Return what is open, also elsewhere; None if that has to be waited for."""
        if self._is_elsewhere(fh):
            with contextlib.closing(self._fs.open(Inode(inode), os.O_RDONLY, 0)) as steps:
                try:
                    next(steps)
                except StopIteration as opened:
                    self._keep_as(FileHandleT(fh), opened.value, InodeT(inode))
                except DserverfsError:
                    return None  # `open` meets it again, and tells it
        return self.files.get(FileHandleT(fh))

    def _is_elsewhere(self, fh: int) -> bool:
        return (fh >= FIRST_HANDLE or fh in self._inherited) and FileHandleT(fh) not in self.files

    def _keep_as(self, handle: FileHandleT, found: ItemContent | OpenFile, inode: InodeT) -> None:
        if isinstance(found, ItemContent):
            item = found
            self.files[handle] = OpenItem(self._reader, item, lambda: self._on_wrong(item, inode))
        else:
            self.files[handle] = found
        self.inodes[handle] = inode
        self._inherited.pop(handle, None)
