"""Names: what a mount answers to who makes a dataset in it.

Everything below a staged dataset is passed through to its local directory; the
rest refuses as it should.
"""

from __future__ import annotations

import errno
import os
import stat

import trio
from pyfuse3 import (
    EntryAttributes,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    XAttrNameT,
)

from dserverfs.mount.operations.editing import utf8
from dserverfs.mount.operations.errnos import guarded
from dserverfs.mount.operations.incomplete import is_tried_only
from dserverfs.mount.operations.staged_files import StagedFileOperations
from dserverfs.tree.mount_tree import Inode
from dserverfs.tree.staged_dataset import Changes, StagedTree
from dserverfs.writing.staging.dataset import StagedDataset

FREEZE_ATTRIBUTE = b"user.dserverfs.freeze"
FREEZE_WAIT_S = 25.0


class Operations(StagedFileOperations):
    """A mount in which datasets can be made."""

    # Making and removing names

    @guarded
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        base_uri = self._tree.base_uri_at(Inode(parent_inode))
        if base_uri is not None:
            return await self._make_dataset(base_uri, utf8(name), mode, ctx)
        tree, number, text = await self._parent(parent_inode, name)
        return self._staged_entry(
            tree,
            await self._change(
                tree, f"mkdir {text}", lambda: tree.make_directory(number, text, mode), ctx
            ),
        )

    @guarded
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        tree, number, text = await self._parent(parent_inode, name)
        if not stat.S_ISREG(mode):
            path = tree.describe_entry(number, text)
            await self._refuse(tree, f"{path} is a device, a pipe or a socket", ctx)
        return self._staged_entry(
            tree,
            await self._change(
                tree, f"mknod {text}", lambda: tree.make_file(number, text, mode), ctx
            ),
        )

    @guarded
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if await self._frozen(parent_inode):
            return await super().symlink(parent_inode, name, target, ctx)
        tree, number, text = await self._parent(parent_inode, name)
        if is_tried_only(text, target):
            raise FUSEError(errno.EPERM)
        path = tree.describe_entry(number, text)
        await self._refuse(tree, f"{path} is a symbolic link", ctx)
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
            tree,
            await self._change(tree, f"link {text}", lambda: tree.link(number, parent, text), ctx),
        )

    @guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        if await self._frozen(parent_inode):
            return await super().unlink(parent_inode, name, ctx)
        tree, number, text = await self._parent(parent_inode, name)
        await self._change(tree, f"unlink {text}", lambda: tree.remove_file(number, text), ctx)

    @guarded
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        text = utf8(name)
        base_uri = self._tree.base_uri_at(Inode(parent_inode))
        if base_uri is not None:
            await self._discard_empty(base_uri, text)
            return
        tree, number, text = await self._parent(parent_inode, name)
        await self._change(tree, f"rmdir {text}", lambda: tree.remove_directory(number, text), ctx)

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
            ctx,
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

    async def _make_dataset(
        self, base_uri: str, name: str, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        await self._loaded(lambda: self._tree.require_free(base_uri, name))
        username = self._tree.username()

        def create() -> StagedDataset:
            staged = self._staging.create(base_uri, name, username)
            staged.written_by.wrote(ctx.pid)
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
