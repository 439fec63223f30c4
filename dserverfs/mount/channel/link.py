"""The daemon's end of the channel: starts it, tells it of blocks, and answers the kernel.

`tell`, `tell_contents`, `forget`, `take_back`, `let_open` and what invalidates may be called in any
thread, all else in the event loop. A block is taken back when it is not hot any more, which is
when nothing in this process refers to it.
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
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from dserverfs.base import child_processes
from dserverfs.base.hashes import Buffer
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_files import write_all
from dserverfs.mount.channel import device, messages, wire
from dserverfs.mount.channel.handles import NO_HANDLES, Inherited
from dserverfs.mount.channel.messages import Counts, Kind, Shared, Sockets
from dserverfs.mount.channel.succession import Heritage, Recipe
from dserverfs.reading.cache.blocks import FileBlock
from dserverfs.reading.item_order import Stretch
from dserverfs.reading.small_items import SMALL_BYTES

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0  # it takes some 20 ms
END_TIMEOUT_S = 5.0
QUIET_TIMEOUT_S = 10.0  # for what is under way before another daemon follows
SEND_AGAIN_S = 0.01
# No memory, or too many files of this user are under way on sockets, as many as one process may
# have open.
_NOT_NOW = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_PROGRAM = "dserverfs.mount.channel"


class _Process(Protocol):
    """The channel's process."""

    def wait(self, timeout: float | None = None) -> object:
        """Return when it has ended; raises subprocess.TimeoutExpired."""

    def kill(self) -> None: ...


class _Parent:
    """The process that has started this one."""

    def __init__(self) -> None:
        self._fd = os.pidfd_open(os.getppid())

    def wait(self, timeout: float | None = None) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(_PROGRAM, timeout or 0.0)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)


class _Told(NamedTuple):
    """A block that was told."""

    number: int  # of the telling
    block: Callable[[], FileBlock | None]  # while it is there


_NOTHING = _Told(0, lambda: None)


