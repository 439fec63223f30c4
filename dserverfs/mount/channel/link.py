"""The daemon's side of the channel: starts it, tells it of blocks, and answers what it cannot.

`tell` and `forget` may be called in any thread, all else in the event loop. A block is taken
back when it is not hot any more, which is when nothing in this process refers to it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import signal
import socket
import traceback
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, Protocol

import trio

from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Buffer
from dserverfs.mount.channel import device, messages, process, wire
from dserverfs.mount.channel.messages import Counts, Kind, Shared
from dserverfs.reading.cache.blocks import FileBlock

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 5.0


class ChannelFailed(DserverfsError):
    """The channel ended, and the mount with it."""


class Requests(Protocol):
    """Those that the daemon answers by itself, without libfuse."""

    def read_at_once(self, handle: int, offset: int, size: int) -> Buffer | int | None:
        """Return bytes, or a negative errno, if nothing has to be waited for; else None."""

    async def read_later(self, handle: int, offset: int, size: int) -> Buffer | int:
        """Return bytes, or a negative errno."""

    async def write_direct(self, handle: int, offset: int, data: bytes) -> int:
        """Return how much was written, or a negative errno."""

    def touched(self, handle: int, offset: int, size: int) -> None:
        """Note that bytes of a handle were read by the channel."""


class Link:
    """One mount's channel."""

    def __init__(
        self, pid: int, libfuse: socket.socket, channel: socket.socket, shared: Shared
    ) -> None:
        """Made by `start`."""
        self._pid = pid
        self._libfuse = libfuse
        self._channel = channel
        self._shared = shared
        self._device = -1
        self._numbers = itertools.count(1)
        self._told: dict[tuple[int, int], int] = {}  # id of the block, by inode and index
        self._is_over = False

    @classmethod
    def start(cls) -> Link:
        """Fork the channel; only for a process with one thread."""
        shared = Shared()
        libfuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _be_channel(libfuse, channel, shared)
        libfuse[1].close()
        channel[1].close()
        return cls(pid, libfuse[0], channel[0], shared)

    @property
    def counts(self) -> Counts:
        """How much the channel has answered by itself."""
        return self._shared.counts

    def mount(self, path: Path, options: Iterable[str]) -> str:
        """Mount at a directory; return what libfuse is to be told to mount. Raises UsageError."""
        self._device = device.mount(path, options)
        socket.send_fds(self._channel, [messages.KIND.pack(Kind.DEVICE)], [self._device])
        # libfuse closes the one that it is given.
        return f"/dev/fd/{os.dup(self._libfuse.fileno())}"

    def close(self) -> None:
        """End the channel, and with it the connection with the kernel."""
        if self._is_over:
            return
        self._is_over = True
        for each in (self._libfuse, self._channel):
            each.close()
        if self._device >= 0:
            os.close(self._device)
            self._device = -1
        ended = os.pidfd_open(self._pid)
        try:
            if not select.select([ended], [], [], END_TIMEOUT_S)[0]:
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        finally:
            os.close(ended)

    # What the channel may answer

    def tell(self, inode: int, index: int, block: FileBlock) -> None:
        """Let the channel answer reads of a block until that is gone."""
        if self._told.get((inode, index)) == id(block):
            return
        number = next(self._numbers)
        fd, start, length = block.place()
        self._told[inode, index] = id(block)
        self._send(messages.BLOCK.pack(Kind.BLOCK, length, inode, index, number, start), fd)
        lost = weakref.finalize(block, self._lost, inode, index, number, id(block))
        lost.atexit = False

    def forget(self, inode: int) -> None:
        """Have the channel answer no read of an inode any more."""
        self._send(messages.FORGET.pack(Kind.FORGET, 0, inode))
        for key in [key for key in list(self._told) if key[0] == inode]:
            self._told.pop(key, None)

    def _lost(self, inode: int, index: int, number: int, block: int) -> None:
        if self._told.get((inode, index)) == block:
            self._told.pop((inode, index), None)
        self._send(messages.LOST.pack(Kind.LOST, 0, inode, index, number))

    def _send(self, message: bytes, *fds: int) -> None:
        """Send; a channel that has ended, and answers nothing, need not be told."""
        try:
            socket.send_fds(self._channel, [message], fds)
        except OSError as error:
            if not self._is_over:
                logger.debug("the channel is not told: %s", error)

    # What the kernel is told

    def invalidate_inode(self, inode: int) -> None:
        """Make the kernel forget an inode's pages; waits for reads of them. Raises OSError."""
        os.write(self._device, wire.invalidate_inode(inode))

    def invalidate_entry(self, directory: int, name: bytes) -> None:
        """Make the kernel forget a name; may wait for requests. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.write(self._device, wire.invalidate_entry(directory, name))

    # What the channel leaves to the daemon

    async def serve(self, requests: Requests) -> None:
        """Answer reads and writes until the mount ends; raises ChannelFailed."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._channel)
                while True:
                    try:
                        message = self._channel.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        break
                    except ConnectionError:
                        message = b""
                    if not message:
                        raise ChannelFailed("the mount's channel ended unexpectedly")
                    (kind,) = messages.KIND.unpack_from(message)
                    if kind == Kind.FAILED:
                        said = message[messages.KIND.size :].decode("utf-8", "replace")
                        raise ChannelFailed(f"the mount's channel failed: {said}")
                    if kind == Kind.ENDED:
                        nursery.cancel_scope.cancel()
                        return
                    self._begin(kind, message, requests, nursery)

    def _begin(self, kind: int, message: bytes, requests: Requests, nursery: trio.Nursery) -> None:
        if kind == Kind.READ:
            unique = wire.REQUEST.unpack_from(message, messages.READ_AT)[2]
            handle, offset, size, *_ = wire.READ.unpack_from(
                message, messages.READ_AT + wire.REQUEST.size
            )
            data = requests.read_at_once(handle, offset, size)
            if data is None:
                nursery.start_soon(self._read, requests, unique, handle, offset, size)
            else:
                self._answer(unique, data)
        elif kind == Kind.WRITE:
            _, slot, length = messages.WRITE.unpack(message)
            request = self._shared.slot(slot)[:length]
            unique = wire.REQUEST.unpack_from(request)[2]
            handle, offset, size, *_ = wire.WRITE.unpack_from(request, wire.REQUEST.size)
            start = wire.REQUEST.size + wire.WRITE.size
            data = bytes(request[start : start + size])
            self._channel.send(messages.FREE.pack(Kind.FREE, slot))
            nursery.start_soon(self._write, requests, unique, handle, offset, data)
        elif kind == Kind.TOUCHED:
            _, size, handle, offset = messages.TOUCHED.unpack(message)
            requests.touched(handle, offset, size)

    async def _read(
        self, requests: Requests, unique: int, handle: int, offset: int, size: int
    ) -> None:
        self._answer(unique, await requests.read_later(handle, offset, size))

    async def _write(
        self, requests: Requests, unique: int, handle: int, offset: int, data: bytes
    ) -> None:
        count = await requests.write_direct(handle, offset, data)
        self._answer(unique, count if count < 0 else wire.WRITTEN.pack(count, 0))

    def _answer(self, unique: int, answer: Buffer | int) -> None:
        """Answer the kernel with bytes or a negative errno."""
        try:
            if isinstance(answer, int):
                os.write(self._device, wire.reply(unique, -answer))
            else:
                os.writev(self._device, [wire.reply(unique, 0, len(answer)), answer])
        except OSError as error:
            # Interrupted, or unmounted, which the channel tells.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def _be_channel(
    libfuse: tuple[socket.socket, socket.socket],
    channel: tuple[socket.socket, socket.socket],
    shared: Shared,
) -> NoReturn:
    status = 1
    try:
        os.chdir("/")
        own = {libfuse[1].fileno(), channel[1].fileno()}
        null = os.open(os.devnull, os.O_RDWR)
        for name in os.listdir("/proc/self/fd"):
            if int(name) <= 2:
                os.dup2(null, int(name))
            elif int(name) not in own:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(int(name))
        process.main(libfuse[1], channel[1], shared)
        status = 0
    except BaseException:
        with contextlib.suppress(OSError):
            channel[1].setblocking(True)
            said = traceback.format_exc()[-messages.MAX_FAILED_BYTES :]
            channel[1].send(messages.KIND.pack(Kind.FAILED) + said.encode("utf-8", "replace"))
    finally:
        os._exit(status)
