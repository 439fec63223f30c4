"""Hashes of large files while they are written, so that little is left to hash at the freeze.

Used by the staged tree, which reports all that is done to the files, and by the
sealing, which takes the hash so far and hashes the rest. A file is followed from when it
is made for as long as each write begins where the last one ended. After any other
write, or a change of its size, it is forgotten: then it is hashed at the freeze like one
that was never followed. A file whose stat changed outside our writes is dropped as well.
Changes within one tick of the kernel's clock are invisible to stat; the store finds
them when the bytes are sent, which must have the hash that was announced.

The bytes are read back, out of the page cache, by one thread behind the writers. It
holds no more memory when it falls behind, and no writer waits for it: it falls behind
only where the disk is quicker than MD5, and so as quick to be read.

All but `take` is for the one thread that writes. After a crash nothing is left of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from dserverfs.base import threads
from dserverfs.base.block_hashes import BlockHasher
from dserverfs.base.hashes import PIECE_BYTES, new_md5
from dserverfs.writing.staging.file_hashes import Begun, Stamp

# How much is written between two calls of the thread; smaller files are not worth one.
STEP_BYTES = 4 * 1024 * 1024


class HashAhead:
    """The files of one staged dataset that are followed."""

    def __init__(self) -> None:
        self._files: dict[int, _Followed] = {}  # by inode
        self._lock = threading.Lock()
        self._due: deque[tuple[_Followed, int]] = deque()  # with a descriptor of our own
        self._is_working = False

    def made(self, status: os.stat_result) -> None:
        """Follow a file that is new, and empty."""
        self._files[status.st_ino] = _Followed(Stamp.of(status))

    def forget(self, inode: int) -> None:
        """Follow it no more: from now on it may be changed in any way, or is another file."""
        followed = self._files.pop(inode, None)
        if followed is not None:
            followed.is_over = True

    def begins(self, inode: int, fd: int, offset: int) -> None:
        """Note that a write at `offset` is about to begin; `fd` is the file."""
        followed = self._files.get(inode)
        if followed is not None and not followed.begins(fd, offset):
            self.forget(inode)

    def ended(self, inode: int, fd: int, end: int) -> None:
        """Note that the write that began last wrote everything up to `end`."""
        followed = self._files.get(inode)
        if followed is not None and followed.ended(fd, end):
            self._call(followed, fd)

    def closed(self, inode: int, fd: int) -> None:
        """Note that a handle is about to be closed: what is left of a large file can be hashed."""
        followed = self._files.get(inode)
        if followed is None:
            return
        if followed.end < STEP_BYTES:
            self.forget(inode)
        else:
            self._call(followed, fd)

    def follows(self, inode: int) -> bool:
        return inode in self._files

    def touched(self, before: os.stat_result, after: os.stat_result) -> None:
        """Note that a file was given other names, a mode or times, and what `stat` said of it."""
        followed = self._files.get(before.st_ino)
        if followed is not None and not followed.touched(Stamp.of(before), Stamp.of(after)):
            self.forget(before.st_ino)

    def take(self, stamp: Stamp) -> Begun | None:
        """Return what is hashed of the file with that stamp, and follow it no more.

        None if these are not the hashes of its first bytes. Waits for one piece at most.
        """
        followed = self._files.pop(stamp.inode, None)
        return None if followed is None else followed.take(stamp)

    def _call(self, followed: _Followed, fd: int) -> None:
        if followed.is_due:
            return
        followed.is_due = True
        own = os.dup(fd)  # the handle may be closed before it is read
        with self._lock:
            self._due.append((followed, own))
            if self._is_working:
                return
            self._is_working = True
        if threads.started(self._work, name="hash-ahead") is None:
            self._leave_due()

    def _leave_due(self) -> None:
        """Hash nothing of what is due now; the next write of each file may call again."""
        with self._lock:
            self._is_working = False
            while self._due:
                followed, fd = self._due.popleft()
                followed.is_due = False
                os.close(fd)

    def _work(self) -> None:
        """Hash what is due, then end: a thread that waits would outlive its dataset."""
        buffer = bytearray(PIECE_BYTES)
        while True:
            with self._lock:
                if not self._due:
                    self._is_working = False
                    return
                followed, fd = self._due.popleft()
            try:
                followed.hash(fd, memoryview(buffer))
            finally:
                os.close(fd)


class _Followed:
    """A file to which all that was written was appended.

    Invariant: unless `is_over`, its first `_hashed` bytes are those that `_md5` and `_blocks`
    have seen, and what `stat` says of it is `_stamp`, but while a write goes on.
    """

    def __init__(self, stamp: Stamp) -> None:
        self.end = 0
        self.is_over = False
        self.is_due = False
        self._stamp = stamp
        self._is_writing = False
        self._next_call = STEP_BYTES
        self._lock = threading.Lock()  # held while a piece is hashed; not by the writer
        self._md5 = new_md5()
        self._blocks = BlockHasher()
        self._hashed = 0

    def begins(self, fd: int, offset: int) -> bool:
        """Return whether it is still followed."""
        if self._is_writing or offset != self.end:  # one that failed goes on for ever
            return False
        self._is_writing = True
        return Stamp.of(os.fstat(fd)) == self._stamp

    def ended(self, fd: int, end: int) -> bool:
        """Return whether there is enough to hash."""
        self._stamp = Stamp.of(os.fstat(fd))
        self.end = end
        self._is_writing = False
        if end < self._next_call:
            return False
        self._next_call = end + STEP_BYTES
        return True

    def touched(self, before: Stamp, after: Stamp) -> bool:
        """Return whether it is still followed."""
        if self._is_writing or before != self._stamp:
            return False
        self._stamp = after
        return True

    def hash(self, fd: int, buffer: memoryview) -> None:
        """Hash up to where it was written; blocks."""
        self.is_due = False  # before `end` is read, so that no bytes are left without a call
        while True:
            with self._lock:
                count = min(len(buffer), self.end - self._hashed)
                if count == 0 or self.is_over:  # once it is taken, `_md5` is another's
                    return
                piece = buffer[:count]
                if os.preadv(fd, [piece], self._hashed) != count:
                    self.is_over = True  # made shorter outside our writes
                    return
                self._md5.update(piece)
                self._blocks.update(piece)
                self._hashed += count

    def take(self, stamp: Stamp) -> Begun | None:
        with self._lock:
            known = not (self.is_over or self._is_writing) and self._stamp == stamp
            self.is_over = True
            if not known or self._hashed > stamp.size:
                return None
            return Begun(self._md5, self._blocks, self._hashed)
