"""The answers of the file system in the kernel's form. No state but a mount's owner and umask."""

from __future__ import annotations

import stat
from struct import Struct
from typing import Any, NamedTuple

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FileNameT, InodeT, ModeT, ReaddirToken, StatvfsData

from dserverfs.base.limits import MAX_COMPONENT_BYTES, MAX_SIZE_BYTES
from dserverfs.mount.channel.wire import ATTR, DIRENT, DOT, DOT_DOT, ENTRY_OUT, UNKNOWN_INODE
from dserverfs.tree.attributes import Attributes, Entry
from dserverfs.tree.filesystem import Space

_DIRECTORY, _FILE = stat.S_IFDIR, stat.S_IFREG
_BLOCK = 4096
_UNSIGNED = (1 << 64) - 1
# The three parts of an entry at once: a third of the time of three.
_ENTRY = Struct(ENTRY_OUT.format + (ATTR.format + DIRENT.format).replace("=", ""))
_PADDING = [bytes(-length % 8) for length in range(8)]  # by the length of a name


class Ownership(NamedTuple):
    """The owner of all files of a mount, and the mode bits that are taken away."""

    uid: int
    gid: int
    umask: int

    def entry(self, attributes: Attributes) -> EntryAttributes:
        """Return the attributes of an entry."""
        entry = self.blank_entry()
        fill(entry, attributes, self.umask)
        return entry

    def blank_entry(self) -> EntryAttributes:
        """Return one to be filled."""
        entry = EntryAttributes()
        entry.st_uid = self.uid
        entry.st_gid = self.gid
        entry.st_blksize = _BLOCK
        return entry


def fill(entry: Any, attributes: Attributes, umask: int) -> None:
    """Set everything that differs from one EntryAttributes to another.

    Not typed as one, and with every field by its name: a listing of 100,000 waits for
    nothing else as long, and making pyfuse3's types of numbers took a third of it.
    """
    (
        number,
        is_directory,
        permissions,
        size_in_bytes,
        mtime_ns,
        believed_s,
        number_of_links,
        blocks,
        atime_ns,
        ctime_ns,
    ) = attributes
    entry.st_ino = number
    entry.st_mode = (_DIRECTORY if is_directory else _FILE) | permissions & ~umask
    # Of a directory 1 says that links are not counted, as btrfs does; from 2 on, programs take
    # it for the number of its subdirectories and 2, and do not look for more.
    entry.st_nlink = 1 if number_of_links is None else number_of_links
    entry.st_size = size_in_bytes
    entry.st_blocks = -(-size_in_bytes // 512) if blocks is None else blocks
    entry.st_mtime_ns = mtime_ns
    entry.st_atime_ns = mtime_ns if atime_ns is None else atime_ns
    entry.st_ctime_ns = mtime_ns if ctime_ns is None else ctime_ns
    entry.entry_timeout = entry.attr_timeout = believed_s


def packed(entry: Entry, ownership: Ownership) -> bytes:
    """Return an entry of a frozen dataset as READDIRPLUS has it, as `fill` and libfuse make it."""
    (
        number,
        is_directory,
        permissions,
        size_in_bytes,
        mtime_ns,
        believed_s,
        number_of_links,
        blocks,
        _,
        _,
    ) = entry.attributes
    kind = _DIRECTORY if is_directory else _FILE
    name = entry.name.encode("utf-8", "surrogateescape")
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    seconds &= _UNSIGNED  # before 1970 it is negative
    return (
        _ENTRY.pack(
            number,
            0,
            int(believed_s),
            int(believed_s),
            0,
            0,
            number,
            size_in_bytes,
            -(-size_in_bytes // 512) if blocks is None else blocks,
            seconds,
            seconds,
            seconds,
            nanoseconds,
            nanoseconds,
            nanoseconds,
            kind | permissions & ~ownership.umask,
            1 if number_of_links is None else number_of_links,
            ownership.uid,
            ownership.gid,
            0,
            _BLOCK,
            0,
            number,
            entry.cookie,
            len(name),
            kind >> 12,
        )
        + name
        + _PADDING[len(name) % 8]
    )


def opened(handle: int, *, keeps_pages: bool, has_size: bool = True) -> FileInfo:
    """Return that a file is open; of one without a size, reads are asked for beyond it."""
    return FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=keeps_pages, direct_io=not has_size)


def space(space: Space) -> StatvfsData:
    answer = StatvfsData()
    answer.f_bsize = answer.f_frsize = _BLOCK
    # Of a hundred datasets, each may say that it has as much as there can be.
    answer.f_blocks = -(-min(space.used.size_in_bytes, MAX_SIZE_BYTES) // _BLOCK)
    answer.f_bfree = answer.f_bavail = 0
    answer.f_files = space.used.number_of_items
    answer.f_ffree = answer.f_favail = 0
    answer.f_namemax = MAX_COMPONENT_BYTES
    if (free := space.free) is not None:
        answer.f_bfree = free.f_bfree * free.f_frsize // _BLOCK
        answer.f_bavail = free.f_bavail * free.f_frsize // _BLOCK
        answer.f_blocks += answer.f_bfree
        answer.f_ffree, answer.f_favail = free.f_ffree, free.f_favail
        answer.f_files += free.f_ffree
    return answer


def tell_dots(token: ReaddirToken, cookie: int, inode: InodeT) -> int:
    """Tell `.` and `..` if a listing of `inode` is there yet; return behind what it goes on.

    The kernel takes their numbers and kinds alone, and counts no look-up for them.
    """
    if cookie not in (0, DOT, DOT_DOT):
        return cookie
    entry = EntryAttributes()
    entry.st_mode = ModeT(stat.S_IFDIR)
    for name, number, behind in ((".", inode, DOT), ("..", UNKNOWN_INODE, DOT_DOT)):
        if cookie < behind:
            entry.st_ino = InodeT(number)
            pyfuse3.readdir_reply(token, FileNameT(name.encode()), entry, behind)
    return 0
