"""The daemon's end of the channel: starts it, tells it of blocks, and answers the kernel.

`tell`, `tell_contents`, `forget`, `forget_pages`, `take_back` and `let_open` may be called in any
thread, all else in the event loop. A block is taken back when it is not hot any more, which is
when nothing in this process refers to it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
import subprocess
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

from dserverfs.base import child_processes
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_files import write_all
from dserverfs.mount.channel import device, messages, wire
from dserverfs.mount.channel.messages import Counts, Kind, Shared, Sockets
from dserverfs.reading.cache.blocks import FileBlock
from dserverfs.reading.item_order import Stretch

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 5.0
_PROGRAM = "dserverfs.mount.channel.process"


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
        """Start the channel's process, which goes on to start meanwhile; raises OSError."""
        with contextlib.ExitStack() as stack:
            memory = Shared.create()
            stack.callback(os.close, memory)
            ours, theirs = Sockets.pair()
            stack.callback(theirs.close)
            fds = [*(each.fileno() for each in theirs), memory]
            try:
                running = subprocess.Popen(
                    child_processes.module_command(_PROGRAM, *map(str, fds)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=child_processes.environment(),
                    pass_fds=fds,
                )
            except BaseException:
                ours.close()
                raise
            return cls(running, ours, Shared(memory))

    @property
    def counts(self) -> Counts:
        """How much the channel has answered by itself."""
        return self._shared.counts

    def mount(self, path: Path, options: Iterable[str]) -> str:
        """Mount at a directory; return what libfuse is to be told to mount. Raises UsageError."""
        return self._serve(device.mount(path, options), messages.EVERYBODY)

    def take(self, given: int, owner: int) -> str:
        """Serve a device that is mounted already; as `mount`.

        Whom it answers is not known to the kernel: others than `owner` and root are the daemon's.
        """
        return self._serve(given, owner)

    def _serve(self, fd: int, owner: int) -> str:
        self._device = fd
        self._send(messages.DEVICE.pack(Kind.DEVICE, BLOCK_SIZE, owner), fd)
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
            self._wait_for_locked(messages.FORGET.pack(Kind.FORGET, 0, inode))

    def tell_dataset(self, base: int) -> None:
        """Let the channel answer about rows of a frozen dataset, and ask for pieces of them."""
        self._send(messages.DATASET.pack(Kind.DATASET, 0, base))

    def tell_rows(self, base: int, number: int, piece: bytes) -> None:
        """Give the channel a piece of a dataset's rows."""
        self._send_with(messages.PIECE.pack(Kind.ROWS, 0, base, number), piece)

    def tell_contents(self, base: int, stretch: Stretch, covered: int, pack: bytes) -> None:
        """Give the channel contents of those of the first `covered` rows that there are."""
        message = messages.CONTENTS.pack(Kind.CONTENTS, covered, base, *stretch)
        if pack:
            self._send_with(message, pack)
        else:
            self._send(message)

    def tell_no_rows(self, base: int, number: int, errno: int) -> None:
        """Say that there is no such piece: what waits for it ends with that errno."""
        self._send(messages.PIECE.pack(Kind.NO_ROWS, errno, base, number))

    def take_back(self, base: int) -> None:
        """Have the channel answer nothing about a dataset; waits until that is so."""
        with self._forgetting:
            self._wait_for_locked(messages.DATASET.pack(Kind.TAKE_BACK, 0, base))

    def let_open(self, opens: bool) -> None:
        """Say whether the channel may open items by itself; waits until that is so."""
        with self._forgetting:
            self._wait_for_locked(messages.OPENS.pack(Kind.OPENS, opens))

    def _wait_for_locked(self, message: bytes) -> None:
        """Send a message, and return when it is in force."""
        self._send(message)
        with contextlib.suppress(OSError):  # it has ended, and answers nothing
            self._sockets.forgotten.recv(messages.MAX_BYTES)

    def _lost(self, inode: int, index: int, number: int, block: int) -> None:
        if self._told.get((inode, index)) == block:
            self._told.pop((inode, index), None)
        self._send(messages.LOST.pack(Kind.LOST, 0, inode, index, number))

    def _send_with(self, message: bytes, content: bytes) -> None:
        """Send a message with a file that has what is too long for one."""
        fd = os.memfd_create("dserverfs-told")
        try:
            write_all(fd, memoryview(content), 0)
            self._send(message, fd)
        finally:
            os.close(fd)

    def _send(self, message: bytes, *fds: int) -> None:
        """Send; a channel that has ended, and answers nothing, need not be told."""
        try:
            socket.send_fds(self._messages, [message], fds)
        except OSError as error:
            if not self._is_over:
                logger.debug("the channel is not told: %s", error)

    # What the kernel is told

    def forget_pages(self, inode: int, name: str) -> None:
        """Do as `forget`, and have the kernel forget an inode's pages soon; `name` is for the log.

        In a thread of its own: it waits for pages under read, of which some wait for us.
        """
        self.forget(inode)

        def invalidate() -> None:
            try:
                os.write(self._device, wire.invalidate_inode(inode))
            except FileNotFoundError:  # the kernel knows nothing of it
                pass
            except OSError as error:
                logger.warning("the kernel may keep wrong bytes of %s: %s", name, error)

        threading.Thread(target=invalidate, name="invalidate", daemon=True).start()

    def invalidate_entry(self, directory: int, name: bytes) -> None:
        """Make the kernel forget a name; may wait for requests. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.write(self._device, wire.invalidate_entry(directory, name))

    # What the channel leaves to the daemon

    def fileno(self) -> int:
        """Return what becomes readable when there is a message."""
        return self._messages.fileno()

    def message(self) -> bytes | None:
        """Return the next message of the channel, b"" at its end; None if there is none yet."""
        try:
            return self._messages.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def written(self, message: bytes) -> bytes:
        """Return the request of a WRITE; its slot is free then."""
        _, slot, length = messages.WRITE.unpack(message)
        request = bytes(self._shared.slot(slot)[:length])
        self._send(messages.FREE.pack(Kind.FREE, slot))
        return request

    def answer(self, unique: int, answer: Buffer | int) -> None:
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
