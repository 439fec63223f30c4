"""Names, attributes and content: what a mount answers as long as nobody writes."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from dserverfs.base import errors
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.limits import MAX_COMPONENT_BYTES, MAX_SIZE_BYTES
from dserverfs.catalogue.refreshed import NotLoaded
from dserverfs.mount.operations import waiting
from dserverfs.mount.operations.errnos import guarded
from dserverfs.mount.operations.handles import (
    OpenBytes,
    OpenDirectory,
    OpenFile,
    tell_dots,
)
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache.blocks import Block
from dserverfs.reading.open_item import OpenItem
from dserverfs.tree.frozen_dataset import Attributes, DatasetTree
from dserverfs.tree.mount_tree import Inode, Tree

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 120.0
METADATA_THREADS = 24
DISK_THREADS = 8

XATTR_PREFIX = b"user.dtool."
_DIRECTORY, _FILE = stat.S_IFDIR, stat.S_IFREG

R = TypeVar("R")
T = TypeVar("T")

# Of a number in a dataset, by name without the prefix; raises NotLoaded.
AttributesOf = Callable[[DatasetTree, int], Mapping[str, str]]


class Ownership(NamedTuple):
    """Who owns what the mount shows, and which mode bits are taken away."""

    uid: int
    gid: int
    umask: int


class ReadOnlyOperations(pyfuse3.Operations):
    """A mount that shows frozen datasets."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        tree: Tree,
        reader: BlockReader,
        ownership: Ownership,
        attributes_of: AttributesOf | None = None,
    ) -> None:
        """`attributes_of` gives a number's extended attributes; None for a mount without."""
        super().__init__()
        self._attributes_of = attributes_of
        self._tree = tree
        self._reader = reader
        self._ownership = ownership
        self._handles: dict[FileHandleT, OpenItem | OpenFile | OpenBytes] = {}
        self._directories: dict[FileHandleT, OpenDirectory] = {}
        self._listed = self._blank_entry()
        self._last_handle = 0
        # For the reply to one read: pyfuse3 sends it before anything else runs in the loop.
        self._reply = memoryview(bytearray(BLOCK_SIZE))
        # Limits of their own, so that stalled reads do not delay `ls`.
        self._metadata_limit = trio.CapacityLimiter(METADATA_THREADS)
        self._disk_limit = trio.CapacityLimiter(DISK_THREADS)

    # Names and attributes

    @guarded
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        text = text_of(name)
        return self._entry(await self._loaded(lambda: self._tree.lookup(Inode(parent_inode), text)))

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._loaded(lambda: self._tree.attributes(Inode(inode))))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Do nothing: inode numbers stand for the life of the mount."""

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        attributes = await self._loaded(lambda: self._tree.attributes(Inode(inode)))
        if not attributes.is_directory:
            raise FUSEError(errno.ENOTDIR)
        directory = OpenDirectory(self._tree, Inode(inode))
        await self._loaded(lambda: self._begin(directory))
        handle = self._new_handle()
        self._directories[handle] = directory
        return handle

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        directory = self._directories[fh]
        start_id = tell_dots(token, start_id, InodeT(directory.inode))

        def reply() -> None:
            # Nothing is told before the first entry is there: a second call after
            # NotLoaded goes on behind what was told.
            nonlocal start_id
            for entry in directory.behind(start_id):
                _fill(self._listed, entry.attributes, self._ownership.umask)
                name = FileNameT(entry.name.encode("utf-8"))
                if not pyfuse3.readdir_reply(token, name, self._listed, entry.cookie):
                    directory.put_back(start_id, entry)
                    return
                start_id = entry.cookie

        await self._loaded(reply)

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        del self._directories[fh]

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        totals = self._tree.totals()
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        # Of a hundred datasets, each may say that it has as much as there can be.
        answer.f_blocks = -(-min(totals.size_in_bytes, MAX_SIZE_BYTES) // 4096)
        answer.f_bfree = answer.f_bavail = 0
        answer.f_files = totals.number_of_items
        answer.f_ffree = answer.f_favail = 0
        answer.f_namemax = MAX_COMPONENT_BYTES
        return answer

    # Content

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND):
            raise FUSEError(errno.EROFS)
        content = await self._loaded(lambda: self._tree.content(Inode(inode)))
        handle = self._new_handle()
        if isinstance(content, ItemContent):
            self._handles[handle] = OpenItem(
                self._reader, content, lambda: _forget_pages(content, inode)
            )
            return FileInfo(fh=handle, keep_cache=True)
        if isinstance(content, Path):
            self._handles[handle] = OpenFile(os.open(content, os.O_RDONLY | os.O_CLOEXEC))
            return FileInfo(fh=handle, keep_cache=True)
        self._handles[handle] = OpenBytes(content)
        return FileInfo(fh=handle, keep_cache=False)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        if isinstance(handle, OpenBytes):
            return handle.content[off : off + size]
        if isinstance(handle, OpenFile):
            return await self._read_file(handle, off, size)
        data = handle.read_nowait(off, size, self._reply)
        if data is None:
            data = await self._read_item(handle, off, size)
        return data  # type: ignore[return-value]  # pyfuse3 takes any buffer, its stub says bytes

    async def _read_item(self, item: OpenItem, offset: int, size: int) -> Buffer:
        wanted = item.request_blocks(offset, size)
        is_here = not any(isinstance(entry, Future) for entry in wanted)
        if is_here and item.verification_pending() is None:
            # A cancel scope costs as much as the rest of a read.
            data = item.cut_nowait(cast("list[Block]", wanted), offset, size)
            if data is not None:
                return data
        try:
            with trio.fail_after(self._reader.read_timeout_s):
                while True:
                    blocks = [
                        await waiting.result(entry) if isinstance(entry, Future) else entry
                        for entry in item.request_blocks(offset, size)
                    ]
                    pending = item.verification_pending()
                    if pending is None:
                        break
                    await waiting.result(pending)
                data = item.cut_nowait(blocks, offset, size)
                if data is None:
                    data = await self._in_thread(lambda: item.cut(blocks, offset, size))
                return data
        except trio.TooSlowError:
            # The kernel asks once more for what failed, and must not wait as long again.
            item.give_up(offset, size)
            raise

    async def _read_file(self, file: OpenFile, offset: int, size: int) -> bytes:
        data = file.read_nowait(offset, size)
        if data is None:
            data = await self._on_disk(lambda: os.pread(file.fd, size, offset))
        return data

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        handle = self._handles.pop(fh)
        if isinstance(handle, OpenFile):
            os.close(handle.fd)
        elif isinstance(handle, OpenItem):
            handle.close()

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Succeed: nothing here was written."""

    @guarded
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Succeed: nothing here was written."""

    # Frozen means frozen

    @guarded
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        raise FUSEError(errno.EROFS)

    @guarded
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        raise FUSEError(errno.EROFS)

    @guarded
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EROFS)

    @guarded
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EROFS)

    @guarded
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EROFS)

    @guarded
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        raise FUSEError(errno.EROFS)

    @guarded
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        raise FUSEError(errno.EROFS)

    @guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        raise FUSEError(errno.EROFS)

    @guarded
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        raise FUSEError(errno.EROFS)

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        raise FUSEError(errno.EINVAL)

    # Extended attributes

    @guarded
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        if self._attributes_of is None:
            raise FUSEError(errno.ENOSYS)  # the kernel does not ask again
        if not name.startswith(XATTR_PREFIX):
            raise FUSEError(pyfuse3.ENOATTR)
        known = await self._loaded(lambda: self._dtool_attributes(Inode(inode)))
        try:
            return known[name[len(XATTR_PREFIX) :].decode("utf-8", "replace")].encode()
        except KeyError:
            raise FUSEError(pyfuse3.ENOATTR) from None

    @guarded
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Tell of none, so that `cp -a` does not copy them."""
        if self._attributes_of is None:
            raise FUSEError(errno.ENOSYS)
        return []

    def _dtool_attributes(self, inode: Inode) -> Mapping[str, str]:
        place, number = self._tree.place_of(inode)
        if self._attributes_of is None or not isinstance(place, DatasetTree):
            return {}
        return self._attributes_of(place, number)

    # flush and access answer ENOSYS, pyfuse3's default, on purpose: the kernel then never
    # asks again, which spares a request at every close. So do extended attributes, unless
    # the user wants them.

    # Helpers

    def _begin(self, directory: OpenDirectory) -> None:
        """Raise what keeps a directory from being listed, lest it be opened.

        Many a program takes an error while it lists for the end of the directory.
        """
        directory.begin()

    async def _loaded(self, call: Callable[[], R]) -> R:
        """Return what `call` returns, loading what it lacks."""
        try:
            return call()  # nearly always; entering a cancel scope costs as much as a look-up
        except NotLoaded as missing:
            return await waiting.loaded(call, missing, self._metadata_limit)

    async def _on_disk(self, call: Callable[[], R]) -> R:
        with trio.fail_after(READ_TIMEOUT_S):
            return await self._in_thread(call)

    async def _in_thread(self, call: Callable[[], R]) -> R:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._disk_limit)

    def _new_handle(self) -> FileHandleT:
        self._last_handle += 1
        return FileHandleT(self._last_handle)

    def _entry(self, attributes: Attributes) -> EntryAttributes:
        entry = self._blank_entry()
        _fill(entry, attributes, self._ownership.umask)
        return entry

    def _blank_entry(self) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_uid = self._ownership.uid
        entry.st_gid = self._ownership.gid
        entry.st_blksize = 4096
        return entry


