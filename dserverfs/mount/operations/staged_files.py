"""Files of staged datasets: read, written, brought to the disk, and what errors mean for them.

Everything below a staged dataset is passed through to its local directory. What
happens between two awaits is atomic for all other requests: names and attributes
are changed in the event loop, and only what waits for the disk or the network
(data, fsync, the state file) in threads.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import TypeVar

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
)

from dserverfs.base import errors
from dserverfs.base.local_files import is_full, with_own_descriptor
from dserverfs.mount.operations import data_link
from dserverfs.mount.operations.editing import INLINE_BYTES, EditingOperations, utf8
from dserverfs.mount.operations.errnos import guarded
from dserverfs.mount.operations.handles import OpenDirectory, OpenFile, tell_dots
from dserverfs.mount.operations.incomplete import reason_of
from dserverfs.mount.operations.reading import AttributesOf, Ownership
from dserverfs.mount.operations.write_latency import Pace
from dserverfs.reading.block_reader import BlockReader
from dserverfs.tree.frozen_dataset import Attributes
from dserverfs.tree.mount_tree import NUMBER_MASK, Inode, Tree
from dserverfs.tree.staged_dataset import Changes, OpenStaged, StagedTree, is_for_writing
from dserverfs.writing.edits.edits import FrozenEdits
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.states import State

logger = logging.getLogger(__name__)

R = TypeVar("R")

WRITE_TIMEOUT_S = 120.0
WRITE_THREADS = 8


class StagedFileOperations(EditingOperations):
    """A mount in which the files of staged datasets are read and written."""

    def __init__(
        self,
        tree: Tree,
        reader: BlockReader,
        ownership: Ownership,
        staging: Staging,
        freezer: Freezer,
        give_way: Callable[[int], bool],
        edits: FrozenEdits,
        attributes_of: AttributesOf | None = None,
    ) -> None:
        """`give_way` has the cache give that many bytes of the disk back, if it can."""
        super().__init__(tree, reader, ownership, edits, attributes_of)
        self._staging = staging
        self._give_way = give_way
        self._freezer = freezer
        self._staged_handles: dict[FileHandleT, OpenStaged] = {}
        self._listings: dict[FileHandleT, list[str]] = {}
        self._write_limit = trio.CapacityLimiter(WRITE_THREADS)
        self._pace = Pace()

    # Names and attributes

    @guarded
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        staged = self._tree.staged(Inode(parent_inode)) if name == b"data" else None
        if staged is not None and data_link.is_shown(*staged, "data", ctx.pid):
            return data_link.as_link(self._staged_entry(staged[0], staged[0].data_link()))
        entry = await super().lookup(parent_inode, name, ctx)
        self._told(entry)
        return entry

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        entry = await super().getattr(inode, ctx)
        return data_link.as_link(entry) if self._is_link(inode) else entry

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        if self._is_link(inode):
            return data_link.TARGET
        return await super().readlink(inode, ctx)

    @guarded
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, times in inode_list:
            self._tree.forget(Inode(inode), times)

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        inode = self._directories[fh].inode
        staged = self._tree.staged(inode)
        if staged is not None and (start_id == 0 or fh not in self._listings):
            tree, number = staged
            names = tree.names(number)
            if names is not None:
                self._listings[fh] = names
        if fh not in self._listings:
            await super().readdir(fh, start_id, token)
            return
        start_id = tell_dots(token, start_id, InodeT(inode))
        # As it was when it was opened or rewound: cookies stay good while it changes.
        for place, name in enumerate(self._listings[fh][start_id:], start_id + 1):
            try:
                found = await self._loaded(lambda name=name: self._tree.lookup(inode, name))  # type: ignore[misc]
            except errors.NotFound:
                continue  # removed meanwhile, or nothing that can be in a dataset
            entry = self._entry(found)
            told = FileNameT(os.fsencode(name))
            if not pyfuse3.readdir_reply(token, told, entry, place):
                return
            self._told(entry)

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        self._listings.pop(fh, None)
        await super().releasedir(fh)

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = await super().statfs(ctx)
        free = os.statvfs(self._staging.directory)
        answer.f_bfree = free.f_bfree * free.f_frsize // answer.f_frsize
        answer.f_bavail = free.f_bavail * free.f_frsize // answer.f_frsize
        answer.f_blocks += answer.f_bfree
        answer.f_ffree, answer.f_favail = free.f_ffree, free.f_favail
        answer.f_files += free.f_ffree
        return answer

    @guarded
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        staged = self._tree.staged(Inode(inode))
        if staged is None:
            return await super().setattr(inode, attr, fields, fh, ctx)
        tree, number = staged
        changes = Changes(
            stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            attr.st_size if fields.update_size else None,
            attr.st_atime_ns if fields.update_atime else None,
            attr.st_mtime_ns if fields.update_mtime else None,
        )
        if changes.size_in_bytes is not None:
            self._require_size(tree, number, changes.size_in_bytes)
        if changes == Changes():
            return await self.getattr(inode, ctx)  # an owner, of which a dataset has none
        what = f"change of {tree.describe(number)}"
        return self._staged_entry(
            tree, await self._change(tree, what, lambda: tree.change(number, changes), ctx)
        )

    # Content

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        staged = self._tree.staged(Inode(inode))
        if staged is None:
            return await super().open(inode, flags, ctx)
        tree, number = staged
        if is_for_writing(flags):
            what = f"opening {tree.describe(number)}"
            handle = await self._change(tree, what, lambda: tree.open(number, flags), ctx)
        else:
            handle = tree.open(number, flags)
        if handle is None:  # frozen since the kernel looked it up
            return await super().open(inode, flags, ctx)
        return self._staged_handle(handle)

    @guarded
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        if await self._frozen(parent_inode):
            return await super().create(parent_inode, name, mode, flags, ctx)
        tree, number, text = await self._parent(parent_inode, name)
        attributes, handle = await self._change(
            tree, f"making {text}", lambda: tree.create(number, text, mode, flags), ctx
        )
        return self._staged_handle(handle), self._staged_entry(tree, attributes)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._staged_handles.get(fh)
        if handle is None:
            return await super().read(fh, off, size)
        return await self._read_file(OpenFile(handle.fd), off, size)

    @guarded
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        handle = self._staged_handles.get(fh)
        if handle is None or not handle.is_writable:
            return await super().write(fh, off, buf)
        tree = handle.tree
        self._require_size(tree, handle.node.number, off + len(buf))
        tree.begin_write(handle, off)
        try:
            try:
                if len(buf) <= INLINE_BYTES or self._pace.is_quick():
                    self._pace.write(handle.fd, buf, off)
                else:
                    await self._write_in_thread(handle, buf, off)
            except OSError as error:
                # What is in the cache can be fetched again.
                if not is_full(error) or not await self._in_writer(
                    lambda: self._give_way(len(buf))
                ):
                    raise
                await self._write_in_thread(handle, buf, off)
        except (OSError, trio.TooSlowError) as error:
            await self._note(tree, f"writing {tree.describe(handle.node.number)}", error)
            raise
        tree.end_write(handle, off + len(buf))
        return len(buf)

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        handle = self._staged_handles.pop(fh, None)
        if handle is None:
            await super().release(fh)
        else:
            handle.tree.release(handle)

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        handle = self._staged_handles.get(fh)
        if handle is None:
            return await super().fsync(fh, datasync)
        sync = os.fdatasync if datasync else os.fsync
        await self._sync(handle.tree, handle.node.number, lambda: sync(handle.fd))

    @guarded
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        staged = self._tree.staged(self._directories[fh].inode)
        if staged is not None:
            tree, number = staged
            await self._sync(tree, number, lambda: tree.sync_directory(number))

    # Helpers

    def _begin(self, directory: OpenDirectory) -> None:
        staged = self._tree.staged(directory.inode)
        if staged is None or not staged[0].require_listable(staged[1]):
            super()._begin(directory)

    async def _parent(self, inode: InodeT, name: FileNameT) -> tuple[StagedTree, int, str]:
        """Return the staged directory in which a name is to change, and the name."""
        if self._tree.base_uri_at(Inode(inode)) is not None:
            raise FUSEError(errno.EPERM)  # files beside datasets
        staged = self._tree.staged(Inode(inode))
        if staged is None:
            raise FUSEError(errno.EROFS)
        try:
            return *staged, utf8(name)
        except errors.NotUTF8 as error:
            await self._note(staged[0], "a name", error)
            raise

    async def _change(
        self, tree: StagedTree, what: str, call: Callable[[], R], ctx: RequestContext
    ) -> R:
        """Return what `call` returns; if it fails as copies should not, disarm the dataset."""
        staged = tree.staged
        try:
            if not staged.is_owned or staged.record.state is not State.OPEN:
                # Off the event loop: this waits for the state file to be on the disk.
                await self._on_disk(staged.require_writable)
                self._freezer.watch(staged)
            staged.written_by.wrote(ctx.pid)
            return call()
        except (OSError, trio.TooSlowError, errors.DserverfsError) as error:
            await self._note(tree, what, error)
            raise

    async def _sync(self, tree: StagedTree, number: int, call: Callable[[], None]) -> None:
        try:
            await self._in_writer(call)
        except (OSError, trio.TooSlowError) as error:
            await self._note(tree, f"fsync of {tree.describe(number)}", error)
            raise

    async def _note(self, tree: StagedTree, what: str, error: Exception) -> None:
        """Disarm the dataset if after that error it may be incomplete."""
        reason = reason_of(error)
        if reason is not None:
            await self._on_disk(lambda: tree.staged.disarm(f"{what}: {reason}"))

    async def _refuse(self, tree: StagedTree, what: str, ctx: RequestContext) -> None:
        """Raise CannotHold; what is refused counts as a write, for more of it may follow."""

        def refused() -> None:
            raise errors.CannotHold(f"{what}: a dataset cannot hold that")

        await self._change(tree, "refused", refused, ctx)

    def _require_size(self, tree: StagedTree, number: int, size_in_bytes: int) -> None:
        limit = self._freezer.max_item_bytes
        if limit is not None and size_in_bytes > limit:
            path = tree.describe(number)
            error = errors.TooLarge(
                f"{path}: more than {limit} bytes, the most this server can have stored"
            )
            tree.staged.disarm(str(error))
            raise error

    async def _write_in_thread(self, handle: OpenStaged, data: bytes, offset: int) -> None:
        write = with_own_descriptor(handle.fd, lambda fd: self._pace.write(fd, data, offset))
        await self._in_writer(write)

    async def _in_writer(self, call: Callable[[], R]) -> R:
        with trio.fail_after(WRITE_TIMEOUT_S):
            return await trio.to_thread.run_sync(
                call, abandon_on_cancel=True, limiter=self._write_limit
            )

    def _staged_handle(self, handle: OpenStaged) -> FileInfo:
        number = self._new_handle()
        self._staged_handles[number] = handle
        return FileInfo(fh=number, keep_cache=False)

    def _staged_entry(self, tree: StagedTree, attributes: Attributes) -> EntryAttributes:
        return self._entry(self._tree.staged_attributes(tree, attributes))

    def _is_link(self, inode: InodeT) -> bool:
        if not data_link.is_link(inode & NUMBER_MASK):  # nearly always
            return False
        return self._tree.staged(Inode(inode)) is not None

    def _told(self, entry: EntryAttributes) -> None:
        self._tree.told(Inode(entry.st_ino))
