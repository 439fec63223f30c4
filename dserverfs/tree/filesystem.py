"""The file system of a mount: every request of the kernel's as a method, without a kernel.

Used by the mount, which knows FUSE and threads. A plain method answers at once, or raises
NotLoaded: then the caller loads and asks again. An operation that may have to wait is
steps (see `steps`). Errors are dserverfs's own, and OSError from the local disk. For one
thread at a time: the event loop.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dserverfs.base.descriptors import require_spare
from dserverfs.base.errors import Frozen, NotUTF8
from dserverfs.base.items import ItemContent
from dserverfs.tree.afterlife import LINK
from dserverfs.tree.attributes import Attributes, Changes
from dserverfs.tree.frozen_changes import FrozenChanges
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.tree.incomplete import is_tried_only
from dserverfs.tree.listing import OpenDirectory
from dserverfs.tree.mount_tree import Inode, Totals, Tree
from dserverfs.tree.names import looked_up, utf8
from dserverfs.tree.open_files import OpenBytes, OpenFile, OpenStagedFile, opened
from dserverfs.tree.own_files import CONTROL_FILE, STATS_FILE
from dserverfs.tree.refusals import (
    AcrossDatasets,
    Invalid,
    NoAttribute,
    NoAttributes,
    NotADirectory,
    NotPermitted,
    NotSettable,
    OnlyTried,
)
from dserverfs.tree.staged_changes import StagedChanges
from dserverfs.tree.staged_dataset import DATA_LINK, StagedTree, is_for_writing
from dserverfs.tree.steps import Limit, Steps, blocking, loaded
from dserverfs.tree.write_latency import WriteLatency
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging import refused_files
from dserverfs.writing.staging.area import Staging

XATTR_PREFIX = b"user.dtool."
FREEZE_ATTRIBUTE = b"user.dserverfs.freeze"

# Of a number in a dataset, by name without the prefix; raises NotLoaded.
AttributesOf = Callable[[DatasetTree, int], Mapping[str, str]]


class Space(NamedTuple):
    """The numbers of `df`: all that the datasets hold, and the space for new ones."""

    used: Totals
    free: os.statvfs_result | None


class _Directory(NamedTuple):
    """A directory of a staged dataset in which a name is to change."""

    tree: StagedTree
    number: int
    name: str


class FileSystem:
    """The answers of one mount."""

    def __init__(
        self,
        tree: Tree,
        freezer: Freezer,
        give_way: Callable[[int], bool],
        *,
        staging: Staging | None = None,
        edits: DatasetEdits | None = None,
        umask: int = 0,
        attributes_of: AttributesOf | None = None,
        stats: Callable[[], str] = str,
        latency: WriteLatency | None = None,
    ) -> None:
        """`give_way` has the cache give that many bytes of the disk back, if it can.

        `staging` and `edits` are the tree's. `umask` are the mode bits that the mount takes
        away. `attributes_of` gives a number's extended attributes; None for a mount without.
        `stats` gives the text of `.dserverfs/stats`; it may block. `latency` is that of the
        staging area's disk.
        """
        self._tree = tree
        self._frozen = FrozenChanges(edits, umask)
        self._staged = StagedChanges(tree, staging, freezer, give_way, latency or WriteLatency())
        self._attributes_of = attributes_of
        self._stats = stats

    # Names and attributes

    def lookup(self, parent: Inode, name: bytes, thread: int) -> Attributes:
        """Return the attributes of an entry that the kernel is told of."""
        if name == b"data":
            place = self._tree.locate(parent)
            tree = place.staged
            if tree is not None and tree.shows_link(place.number, thread):
                return self._tree.staged_attributes(tree, tree.data_link())
        attributes = self._tree.lookup(parent, looked_up(name))
        self._tree.kernel_learned(Inode(attributes.number))
        return attributes

    def describe(self, inode: Inode) -> str:
        return self._tree.describe(inode)

    def getattr(self, inode: Inode) -> Attributes:
        return self._tree.attributes(inode)

    def forget(self, inode: Inode, times: int) -> None:
        self._tree.forget(inode, times)

    def readlink(self, inode: Inode) -> bytes:
        place = self._tree.locate(inode)
        if place.number == LINK and place.staged is not None:
            return DATA_LINK
        target = self._tree.link_target(inode)
        if target is None:
            raise Invalid(f"inode {inode} is no link")
        return target

    def opendir(self, inode: Inode) -> OpenDirectory:
        """Return a directory to be listed, with its first entries loaded."""
        if not self._tree.attributes(inode).is_directory:
            raise NotADirectory(f"inode {inode} is a file")
        directory = OpenDirectory(self._tree, inode)
        directory.begin()
        return directory

    def directory_again(self, inode: Inode) -> OpenDirectory:
        """Return a directory that a daemon before had opened, to be listed on; asks nothing."""
        return OpenDirectory(self._tree, inode, goes_on=True)

    def statfs(self) -> Space:
        return Space(self._tree.totals(), self._staged.free_space())

    def setattr(
        self, inode: Inode, changes: Changes, handle: OpenFile | None, thread: int
    ) -> Steps[Attributes]:
        """Change attributes; `handle` is the file if it is open."""
        place = self._tree.locate(inode)
        if (tree := place.staged) is not None:
            changed = yield from self._staged.set_attributes(tree, place.number, changes, thread)
            return self._tree.staged_attributes(tree, changed)
        frozen = yield from loaded(place.frozen)
        if frozen is None:
            raise Frozen("it is a directory above datasets")
        yield from self._frozen.change(frozen, changes, handle)
        return (yield from loaded(lambda: self._tree.attributes(inode)))

    # Content

    def open(self, inode: Inode, flags: int, thread: int) -> Steps[ItemContent | OpenFile]:
        """Return an open file, or the item that is to be read."""
        place = self._tree.locate(inode)
        if not place.is_item:  # nearly always it is, and then there is nothing to look for
            if (tree := place.staged) is not None:
                found = yield from self._open_staged(tree, place.number, flags, thread)
                if found is not None:
                    return found
            if place.tree is None and not is_for_writing(flags):
                if place.number == STATS_FILE:
                    text = yield from blocking(self._stats, Limit.DISK)
                    return OpenBytes(text.encode(), has_size=False)
                if place.number == CONTROL_FILE and (control := self._tree.own.control):
                    return OpenBytes(control)
            require_spare()
            frozen = yield from loaded(place.frozen)
            if frozen is not None:
                return (yield from self._frozen.open(frozen, flags, thread))
        if is_for_writing(flags) or flags & os.O_APPEND:
            raise Frozen("it is in a frozen dataset")
        return opened((yield from loaded(lambda: self._tree.content(inode))))

    def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, thread: int
    ) -> Steps[tuple[OpenFile, Attributes]]:
        frozen = yield from loaded(self._tree.locate(parent).frozen)
        if frozen is not None:
            require_spare()
            made = yield from self._frozen.create(frozen, name, mode, flags, thread)
            try:
                return made, (yield from loaded(lambda: self.lookup(parent, name, thread)))
            except BaseException:
                made.close()
                raise
        tree, number, text = yield from self._parent(parent, name)
        attributes, handle = yield from self._staged.change(
            tree, f"making {text}", lambda: tree.create(number, text, mode, flags), thread
        )
        file = OpenStagedFile(self._staged, handle)
        return file, self._tree.staged_attributes(tree, attributes)

    def fsyncdir(self, directory: OpenDirectory) -> Steps[None]:
        place = self._tree.locate(directory.inode)
        if (tree := place.staged) is not None:
            number = place.number
            yield from self._staged.sync(tree, number, lambda: tree.sync_directory(number))

    # Making and removing names

    def mkdir(self, parent: Inode, name: bytes, mode: int, thread: int) -> Steps[Attributes]:
        base_uri = yield from self._base_uri(parent)
        if base_uri is not None:
            return (yield from self._staged.make(base_uri, utf8(name), mode, thread))
        tree, number, text = yield from self._parent(parent, name)
        made = yield from self._staged.change(
            tree, f"mkdir {text}", lambda: tree.make_directory(number, text, mode), thread
        )
        return self._tree.staged_attributes(tree, made)

    def mknod(self, parent: Inode, name: bytes, mode: int, thread: int) -> Steps[Attributes]:
        tree, number, text = yield from self._parent(parent, name)
        if not stat.S_ISREG(mode):
            path = tree.describe_entry(number, text)
            yield from self._staged.refuse(tree, path, refused_files.SPECIAL, thread)
        made = yield from self._staged.change(
            tree, f"mknod {text}", lambda: tree.make_file(number, text, mode), thread
        )
        return self._tree.staged_attributes(tree, made)

    def symlink(self, parent: Inode, name: bytes, target: bytes, thread: int) -> Steps[None]:
        """Refuse: no dataset holds links."""
        frozen = yield from loaded(self._tree.locate(parent).frozen)
        if frozen is not None:
            yield from self._frozen.refuse_link(frozen, name)
        tree, number, text = yield from self._parent(parent, name)
        if is_tried_only(text, target):
            raise OnlyTried(f"{text}: a dataset holds no links")
        path = tree.describe_entry(number, text)
        yield from self._staged.refuse(tree, path, refused_files.LINK, thread)

    def link(
        self, inode: Inode, new_parent: Inode, new_name: bytes, thread: int
    ) -> Steps[Attributes]:
        frozen = yield from loaded(self._tree.locate(new_parent).frozen)
        if frozen is not None:
            yield from self._frozen.refuse_link(frozen, new_name)
        tree, parent, text = yield from self._parent(new_parent, new_name)
        file = self._tree.locate(inode)
        if file.tree is not tree:
            raise AcrossDatasets(f"{text}: cannot be a name of a file of another dataset")
        made = yield from self._staged.change(
            tree, f"link {text}", lambda: tree.link(file.number, parent, text), thread
        )
        return self._tree.staged_attributes(tree, made)

    def unlink(self, parent: Inode, name: bytes, thread: int) -> Steps[None]:
        frozen = yield from loaded(self._tree.locate(parent).frozen)
        if frozen is not None:
            yield from self._frozen.remove(frozen, name)
            return
        tree, number, text = yield from self._parent(parent, name)
        yield from self._staged.change(
            tree, f"unlink {text}", lambda: tree.remove_file(number, text), thread
        )

    def rmdir(self, parent: Inode, name: bytes, thread: int) -> Steps[None]:
        text = utf8(name)
        base_uri = yield from self._base_uri(parent)
        if base_uri is not None:
            yield from self._staged.discard_empty(base_uri, text)
            return
        tree, number, text = yield from self._parent(parent, name)
        yield from self._staged.change(
            tree, f"rmdir {text}", lambda: tree.remove_directory(number, text), thread
        )

    def rename(
        self,
        old_parent: Inode,
        old_name: bytes,
        new_parent: Inode,
        new_name: bytes,
        flags: int,
        thread: int,
    ) -> Steps[None]:
        old_base = yield from self._base_uri(old_parent)
        new_base = yield from self._base_uri(new_parent)
        if old_base is not None and new_base is not None:
            yield from self._staged.rename(old_base, utf8(old_name), new_base, utf8(new_name))
            return
        if old_base is not None or new_base is not None:
            # Out of a base URI, or into one, where only datasets are.
            raise AcrossDatasets(f"{old_base or new_base}: holds datasets, and nothing else")
        frozen = yield from loaded(self._tree.locate(old_parent).frozen)
        new_frozen = yield from loaded(self._tree.locate(new_parent).frozen)
        if frozen is not None and new_frozen is not None:
            yield from self._frozen.rename(frozen, old_name, new_frozen, new_name, flags, thread)
            return
        tree, number, old = yield from self._parent(old_parent, old_name)
        new_tree, new_number, new = yield from self._parent(new_parent, new_name)
        if new_tree is not tree:
            raise AcrossDatasets(f"{old} cannot become {new} of another dataset")
        yield from self._staged.change(
            tree,
            f"rename of {old} to {new}",
            lambda: tree.rename(number, old, new_number, new, flags),
            thread,
        )

    # Extended attributes

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        if self._attributes_of is None:
            raise NoAttributes("mounted without --xattr")
        frozen = None
        if name.startswith(XATTR_PREFIX):
            frozen = self._tree.locate(inode).frozen()
        known = {} if frozen is None else self._attributes_of(*frozen)
        value = known.get(name[len(XATTR_PREFIX) :].decode("utf-8", "replace"))
        if value is None:
            raise NoAttribute(f"inode {inode} has no {name!r}")
        return value.encode()

    def listxattr(self, inode: Inode) -> Sequence[bytes]:
        """Tell of none, so that `cp -a` does not copy them."""
        if self._attributes_of is None:
            raise NoAttributes("mounted without --xattr")
        return []

    def setxattr(self, inode: Inode, name: bytes, value: bytes) -> Steps[None]:
        place = self._tree.locate(inode)
        tree = place.staged
        if name != FREEZE_ATTRIBUTE or tree is None or place.number != StagedTree.ROOT:
            raise NotSettable(f"inode {inode} has no {name!r} to be set")
        yield from self._staged.set_freezing(tree.staged, value)

    # Helpers

    def _open_staged(
        self, tree: StagedTree, number: int, flags: int, thread: int
    ) -> Steps[OpenFile | None]:
        """Return the open file; None if it is frozen since the kernel looked it up."""
        if is_for_writing(flags):
            what = f"opening {tree.describe(number)}"
            handle = yield from self._staged.change(
                tree, what, lambda: tree.open(number, flags), thread
            )
        else:
            handle = tree.open(number, flags)
        return None if handle is None else OpenStagedFile(self._staged, handle)

    def _parent(self, inode: Inode, name: bytes) -> Steps[_Directory]:
        """Return the staged directory in which a name is to change."""
        place = self._tree.locate(inode)
        tree = place.staged
        if tree is None:
            if (yield from self._base_uri(inode)) is not None:
                raise NotPermitted("files cannot be beside datasets")
            raise Frozen("it is in a frozen dataset")
        try:
            return _Directory(tree, place.number, utf8(name))
        except NotUTF8 as error:
            path = tree.describe_entry(place.number, os.fsdecode(name))
            yield from self._staged.refuse_name(tree, path, error)
            raise

    def _base_uri(self, inode: Inode) -> Steps[str | None]:
        return loaded(lambda: self._tree.base_uri_at(inode))
