"""Serves one file that a loop device lies on, and logs each write and each flush of it.

A program: `python -m tests.support.recording_device IMAGE MOUNTPOINT LOG`. The file is
MOUNTPOINT/image; what is written to it goes into IMAGE, and is added to LOG before it is
answered. A loop device turns a flush of the disk's cache into an fsync of its file. The
log is a row of records: a head, and behind that of a write its bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys

import pyfuse3
import trio

from tests.support.leftovers import RECORDING

HEAD = struct.Struct("<cQI")  # kind, offset, size
WRITE, FLUSH = b"W", b"F"
NAME = b"image"
_INODE = pyfuse3.ROOT_INODE + 1


class Device(pyfuse3.Operations):
    """A directory with one file, which can be read, written and synced."""

    enable_writeback_cache = False

    def __init__(self, image: int, log: int) -> None:
        super().__init__()
        self._image = image
        self._log = log

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino = inode
        if inode == pyfuse3.ROOT_INODE:
            found.st_mode = stat.S_IFDIR | 0o700
        else:
            found.st_mode = stat.S_IFREG | 0o600
            found.st_size = os.fstat(self._image).st_size
        return found

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if parent != pyfuse3.ROOT_INODE or name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_INODE)

    async def setattr(
        self, inode: int, attr: object, fields: object, fh: object, ctx: object
    ) -> pyfuse3.EntryAttributes:
        return await self.getattr(inode)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        # Past the page cache: each write comes here when the loop device makes it.
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(self._image, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        os.writev(self._log, [HEAD.pack(WRITE, off, len(buf)), buf])
        return os.pwrite(self._image, buf, off)

    async def fsync(self, fh: int, datasync: bool) -> None:
        os.write(self._log, HEAD.pack(FLUSH, 0, 0))

    async def flush(self, fh: int) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass


def main(image: str, mountpoint: str, log: str) -> None:
    device = Device(os.open(image, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_APPEND))
    options = {*pyfuse3.default_options, f"fsname={RECORDING}"}
    pyfuse3.init(device, mountpoint, options)
    print("serves", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