class Link:
    """One mount's channel."""

    def __init__(
        self,
        running: _Process,
        sockets: Sockets,
        shared: Shared,
        heritage: Heritage | None = None,
    ) -> None:
        """Made by `start` and `inherit`."""
        self._running = running
        self._sockets = sockets
        self._messages = sockets.messages
        self._shared = shared
        self._forgetting = threading.Lock()
        self._device = -1 if heritage is None else heritage.device
        # What the daemon had open in whose place this one is, and the numbers that it gave.
        self.inherited = NO_HANDLES
        self._numbers_before = b""
        self.is_inherited = heritage is not None  # another daemon has mounted
        if heritage is not None:
            self.inherited = Inherited.of(_content(heritage.handles))
            self._numbers_before = _content(heritage.journal)
        self._lives_on = heritage is not None  # the channel, if this daemon ends without a word
        self._numbers = itertools.count(1)
        self._told: dict[tuple[int, int], _Told] = {}  # by inode and index
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

    def await_start(self) -> None:
        """Return when the channel's process serves; raises OSError if it does not. Blocks."""
        message = b""
        if select.select([self._messages], [], [], START_TIMEOUT_S)[0]:
            with contextlib.suppress(ConnectionError):
                message = self._messages.recv(messages.MAX_BYTES)
        if message == messages.KIND.pack(Kind.READY):
            return
        lines = message[messages.KIND.size :].decode("utf-8", "replace").split("\n")
        raise OSError(next(filter(None, reversed(lines)), "its process does not begin to serve"))

    @classmethod
    def inherit(cls, heritage: Heritage) -> Link:
        """Return the end of the channel that has started this process; its files are closed.

        Raises OSError, ValueError and struct.error for what is none.
        """
        for fd in heritage:
            os.set_inheritable(fd, False)
        shared = Shared(heritage.memory)
        if shared.version != messages.VERSION:
            raise ValueError("its channel is of another version: unmount it, and mount it again")
        ends = (heritage.libfuse, heritage.messages, heritage.forgotten)
        sockets = Sockets(*(socket.socket(fileno=fd) for fd in ends))
        link = cls(_Parent(), sockets, shared, heritage)
        for fd in (heritage.memory, heritage.journal, heritage.handles):
            os.close(fd)
        return link

    @property
    def counts(self) -> Counts:
        """How much the channel has answered by itself."""
        return self._shared.counts

    def take_numbers(self) -> bytes:
        """Return the journal of the daemon before, once: it may be large."""
        numbers, self._numbers_before = self._numbers_before, b""
        return numbers

    def mount(self, path: Path, options: Iterable[str], journal: int) -> str:
        """Mount at a directory; return what libfuse is to be told to mount. Raises UsageError.

        What another daemon has mounted is served on. `journal` is kept for the next daemon.
        """
        fd = self._device if self.is_inherited else device.mount(path, options)
        return self._serve(fd, messages.EVERYBODY, journal)

    def take(self, given: int, owner: int, journal: int) -> str:
        """Serve a device that is mounted already; as `mount`.

        Whom it answers is not known to the kernel: others than `owner` and root are the daemon's.
        """
        return self._serve(given, owner, journal)

    def _serve(self, fd: int, owner: int, journal: int) -> str:
        self._device = fd
        self._send(messages.DEVICE.pack(Kind.DEVICE, BLOCK_SIZE, SMALL_BYTES, owner), fd, journal)
        # libfuse closes the one that it is given.
        return f"/dev/fd/{os.dup(self._sockets.libfuse.fileno())}"

    def serves(self, recipe: Recipe) -> None:
        """Have another daemon follow this one if it ends without a word."""
        self._send_with(messages.KIND.pack(Kind.SERVING), recipe.packed())
        self._lives_on = True

    def hold(self) -> bool:
        """Have requests wait for another daemon; return when nothing is under way that changes.

        False if there is something after QUIET_TIMEOUT_S; they do not wait then. Blocks.
        """
        socks = [self._sockets.forgotten]
        with self._forgetting:
            while select.select(socks, [], [], 0)[0]:  # an answer that came too late before
                if not self._sockets.forgotten.recv(messages.MAX_BYTES):
                    return False
            self._send(messages.OPENS.pack(Kind.HOLDS, 1))
            if select.select(socks, [], [], QUIET_TIMEOUT_S)[0]:
                return bool(self._sockets.forgotten.recv(messages.MAX_BYTES))
        self.let_go()
        return False

    def let_go(self) -> None:
        """Have requests wait no more."""
        self._send(messages.OPENS.pack(Kind.HOLDS, 0))

    def end(self) -> None:
        """Have no other daemon follow: the mount ends."""
        self._send(messages.KIND.pack(Kind.END))
        self._lives_on = False

    def close(self) -> None:
        """Leave the channel, which ends unless another daemon is to follow this one."""
        if self._is_over:
            return
        self._is_over = True
        self._sockets.end()
        if self._device >= 0:
            os.close(self._device)
            self._device = -1
        if self._lives_on:
            return
        try:
            self._running.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()

    # What the channel may answer

    def tell(self, inode: int, blocks: Iterable[tuple[int, FileBlock]]) -> None:
        """Let the channel answer reads of blocks until these are gone; no more than MAX_BLOCKS."""
        fds: dict[int, int] = {}  # places in the message
        told, sums = list[bytes](), list[bytes]()
        for index, block in blocks:
            if self._told_at(inode, index).block() is block:
                continue
            number = next(self._numbers)
            fd, start, length = block.place()
            place = fds.setdefault(fd, len(fds))
            told.append(messages.BLOCK.pack(place, length, index, number, start))
            sums.append(block.checksums)
            lost = weakref.finalize(block, self._lost, inode, index, number)
            lost.atexit = False
            self._told[inode, index] = _Told(number, weakref.ref(block))
        if told:
            head = messages.BLOCKS.pack(Kind.BLOCKS, len(told), inode)
            self._send(b"".join((head, *told, *sums)), *fds)

    def damaged(self, inode: int, index: int, number: int) -> None:
        """Compare a block anew, in which the channel has met other checksums."""
        told = self._told_at(inode, index)
        if told.number == number and (block := told.block()) is not None:
            block.distrust()
            self._told.pop((inode, index), None)

    def only_block(self, inode: int) -> FileBlock | None:
        """Return the block of an item that has no other, if it is told."""
        block = self._told_at(inode, 0).block()
        return block if block is not None and block.place()[2] < BLOCK_SIZE else None

    def _told_at(self, inode: int, index: int) -> _Told:
        return self._told.get((inode, index), _NOTHING)

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
            # A late answer to `hold` may come first.
            while self._sockets.forgotten.recv(messages.MAX_BYTES) not in (b"", message):
                pass

    def _lost(self, inode: int, index: int, number: int) -> None:
        if self._told_at(inode, index).number == number:
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
        """Send; a channel that has ended, and answers nothing, need not be told.

        A message that the kernel does not take now is not left out: who reads may wait for it,
        or be answered what it takes back.
        """
        while True:
            try:
                socket.send_fds(self._messages, [message], fds)
                return
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    if not self._is_over:
                        logger.debug("the channel is not told: %s", error)
                    return
            time.sleep(SEND_AGAIN_S)

    # What the kernel is told

    def invalidate_inode(self, inode: int) -> None:
        """Make the kernel forget an inode's pages; waits for reads of them. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # the kernel knows nothing of it
            os.write(self._device, wire.invalidate_inode(inode))

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
        _, _, slot, length = messages.WRITE.unpack(message)
        request = bytes(self._shared.slot(slot)[:length])
        self._send(messages.FREE.pack(Kind.FREE, slot))
        return request

    def answer(self, mark: int, unique: int, answer: Buffer | int) -> None:
        """Answer the kernel with bytes or a negative errno, and then take the mark away."""
        try:
            if isinstance(answer, int):
                os.write(self._device, wire.reply(unique, -answer))
            else:
                os.writev(self._device, [wire.reply(unique, 0, len(answer)), answer])
        except OSError as error:
            # Interrupted, or unmounted, which the channel tells. Else the kernel has not taken it.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                logger.warning("a read or write fails: the kernel takes no answer: %s", error)
                with contextlib.suppress(OSError):  # the kernel may have ended it by itself
                    os.write(self._device, wire.reply(unique, errno.EIO))
        finally:
            self._shared.answered(mark)


def _content(fd: int) -> bytes:
    """Return all that a file holds."""
    return os.pread(fd, os.fstat(fd).st_size, 0)
