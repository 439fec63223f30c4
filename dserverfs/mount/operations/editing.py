"""Edits: what a mount answers to who rewrites a README, a tag, an annotation of a frozen dataset.

Everything else that is frozen refuses with EROFS. What the server has to be asked
or told waits in threads of their own; local files are changed in the event loop.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

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
    RequestContext,
    SetattrFields,
)

from dserverfs.base import errors
from dserverfs.base.local_files import with_own_descriptor
from dserverfs.base.model import Dataset
from dserverfs.base.processes import Processes
from dserverfs.mount.operations.errnos import guarded
from dserverfs.mount.operations.handles import OpenBytes, OpenFile
from dserverfs.mount.operations.reading import AttributesOf, Ownership, ReadOnlyOperations
from dserverfs.reading.block_reader import BlockReader
from dserverfs.remote.versions import Reader
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.tree.mount_tree import Inode, Tree
from dserverfs.tree.staged_dataset import is_for_writing
from dserverfs.writing.edits.editable import Kind, target_of
from dserverfs.writing.edits.edits import FrozenEdits
from dserverfs.writing.edits.local_file import EditHandle

R = TypeVar("R")

# Smaller writes are done in the event loop: the hop to a thread costs as much as 100 KiB.
INLINE_BYTES = 32 * 1024
EDIT_TIMEOUT_S = 60.0  # twice what one request to the server may take
EDIT_THREADS = 8


class EditingOperations(ReadOnlyOperations):
    """A mount in which what can change of frozen datasets can be changed."""

    def __init__(
        self,
        tree: Tree,
        reader: BlockReader,
        ownership: Ownership,
        edits: FrozenEdits,
        attributes_of: AttributesOf | None = None,
    ) -> None:
        super().__init__(tree, reader, ownership, attributes_of)
        self._edits = edits
        self._processes = Processes()
        self._edit_handles: dict[FileHandleT, EditHandle] = {}
        self._tag_handles: set[FileHandleT] = set()  # a tag has no content
        self._edit_limit = trio.CapacityLimiter(EDIT_THREADS)

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if self._tree.is_item(Inode(inode)):  # nearly always, and then nothing to look for
            return await super().open(inode, flags, ctx)
        place = await self._frozen(inode)
        if place is None:
            return await super().open(inode, flags, ctx)
        tree, number = place
        file = tree.local_file(number)
        if is_for_writing(flags):
            path = self._changeable(tree, number)
            await self._require(tree.dataset, path)
            if _is_tag(path):
                return self._tag_handle()
            reader = self._reader_of(ctx)
            handle = await self._loaded(
                lambda: self._edits.open_file(tree.dataset, path, flags, reader)
            )
        elif file is not None:
            if file.path is not None:
                self._edits.was_read(tree.dataset, file.path, b"", self._reader_of(ctx))
            handle = self._edits.open_local(file)
        else:
            opened = await super().open(inode, flags, ctx)
            shown, shown_path = self._handles[opened.fh], tree.path(number)
            if isinstance(shown, OpenBytes) and shown_path is not None:
                self._edits.was_read(tree.dataset, shown_path, shown.content, self._reader_of(ctx))
            return opened
        return self._edit_handle(handle)

    @guarded
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        dataset, path = await self._entry_path(parent_inode, name)
        await self._require(dataset, path)
        if _is_tag(path):
            await self._in_editor(lambda: self._edits.put_tag(dataset, path))
            opened = self._tag_handle()
        else:
            reader = self._reader_of(ctx)
            opened = self._edit_handle(self._edits.create(dataset, path, mode, flags, reader))
        try:
            return opened, await self.lookup(parent_inode, name, ctx)
        except BaseException:
            await self.release(opened.fh)
            raise

    @guarded
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        handle = self._edit_handles.get(fh)
        if fh in self._tag_handles:
            raise errors.CannotHold("a tag has no content")
        if handle is None or not handle.is_writable:
            raise FUSEError(errno.EBADF)
        if len(buf) <= INLINE_BYTES:
            self._edits.write(handle, buf, off)
        else:
            await self._with_copy(handle, lambda copy: self._edits.write(copy, buf, off))
        return len(buf)

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        self._tag_handles.discard(fh)
        handle = self._edit_handles.pop(fh, None)
        if handle is None:
            await super().release(fh)
        else:
            del self._handles[fh]
            self._edits.release(handle)

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        handle = self._edit_handles.get(fh)
        if handle is not None:
            await self._with_copy(handle, self._edits.sync)

    @guarded
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        handle = self._edit_handles.get(fh) if fh is not None else None
        place = await self._frozen(inode)
        if place is None:
            return await super().setattr(inode, attr, fields, fh, ctx)
        tree, number = place
        if handle is not None and handle.file.path is None:
            if fields.update_size:  # its name is gone, and nobody asks for the rest
                self._edits.truncate(handle, attr.st_size)
            return await self.getattr(inode, ctx)
        path = self._changeable(tree, number)
        await self._require(tree.dataset, path)
        if fields.update_size:
            await self._truncate(tree.dataset, path, handle, attr.st_size)
        if fields.update_mode:
            await self._set_mode(tree, number, path, stat.S_IMODE(attr.st_mode))
        if fields.update_mtime:
            self._edits.set_mtime(tree.dataset, path, attr.st_mtime_ns)
        # An owner is none of a dataset's; editors set the one they found.
        return await self.getattr(inode, ctx)

    @guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        dataset, path = await self._entry_path(parent_inode, name)
        await self._require(dataset, path)
        await self._in_editor(lambda: self._edits.remove(dataset, path))

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
        dataset, old = await self._entry_path(parent_inode_old, name_old)
        other, new = await self._entry_path(parent_inode_new, name_new)
        if other.uri != dataset.uri:
            raise FUSEError(errno.EXDEV)
        await self._require(dataset, old)
        await self._require(dataset, new)
        reader = self._reader_of(ctx)
        await self._in_editor(lambda: self._edits.rename(dataset, old, new, flags, reader))

    @guarded
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        # EPERM: what tells an editor that links are not to be had here.
        dataset, path = await self._entry_path(parent_inode, name)
        await self._require(dataset, path)
        raise FUSEError(errno.EPERM)

    @guarded
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        dataset, path = await self._entry_path(new_parent_inode, new_name)
        await self._require(dataset, path)
        raise FUSEError(errno.EPERM)

    # Helpers

    def _reader_of(self, ctx: RequestContext) -> Reader:
        """Return the process that asks, which has perhaps read what it is about to change."""
        process = self._processes.of_thread(ctx.pid)
        return process.identity if process else None

    async def _frozen(self, inode: InodeT) -> tuple[DatasetTree, int] | None:
        """Return the frozen dataset that an inode is in, and its number there."""
        return await self._loaded(lambda: self._tree.frozen(Inode(inode)))

    def _changeable(self, tree: DatasetTree, number: int) -> str:
        """Return the path of a file that may perhaps be changed; all others are frozen."""
        path = tree.path(number)
        if path is None or (target_of(path) is None and tree.local_file(number) is None):
            raise FUSEError(errno.EROFS)
        return path

    async def _entry_path(self, parent: InodeT, name: FileNameT) -> tuple[Dataset, str]:
        """Return the dataset and the path in it of an entry outside `data`; EROFS elsewhere."""
        place = await self._frozen(parent)
        directory = place[0].path(place[1]) if place else None
        if place is None or directory is None:
            raise FUSEError(errno.EROFS)
        text = utf8(name)
        return place[0].dataset, f"{directory}/{text}" if directory else text

    async def _require(self, dataset: Dataset, path: str) -> None:
        await self._in_editor(lambda: self._edits.require(dataset, path))

    async def _truncate(
        self, dataset: Dataset, path: str, handle: EditHandle | None, size_in_bytes: int
    ) -> None:
        if _is_tag(path):
            if size_in_bytes:
                raise errors.CannotHold("a tag has no content")
        elif handle is not None and handle.is_writable:
            self._edits.truncate(handle, size_in_bytes)
        else:
            flags = os.O_WRONLY | (0 if size_in_bytes else os.O_TRUNC)
            opened = await self._loaded(lambda: self._edits.open_file(dataset, path, flags))
            try:
                self._edits.truncate(opened, size_in_bytes)
                await self._with_copy(opened, self._edits.sync)
            finally:
                self._edits.release(opened)

    async def _set_mode(self, tree: DatasetTree, number: int, path: str, mode: int) -> None:
        if tree.local_file(number) is not None:
            self._edits.set_mode(tree.dataset, path, mode)
            return
        shown = await self._loaded(lambda: tree.attributes(number))
        if mode & 0o777 != shown.permissions & ~self._ownership.umask:
            raise errors.Frozen(f"{tree.dataset.uri}: the server keeps no mode of {path}")

    async def _in_editor(self, call: Callable[[], R]) -> R:
        with trio.fail_after(EDIT_TIMEOUT_S):
            return await trio.to_thread.run_sync(
                call, abandon_on_cancel=True, limiter=self._edit_limit
            )

    async def _with_copy(self, handle: EditHandle, call: Callable[[EditHandle], None]) -> None:
        copying = with_own_descriptor(handle.fd, lambda fd: call(handle._replace(fd=fd)))
        await self._in_editor(copying)

    def _edit_handle(self, handle: EditHandle) -> FileInfo:
        number = self._new_handle()
        self._edit_handles[number] = handle
        self._handles[number] = OpenFile(handle.fd)
        return FileInfo(fh=number, keep_cache=False)

    def _tag_handle(self) -> FileInfo:
        number = self._new_handle()
        self._tag_handles.add(number)
        self._handles[number] = OpenBytes(b"")
        return FileInfo(fh=number, keep_cache=False)


def utf8(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.NotUTF8(f"{name!r}: names in datasets are UTF-8") from None


def _is_tag(path: str) -> bool:
    target = target_of(path)
    return target is not None and target.kind is Kind.TAG
