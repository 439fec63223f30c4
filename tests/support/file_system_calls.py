"""The calls of `os`, made to a file system without a mount, in the way a kernel makes them.

What a kernel does before it asks is done here: it looks names up one by one, knows what a
handle was opened for, applies the umask, and forgets what it does not use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from dserverfs.base.errors import DserverfsError, NotFound
from dserverfs.base.items import ItemContent
from dserverfs.catalogue import refreshed
from dserverfs.mount.errnos import errno_of
from dserverfs.tree.attributes import Attributes, Changes
from dserverfs.tree.filesystem import FileSystem
from dserverfs.tree.listing import OpenDirectory
from dserverfs.tree.mount_tree import Inode
from dserverfs.tree.open_files import OpenFile
from dserverfs.tree.steps import Steps, Unloaded

R = TypeVar("R")

THREAD = 0  # of no process: nothing is known of who asks
UMASK = 0o022
ENTRIES_AT_A_TIME = 20  # of a listing, as a kernel takes them
FORGETS_AFTER = 5  # looks at attributes
NOREPLACE, EXCHANGE = 1, 2
_TO_THE_DAEMON = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC


def finish(steps: Steps[R]) -> R:
    """Return what steps return, making their calls at once."""
    try:
        step = next(steps)
        while True:
            try:
                result = refreshed.loaded(step.ask) if isinstance(step, Unloaded) else step.call()
            except Exception as error:  # noqa: BLE001 - the steps' to handle
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as ended:
        value: R = ended.value
        return value


class Entry(NamedTuple):
    """What scandir gives."""

    name: str
    path: str


class _Handle:
    """What a descriptor stands for."""

    def __init__(self, inode: Inode, opened: OpenFile | OpenDirectory, flags: int) -> None:
        self.inode = inode
        self.opened = opened
        self.flags = flags
        self.position = 0

    @property
    def is_directory(self) -> bool:
        return isinstance(self.opened, OpenDirectory)

    @property
    def file(self) -> OpenFile:
        assert not isinstance(self.opened, OpenDirectory)
        return self.opened

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class FileSystemCalls:
    """`os` for what is below one directory of a file system, whose path is "/"."""

    def __init__(self, file_system: FileSystem, root: Inode) -> None:
        self._fs = file_system
        self._root = root
        self._handles: dict[int, _Handle] = {}
        self._last_fd = 1000
        self._told: Counter[Inode] = Counter()
        self._listed_now: set[Inode] = set()
        self._looks = 0

    # Handles

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        parent, name = self._parent(path)
        attributes = self._entry_or_none(parent, name)
        if attributes is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT)
            made = self._done(
                self._fs.create(
                    parent, name, mode & ~UMASK | stat.S_IFREG, flags & ~os.O_CLOEXEC, THREAD
                )
            )
            return self._keep(self._learned(made[1]), made[0], flags)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST)
        if not attributes.is_directory:
            if flags & os.O_DIRECTORY:
                raise _error(errno.ENOTDIR)
            inode = Inode(attributes.number)
            opened = self._done(self._fs.open(inode, flags & _TO_THE_DAEMON, THREAD))
            assert not isinstance(opened, ItemContent)
            return self._keep(inode, opened, flags)
        if flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC):
            raise _error(errno.EISDIR)
        inode = Inode(attributes.number)
        return self._keep(inode, self._asked(lambda: self._fs.opendir(inode)), flags)

    def close(self, fd: int) -> None:
        handle = self._handles.pop(fd)
        if not handle.is_directory:
            handle.file.close()

    def read(self, fd: int, size: int) -> bytes:
        data = self.pread(fd, size, self._handles[fd].position)
        self._handles[fd].position += len(data)
        return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        handle = self._handles[fd]
        if not handle.reads:
            raise _error(errno.EBADF)
        if handle.is_directory:
            raise _error(errno.EISDIR)
        return self._done(handle.file.read(offset, size))

    def write(self, fd: int, data: bytes) -> int:
        written = self.pwrite(fd, data, self._handles[fd].position)
        handle = self._handles[fd]
        if handle.flags & os.O_APPEND and written:
            handle.position = self.fstat(fd).st_size
        else:
            handle.position += written
        return written

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        handle = self._handles[fd]
        if not handle.writes:
            raise _error(errno.EBADF)
        if handle.flags & os.O_APPEND:
            offset = self.fstat(fd).st_size
        return self._done(handle.file.write(offset, data)) if data else 0

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        start = self.fstat(fd).st_size if whence == os.SEEK_END else 0
        self._handles[fd].position = start + offset
        return start + offset

    def ftruncate(self, fd: int, size: int) -> None:
        handle = self._handles[fd]
        if not handle.writes:
            raise _error(errno.EINVAL)
        self._change(handle.inode, Changes(size_in_bytes=size), handle)

    def fsync(self, fd: int) -> None:
        self._sync(fd, data_only=False)

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, data_only=True)

    def _sync(self, fd: int, *, data_only: bool) -> None:
        handle = self._handles[fd]
        if isinstance(handle.opened, OpenDirectory):
            self._done(self._fs.fsyncdir(handle.opened))
        else:
            self._done(handle.opened.sync(data_only=data_only))

    # Attributes, of a path or a descriptor

    def lstat(self, path: str) -> Any:
        self._looks += 1
        if self._looks % FORGETS_AFTER == 0:
            self._forget()
        return _status(self._at(path))

    def fstat(self, fd: int) -> Any:
        inode = self._handles[fd].inode
        return _status(self._asked(lambda: self._fs.getattr(inode)))

    def chmod(self, path: str, mode: int) -> None:
        self._change_at(path, Changes(mode=mode))

    def fchmod(self, fd: int, mode: int) -> None:
        self._change_at(fd, Changes(mode=mode))

    def utime(self, target: str | int, *, ns: tuple[int, int]) -> None:
        self._change_at(target, Changes(atime_ns=ns[0], mtime_ns=ns[1]))

    def truncate(self, path: str, size: int) -> None:
        attributes = self._at(path)
        if attributes.is_directory:
            raise _error(errno.EISDIR)
        self._change(Inode(attributes.number), Changes(size_in_bytes=size), None)

    # Names

    def listdir(self, path: str) -> list[str]:
        return [entry.name for entry in self._listed(path)]

    def scandir(self, path: str) -> Iterator[Entry]:
        return self._listed(path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        parent, name = self._new(path)
        self._learned(self._done(self._fs.mkdir(parent, name, mode & ~UMASK, THREAD)))

    def rmdir(self, path: str) -> None:
        parent, name = self._parent(path)
        if not self._entry(parent, name).is_directory:
            raise _error(errno.ENOTDIR)
        self._done(self._fs.rmdir(parent, name, THREAD))

    def unlink(self, path: str) -> None:
        parent, name = self._parent(path)
        if self._entry(parent, name).is_directory:
            raise _error(errno.EISDIR)
        self._done(self._fs.unlink(parent, name, THREAD))

    def rename(self, old: str, new: str) -> None:
        self.renameat2(old, new, 0)

    def renameat2(self, old: str, new: str, flags: int) -> None:
        if flags & NOREPLACE and flags & EXCHANGE:
            raise _error(errno.EINVAL)
        old_parent, old_name = self._parent(old)
        new_parent, new_name = self._parent(new)
        self._entry(old_parent, old_name)
        replaced = self._entry_or_none(new_parent, new_name)
        if flags & NOREPLACE and replaced is not None:
            raise _error(errno.EEXIST)
        if flags & EXCHANGE and replaced is None:
            raise _error(errno.ENOENT)
        self._done(self._fs.rename(old_parent, old_name, new_parent, new_name, flags, THREAD))

    def link(self, old: str, new: str) -> None:
        file = self._at(old)
        parent, name = self._new(new)
        if file.is_directory:
            raise _error(errno.EPERM)
        self._learned(self._done(self._fs.link(Inode(file.number), parent, name, THREAD)))

    def symlink(self, target: str, path: str) -> None:
        parent, name = self._new(path)
        self._done(self._fs.symlink(parent, name, target.encode(), THREAD))

    def mknod(self, path: str, mode: int) -> None:
        parent, name = self._new(path)
        self._learned(self._done(self._fs.mknod(parent, name, mode, THREAD)))

    # As a kernel

    def _parent(self, path: str) -> tuple[Inode, bytes]:
        """Return the directory that an entry is in, and its name."""
        *directories, name = [part for part in path.split("/") if part not in ("", ".")]
        inode = self._root
        for directory in directories:
            found = self._entry(inode, directory.encode())
            if not found.is_directory:
                raise _error(errno.ENOTDIR)
            inode = Inode(found.number)
        return inode, name.encode()

    def _new(self, path: str) -> tuple[Inode, bytes]:
        parent, name = self._parent(path)
        if self._entry_or_none(parent, name) is not None:
            raise _error(errno.EEXIST)
        return parent, name

    def _at(self, path: str) -> Attributes:
        if not path.strip("/."):
            return self._asked(lambda: self._fs.getattr(self._root))
        return self._entry(*self._parent(path))

    def _entry(self, parent: Inode, name: bytes) -> Attributes:
        found = self._asked(lambda: self._fs.lookup(parent, name, THREAD))
        self._learned(found)
        return found

    def _entry_or_none(self, parent: Inode, name: bytes) -> Attributes | None:
        try:
            return self._entry(parent, name)
        except FileNotFoundError:
            return None

    def _learned(self, attributes: Attributes) -> Inode:
        inode = Inode(attributes.number)
        self._told[inode] += 1
        return inode

    def _forget(self) -> None:
        in_use = {handle.inode for handle in self._handles.values()} | self._listed_now
        for inode in [inode for inode in self._told if inode not in in_use]:
            self._fs.forget(inode, self._told.pop(inode))

    def _listed(self, path: str) -> Iterator[Entry]:
        attributes = self._at(path)
        if not attributes.is_directory:
            raise _error(errno.ENOTDIR)
        inode = Inode(attributes.number)
        return self._entries(path, self._asked(lambda: self._fs.opendir(inode)))

    def _entries(self, path: str, directory: OpenDirectory) -> Iterator[Entry]:
        self._listed_now.add(directory.inode)
        cookie, names = 0, [""]
        while names:
            names = []
            for entry in directory.behind(cookie):
                if len(names) == ENTRIES_AT_A_TIME:
                    directory.put_back(cookie, entry)
                    break
                self._learned(entry.attributes)
                names.append(entry.name)
                cookie = entry.cookie
            for name in names:
                yield Entry(name, f"{path}/{name}")
        self._listed_now.discard(directory.inode)

    def _change_at(self, target: str | int, changes: Changes) -> None:
        if isinstance(target, int):
            handle = self._handles[target]
            self._change(handle.inode, changes, handle)
        else:
            self._change(Inode(self._at(target).number), changes, None)

    def _change(self, inode: Inode, changes: Changes, handle: _Handle | None) -> None:
        file = None if handle is None or handle.is_directory else handle.file
        self._done(self._fs.setattr(inode, changes, file, THREAD))

    def _keep(self, inode: Inode, opened: OpenFile | OpenDirectory, flags: int) -> int:
        self._last_fd += 1
        self._handles[self._last_fd] = _Handle(inode, opened, flags)
        return self._last_fd

    def _done(self, steps: Steps[R]) -> R:
        return self._asked(lambda: finish(steps))

    def _asked(self, ask: Callable[[], R]) -> R:
        """Return what the file system answers; its errors become those of the kernel's table."""
        try:
            return refreshed.loaded(ask)
        except NotFound as error:
            raise _error(errno.ENOENT) from error
        except DserverfsError as error:
            raise _error(errno_of(error)) from error


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _status(attributes: Attributes) -> Any:
    """Return what stat shows."""
    kind = stat.S_IFDIR if attributes.is_directory else stat.S_IFREG
    return SimpleNamespace(
        st_mode=kind | attributes.permissions,
        st_size=attributes.size_in_bytes,
        st_nlink=attributes.number_of_links,
        st_mtime_ns=attributes.mtime_ns,
    )
