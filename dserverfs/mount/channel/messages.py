"""What the channel and the daemon tell each other, each message in a packet of its own.

    channel to daemon                   daemon to channel
    READ      a read to be answered     DEVICE     the FUSE device, and the journal of numbers (with
                                                   their descriptors)
    WRITE     the slot it lies in       BLOCKS     blocks of an item to read (with their files)
    TOUCHED   a block that was read     LOST       a block that may be read no more
    RELEASED  a handle of the channel   FORGET     no block of an inode may be read any more
              that the daemon knows     FREE       a slot that may be used again
    WANTED    a piece of the rows of    DATASET    a dataset whose rows may be answered
              a dataset                 ROWS       a piece of them (with a file that has it)
    WANTED_CONTENTS                     NO_ROWS    why there is none
              contents of small items   CONTENTS   some of them (with a file, if there are any)
    DAMAGED   a block that is wrong     TAKE_BACK  no row of a dataset may be answered any more
    READY     it serves, first of all
    ENDED     unmounted
    FAILED    a fault, in words         OPENS      whether the channel may open items
                                        SERVING    how a successor is started (with a file)
                                        HOLDS      whether requests wait for a successor
                                        END        the mount ends; no successor follows

Each FORGET, TAKE_BACK and OPENS comes back, over a socket of its own, when it is in force; a HOLDS
when nothing is under way any more that could not be asked again.
`Shared` is the memory that both have: counts of the channel, slots for writes, which are
too long for a packet, and a mark for each read and write that is not answered. Pure but for that.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import socket
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from dserverfs.mount.channel.wire import MAX_REQUEST_BYTES

# Another one with each change of what follows, and of `succession`'s Heritage and Recipe: after an
# upgrade a channel of before meets a daemon of now. Where it stands in `Shared` stays.
VERSION = 2
SLOTS = 8
MARKS = 16 * 1024  # reads and writes that may be under way; the daemon has room for 10,000 others
_COUNTS = Struct("=QQQQQ")
_PAGE = 4096
_VERSION, _VERSION_AT = Struct("=Q"), _PAGE - 8


class Kind(IntEnum):
    """The first number of a message."""

    READ = 1
    WRITE = 2
    TOUCHED = 3
    ENDED = 4
    DEVICE = 5
    BLOCKS = 6
    LOST = 7
    FORGET = 8
    FREE = 9
    FAILED = 10
    RELEASED = 11
    WANTED = 12
    DATASET = 13
    ROWS = 14
    NO_ROWS = 15
    TAKE_BACK = 16
    OPENS = 17
    WANTED_CONTENTS = 18
    CONTENTS = 19
    SERVING = 20
    HOLDS = 21
    END = 22
    DAMAGED = 23
    READY = 24


KIND = Struct("=I")
# kind, bytes of a block, and of an item that is not small any more, whom it answers beside root
DEVICE = Struct("=IIII")
EVERYBODY = 0xFFFFFFFF  # the kernel has compared modes
READ = Struct("=II")  # kind, mark; the kernel's request follows
READ_AT = READ.size
WRITE = Struct("=IIII")  # kind, mark, slot, length of the request
TOUCHED = Struct("=IIQQQ")  # kind, size, handle, offset, inode
RELEASED = Struct("=IIQ")  # kind, padding, handle
ENDED = Struct("=I")
# kind, how many, inode; for each block one of BLOCK follows, and then all their checksums
BLOCKS = Struct("=IIQ")
BLOCK = Struct("=IIQQQ")  # which of the files, length, index, number, start in the file
MAX_BLOCKS = 48  # in one message
LOST = Struct("=IIQQQ")  # kind, padding, inode, index, number; of DAMAGED as well
FORGET = Struct("=IIQ")  # kind, padding, inode
FREE = Struct("=II")  # kind, slot
# What the rows of a dataset count from is its base.
DATASET = Struct("=IIQ")  # kind, padding, base; of TAKE_BACK as well
PIECE = Struct("=IIQQ")  # kind, errno, base, number of the piece; of WANTED, ROWS and NO_ROWS
# kind, of how many rows it has what there is, base, and what was asked for: the first row, how
# many, 1 if the last are wanted first; of WANTED_CONTENTS as well
CONTENTS = Struct("=IIQQII")
OPENS = Struct("=II")  # kind, 1 or 0; of HOLDS as well
MAX_FAILED_BYTES = 3000  # of text
MAX_BYTES = 16 * 1024  # of any message
# For messages that are under way on one socket; the kernel's default is a little more. One alone
# may be as long, and SETXATTR has 64 KiB.
_SEND_BYTES = 192 * 1024
_MESSAGE_BYTES = 256  # of each, beside what it says; the kernel counts 32


class Sockets(NamedTuple):
    """The ends of one process."""

    libfuse: socket.socket  # requests and replies of the kernel
    messages: socket.socket
    forgotten: socket.socket  # what was taken back comes back, when it is in force

    @classmethod
    def pair(cls) -> tuple[Sockets, Sockets]:
        """Return the daemon's ends and the channel's."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        for each in itertools.chain(*pairs):
            if _room(each) < _SEND_BYTES:  # an administrator has lowered it
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES // 2)
        return cls(*(each[0] for each in pairs)), cls(*(each[1] for each in pairs))

    def close(self) -> None:
        """Close these descriptors; another process may have them, too."""
        for each in self:
            each.close()

    def end(self) -> None:
        """End the connections, which wakes threads that wait for them, and close."""
        for each in self:
            with contextlib.suppress(OSError):  # the other end is closed already
                each.shutdown(socket.SHUT_RDWR)
        self.close()


