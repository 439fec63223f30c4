"""The door of the kernel: each FUSE request is passed to the file system, and answered.

Every handler runs in trio's event loop, is guarded (any other exception than FUSEError
would end the mount) and bounded in time, because the kernel waits uninterruptibly and
pyfuse3 delivers no interrupts. Requests that memory answers are answered in the event loop;
only loads, fetches and writes that block hop to a thread or wait for a future.

flush and access answer ENOSYS, pyfuse3's default, on purpose: the kernel then never
asks again, which spares a request at every close. So do extended attributes, unless
the user wants them.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.mount import invalidation, replies
from dserverfs.mount.callers import Callers
from dserverfs.mount.channel.handles import NO_HANDLES, Inherited
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.messages import MAX_BLOCKS
from dserverfs.mount.errnos import Told, guarded
from dserverfs.mount.open_handles import LostFile, OpenHandles
from dserverfs.mount.recent_errors import RecentErrors
from dserverfs.mount.replies import Ownership
from dserverfs.mount.request_counts import RequestCounts
from dserverfs.mount.told_rows import ToldRows
from dserverfs.mount.traces import Traces
from dserverfs.mount.waiting import Waiting
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.open_item import OpenItem
from dserverfs.reading.traced_items import TracedItem
from dserverfs.tree.attributes import Changes
from dserverfs.tree.filesystem import FileSystem
from dserverfs.tree.mount_tree import Inode
from dserverfs.tree.open_files import OpenFile

logger = logging.getLogger(__name__)

# The arguments that have a directory and a name in it, in the order in which they count.
_ENTRIES = (
    ("new_parent_inode", "new_name"),
    ("parent_inode_old", "name_old"),
    ("parent_inode", "name"),
)


class Operations(pyfuse3.Operations):
    """The requests of one mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        file_system: FileSystem,
        reader: BlockReader,
        ownership: Ownership,
        recent_errors: RecentErrors,
        counts: RequestCounts,
        channel: Link | None = None,
        told: ToldRows | None = None,
        *,
        others_read: bool | None = None,
        inherited: Inherited = NO_HANDLES,
    ) -> None:
        """`told` is what the channel is told of.

        `others_read` says whether other users may read; None leaves that to the kernel.
        `inherited` was opened by a daemon before.
        """
        super().__init__()
        self._channel = channel
        self._told = told
        self.counts = counts
        self.callers: Callers | None = None
        if others_read is not None:
            self.callers = Callers(ownership.uid, self._permissions, others_read=others_read)
        self._fs = file_system
        self._errors = recent_errors
        self._reader = reader
        self._ownership = ownership
        waiting = Waiting()
        self._answer, self._finish, self._read = waiting.answer, waiting.finish, waiting.read
        self._open = OpenHandles(file_system, reader, self._forget_pages, inherited)
        self.traces = Traces(on_change=self._trace_changed)
        self._traced: dict[FileHandleT, Sequence[TracedItem]] = {}
        self._listed = ownership.blank_entry()
        # For the reply to one read: pyfuse3 sends it before anything else runs in the loop.
        self._reply = memoryview(bytearray(BLOCK_SIZE))
        self.begun = trio.Event()  # the kernel's first request is answered

    def init(self) -> None:
        self.begun.set()

    # Names and attributes

    @guarded
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = Inode(parent_inode)
        found = None
        try:
            found = await self._answer(lambda: self._fs.lookup(parent, name, ctx.pid))
            return self._ownership.entry(found)
        finally:
            if self._told is not None:
                if found is not None:
                    self._told.noticed(Inode(found.number))
                self._told.looked_up(parent, is_found=found is not None)

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._ownership.entry(await self._answer(lambda: self._fs.getattr(Inode(inode))))

    @guarded
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            attr.st_size if fields.update_size else None,
            attr.st_atime_ns if fields.update_atime else None,
            attr.st_mtime_ns if fields.update_mtime else None,
        )
        handle = None if fh is None else self._open.files.get(fh)
        if isinstance(handle, LostFile) and fields.update_size:
            raise handle.error()
        file = None if isinstance(handle, OpenItem) else handle
        return self._ownership.entry(
            await self._finish(self._fs.setattr(Inode(inode), changes, file, ctx.pid))
        )

    @guarded
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, times in inode_list:
            self._fs.forget(Inode(inode), times)

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self._fs.readlink(Inode(inode)))

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return replies.space(self._fs.statfs())

    @guarded
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        return await self._answer(lambda: self._fs.getxattr(Inode(inode), name))

    @guarded
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return [XAttrNameT(name) for name in self._fs.listxattr(Inode(inode))]

    @guarded
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        await self._finish(self._fs.setxattr(Inode(inode), name, value))

    # Directories

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        handle = self._open.new()
        directory = await self._answer(lambda: self._fs.opendir(Inode(inode)))
        self._open.directories[handle] = directory
        if self._told is not None:
            self._told.noticed(Inode(inode))
        return handle

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        directory = self._open.directories[fh]
        start_id = replies.tell_dots(token, start_id, InodeT(directory.inode))

        def reply() -> None:
            # Nothing is told before the first entry is there: a second call after
            # NotLoaded goes on behind what was told.
            nonlocal start_id
            for entry in directory.behind(start_id):
                replies.fill(self._listed, entry.attributes, self._ownership.umask)
                name = FileNameT(entry.name.encode("utf-8", "surrogateescape"))
                if not pyfuse3.readdir_reply(token, name, self._listed, entry.cookie):
                    directory.put_back(start_id, entry)
                    return
                start_id = entry.cookie

        await self._answer(reply)

    @guarded
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self._finish(self._fs.fsyncdir(self._open.directories[fh]))

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        del self._open.directories[fh]

    # Content

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        found = await self._finish(self._fs.open(Inode(inode), flags, ctx.pid))
        handle = self._open.keep(found, inode)
        if isinstance(found, ItemContent):
            traced = self.traces.opened(found, ctx.pid) if self.traces.active else None
            if traced:
                self._traced[handle] = traced
                if self._channel is not None:  # what it answers is not noted
                    self._channel.forget(inode)
            # What the kernel has already would not be asked for, and not be noted.
            return replies.opened(handle, keeps_pages=not traced)
        return replies.opened(handle, keeps_pages=found.keeps_pages, has_size=found.has_size)

    @guarded
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        file, attributes = await self._finish(
            self._fs.create(Inode(parent_inode), name, mode, flags, ctx.pid)
        )
        handle = self._open.keep(file, InodeT(attributes.number))
        info = replies.opened(handle, keeps_pages=file.keeps_pages)
        return info, self._ownership.entry(attributes)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._open.files[fh]
        if not isinstance(handle, OpenItem):
            content = await self._finish(handle.read(off, size))
            self.counts.read_bytes += len(content)
            return content
        data = handle.read_nowait(off, size, self._reply)
        if data is None:
            self.counts.reads_that_waited += 1
            data = await self._read(handle, off, size, self._reader.read_timeout_s)
        else:
            self.counts.reads_at_once += 1
        self.counts.read_bytes += len(data)
        if self._traced and (traced := self._traced.get(fh)):
            self.traces.read(traced, off, len(data))
        return data  # type: ignore[return-value]  # pyfuse3 takes any buffer, its stub says bytes

    # For a channel

    @guarded
    async def tell_rows(self, inode: int, number: int) -> None:
        """Tell the channel a piece of the rows that count from an inode."""
        told = self._told
        assert told is not None  # only a channel asks for rows
        await self._answer(lambda: told.tell(Inode(inode), number))

    @guarded
    async def open_as_channel(self, inode: int, fh: int) -> None:
        """Open what the channel or a daemon before has opened, and is read now."""
        await self._open.open(fh, inode, self._finish)

    def released_by_channel(self, fh: int) -> None:
        """Close what the channel had opened, if it was open here, too."""
        self._open.close_of_channel(fh)

    def _trace_changed(self, is_active: bool) -> None:
        if self._channel is not None:  # what it opens is not noted
            self._channel.let_open(not is_active)

    def read_at_once(self, fh: int, off: int, size: int, inode: int) -> Buffer | None:
        """Read as `read`, if nothing has to be waited for and nothing is wrong; else return None.

        What was read is then told to the channel, which answers the next such read.
        """
        begun_s = perf_counter()
        handle = FileHandleT(fh)
        item = self._open.at_once(fh, inode)
        if not isinstance(item, OpenItem):
            return None
        try:
            data = item.read_nowait(off, size, self._reply)
        except DserverfsError:
            return None  # `read` meets it again, and tells it
        if data is None:
            return None
        self.counts.reads_at_once += 1
        self.counts.read_bytes += len(data)
        if self._traced and (traced := self._traced.get(handle)):
            self.traces.read(traced, off, len(data))
        self.tell_blocks(fh, off)
        self.counts.done("read", perf_counter() - begun_s)
        return data

    def tell_blocks(self, fh: int, off: int) -> None:
        """Let the channel read the block that was read just now, and others of its item."""
        handle = FileHandleT(fh)
        item = self._open.files.get(handle)
        # What the channel answers is not noted.
        if self._channel is None or self._traced or not isinstance(item, OpenItem):
            return
        if blocks := item.shareable(off // BLOCK_SIZE, MAX_BLOCKS):
            self._channel.tell(self._open.inodes[handle], blocks)
            if item.is_dropped:  # in another thread, since the blocks were looked at
                self._channel.forget(self._open.inodes[handle])

    def touched(self, fh: int, off: int, size: int, inode: int) -> None:
        """Note that the channel has answered a read."""
        if FileHandleT(fh) not in self._open.files and self._channel is not None:
            only = self._channel.only_block(inode)
            # It need not be opened: nothing of it is to be read ahead, and the next items are
            # when one of them is read here.
            if only is not None:
                self._reader.flight.note_use(only)
                return
        item = self._open.at_once(fh, inode)
        if isinstance(item, OpenItem):
            item.touched(off, size)

    @guarded
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        count = await self._finish(self._file(fh).write(off, buf))
        self.counts.written_bytes += count
        return count

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if not isinstance(self._open.files.get(fh), OpenItem | None):
            await self._finish(self._file(fh).sync(data_only=datasync))

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        self._traced.pop(fh, None)
        self._open.close(fh)

    # Making and removing names

    @guarded
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._ownership.entry(
            await self._finish(self._fs.mkdir(Inode(parent_inode), name, mode, ctx.pid))
        )

    @guarded
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._ownership.entry(
            await self._finish(self._fs.mknod(Inode(parent_inode), name, mode, ctx.pid))
        )

    @guarded
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        await self._finish(self._fs.symlink(Inode(parent_inode), name, target, ctx.pid))
        raise AssertionError  # no dataset holds links: it was refused

    @guarded
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        steps = self._fs.link(Inode(inode), Inode(new_parent_inode), new_name, ctx.pid)
        return self._ownership.entry(await self._finish(steps))

    @guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._finish(self._fs.unlink(Inode(parent_inode), name, ctx.pid))

    @guarded
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._finish(self._fs.rmdir(Inode(parent_inode), name, ctx.pid))

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
        old, new = Inode(parent_inode_old), Inode(parent_inode_new)
        await self._finish(self._fs.rename(old, name_old, new, name_new, flags, ctx.pid))

    # Errors

    def remember(self, request: str, arguments: Mapping[str, Any], told: Told) -> None:
        try:
            self._errors.note(request, self._path(arguments), told)
        except Exception:  # nothing but FUSEError may leave a handler
            logger.exception("a fault of ours: an error is not remembered")

    def _path(self, arguments: Mapping[str, Any]) -> str:
        """Return the path that a request is about."""
        for parent, name in _ENTRIES:
            if parent in arguments:
                above = self._fs.describe(Inode(arguments[parent]))
                return f"{above}/{os.fsdecode(arguments[name])}".lstrip("/")
        inode = arguments.get("inode")
        if inode is None and (handle := arguments.get("fh")) is not None:
            directory = self._open.directories.get(handle)
            inode = directory.inode if directory is not None else self._open.inodes.get(handle)
        return self._fs.describe(Inode(inode or pyfuse3.ROOT_INODE))

    # Helpers

    async def _permissions(self, inode: int) -> int:
        """Return what the mode of an inode, as it is shown, lets other users do."""
        attributes = await self._answer(lambda: self._fs.getattr(Inode(inode)))
        return attributes.permissions & ~self._ownership.umask & stat.S_IRWXO

    def _forget_pages(self, content: ItemContent, inode: InodeT) -> None:
        """Let the kernel forget bytes of an item that turned out wrong; called in any thread."""
        invalidation.of_pages(self._channel, inode, content.key)

    def _file(self, handle: FileHandleT) -> OpenFile:
        file = self._open.files[handle]
        assert not isinstance(file, OpenItem)  # the kernel writes to no item: it was not opened so
        return file