def _forget_pages(content: ItemContent, inode: InodeT) -> None:
    """Let the kernel forget the bytes of an item that turned out wrong; called in any thread."""

    def invalidate() -> None:
        try:
            pyfuse3.invalidate_inode(inode)
        except OSError as error:
            logger.warning("the kernel may keep wrong bytes of %s: %s", content.key, error)

    # In a thread of its own: it waits for pages under read, of which some wait for us.
    threading.Thread(target=invalidate, name="invalidate", daemon=True).start()


def _fill(entry: Any, attributes: Attributes, umask: int) -> None:
    """Set everything that differs from one EntryAttributes to another.

    Not typed as one, and with every field by its name: a listing of 100,000 waits for
    nothing else as long, and making pyfuse3's types of numbers took a third of it.
    """
    (
        number,
        is_directory,
        permissions,
        size_in_bytes,
        mtime_ns,
        believed_s,
        number_of_links,
        blocks,
        atime_ns,
        ctime_ns,
    ) = attributes
    entry.st_ino = number
    entry.st_mode = (_DIRECTORY if is_directory else _FILE) | permissions & ~umask
    # Of a directory 1 says that links are not counted, as btrfs does; from 2 on, programs take
    # it for the number of its subdirectories and 2, and do not look for more.
    entry.st_nlink = 1 if number_of_links is None else number_of_links
    entry.st_size = size_in_bytes
    entry.st_blocks = -(-size_in_bytes // 512) if blocks is None else blocks
    entry.st_mtime_ns = mtime_ns
    entry.st_atime_ns = mtime_ns if atime_ns is None else atime_ns
    entry.st_ctime_ns = mtime_ns if ctime_ns is None else ctime_ns
    entry.entry_timeout = entry.attr_timeout = believed_s


def text_of(name: FileNameT) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.NotFound(f"{name!r} is not UTF-8, as every name here is") from None