def longest_message(sock: socket.socket) -> int:
    """Return how long a message may be that either end of a pair sends: a longer one is refused."""
    return _room(sock) - _MESSAGE_BYTES


def _room(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


class Counts(NamedTuple):
    """What the channel has answered by itself."""

    reads: int
    read_bytes: int
    others: int  # requests about names, attributes, listings and handles
    pushed: int  # items whose content the kernel was given when they were opened
    pushed_bytes: int


NOTHING = Counts(0, 0, 0, 0, 0)


class Shared:
    """Memory that the two processes share: a file without a name."""

    _MARKS_AT = _PAGE + SLOTS * MAX_REQUEST_BYTES
    BYTES = _MARKS_AT + MARKS

    def __init__(self, fd: int) -> None:
        """`fd` is of a file of so many BYTES; it may be closed then."""
        self._view = memoryview(mmap.mmap(fd, self.BYTES))

    @classmethod
    def create(cls) -> int:
        """Return the descriptor of a new one."""
        fd = os.memfd_create("dserverfs-channel")
        os.ftruncate(fd, cls.BYTES)
        os.pwrite(fd, _VERSION.pack(VERSION), _VERSION_AT)
        return fd

    @property
    def version(self) -> int:
        """The VERSION of who has made it; 0 of some that had none."""
        version: int = _VERSION.unpack_from(self._view, _VERSION_AT)[0]
        return version

    def slot(self, number: int) -> memoryview:
        start = _PAGE + number * MAX_REQUEST_BYTES
        return self._view[start : start + MAX_REQUEST_BYTES]

    @property
    def counts(self) -> Counts:
        return Counts(*_COUNTS.unpack_from(self._view, 0))

    def note(self, *counts: int) -> None:
        """Set the counts, in the order of Counts; by the channel alone."""
        _COUNTS.pack_into(self._view, 0, *counts)

    def mark(self, number: int) -> None:
        """Note that a request is under way; by the channel alone."""
        self._view[self._MARKS_AT + number] = 1

    def answered(self, number: int) -> None:
        """Note that it was answered."""
        self._view[self._MARKS_AT + number] = 0

    def is_marked(self, number: int) -> bool:
        return bool(self._view[self._MARKS_AT + number])
