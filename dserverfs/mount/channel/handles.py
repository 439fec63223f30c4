"""The handles that the daemon has given, for the daemon that takes its place.

Seen in the replies to OPEN, OPENDIR and CREATE, and forgotten at RELEASE. The next daemon opens
what is read by its inode, when it is used. What was open for writing is not opened again: nobody
knows what of it was written. Bounded by what programs have open. Pure.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from dserverfs.mount.channel import wire
from dserverfs.mount.channel.wire import Opcode


class Use(IntEnum):
    """The use of a handle."""

    READS = 0
    WRITES = 1
    LISTS = 2


class Opened(NamedTuple):
    """What a handle is of."""

    inode: int
    use: Use


_LAST = Struct("=Q")  # the last handle that was given
_HANDLE = Struct("=QQQ")  # handle, inode, use
_CHANGES = os.O_ACCMODE | os.O_TRUNC
_HEAD = wire.REPLY.size


class Handles:
    """Those of one mount."""

    def __init__(self) -> None:
        self._open: dict[int, Opened] = {}
        self._asked: dict[int, Opened] = {}  # by the number of the request
        self._last = 0

    def asked(self, opcode: int, unique: int, inode: int, body: memoryview) -> None:
        """Note a request that is passed on."""
        if opcode in (Opcode.OPEN, Opcode.CREATE) and len(body) >= wire.OPEN.size:
            changes = wire.OPEN.unpack_from(body)[0] & _CHANGES
            self._asked[unique] = Opened(
                inode if opcode == Opcode.OPEN else 0, Use.WRITES if changes else Use.READS
            )
        elif opcode == Opcode.OPENDIR:
            self._asked[unique] = Opened(inode, Use.LISTS)
        elif opcode in (Opcode.RELEASE, Opcode.RELEASEDIR) and len(body) >= wire.RELEASE.size:
            self._open.pop(wire.RELEASE.unpack_from(body)[0], None)

    def told(self, unique: int, reply: memoryview) -> None:
        """Note a reply to one of those."""
        asked = self._asked.pop(unique, None)
        if asked is None or wire.REPLY.unpack_from(reply)[1]:
            return
        try:
            if not asked.inode:  # the file that was made comes first
                inode = wire.ENTRY_OUT.unpack_from(reply, _HEAD)[0]
                handle = wire.OPENED.unpack_from(reply, _HEAD + wire.ENTRY_BYTES)[0]
                asked = asked._replace(inode=inode)
            else:
                handle = wire.OPENED.unpack_from(reply, _HEAD)[0]
        except struct.error:
            return  # the kernel refuses it, too
        self._open[handle] = asked
        self._last = max(self._last, handle)

    def restart(self) -> None:
        """Note that nothing that was asked is answered any more."""
        self._asked.clear()

    def packed(self) -> bytes:
        """Return the bytes that `Inherited` reads."""
        each = (_HANDLE.pack(handle, *opened) for handle, opened in self._open.items())
        return _LAST.pack(self._last) + b"".join(each)


class Inherited(NamedTuple):
    """The handles of the daemon before."""

    last: int  # handles up to this one were given
    opened: Mapping[int, Opened]

    @classmethod
    def of(cls, packed: bytes) -> Inherited:
        """Return what `Handles.packed` says; raises struct.error, or ValueError."""
        found = _HANDLE.iter_unpack(packed[_LAST.size :])
        return cls(
            _LAST.unpack_from(packed)[0],
            {handle: Opened(inode, Use(use)) for handle, inode, use in found},
        )


NO_HANDLES = Inherited(0, {})
