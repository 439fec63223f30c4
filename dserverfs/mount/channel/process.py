"""The channel's process: between the kernel and the daemon, one thread, no waiting.

It reads the requests of the kernel from the FUSE device. A READ of a block that the daemon
has told it of is answered from `blocks`, and so is what `frozen` can answer. Other READs and
WRITEs go to the daemon as messages, and the daemon answers them on the device; all other requests
go to libfuse as they are, and its replies come back. INTERRUPT is not passed on: it is about
requests that libfuse may not know. If it is about a request that only asks, and who asked is dying,
this one ends here: the kernel waits for what was taken from the device, so that with a daemon that
does not answer the program could not be killed.

Ends when the mount or the daemon does. A fault here ends the mount (ENOTCONN).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from collections import deque

from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.blocks import Blocks, Told
from dserverfs.mount.channel.frozen import FIRST_HANDLE, OF_OPEN, Answer, Frozen, Key, Missing
from dserverfs.mount.channel.messages import Counts, Kind, Shared, Sockets
from dserverfs.mount.channel.passed import Passed
from dserverfs.mount.channel.pushing import Pushing
from dserverfs.mount.channel.rows import Piece
from dserverfs.mount.channel.wire import Opcode
from dserverfs.reading.item_order import Stretch

BURST = 64  # requests that are taken before other descriptors are looked at
SPINS = 15  # looks for the next request of a reader that was answered: to sleep takes longer
# Messages that could not be sent, and requests that wait for a piece; until they are fewer, no
# request is taken.
MAX_QUEUED = 1024
# Requests that wait for a piece: it is about to be told. For others the daemon knows as much.
_WAIT = frozenset({Opcode.OPENDIR, Opcode.READDIRPLUS})


class _Outbox:
    """A socket to which nothing is lost and nothing waits."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.queue: deque[bytes] = deque()

    def send(self, message: bytes | memoryview) -> None:
        if not self.queue:
            with contextlib.suppress(BlockingIOError):
                self.sock.send(message)
                return
        self.queue.append(bytes(message))

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.queue:
                self.sock.send(self.queue[0])
                self.queue.popleft()


class Unmounted(Exception):
    """The kernel has ended the connection."""


