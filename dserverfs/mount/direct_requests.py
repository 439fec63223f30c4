"""The reads and writes that the channel leaves to the daemon, answered past libfuse.

In the event loop. libfuse has them neither read nor answered, so that they may be as long as the
kernel makes them, and are copied once less.
"""

from __future__ import annotations

from typing import Protocol

import trio

from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Buffer
from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.messages import Kind
from dserverfs.mount.errnos import or_errno


class ChannelFailed(DserverfsError):
    """The channel ended, and the mount with it."""


class Requests(Protocol):
    """The handlers of a mount."""

    def read_at_once(self, fh: int, off: int, size: int) -> Buffer | None:
        """Return bytes if nothing has to be waited for, and nothing is wrong; else None."""

    async def read(self, fh: int, off: int, size: int) -> Buffer: ...

    async def write(self, fh: int, off: int, buf: bytes) -> int: ...

    def touched(self, fh: int, off: int, size: int) -> None:
        """Note that the channel has answered a read."""


async def serve(link: Link, requests: Requests) -> None:
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
                _begin(kind, message, link, requests, nursery)


def _begin(
    kind: int, message: bytes, link: Link, requests: Requests, nursery: trio.Nursery
) -> None:
    if kind == Kind.READ:
        request = memoryview(message)[messages.READ_AT :]
        unique = wire.REQUEST.unpack_from(request)[2]
        handle, offset, size, *_ = wire.READ.unpack_from(request, wire.REQUEST.size)
        data = requests.read_at_once(handle, offset, size)
        if data is None:
            nursery.start_soon(_read, link, requests, unique, handle, offset, size)
        else:
            link.answer(unique, data)
    elif kind == Kind.WRITE:
        nursery.start_soon(_write, link, requests, link.written(message))
    elif kind == Kind.TOUCHED:
        _, size, handle, offset = messages.TOUCHED.unpack(message)
        requests.touched(handle, offset, size)


async def _read(
    link: Link, requests: Requests, unique: int, handle: int, offset: int, size: int
) -> None:
    link.answer(unique, await or_errno(requests.read(handle, offset, size)))


async def _write(link: Link, requests: Requests, request: bytes) -> None:
    unique = wire.REQUEST.unpack_from(request)[2]
    handle, offset, size, *_ = wire.WRITE.unpack_from(request, wire.REQUEST.size)
    start = wire.REQUEST.size + wire.WRITE.size
    count = await or_errno(requests.write(handle, offset, request[start : start + size]))
    link.answer(unique, count if count < 0 else wire.WRITTEN.pack(count, 0))
