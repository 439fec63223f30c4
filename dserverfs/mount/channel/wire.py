"""The kernel's FUSE protocol, as far as the channel speaks it (linux/fuse.h, version 7.12 on).

A request is a header, then what its kind asks for; a reply is a header with the number of the
request, then the answer. All numbers are in the machine's byte order. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct


class Opcode(IntEnum):
    """The kinds of requests that the channel looks into; all others go through as they are."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    GETXATTR = 22
    LISTXATTR = 23
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46
    STATX = 52


class Notice(IntEnum):
    """What a file system tells the kernel without being asked, in the place of an errno."""

    INVALIDATE_INODE = 2
    INVALIDATE_ENTRY = 3
    STORE = 4


# length, opcode, number of the request, inode, uid, gid, pid, extensions, padding
REQUEST = Struct("=IIQQIIIHH")
# length, negative errno or 0, number of the request
REPLY = Struct("=IiQ")
INTERRUPT = Struct("=Q")  # the number of the request that is interrupted
# handle, offset, size, read flags, lock owner, open flags, padding; of a listing as well
READ = Struct("=QQIIQII")
# handle, offset, size, write flags, lock owner, open flags, padding; the bytes follow
WRITE = Struct("=QQIIQII")
# size, padding
WRITTEN = Struct("=II")
# how many inodes the kernel forgets, padding; for each the inode and how many look-ups follow
BATCH_FORGET = Struct("=II")
FORGOTTEN_BYTES = 16  # of each
# handle, and flags that are not looked at; of RELEASEDIR, FSYNC and FSYNCDIR as well
RELEASE = Struct("=Q")
# flags of open(2), others; of CREATE as well
OPEN = Struct("=II")
# handle, flags, padding
OPENED = Struct("=QII")
# inode, generation, seconds that the entry and its attributes are believed, and nanoseconds of
# both; the attributes follow
ENTRY_OUT = Struct("=QQQQII")
# seconds that the attributes are believed, nanoseconds, padding; the attributes follow
ATTR_OUT = Struct("=QII")
# inode, size, blocks, atime, mtime, ctime in seconds; nanoseconds of the three, mode, links, uid,
# gid, device, size of a block, flags
ATTR = Struct("=QQQQQQIIIIIIIIII")
# inode, offset behind it, length of the name, kind; the name follows, and NULs up to 8 bytes
DIRENT = Struct("=QQII")
# inode, offset, length
INODE = Struct("=Qqq")
# inode of the directory, length of the name, flags; the name and a NUL follow
ENTRY = Struct("=QII")

# inode, offset, length, padding; the bytes follow
STORE = Struct("=QQII")

KEEP_CACHE, CACHE_DIR = 1 << 1, 1 << 3  # flags of what was opened

# Where a listing goes on behind `.` and `..`, which come first; no other entry's offset.
DOT, DOT_DOT = 1 << 62, (1 << 62) + 1
# libfuse's FUSE_UNKNOWN_INO: no program compares a directory by its parent's entry.
UNKNOWN_INODE = 0xFFFFFFFF

READ_BYTES = REQUEST.size + READ.size
WRITE_BYTES = REQUEST.size + WRITE.size  # and what is written
ENTRY_BYTES = ENTRY_OUT.size + ATTR.size
MAX_DATA_BYTES = 1024 * 1024  # of a read or a write: 256 pages, the kernel's limit
# The device refuses a read into less than this.
MAX_REQUEST_BYTES = MAX_DATA_BYTES + 4096


def reply(unique: int, errno: int = 0, length: int = 0) -> bytes:
    """Return the header of a reply with `length` bytes behind it; `errno` is positive."""
    return REPLY.pack(REPLY.size + length, -errno, unique)


def with_room(request: memoryview, size: int) -> bytes | memoryview:
    """Return a request for a listing that has room for no more than `size` bytes of it."""
    numbers = READ.unpack_from(request, REQUEST.size)
    if numbers[2] <= size:
        return request
    return bytes(request[: REQUEST.size]) + READ.pack(*numbers[:2], size, *numbers[3:])


def forgets(request: memoryview, size: int) -> Iterator[bytes]:
    """Yield a BATCH_FORGET as several of no more than `size` bytes, which nobody answers."""
    head = REQUEST.unpack_from(request)
    behind = REQUEST.size + BATCH_FORGET.size
    most = (size - behind) // FORGOTTEN_BYTES * FORGOTTEN_BYTES
    for start in range(behind, len(request), most):
        part = request[start : start + most]
        number = BATCH_FORGET.pack(len(part) // FORGOTTEN_BYTES, 0)
        yield REQUEST.pack(behind + len(part), *head[1:]) + number + part


def invalidate_inode(inode: int) -> bytes:
    """Return the notice that makes the kernel forget an inode's attributes and pages."""
    body = INODE.pack(inode, 0, 0)
    return REPLY.pack(REPLY.size + len(body), Notice.INVALIDATE_INODE, 0) + body


def invalidate_entry(directory: int, name: bytes) -> bytes:
    """Return the notice that makes the kernel forget a name."""
    body = ENTRY.pack(directory, len(name), 0) + name + b"\0"
    return REPLY.pack(REPLY.size + len(body), Notice.INVALIDATE_ENTRY, 0) + body


def store(inode: int, length: int) -> bytes:
    """Return the notice that puts an inode's first bytes, which follow it, into the page cache."""
    body = STORE.pack(inode, 0, length, 0)
    return REPLY.pack(REPLY.size + len(body) + length, Notice.STORE, 0) + body


def size_of(entry: memoryview) -> int:
    """Return the size in the attributes of what answers LOOKUP."""
    size: int = ATTR.unpack_from(entry, ENTRY_OUT.size)[1]
    return size


def dirent(inode: int, behind: int, kind: int, name: bytes) -> bytes:
    """Return an entry of a listing; `kind` is that of a mode, shifted to the right."""
    entry = DIRENT.pack(inode, behind, len(name), kind) + name
    return entry + bytes(-len(entry) % 8)
