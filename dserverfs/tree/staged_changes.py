"""Changes of staged datasets, and what an error of one means: may the copy still be complete?

Used by the file system. Names and attributes are changed at once; threads wait for what
waits for the disk (data, fsync, the state file) or the network. A change that fails as a
copy must not disarms its dataset: it is frozen by command only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NoReturn, TypeVar

from dserverfs.base import errors
from dserverfs.base.local_files import is_full, with_own_descriptor
from dserverfs.tree.attributes import Attributes, Changes
from dserverfs.tree.incomplete import reason_of
from dserverfs.tree.mount_tree import Inode, Tree
from dserverfs.tree.refusals import AcrossDatasets, Invalid, NotEmpty, StillGoingOn
from dserverfs.tree.staged_dataset import OpenStaged, StagedTree
from dserverfs.tree.steps import Limit, Steps, TookTooLong, blocking, loaded
from dserverfs.tree.write_latency import WriteLatency
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.refused_files import NOT_UTF8
from dserverfs.writing.staging.states import State

R = TypeVar("R")

# Smaller writes are done in the event loop: the hop to a thread costs as much as 100 KiB.
INLINE_BYTES = 32 * 1024


class StagedChanges:
    """The changes of one mount's staged datasets."""

    def __init__(
        self,
        tree: Tree,
        staging: Staging | None,
        freezer: Freezer,
        give_way: Callable[[int], bool],
        latency: WriteLatency,
    ) -> None:
        """Without `staging` no dataset can be made.

        `give_way` has the cache give that many bytes of the disk back, if it can.
        """
        self._tree = tree
        self._staging = staging
        self._freezer = freezer
        self._give_way = give_way
        self._latency = latency

    def free_space(self) -> os.statvfs_result | None:
        """Return the space for new data; None where no dataset can be made."""
        return None if self._staging is None else os.statvfs(self._staging.directory)

    # Files and directories

    def change(self, tree: StagedTree, what: str, call: Callable[[], R], thread: int) -> Steps[R]:
        """Return what `call` returns; if it fails as copies should not, disarm the dataset."""
        staged = tree.staged
        try:
            if not staged.is_owned or staged.record.state is not State.OPEN:
                # In a thread: this waits for the state file to be on the disk.
                yield from blocking(staged.require_writable, Limit.DISK)
                self._freezer.watch(staged)
            staged.written_by.wrote(thread)
            return call()
        except (OSError, errors.DserverfsError) as error:
            yield from self.note(tree, what, error)
            raise

    def refuse(self, tree: StagedTree, path: str, what: str, thread: int) -> Steps[NoReturn]:
        """Raise CannotHold; what is refused counts as a write, for more of it may follow."""

        def refused() -> NoReturn:
            tree.staged.refused.note(path, what)
            raise errors.CannotHold(f"{path} is a {what}: a dataset cannot hold that")

        return self.change(tree, "refused", refused, thread)

    def refuse_name(self, tree: StagedTree, path: str, error: errors.NotUTF8) -> Steps[None]:
        """Note that a file was refused for its name."""
        tree.staged.refused.note(path, NOT_UTF8)
        return self.note(tree, "a name", error)

    def note(self, tree: StagedTree, what: str, error: Exception) -> Steps[None]:
        """Disarm the dataset if after that error it may be incomplete."""
        reason = reason_of(error)
        if reason is not None:
            yield from blocking(lambda: tree.staged.disarm(f"{what}: {reason}"), Limit.DISK)

    def set_attributes(
        self, tree: StagedTree, number: int, changes: Changes, thread: int
    ) -> Steps[Attributes]:
        if changes.size_in_bytes is not None:
            self._require_size(tree, number, changes.size_in_bytes)
        if changes == Changes():
            # An owner, of which a dataset has none.
            return (yield from loaded(lambda: tree.attributes(number)))
        what = f"change of {tree.describe(number)}"
        return (yield from self.change(tree, what, lambda: tree.change(number, changes), thread))

    def write(self, handle: OpenStaged, offset: int, data: bytes) -> Steps[int]:
        tree = handle.tree
        self._require_size(tree, handle.node.number, offset + len(data))
        tree.begin_write(handle, offset)
        try:
            try:
                if len(data) <= INLINE_BYTES or self._latency.is_quick():
                    self._latency.write(handle.fd, data, offset)
                else:
                    yield from self._write_in_thread(handle, data, offset)
            except OSError as error:
                # Blocks of the cache can be fetched again.
                if not is_full(error) or not (
                    yield from blocking(lambda: self._give_way(len(data)), Limit.WRITE)
                ):
                    raise
                yield from self._write_in_thread(handle, data, offset)
        except (OSError, TookTooLong) as error:
            yield from self.note(tree, f"writing {tree.describe(handle.node.number)}", error)
            raise
        tree.end_write(handle, offset + len(data))
        return len(data)

    def sync(self, tree: StagedTree, number: int, call: Callable[[], None]) -> Steps[None]:
        try:
            yield from blocking(call, Limit.WRITE)
        except (OSError, TookTooLong) as error:
            yield from self.note(tree, f"fsync of {tree.describe(number)}", error)
            raise

    def _require_size(self, tree: StagedTree, number: int, size_in_bytes: int) -> None:
        limit = self._freezer.max_item_bytes
        if limit is not None and size_in_bytes > limit:
            path = tree.describe(number)
            error = errors.TooLarge(
                f"{path}: more than {limit} bytes, the most this server can have stored"
            )
            tree.staged.disarm(str(error))
            raise error

    def _write_in_thread(self, handle: OpenStaged, data: bytes, offset: int) -> Steps[None]:
        write = with_own_descriptor(handle.fd, lambda fd: self._latency.write(fd, data, offset))
        return blocking(write, Limit.WRITE)

    # Datasets themselves

    def make(self, base_uri: str, name: str, mode: int, thread: int) -> Steps[Attributes]:
        """Make a dataset; raises as `Tree.require_free`."""
        tree, staging, freezer = self._tree, self._staging, self._freezer
        if staging is None:
            raise errors.Frozen(f"{base_uri}: is mounted without datasets that can be made")
        yield from loaded(lambda: tree.require_free(base_uri, name))
        username = tree.username()

        def create() -> StagedDataset:
            staged = staging.create(base_uri, name, username)
            staged.written_by.wrote(thread)
            freezer.watch(staged)  # here, for the disk may be slower than the request waits
            return staged

        staged = yield from blocking(create, Limit.DISK)
        yield from blocking(freezer.learn_limit, Limit.DISK)
        root = tree.locate(Inode(tree.show_staged(staged).number))
        assert root.staged is not None
        changed = root.staged.change(root.number, Changes(mode=stat.S_IMODE(mode)))
        return tree.staged_attributes(root.staged, changed)

    def discard_empty(self, base_uri: str, name: str) -> Steps[None]:
        staged = yield from loaded(lambda: self._tree.staged_named(base_uri, name))
        if staged is None:
            raise errors.Frozen(f"{base_uri}/{name}: is frozen")
        if os.listdir(staged.tree):
            raise NotEmpty(f"{base_uri}/{name}: is not empty")
        yield from blocking(lambda: self._freezer.discard(staged), Limit.DISK)

    def rename(self, base_uri: str, old: str, new_base_uri: str, new: str) -> Steps[None]:
        if new_base_uri != base_uri:
            raise AcrossDatasets(f"{base_uri}/{old}: cannot move to {new_base_uri}")
        if old != new:
            yield from loaded(lambda: self._tree.rename_dataset(base_uri, old, new))

    def set_freezing(self, staged: StagedDataset, value: bytes) -> Steps[None]:
        """Freeze a dataset ("1"), or say when: `manual` or `auto`.

        Raises StillGoingOn if the freeze takes longer than a request may.
        """
        if value in (b"manual", b"auto"):
            yield from blocking(staged.own, Limit.DISK)
            yield from blocking(lambda: staged.set_manual(value == b"manual"), Limit.DISK)
            self._freezer.watch(staged)
        elif value == b"1":
            try:
                yield from blocking(self._freezer.freeze(staged).result, Limit.FREEZE)
            except TookTooLong as error:
                raise StillGoingOn(f"{staged}: is being frozen") from error
        else:
            raise Invalid(f"{value!r} is none of manual, auto and 1")
