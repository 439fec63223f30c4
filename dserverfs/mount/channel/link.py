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
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import trio

import dserverfs
from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.mount.channel import device, messages, wire
from dserverfs.mount.channel.messages import Counts, Kind, Shared, Sockets
from dserverfs.reading.cache.blocks import FileBlock

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 5.0

# Without the packages that are installed, and without a look at the environment: it starts in
# the time that the daemon takes to import a part of what it needs.
_ROOT = str(Path(dserverfs.__file__).parents[1])
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from dserverfs.mount.channel.process import main; main(*map(int, sys.argv[2:]))"
)


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

    def __init__(self, running: subprocess.Popen[bytes], sockets: Sockets, shared: Shared) -> None:
        """Made by `start`."""
        self._running = running
        self._sockets = sockets
        self._messages = sockets.messages
        self._shared = shared
        self._forgetting = threading.Lock()
        self._device = -1
        self._numbers = itertools.count(1)
        self._told: dict[tuple[int, int], int] = {}  # id of the block, by inode and index
        self._is_over = False

    @classmethod
    def start(cls) -> Link:
        """Start the channel's process; it goes on to start while this one goes on."""
        ours, theirs = Sockets.pair()
        memory = Shared.create()
        fds = [*(each.fileno() for each in theirs), memory]
        try:
            running = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                pass_fds=fds,
            )
            return cls(running, ours, Shared(memory))
        finally:
            theirs.close()
            os.close(memory)

    @property
    def counts(self) -> Counts:
        """How much the channel has answered by itself."""
        return self._shared.counts

    def mount(self, path: Path, options: Iterable[str]) -> str:
        """Mount at a directory; return what libfuse is to be told to mount. Raises UsageError."""
        self._device = device.mount(path, options)
        socket.send_fds(
            self._messages, [messages.DEVICE.pack(Kind.DEVICE, BLOCK_SIZE)], [self._device]
        )
        # libfuse closes the one that it is given.
        return f"/dev/fd/{os.dup(self._sockets.libfuse.fileno())}"

    def close(self) -> None:
        """End the channel, and with it the connection with the kernel."""
        if self._is_over:
            return
        self._is_over = True
        self._sockets.end()
        if self._device >= 0:
            os.close(self._device)
            self._device = -1
        try:
            self._running.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()

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
        """Have the channel answer no read of an inode any more; waits until that is so."""
        with self._forgetting:
            for key in [key for key in list(self._told) if key[0] == inode]:
                self._told.pop(key, None)
            self._send(messages.FORGET.pack(Kind.FORGET, 0, inode))
            with contextlib.suppress(OSError):  # it has ended, and answers nothing
                self._sockets.forgotten.recv(messages.MAX_BYTES)

    def _lost(self, inode: int, index: int, number: int, block: int) -> None:
        if self._told.get((inode, index)) == block:
            self._told.pop((inode, index), None)
        self._send(messages.LOST.pack(Kind.LOST, 0, inode, index, number))

    def _send(self, message: bytes, *fds: int) -> None:
        """Send; a channel that has ended, and answers nothing, need not be told."""
        try:
            socket.send_fds(self._messages, [message], fds)
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
                await trio.lowlevel.wait_readable(self._messages)
                while True:
                    try:
                        message = self._messages.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT)
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
            self._messages.send(messages.FREE.pack(Kind.FREE, slot))
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
