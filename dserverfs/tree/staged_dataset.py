"""The inside of a staged dataset: a local directory passed through, then the frozen dataset.

Used by the mount's tree, which gives it a slot of inode numbers, and by the
operations. Everything a file system does is done to the local directory; what a
dataset cannot hold is refused. Once the dataset is frozen the same numbers show
its frozen content, so what a process has open, or works in, stays good. Blocking
on the local disk only; for one thread at a time.

Raises OSError as the local disk says, NotFound, and Frozen.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from dserverfs.base.dtool_layout import DATA, METADATA
from dserverfs.base.errors import Frozen, NameTooLong, NotFound
from dserverfs.base.limits import (
    MAX_RELPATH_COMPONENTS,
    MAX_STORED_RELPATH_BYTES,
    relpath_can_be_stored,
)
from dserverfs.base.local_files import RENAME_EXCHANGE
from dserverfs.base.model import Dataset
from dserverfs.tree.afterlife import FIRST_NODE, LINK, Afterlife
from dserverfs.tree.attributes import LINK_MODE, MUTABLE_S, Attributes, Changes, Entry
from dserverfs.tree.frozen_dataset import OWN, Content, DatasetTree
from dserverfs.tree.inode_numbers import Key, Node, Nodes
from dserverfs.tree.number_journal import NOTHING, Known, NumberJournal, following, of_kind
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.refused_files import TOO_LONG
from dserverfs.writing.staging.staged_files import StagedFiles, Target
from dserverfs.writing.staging.survey import is_item_at_the_top

DATA_LINK = b"."
NODE, BECAME = "node", "became"  # kinds of what the journal keeps
# A program that copies a directory looks at what is there before it makes its own: one of the
# source that is called `data` has to become one here, even if other items were copied before it.
_COPIERS = frozenset(
    {"7z", "7za", "7zz", "bsdtar", "caja", "cp", "cpio", "dolphin", "git", "install", "kioworker"}
    | {"mc", "mv", "nautilus", "nemo", "pcmanfm", "rclone", "rsync", "scp", "sftp-server", "tar"}
    | {"Thunar", "thunar", "unzip"}
)


_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

R = TypeVar("R")


class OpenStaged(NamedTuple):
    """A file handle."""

    fd: int
    node: Node
    is_writable: bool
    tree: StagedTree

    @property
    def inode(self) -> int:
        """The number that the local file system has for it."""
        return self.node.key[1]


class StagedTree:
    """One staged dataset."""

    ROOT = OWN

    def __init__(
        self,
        staged: StagedDataset,
        frozen_tree: Callable[[Dataset], DatasetTree],
        journal: NumberJournal = NOTHING,
        slot: int = 0,
    ) -> None:
        """`journal` keeps the numbers, of which `slot` are these, for another daemon.

        Raises OSError if its directory is gone, and it was not when it was listed.
        """
        self.staged = staged
        self._slot = slot
        key = (0, 0) if staged.is_gone else _key_of(str(staged.tree))
        note = journal.of(NODE, slot)
        self._nodes = Nodes(str(staged.tree), key, OWN, FIRST_NODE, note)
        self._files = StagedFiles(staged.hash_ahead)
        self._has_link = True
        self._then = Afterlife(staged, self._nodes, frozen_tree, journal.of(BECAME, slot))
        # The dataset it becomes, and the number that stands there for another one of here.
        self.frozen = self._then.frozen
        self.number_now = self._then.number_now

    def restore(self, known: Known) -> None:
        """Take the numbers that another daemon gave; before anything is asked.

        Of files that were deleted after the freeze nobody can see which they were: they were those.
        """
        is_gone = self.staged.is_gone
        self._nodes.restore(
            of_kind(known, NODE, self._slot),
            following(known, FIRST_NODE, NODE, self._slot),
            lambda path, key: is_gone or _key_of_entry(path) == key,
        )

    # Reading

    def attributes(self, number: int) -> Attributes:
        """Return the attributes of a number; raises NotFound."""
        if number == LINK:
            return self._while_staged(self.data_link) or self._then.attributes(number)
        return self._while_staged(
            lambda: self._attributes(self._nodes.get(number))
        ) or self._then.attributes(number)

    def lookup(self, number: int, name: str) -> Attributes:
        """Return the attributes of an entry; raises NotFound. `kernel_learned` is the caller's."""
        return self._while_staged(
            lambda: self._entry(self._nodes.get(number), name)
        ) or self._then.lookup(number, name)

    def shows_link(self, number: int, thread: int) -> bool:
        """Return True if `data` in a directory is the link, for the thread that asks."""
        return (
            self.has_link(number, DATA) and self.staged.written_by.name_of(thread) not in _COPIERS
        )

    def has_link(self, number: int, name: str) -> bool:
        """Return whether a name in a directory is the link that `data` is where it is nothing else.

        It leads to the items, so that a path is good before and after the freeze. It is
        there from the first item on; before that, `mkdir data` makes dtool's layout. A link,
        and not a directory: the kernel follows it by itself in all that is done below, and
        each item keeps one place. No listing shows it.
        """
        if name != DATA or number != self.ROOT or not self._has_link or self.frozen() is not None:
            return False
        names = os.listdir(self.staged.tree)
        excluded = self.staged.excluded
        return DATA not in names and any(
            is_item_at_the_top(name) and name not in excluded for name in names
        )

    def data_link(self) -> Attributes:
        """Return the attributes of that link."""
        mtime_ns = os.stat(self.staged.tree).st_mtime_ns
        return Attributes(LINK, False, LINK_MODE, len(DATA_LINK), mtime_ns, 0.0)

    def children(self, number: int, cookie: int) -> Iterator[Entry]:
        """Yield the entries of a directory of the frozen dataset behind `cookie`."""
        return self._then.children(number, cookie)

    def names(self, number: int) -> list[str] | None:
        """Return what a staged directory holds now, sorted; None once it is frozen."""
        return self._while_staged(lambda: sorted(os.listdir(self._local(number))))

    def require_listable(self, number: int) -> bool:
        """Return whether a staged directory can be listed; raises OSError. False once frozen."""
        with self._then.passing_on():
            if self.frozen() is None:
                os.close(os.open(self._local(number), _LIST))
                return True
        return False

    def content(self, number: int) -> Content:
        """Return what a file of the frozen dataset holds."""
        return self._then.tree().content(self.number_now(number))

    def kernel_learned(self, number: int) -> None:
        """Note that the kernel was told of a number that `lookup` gave."""
        if number >= FIRST_NODE and not self._then.has_begun:
            self._nodes.tell(number)

    def forget(self, number: int, times: int) -> None:
        """Note that the kernel forgot a number."""
        if not self._then.has_begun:
            self._nodes.forget(number, times)

    # Files

    def open(self, number: int, flags: int) -> OpenStaged | None:
        """Open a file; None if it has to be read from the frozen dataset. Raises Frozen."""
        if is_for_writing(flags):
            with self._changing():
                return self._open(self._nodes.get(number), flags & os.O_TRUNC, writable=True)
        return self._while_staged(lambda: self._open(self._nodes.get(number), 0, writable=False))

    def create(
        self, number: int, name: str, mode: int, flags: int
    ) -> tuple[Attributes, OpenStaged]:
        """Make a file and open it; raises OSError if it is there and `flags` has O_EXCL."""
        with self._changing():
            directory, path = self._new_path(number, name)
            fd = self._files.create(path, mode, flags)
            try:
                node = self._nodes.seen(directory, name, os.fstat(fd))
                self._nodes.tell(node.number)
                attributes = self._shown(directory, name, self._attributes(node))
            except BaseException:
                os.close(fd)
                raise
            return attributes, self._opened(node, fd, writable=is_for_writing(flags))

    def make_file(self, number: int, name: str, mode: int) -> Attributes:
        """Make an empty file, as mknod does."""
        with self._changing():
            directory, path = self._new_path(number, name)
            os.close(self._files.create(path, mode, os.O_EXCL))
            return self._told(directory, name)

    def begin_write(self, handle: OpenStaged, offset: int) -> None:
        """Note that something is about to be written at `offset`."""
        self._files.begin_write(handle.inode, handle.fd, offset)

    def end_write(self, handle: OpenStaged, end: int) -> None:
        """Note that all that was begun to be written is, up to `end`."""
        self._files.end_write(handle.inode, handle.fd, end)
        self.staged.changed()

    def release(self, handle: OpenStaged) -> None:
        """Close a file."""
        if handle.is_writable:
            self._files.end_writing(handle.inode, handle.fd)
        os.close(handle.fd)
        self._nodes.closed(handle.node, handle.fd)
        if handle.is_writable:
            self.staged.writer_closed()

    def change(self, number: int, changes: Changes) -> Attributes:
        """Change mode, size and times; return the attributes then."""
        with self._changing():
            node = self._nodes.get(number)
            self._files.change(self._target(node), *changes)
            return self._attributes(node)

    # Names

    def make_directory(self, number: int, name: str, mode: int) -> Attributes:
        with self._changing():
            directory, path = self._new_path(number, name)
            # As mkdir(2) does, which the kernel leaves to the file system.
            mode |= self._attributes(directory).permissions & stat.S_ISGID
            self._files.make_directory(path, mode)
            return self._told(directory, name)

    def link(self, number: int, new_parent: int, name: str) -> Attributes:
        """Give a file one more name; each becomes an item."""
        with self._changing():
            directory, path = self._new_path(new_parent, name)
            self._files.link(self._nodes.local(self._nodes.get(number)), path)
            return self._told(directory, name)

    def remove_file(self, number: int, name: str) -> None:
        with self._changing():
            if self.has_link(number, name):
                self._has_link = False  # to be replaced by something else of that name
                return
            directory, path = self._old_path(number, name)
            self._removed(directory, name, self._files.remove(path))

    def remove_directory(self, number: int, name: str) -> None:
        with self._changing():
            _, path = self._old_path(number, name)
            status = os.lstat(path)
            os.rmdir(path)
            self._nodes.deleted((status.st_dev, status.st_ino))

    def rename(self, old_parent: int, old: str, new_parent: int, new: str, flags: int) -> None:
        """Rename within the dataset, as renameat2(2) does."""
        with self._changing():
            old_directory, old_path = self._old_path(old_parent, old)
            new_directory, new_path = self._new_path(new_parent, new)
            moved, replaced = self._files.rename(old_path, new_path, flags)
            if replaced is not None and os.path.samestat(moved, replaced):
                return  # two names of one file: rename(2) leaves both
            self._nodes.removed(old_directory, old, (moved.st_dev, moved.st_ino))
            if replaced is not None:
                if flags & RENAME_EXCHANGE:
                    self._nodes.removed(new_directory, new, (replaced.st_dev, replaced.st_ino))
                    self._nodes.seen(old_directory, old, replaced)
                else:
                    self._removed(new_directory, new, replaced)
            self._nodes.seen(new_directory, new, moved)

    def describe(self, number: int) -> str:
        """Return the relative path of a number, for messages."""
        try:
            return self._nodes.path(self._nodes.get(number)) or "/"
        except NotFound:
            return "a deleted file"

    def describe_entry(self, number: int, name: str) -> str:
        """Return the relative path of an entry of a directory, for messages."""
        return f"{self.describe(number)}/{name}".lstrip("/")

    def sync_directory(self, number: int) -> None:
        """Return when a directory's entries are on disk."""
        with self._then.passing_on():
            if self.frozen() is None:
                fd = os.open(self._local(number), _LIST)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    # Helpers

    def _while_staged(self, ask: Callable[[], R]) -> R | None:
        """Return what `ask` returns; None if it is frozen."""
        with self._then.passing_on():
            if self.frozen() is None:
                return ask()
        return None

    def _local(self, number: int) -> str:
        """Return the path on the local disk."""
        return self._nodes.local(self._nodes.get(number))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        if self.frozen() is not None:
            raise Frozen(f"{self.staged.record.name}: is frozen")
        with self.staged.changing():
            yield

    def _old_path(self, number: int, name: str) -> tuple[Node, str]:
        directory = self._nodes.get(number)
        return directory, f"{self._nodes.local(directory)}/{name}"

    def _new_path(self, number: int, name: str) -> tuple[Node, str]:
        directory, path = self._old_path(number, name)
        relpath = f"{self._nodes.path(directory)}/{name}"
        if not relpath_can_be_stored(relpath):
            self.staged.refused.note(relpath.lstrip("/"), TOO_LONG)
            raise NameTooLong(
                f"{relpath!r} is longer than {MAX_STORED_RELPATH_BYTES} bytes,"
                f" or below more than {MAX_RELPATH_COMPONENTS} directories"
            )
        return directory, path

    def _removed(self, directory: Node, name: str, status: os.stat_result) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink <= 1 or stat.S_ISDIR(status.st_mode):
            self._nodes.deleted(key)
        else:
            self._nodes.removed(directory, name, key)

    def _open(self, node: Node, truncate: int, *, writable: bool) -> OpenStaged:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | truncate
        fd = self._files.open(self._target(node), node.key[1], flags)
        return self._opened(node, fd, writable=writable)

    def _opened(self, node: Node, fd: int, *, writable: bool) -> OpenStaged:
        self._nodes.opened(node, fd)
        if writable:
            self.staged.writer_opened()
        return OpenStaged(fd, node, writable, self)

    def _target(self, node: Node) -> Target:
        """Return a path, or a descriptor where no name is left."""
        if node is not self._nodes.root and not node.links and node.fds:
            return node.fds[0]
        return self._nodes.local(node)

    def _told(self, directory: Node, name: str) -> Attributes:
        """Return the attributes of an entry that the kernel is told of."""
        attributes = self._entry(directory, name)
        self.kernel_learned(attributes.number)
        return attributes

    def _entry(self, directory: Node, name: str) -> Attributes:
        path = f"{self._nodes.local(directory)}/{name}"
        try:
            status = os.lstat(path)
        except FileNotFoundError as error:
            if not os.path.isdir(self._nodes.local(directory)):
                raise  # not the name is missing, but all there was
            raise NotFound(f"{path}: {error.strerror}") from None
        node = self._nodes.seen(directory, name, status)
        return self._shown(directory, name, self._from_status(node, path, status))

    def _shown(self, directory: Node, name: str, attributes: Attributes) -> Attributes:
        """Return the attributes of an entry with how long it may be believed."""
        if directory is self._nodes.root and name in (DATA, METADATA):
            return attributes._replace(believed_s=0.0)  # may be another after the freeze
        return attributes

    def _attributes(self, node: Node) -> Attributes:
        target = self._target(node)
        status = os.fstat(target) if isinstance(target, int) else os.lstat(target)
        return self._from_status(node, target, status)

    def _from_status(self, node: Node, target: Target, status: os.stat_result) -> Attributes:
        is_directory = stat.S_ISDIR(status.st_mode)
        if not (is_directory or stat.S_ISREG(status.st_mode)):
            raise NotFound(f"{target}: is neither a file nor a directory")
        return Attributes(
            node.number,
            is_directory,
            self._files.mode(target, status),
            0 if is_directory else status.st_size,
            status.st_mtime_ns,
            # The owner makes every change through the kernel, which knows of it then; and
            # what the kernel remembers stays good through the freeze. Asking each time took
            # five requests more for a file that is copied.
            MUTABLE_S if self.staged.is_owned else 0.0,
            number_of_links=status.st_nlink,
            blocks=status.st_blocks,
            atime_ns=status.st_atime_ns,
            ctime_ns=status.st_ctime_ns,
        )


def _key_of(path: str) -> Key:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _key_of_entry(path: str) -> Key | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_for_writing(flags: int) -> bool:
    """Return whether open(2) with these flags may change the file."""
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC))
