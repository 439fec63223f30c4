"""Changes: what a mount answers to who makes a dataset in it.

Everything below a staged dataset is passed through to its local directory; the
rest refuses as it should. What happens between two awaits is atomic for all
other requests: names and attributes are changed in the event loop, and only
what waits for the disk or the network (data, fsync, the state file) in threads.
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
    XAttrNameT,
)

from dserverfs import errors
from dserverfs.dataset_tree import Attributes
from dserverfs.freezer import Freezer
from dserverfs.frozen_edits import FrozenEdits
from dserverfs.local_files import with_own_descriptor
from dserverfs.operations.editing import INLINE_BYTES, EditingOperations, utf8
from dserverfs.operations.guard import guarded
from dserverfs.operations.incomplete import reason_of
from dserverfs.operations.pace import Pace
from dserverfs.operations.reading import AttributesOf, OpenFile, Ownership
from dserverfs.reader import Reader
from dserverfs.staged_tree import Changes, OpenStaged, StagedTree, is_for_writing
from dserverfs.staging import StagedDataset, Staging
from dserverfs.staging_state import State
from dserverfs.tree import Inode, Tree

logger = logging.getLogger(__name__)

R = TypeVar("R")

WRITE_TIMEOUT_S = 120.0
WRITE_THREADS = 8
FREEZE_ATTRIBUTE = b"user.dserverfs.freeze"
FREEZE_WAIT_S = 25.0


class Operations(EditingOperations):
    """A mount in which datasets can be made."""

    def __init__(
        self,
        tree: Tree,
        reader: Reader,
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
        entry = await super().lookup(parent_inode, name, ctx)
        self._told(entry)
        return entry

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
            tree, await self._change(tree, what, lambda: tree.change(number, changes))
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
            handle = await self._change(tree, what, lambda: tree.open(number, flags))
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
            tree, f"making {text}", lambda: tree.create(number, text, mode, flags)
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
                if error.errno != errno.ENOSPC or not await self._in_writer(
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

    # Making and removing names

    @guarded
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        base_uri = self._tree.base_uri_at(Inode(parent_inode))
        if base_uri is not None:
            return await self._make_dataset(base_uri, utf8(name), mode)
        tree, number, text = await self._parent(parent_inode, name)
        return self._staged_entry(
            tree,
            await self._change(
                tree, f"mkdir {text}", lambda: tree.make_directory(number, text, mode)
            ),
        )

    @guarded
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        tree, number, text = await self._parent(parent_inode, name)
        if not stat.S_ISREG(mode):
            await self._refuse(tree, f"{text} is a device, a pipe or a socket")
        return self._staged_entry(
            tree,
            await self._change(tree, f"mknod {text}", lambda: tree.make_file(number, text, mode)),
        )

    @guarded
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if await self._frozen(parent_inode):
            return await super().symlink(parent_inode, name, target, ctx)
        tree, _, text = await self._parent(parent_inode, name)
        await self._refuse(tree, f"{text} is a symbolic link")
        raise AssertionError  # _refuse raises

    @guarded
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if await self._frozen(new_parent_inode):
            return await super().link(inode, new_parent_inode, new_name, ctx)
        tree, parent, text = await self._parent(new_parent_inode, new_name)
        number = self._tree.number_in(tree, Inode(inode))
        if number is None:
            raise FUSEError(errno.EXDEV)
        return self._staged_entry(
            tree, await self._change(tree, f"link {text}", lambda: tree.link(number, parent, text))
        )

    @guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        if await self._frozen(parent_inode):
            return await super().unlink(parent_inode, name, ctx)
        tree, number, text = await self._parent(parent_inode, name)
        await self._change(tree, f"unlink {text}", lambda: tree.remove_file(number, text))

    @guarded
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        text = utf8(name)
        base_uri = self._tree.base_uri_at(Inode(parent_inode))
        if base_uri is not None:
            await self._discard_empty(base_uri, text)
            return
        tree, number, text = await self._parent(parent_inode, name)
        await self._change(tree, f"rmdir {text}", lambda: tree.remove_directory(number, text))

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
        old_base = self._tree.base_uri_at(Inode(parent_inode_old))
        new_base = self._tree.base_uri_at(Inode(parent_inode_new))
        if old_base is not None and new_base is not None:
            await self._rename_dataset(old_base, utf8(name_old), new_base, utf8(name_new))
            return
        if old_base is not None or new_base is not None:
            # Out of a base URI, or into one, where only datasets are.
            raise FUSEError(errno.EXDEV)
        if await self._frozen(parent_inode_old) and await self._frozen(parent_inode_new):
            await super().rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)
            return
        tree, old_parent, old = await self._parent(parent_inode_old, name_old)
        new_tree, new_parent, new = await self._parent(parent_inode_new, name_new)
        if new_tree is not tree:
            raise FUSEError(errno.EXDEV)
        await self._change(
            tree,
            f"rename of {old} to {new}",
            lambda: tree.rename(old_parent, old, new_parent, new, flags),
        )

    @guarded
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        staged = self._tree.staged(Inode(inode))
        if name != FREEZE_ATTRIBUTE or staged is None or staged[1] != StagedTree.ROOT:
            raise FUSEError(errno.EOPNOTSUPP)
        dataset = staged[0].staged
        if value in (b"manual", b"auto"):
            await self._on_disk(dataset.own)
            await self._on_disk(lambda: dataset.set_manual(value == b"manual"))
            self._freezer.watch(dataset)
        elif value == b"1":
            await self._freeze(dataset)
        else:
            raise FUSEError(errno.EINVAL)

    # Datasets

    async def _make_dataset(self, base_uri: str, name: str, mode: int) -> EntryAttributes:
        await self._loaded(lambda: self._tree.require_free(base_uri, name))
        username = self._tree.username()

        def create() -> StagedDataset:
            staged = self._staging.create(base_uri, name, username)
            self._freezer.watch(staged)  # here, for the disk may be slower than the request waits
            return staged

        staged = await self._on_disk(create)
        await self._on_disk(self._freezer.learn_limit)
        attributes = self._tree.show_staged(staged)
        found = self._tree.staged(Inode(attributes.number))
        assert found is not None
        tree, number = found
        return self._staged_entry(tree, tree.change(number, Changes(mode=stat.S_IMODE(mode))))

    async def _discard_empty(self, base_uri: str, name: str) -> None:
        staged = await self._loaded(lambda: self._tree.staged_named(base_uri, name))
        if staged is None:
            raise FUSEError(errno.EROFS)
        if os.listdir(staged.tree):
            raise FUSEError(errno.ENOTEMPTY)
        await self._on_disk(lambda: self._freezer.discard(staged))

    async def _rename_dataset(self, base_uri: str, old: str, new_base_uri: str, new: str) -> None:
        if new_base_uri != base_uri:
            raise FUSEError(errno.EXDEV)
        if old != new:
            await self._loaded(lambda: self._tree.rename_dataset(base_uri, old, new))

    async def _freeze(self, staged: StagedDataset) -> None:
        """Freeze and wait as long as a request may take."""
        job = self._freezer.freeze(staged)
        with trio.move_on_after(FREEZE_WAIT_S):
            await trio.to_thread.run_sync(
                job.result, abandon_on_cancel=True, limiter=self._write_limit
            )
            return
        raise FUSEError(errno.EINPROGRESS)

    # Helpers

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

    async def _change(self, tree: StagedTree, what: str, call: Callable[[], R]) -> R:
        """Return what `call` returns; if it fails as copies should not, disarm the dataset."""
        staged = tree.staged
        try:
            if not staged.is_owned or staged.record.state is not State.OPEN:
                # Off the event loop: this waits for the state file to be on the disk.
                await self._on_disk(staged.require_writable)
                self._freezer.watch(staged)
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

    async def _refuse(self, tree: StagedTree, what: str) -> None:
        """Raise CannotHold; what is refused counts as a write, for more of it may follow."""

        def refused() -> None:
            raise errors.CannotHold(f"{what}: a dataset cannot hold that")

        await self._change(tree, "refused", refused)

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

    def _told(self, entry: EntryAttributes) -> None:
        self._tree.told(Inode(entry.st_ino))