class Channel:
    """The state of the process."""

    def __init__(self, sockets: Sockets, shared: Shared) -> None:
        """`sockets` are the channel's ends."""
        sockets.libfuse.setblocking(False)
        sockets.messages.setblocking(False)
        self._libfuse = _Outbox(sockets.libfuse)
        self._daemon = _Outbox(sockets.messages)
        self._forgotten = sockets.forgotten
        self._shared = shared
        self._device = -1
        self._blocks = Blocks()
        self._touched: dict[int, set[int]] = {}  # indices of blocks, by handle
        self._free = deque(range(messages.SLOTS))
        self._reply = memoryview(bytearray(wire.REPLY.size + wire.MAX_DATA_BYTES))
        self._reply_of_libfuse = memoryview(bytearray(wire.MAX_REQUEST_BYTES))
        self._reads = self._read_bytes = self._others = 0
        self._frozen = Frozen()
        self._pushing = Pushing(self._frozen, self._write, self._ask_contents)
        self._asked: set[Key] = set()  # pieces; each is told, or that there is none
        self._waiting: dict[Key, list[bytes]] = {}  # requests, by the piece that they need
        self._number_waiting = 0
        self._passed = Passed()
        self._poll = select.poll()
        self._wanted: dict[int, int] = {}

    def run(self) -> None:
        """Serve until the mount or the daemon ends."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the daemon has ended
            self._serve()

    def _serve(self) -> None:
        daemon, libfuse = self._daemon.sock.fileno(), self._libfuse.sock.fileno()
        while True:
            self._want(daemon, select.POLLIN | (select.POLLOUT if self._daemon.queue else 0))
            self._want(libfuse, select.POLLIN | (select.POLLOUT if self._libfuse.queue else 0))
            if self._device >= 0:
                self._want(self._device, select.POLLIN if self._has_room() else 0)
            ready = dict(self._poll.poll())
            # First what the daemon takes back.
            if ready.get(daemon, 0) & ~select.POLLOUT and not self._take_messages():
                return
            if ready.get(daemon, 0) & select.POLLOUT:
                self._daemon.flush()
            if ready.get(libfuse, 0) & select.POLLOUT:
                self._libfuse.flush()
            if ready.get(libfuse, 0) & ~select.POLLOUT and not self._pass_replies():
                return
            if self._device in ready:
                try:
                    if self._has_room():
                        self._take_requests()
                    else:  # nothing was waited for but the end of the connection
                        raise Unmounted
                except Unmounted:
                    self.say(messages.ENDED.pack(Kind.ENDED))
                    return

    def say(self, last: bytes) -> None:
        """Tell the daemon the last message; return when it has ended the connections.

        Until then libfuse must not find the end of its own. Who waits for something to be in
        force need not wait: nothing is answered any more.
        """
        with contextlib.suppress(OSError):
            self._forgotten.shutdown(socket.SHUT_RDWR)
        daemon = self._daemon.sock
        daemon.setblocking(True)
        with contextlib.suppress(ConnectionError):
            self._daemon.flush()
            daemon.send(last)
            while daemon.recv(messages.MAX_BYTES):
                pass

    def _want(self, fd: int, events: int) -> None:
        if self._wanted.get(fd) != events:
            self._wanted[fd] = events
            self._poll.register(fd, events)

    def _has_room(self) -> bool:
        queued = len(self._daemon.queue) + len(self._libfuse.queue) + self._number_waiting
        return bool(self._free) and queued < MAX_QUEUED

    # From the kernel

    def _take_requests(self) -> None:
        """Answer or pass on what requests there are, up to a bound; raises Unmounted."""
        device = self._device
        slot = self._shared.slot(self._free[0])
        buffers = [slot]
        spins = 0
        for _ in range(BURST):
            try:
                length = os.readv(device, buffers)
            except BlockingIOError:
                if not spins:
                    return
                spins -= 1
                continue
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted
                    continue
                if error.errno == errno.ENODEV:
                    raise Unmounted from None
                raise
            if not length:
                raise Unmounted
            if length < wire.REQUEST.size:
                continue  # nobody could be answered
            told_length, opcode, unique, inode, _, _, pid, *_ = wire.REQUEST.unpack_from(slot)
            if told_length != length:
                self._respond(unique, errno.EIO)
            elif opcode == Opcode.READ and length >= wire.READ_BYTES:
                if self._answer_read(slot, unique, inode):
                    spins = SPINS
                else:
                    self._passed.note(opcode, unique, pid)
            elif opcode == Opcode.WRITE and length >= wire.WRITE_BYTES:
                self._daemon.send(messages.WRITE.pack(Kind.WRITE, self._free.popleft(), length))
                if not self._has_room():
                    return
                slot = self._shared.slot(self._free[0])
                buffers = [slot]
            elif opcode in self._frozen.handlers and self._answer(slot[:length]):
                spins = SPINS
                if not self._has_room():
                    return
            elif opcode != Opcode.INTERRUPT:
                self._passed.note(opcode, unique, pid)
                if opcode == Opcode.OPEN:
                    self._pushing.asked(unique, inode)
                elif opcode == Opcode.INIT:
                    self._pushing.begin()
                self._libfuse.send(slot[:length])
                if self._libfuse.queue:
                    return
            elif length >= wire.REQUEST.size + wire.INTERRUPT.size:
                self._interrupt(*wire.INTERRUPT.unpack_from(slot, wire.REQUEST.size))

    def _interrupt(self, unique: int) -> None:
        """End a request that only asks, if who asked is dying; one that is answered is no more."""
        if self._passed.may_end(unique):
            self._respond(unique, errno.EINTR)

    def _answer_read(self, request: memoryview, unique: int, inode: int) -> bool:
        """Answer a READ from a block; else have the daemon do it, and return False."""
        handle, offset, size, *_ = wire.READ.unpack_from(request, wire.REQUEST.size)
        count = self._blocks.read(inode, offset, size, self._reply[wire.REPLY.size :])
        if not count:
            self._daemon.send(messages.KIND.pack(Kind.READ) + request[: wire.READ_BYTES])
            if handle >= FIRST_HANDLE:
                self._touched.setdefault(handle, set())
            if not offset:
                self._pushing.read(inode)
            return False
        wire.REPLY.pack_into(self._reply, 0, wire.REPLY.size + count, 0, unique)
        self._write(self._reply[: wire.REPLY.size + count])
        self._note(inode, handle, offset, count)
        return True

    def _answer(self, request: memoryview) -> bool:
        """Answer a request that is about rows, now or when they are told; else return False."""
        _, opcode, unique, inode, uid, *_ = wire.REQUEST.unpack_from(request)
        frozen, body = self._frozen, request[wire.REQUEST.size :]
        answer = None
        try:
            if opcode in OF_OPEN or frozen.admits(uid):
                answer = frozen.handlers[opcode](inode, body)
            if opcode == Opcode.RELEASE:
                self._released(inode, body)
        except Missing as missing:
            if opcode not in _WAIT:
                return False
            self._waiting.setdefault(missing.key, []).append(bytes(request))
            self._number_waiting += 1
            self._ask(missing.key)
            return True
        except struct.error:  # it is shorter than the kernel makes it
            return False
        if answer is None:
            return False
        if opcode == Opcode.OPEN:
            self._pushing.opened(inode)
        self._respond(unique, answer)
        self._others += 1
        self._note_counts()
        if frozen.ahead is not None:
            self._ask(frozen.ahead)
            frozen.ahead = None
        return True

    def _ask(self, key: Key) -> None:
        if key not in self._asked:
            self._asked.add(key)
            self._daemon.send(messages.PIECE.pack(Kind.WANTED, 0, *key))

    def _ask_contents(self, base: int, stretch: Stretch) -> None:
        self._daemon.send(messages.CONTENTS.pack(Kind.WANTED_CONTENTS, 0, base, *stretch))

    def _released(self, inode: int, body: memoryview) -> None:
        (handle,) = wire.RELEASE.unpack_from(body)
        self._pushing.released(inode)
        if self._touched.pop(handle, None) is not None and handle >= FIRST_HANDLE:
            self._daemon.send(messages.RELEASED.pack(Kind.RELEASED, 0, handle))

    def _note(self, inode: int, handle: int, offset: int, count: int) -> None:
        """Count a read, and tell the daemon of the first one of each block."""
        self._reads += 1
        self._read_bytes += count
        self._note_counts()
        touched = self._touched.get(handle)
        if touched is None:
            touched = self._touched[handle] = set()
        index = self._blocks.index(offset)
        if index not in touched:
            touched.add(index)
            with contextlib.suppress(BlockingIOError):  # it is a hint: what to fetch ahead
                self._daemon.sock.send(
                    messages.TOUCHED.pack(Kind.TOUCHED, count, handle, offset, inode)
                )

    def _note_counts(self) -> None:
        pushing = self._pushing
        self._shared.note(
            Counts(
                self._reads, self._read_bytes, self._others, pushing.pushed, pushing.pushed_bytes
            )
        )

    def _respond(self, unique: int, answer: Answer) -> None:
        """Answer the kernel with bytes or an errno."""
        if isinstance(answer, int):
            self._write(wire.reply(unique, answer))
        else:
            length = sum(map(len, answer))
            self._write(wire.reply(unique, 0, length), *answer)

    def _write(self, *message: bytes | memoryview) -> None:
        """Answer the kernel; that the request was interrupted is its own business."""
        try:
            os.writev(self._device, message)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise Unmounted from None
            if error.errno != errno.ENOENT:
                raise

    # From libfuse and the daemon

    def _pass_replies(self) -> bool:
        """Pass replies of libfuse on; return False at its end."""
        for _ in range(BURST):
            try:
                length = self._libfuse.sock.recv_into(self._reply_of_libfuse)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not length:
                return False
            with contextlib.suppress(Unmounted):  # read from the device, that is told
                self._pass_reply(self._reply_of_libfuse[:length])
        return True

    def _pass_reply(self, message: memoryview) -> None:
        """Pass a reply on; of one that the kernel does not take, the request fails."""
        self._pushing.answered(message)
        try:
            self._write(message)
        except OSError as error:
            if error.errno != errno.EINVAL or len(message) < wire.REPLY.size:
                return
            _, _, unique = wire.REPLY.unpack_from(message)
            if unique:  # else it is a notice
                with contextlib.suppress(OSError):
                    self._respond(unique, errno.EIO)

    def _take_messages(self) -> bool:
        """Take what the daemon tells; return False at its end."""
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._daemon.sock, messages.MAX_BYTES, 1)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not message:
                return False
            self._take(message, fds[0] if fds else -1)

    def _take(self, message: bytes, fd: int) -> None:
        (kind,) = messages.KIND.unpack_from(message)
        if kind == Kind.DEVICE:
            os.set_blocking(fd, False)
            self._device = fd
            _, self._blocks.block_bytes, owner = messages.DEVICE.unpack(message)
            self._frozen.owner = None if owner == messages.EVERYBODY else owner
        elif kind == Kind.BLOCK:
            _, length, inode, index, number, start = messages.BLOCK.unpack(message)
            self._blocks.lose(inode, index)
            if fd >= 0:  # -1: this process has too many files open
                self._blocks.tell(inode, index, Told(fd, start, length, number))
        elif kind == Kind.LOST:
            _, _, inode, index, number = messages.LOST.unpack(message)
            self._blocks.lose(inode, index, number)
        elif kind == Kind.FORGET:
            _, _, inode = messages.FORGET.unpack(message)
            self._blocks.forget(inode)
            self._pushing.forget(inode)
            self._forgotten.send(message)
        elif kind == Kind.FREE:
            self._free.append(messages.FREE.unpack(message)[1])
        else:
            self._take_about_frozen(kind, message, fd)

    def _take_about_frozen(self, kind: int, message: bytes, fd: int) -> None:
        if kind == Kind.DATASET:
            self._frozen.tell(messages.DATASET.unpack(message)[2])
        elif kind == Kind.CONTENTS:
            _, covered, base, first, length, descending = messages.CONTENTS.unpack(message)
            stretch = Stretch(first, length, bool(descending))
            self._pushing.told(base, stretch, covered, _content_of(fd))
        elif kind in (Kind.ROWS, Kind.NO_ROWS):
            _, number, *key = messages.PIECE.unpack(message)
            self._asked.discard((key[0], key[1]))
            requests = self._waiting.pop((key[0], key[1]), [])
            self._number_waiting -= len(requests)
            if kind == Kind.ROWS and fd >= 0:
                self._frozen.take(key[0], Piece(_content_of(fd)))
                for request in requests:
                    self._again(request)
            else:  # -1: this process has too many files open
                for request in requests:
                    self._fail(request, number or errno.EIO)
        elif kind == Kind.TAKE_BACK:
            self._frozen.take_back(messages.DATASET.unpack(message)[2])
            self._pushing.take_back(messages.DATASET.unpack(message)[2])
            self._forgotten.send(message)
        elif kind == Kind.OPENS:
            self._frozen.opens = bool(messages.OPENS.unpack(message)[1])
            self._forgotten.send(message)

    def _again(self, request: bytes) -> None:
        """Answer a request that waited for a piece, or pass it on."""
        if not self._answer(memoryview(request)):
            self._libfuse.send(request)

    def _fail(self, request: bytes, number: int) -> None:
        """Have a request end that waited for a piece which there is not."""
        _, opcode, unique, *_ = wire.REQUEST.unpack_from(request)
        if opcode == Opcode.OPENDIR:
            self._libfuse.send(request)  # as without a channel
        else:
            self._respond(unique, number)


def _content_of(fd: int) -> bytes:
    """Return all of a file that came with a message, and close it; empty if none came."""
    if fd < 0:
        return b""
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def main(*fds: int) -> None:
    """Be the channel; the daemon alone ends it, for it goes on while there are requests.

    `fds` are those of the sockets and of the shared memory.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    gc.disable()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    *sockets, memory = fds
    ends = Sockets(*(socket.socket(fileno=fd) for fd in sockets))
    channel = Channel(ends, Shared(memory))
    try:
        channel.run()
    except BaseException:
        said = traceback.format_exc()[-messages.MAX_FAILED_BYTES :].encode("utf-8", "replace")
        channel.say(messages.KIND.pack(Kind.FAILED) + said)
        raise


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
