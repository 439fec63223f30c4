"""What the channel asks the daemon: reads and writes, answered past libfuse, rows and contents.

In the event loop. libfuse has the reads and writes neither read nor answered, so that they may
be as long as the kernel makes them, and are copied once less.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import trio

from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Buffer
from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.messages import Kind
from dserverfs.mount.errnos import or_errno
from dserverfs.reading.item_order import Stretch


class ChannelFailed(DserverfsError):
    """The channel ended, and the mount with it."""


class _Read(NamedTuple):
    """A read that the daemon has to answer."""

    mark: int
    unique: int
    inode: int
    handle: int
    offset: int
    size: int


class Requests(Protocol):
    """The handlers of a mount."""

    def read_at_once(self, fh: int, off: int, size: int, inode: int) -> Buffer | None:
        """Return bytes if nothing has to be waited for, and nothing is wrong; else None."""

    async def open_as_channel(self, inode: int, fh: int) -> None:
        """Open what the channel has opened, if it is not open here."""

    async def read(self, fh: int, off: int, size: int) -> Buffer: ...

    def tell_blocks(self, fh: int, off: int) -> None:
        """Tell the channel what was read, so that it answers the next such read."""

    async def write(self, fh: int, off: int, buf: bytes) -> int: ...

    def touched(self, fh: int, off: int, size: int, inode: int) -> None:
        """Note that the channel has answered a read."""

    def released_by_channel(self, fh: int) -> None:
        """Note that a handle of the channel is closed."""

    async def tell_rows(self, inode: int, number: int) -> None:
        """Tell a piece of the rows that count from an inode."""


class Contents(Protocol):
    """Who tells the channel contents of small items."""

    def ask(self, base: int, wanted: Stretch) -> None:
        """Have contents of a stretch of rows told soon."""


async def serve(link: Link, requests: Requests, contents: Contents) -> None:
    """Answer reads and writes until the mount ends; raises ChannelFailed."""
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(link)
            while (message := link.message()) is not None:
                kind = messages.KIND.unpack_from(message)[0] if message else Kind.FAILED
                if kind == Kind.ENDED:
                    nursery.cancel_scope.cancel()
                    return
                if kind == Kind.FAILED:
                    said = message[messages.KIND.size :].decode("utf-8", "replace")
                    raise ChannelFailed(f"the mount's channel has ended: {said or 'killed?'}")
                if kind == Kind.WANTED_CONTENTS:
                    _, _, base, first, length, descending = messages.CONTENTS.unpack(message)
                    contents.ask(base, Stretch(first, length, bool(descending)))
                else:
                    _begin(kind, message, link, requests, nursery)


def _begin(
    kind: int, message: bytes, link: Link, requests: Requests, nursery: trio.Nursery
) -> None:
    if kind == Kind.READ:
        _, mark = messages.READ.unpack_from(message)
        request = memoryview(message)[messages.READ_AT :]
        _, _, unique, inode, *_ = wire.REQUEST.unpack_from(request)
        handle, offset, size, *_ = wire.READ.unpack_from(request, wire.REQUEST.size)
        data = requests.read_at_once(handle, offset, size, inode)
        if data is None:
            read = _Read(mark, unique, inode, handle, offset, size)
            nursery.start_soon(_read, link, requests, read)
        else:
            link.answer(mark, unique, data)
    elif kind == Kind.WRITE:
        mark = messages.WRITE.unpack(message)[1]
        nursery.start_soon(_write, link, requests, mark, link.written(message))
    elif kind == Kind.TOUCHED:
        _, size, handle, offset, inode = messages.TOUCHED.unpack(message)
        requests.touched(handle, offset, size, inode)
    elif kind == Kind.DAMAGED:
        _, _, inode, index, number = messages.LOST.unpack(message)
        link.damaged(inode, index, number)
    elif kind == Kind.RELEASED:
        requests.released_by_channel(messages.RELEASED.unpack(message)[2])
    elif kind == Kind.WANTED:
        _, _, base, number = messages.PIECE.unpack(message)
        nursery.start_soon(_tell_rows, link, requests, base, number)


async def _read(link: Link, requests: Requests, read: _Read) -> None:
    failed = await or_errno(requests.open_as_channel(read.inode, read.handle))
    if failed is not None:
        link.answer(read.mark, read.unique, failed)
    else:
        answer = await or_errno(requests.read(read.handle, read.offset, read.size))
        link.answer(read.mark, read.unique, answer)
        if not isinstance(answer, int):
            requests.tell_blocks(read.handle, read.offset)


async def _tell_rows(link: Link, requests: Requests, base: int, number: int) -> None:
    failed = await or_errno(requests.tell_rows(base, number))
    if failed is not None:
        link.tell_no_rows(base, number, -failed)


async def _write(link: Link, requests: Requests, mark: int, request: bytes) -> None:
    unique = wire.REQUEST.unpack_from(request)[2]
    handle, offset, size, *_ = wire.WRITE.unpack_from(request, wire.REQUEST.size)
    start = wire.REQUEST.size + wire.WRITE.size
    count = await or_errno(requests.write(handle, offset, request[start : start + size]))
    link.answer(mark, unique, count if count < 0 else wire.WRITTEN.pack(count, 0))
