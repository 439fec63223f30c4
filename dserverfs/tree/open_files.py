"""Files of a mount that are open: bytes, local files, edits, files of staged datasets.

Used by the file system, which opens them; an open item is its reader's. Closing never
blocks; reading, writing and syncing may, and are steps.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from dserverfs.base.errors import DserverfsError
from dserverfs.base.items import ItemContent
from dserverfs.base.local_files import with_own_descriptor
from dserverfs.tree.frozen_dataset import Content
from dserverfs.tree.refusals import NotOpenForWriting
from dserverfs.tree.staged_changes import INLINE_BYTES, StagedChanges
from dserverfs.tree.staged_dataset import OpenStaged
from dserverfs.tree.steps import Limit, Steps, blocking
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.edits.local_file import EditHandle


class OpenFile(Protocol):
    """The calls on an open file."""

    keeps_pages: bool  # whether the kernel may keep what was read when it was open before
    has_size: bool  # whether its attributes say how much there is

    def read(self, offset: int, size: int) -> Steps[bytes]: ...

    def write(self, offset: int, data: bytes) -> Steps[int]:
        """Write all of `data`; return how much that is."""

    def sync(self, *, data_only: bool) -> Steps[None]:
        """Have what was written on the disk, and an edit on the server."""

    def close(self) -> None: ...


class OpenBytes:
    """Content that is in memory."""

    keeps_pages = False

    def __init__(
        self, content: bytes, refusal: DserverfsError | None = None, *, has_size: bool = True
    ) -> None:
        """`refusal` is raised by writes; without, NotOpenForWriting."""
        self.content = content
        self.has_size = has_size
        self._refusal = refusal

    def read(self, offset: int, size: int) -> Steps[bytes]:
        yield from ()
        return self.content[offset : offset + size]

    def write(self, offset: int, data: bytes) -> Steps[int]:
        raise self._refusal or NotOpenForWriting("a file of a frozen dataset")

    def sync(self, *, data_only: bool) -> Steps[None]:
        yield from ()

    def close(self) -> None:
        pass


class OpenLocal:
    """A local file that a frozen dataset shows as it is."""

    keeps_pages = True
    has_size = True

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> Steps[bytes]:
        return _read(self._fd, offset, size)

    def write(self, offset: int, data: bytes) -> Steps[int]:
        raise NotOpenForWriting("a file of a frozen dataset")

    def sync(self, *, data_only: bool) -> Steps[None]:
        yield from ()

    def close(self) -> None:
        os.close(self._fd)


class OpenEdit:
    """A local file that is shown in a frozen dataset: an edit, or a file made to rewrite one."""

    keeps_pages = False
    has_size = True

    def __init__(self, edits: DatasetEdits, handle: EditHandle) -> None:
        self._edits = edits
        self.handle = handle

    def read(self, offset: int, size: int) -> Steps[bytes]:
        return _read(self.handle.fd, offset, size)

    def write(self, offset: int, data: bytes) -> Steps[int]:
        if not self.handle.is_writable:
            raise NotOpenForWriting("an edit that was opened for reading")
        if len(data) <= INLINE_BYTES:
            self._edits.write(self.handle, data, offset)
        else:
            write = with_own_descriptor(
                self.handle.fd,
                lambda fd: self._edits.write(self.handle._replace(fd=fd), data, offset),
            )
            yield from blocking(write, Limit.WRITE)
        return len(data)

    def sync(self, *, data_only: bool) -> Steps[None]:
        sync = with_own_descriptor(
            self.handle.fd, lambda fd: self._edits.sync(self.handle._replace(fd=fd))
        )
        yield from blocking(sync, Limit.EDIT)

    def truncate(self, size_in_bytes: int) -> None:
        self._edits.truncate(self.handle, size_in_bytes)

    def close(self) -> None:
        self._edits.release(self.handle)


class OpenStagedFile:
    """A file of a staged dataset."""

    keeps_pages = False
    has_size = True

    def __init__(self, changes: StagedChanges, handle: OpenStaged) -> None:
        self._changes = changes
        self._handle = handle

    def read(self, offset: int, size: int) -> Steps[bytes]:
        return _read(self._handle.fd, offset, size)

    def write(self, offset: int, data: bytes) -> Steps[int]:
        if not self._handle.is_writable:
            raise NotOpenForWriting("a staged file that was opened for reading")
        return self._changes.write(self._handle, offset, data)

    def sync(self, *, data_only: bool) -> Steps[None]:
        sync, handle = os.fdatasync if data_only else os.fsync, self._handle
        return self._changes.sync(handle.tree, handle.node.number, lambda: sync(handle.fd))

    def close(self) -> None:
        self._handle.tree.release(self._handle)


def opened(content: Content) -> ItemContent | OpenFile:
    """Return what a frozen dataset's file holds, open; an item as it is. Raises OSError."""
    if isinstance(content, ItemContent):
        return content
    return OpenLocal(content) if isinstance(content, Path) else OpenBytes(content)


def _read(fd: int, offset: int, size: int) -> Steps[bytes]:
    data = _read_nowait(fd, offset, size)
    if data is None:
        data = yield from blocking(lambda: os.pread(fd, size, offset), Limit.DISK)
    return data


def _read_nowait(fd: int, offset: int, size: int) -> bytes | None:
    """Return what is read if it is in the page cache; None if a thread has to."""
    buffer = bytearray(size)
    try:
        read = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    # Less than asked for is the end of the file, or of what is in memory.
    return bytes(buffer) if read == size else None
