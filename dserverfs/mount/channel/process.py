"""The channel's process: between the kernel and the daemon, one thread, no waiting.

It reads the requests of the kernel from the FUSE device. A READ of a block that the daemon
has told it of is answered from `blocks`, and so is what `frozen` can answer. Other READs and
WRITEs go to the daemon as messages, and the daemon answers them on the device; all other requests
go to libfuse as they are, and its replies come back. INTERRUPT is not passed on: it is about
requests that libfuse may not know. If it is about a request that only asks, and who asked is dying,
this one ends here: the kernel waits for what was taken from the device, so that with a daemon that
does not answer the program could not be killed.

A daemon that is gone without having said that the mount ends is followed by another one
(`succession`). Until then what was told is answered, and the rest waits (`passing`). What was told
is forgotten when the next daemon begins, and what waits goes to it.

Ends when the mount does, or a daemon that none follows. A fault here ends the mount (ENOTCONN).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Sequence

from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.blocks import Blocks, Files, blocks_in
from dserverfs.mount.channel.dying import is_dying
from dserverfs.mount.channel.frozen import FIRST_HANDLE, OF_OPEN, Answer, Frozen, Key, Missing
from dserverfs.mount.channel.messages import Kind, Shared, Sockets
from dserverfs.mount.channel.passing import MAX_QUEUED, OtherAbilities, Passing
from dserverfs.mount.channel.pushing import Pushing
from dserverfs.mount.channel.rows import Piece
from dserverfs.mount.channel.succession import Stage, Succession
from dserverfs.mount.channel.under_way import CLOSING
from dserverfs.mount.channel.wire import Opcode
from dserverfs.reading.item_order import Stretch

BURST = 64  # requests that are taken before other descriptors are looked at
SPINS = 15  # looks for the next request of a reader that was answered: to sleep takes longer
# Requests that wait for a piece: it is about to be told. For others the daemon knows as much.
_WAIT = frozenset({Opcode.OPENDIR, Opcode.READDIRPLUS})


class Unmounted(Exception):
    """The kernel has ended the connection."""


class Channel:
    """The state of the process."""

    def __init__(
        self, sockets: Sockets, shared: Shared, succession: Succession | None = None
    ) -> None:
        """`sockets` are the channel's ends. Without `succession` no daemon follows the first."""
        self._passing = Passing(sockets, shared, succession or Succession())
        self._shared = shared
        self._blocks = Blocks(self._damaged)
        self._files = Files()
        self._touched: dict[int, set[int]] = {}  # indices of blocks, by handle
        self._reply = memoryview(bytearray(wire.REPLY.size + wire.MAX_DATA_BYTES))
        self._reply_of_libfuse = memoryview(bytearray(wire.MAX_REQUEST_BYTES))
        self._reads = self._read_bytes = self._others = 0
        self._frozen = Frozen()
        self._pushing = Pushing(self._frozen, self._write, self._ask_contents)
        self._asked: set[Key] = set()  # pieces; each is told, or that there is none
        self._waiting: dict[Key, list[bytes]] = {}  # requests, by the piece that they need
        self._number_waiting = 0

    def run(self) -> None:
        """Serve until the mount ends, or a daemon that none follows."""
        with contextlib.suppress(OtherAbilities):
            self._serve(self._passing)

    def close(self) -> None:
        """Leave the daemon; one that does not serve yet ends."""
        self._passing.close()

    def _serve(self, passing: Passing) -> None:
        while True:
            has_room = self._has_room()
            ready = passing.poll(has_room=has_room)
            # First what the daemon takes back.
            if not self._exchange(ready):
                self._take_messages()  # what it said last
                if not passing.is_followed():
                    return
            if passing.has_ended(ready) and not self._follow():
                return
            if passing.succession.is_late():
                return
            passing.tell_quiet()
            if passing.device in ready:
                try:
                    if not has_room and not ready[passing.device] & select.POLLIN:
                        raise Unmounted  # nothing was waited for but the end of the connection
                    if self._has_room():
                        self._take_requests()
                except Unmounted:
                    passing.say_last(messages.ENDED.pack(Kind.ENDED))
                    return

    def say(self, last: bytes) -> None:
        """Tell the daemon the last message, as `Passing.say_last`."""
        self._passing.say_last(last)

    def _exchange(self, ready: dict[int, int]) -> bool:
        """Speak with the daemon; return False if a connection with it has ended."""
        passing = self._passing
        if passing.succession.stage is Stage.ENDING:
            return True
        daemon = ready.get(passing.daemon.sock.fileno(), 0)
        libfuse = ready.get(passing.libfuse.sock.fileno(), 0)
        if daemon & ~select.POLLOUT and not self._take_messages():
            return False
        if daemon & select.POLLOUT:
            passing.daemon.flush()
        if libfuse & select.POLLOUT:
            passing.libfuse.flush()
        return not libfuse & ~select.POLLOUT or self._pass_replies(BURST)

    def _has_room(self) -> bool:
        return self._number_waiting < MAX_QUEUED and self._passing.has_room()

    # From the kernel

    def _take_requests(self) -> None:
        """Answer or pass on what requests there are, up to a bound; raises Unmounted."""
        passing = self._passing
        device, free = passing.device, passing.free
        slot = self._shared.slot(free[0])
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
                    self._pass_read(slot[: wire.READ_BYTES], unique, inode, pid)
                    if not self._has_room():
                        return
            elif opcode == Opcode.WRITE and length >= wire.WRITE_BYTES:
                if not passing.write(length, unique, pid):
                    self._respond(unique, errno.EIO)
                if not self._has_room():
                    return
                slot = self._shared.slot(free[0])
                buffers = [slot]
            elif opcode in self._frozen.handlers and self._answer(slot[:length]):
                spins = SPINS
                if not self._has_room():
                    return
            elif opcode != Opcode.INTERRUPT:
                self._pass_on(slot[:length])
                if passing.libfuse.queue or not self._has_room():
                    return
            elif length >= wire.REQUEST.size + wire.INTERRUPT.size:
                self._interrupt(*wire.INTERRUPT.unpack_from(slot, wire.REQUEST.size))

    def _interrupt(self, unique: int) -> None:
        """End a request that only asks or waits, if who asked is dying."""
        pid = self._passing.asked_by(unique)
        if pid and is_dying(pid):
            self._passing.interrupted(unique)
            self._respond(unique, errno.EINTR)

    def _pass_on(self, request: memoryview) -> None:
        """Give libfuse a request."""
        _, opcode, unique, inode, *_ = wire.REQUEST.unpack_from(request)
        if opcode == Opcode.OPEN:
            self._pushing.asked(unique, inode)
        elif opcode == Opcode.INIT:
            self._pushing.begin()
        if not self._passing.request(request):
            self._pushing.failed(unique)
            self._respond(unique, errno.EIO)

    def _pass_read(self, request: memoryview, unique: int, inode: int, pid: int) -> None:
        self._passing.read(request, unique, pid)
        handle, offset, *_ = wire.READ.unpack_from(request, wire.REQUEST.size)
        if handle >= FIRST_HANDLE:
            self._touched.setdefault(handle, set())
        if not offset:
            self._pushing.read(inode)

    def _answer_read(self, request: memoryview, unique: int, inode: int) -> bool:
        """Answer a READ from a block; else return False."""
        handle, offset, size, *_ = wire.READ.unpack_from(request, wire.REQUEST.size)
        count = self._blocks.read(inode, offset, size, self._reply[wire.REPLY.size :])
        if not count:
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
            if self._passing.waits:
                return False
            if opcode not in _WAIT:
                if self._frozen.missed(missing.key):
                    self._ask(missing.key)
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
            self._pushing.opened(unique, inode)
        self._respond(unique, answer)
        self._others += 1
        self._note_counts()
        if frozen.ahead is not None:
            if not self._passing.waits:
                self._ask(frozen.ahead)
            frozen.ahead = None
        return True

    def _damaged(self, inode: int, index: int, number: int) -> None:
        """Tell the daemon that a block has other checksums than it told."""
        message = messages.LOST.pack(Kind.DAMAGED, 0, inode, index, number)
        self._passing.daemon.send(message)

    def _ask(self, key: Key) -> None:
        if key not in self._asked:
            self._asked.add(key)
            self._passing.daemon.send(messages.PIECE.pack(Kind.WANTED, 0, *key))

    def _ask_contents(self, base: int, stretch: Stretch) -> None:
        wanted = messages.CONTENTS.pack(Kind.WANTED_CONTENTS, 0, base, *stretch)
        self._passing.daemon.send(wanted)

    def _released(self, inode: int, body: memoryview) -> None:
        (handle,) = wire.RELEASE.unpack_from(body)
        self._pushing.released(inode)
        if self._touched.pop(handle, None) is not None and handle >= FIRST_HANDLE:
            self._passing.daemon.send(messages.RELEASED.pack(Kind.RELEASED, 0, handle))

    def _note(self, inode: int, handle: int, offset: int, count: int) -> None:
        """Count a read, and tell the daemon of the first one of each block."""
        self._reads += 1
        self._read_bytes += count
        self._note_counts()
        touched = self._touched.get(handle)
        if touched is None:
            touched = self._touched[handle] = set()
        index = self._blocks.index(offset)
        if index not in touched and not self._passing.waits:
            touched.add(index)
            # It is a hint: what to fetch ahead.
            self._passing.daemon.offer(
                messages.TOUCHED.pack(Kind.TOUCHED, count, handle, offset, inode)
            )

    def _note_counts(self) -> None:
        pushing = self._pushing
        self._shared.note(
            self._reads, self._read_bytes, self._others, pushing.pushed, pushing.pushed_bytes
        )

    def _respond(self, unique: int, answer: Answer) -> None:
        """Answer the kernel with bytes or an errno."""
        if isinstance(answer, int):
            self._write(wire.reply(unique, answer))
        else:
            length = sum(map(len, answer))
            self._write(wire.reply(unique, 0, length), *answer)

    def _write(self, *message: bytes | memoryview) -> None:
        """Give the kernel a reply or a notice; raises Unmounted.

        That a request was interrupted is its own business. One whose reply the kernel does not
        take, or has no memory for, fails; nobody waits for a notice.
        """
        try:
            os.writev(self._passing.device, message)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise Unmounted from None
            head = message[0]
            unique = wire.REPLY.unpack_from(head)[2] if len(head) >= wire.REPLY.size else 0
            if unique and error.errno != errno.ENOENT:
                with contextlib.suppress(OSError):  # the kernel may have ended it by itself
                    os.write(self._passing.device, wire.reply(unique, errno.EIO))

    # From libfuse and the daemon

    def _pass_replies(self, number: int) -> bool:
        """Pass so many replies of libfuse on, or what there are; return False at its end."""
        for _ in range(number):
            try:
                length = self._passing.libfuse.sock.recv_into(self._reply_of_libfuse)
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
        unique = wire.REPLY.unpack_from(message)[2] if len(message) >= wire.REPLY.size else 0
        if unique and not self._passing.is_for_kernel(unique, message):
            self._begin_anew()
            return
        self._pushing.answered(unique, message)
        self._write(message)

    def _take_messages(self) -> bool:
        """Take what the daemon tells; return False at its end."""
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(
                    self._passing.daemon.sock,
                    messages.MAX_BYTES,
                    messages.MAX_BLOCKS,
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not message:
                return False
            self._take(message, fds)

    def _take(self, message: bytes, fds: Sequence[int]) -> None:
        (kind,) = messages.KIND.unpack_from(message)
        fd, journal = (*fds, -1, -1)[:2]  # -1: there is none, or too many files are open
        if kind == Kind.DEVICE:
            told = messages.DEVICE.unpack(message)
            _, self._blocks.block_bytes, self._pushing.small_bytes, owner = told
            self._frozen.owner = None if owner == messages.EVERYBODY else owner
            self._passing.take_device(fd, journal)
        elif kind == Kind.BLOCKS:
            self._blocks.tell(*blocks_in(message, [*map(self._files.take, fds)]))
        elif kind == Kind.LOST:
            _, _, inode, index, number = messages.LOST.unpack(message)
            self._blocks.lose(inode, index, number)
        elif kind == Kind.FORGET:
            _, _, inode = messages.FORGET.unpack(message)
            self._blocks.forget(inode)
            self._pushing.forget(inode)
            self._passing.is_in_force(message)
        elif kind == Kind.FREE:
            self._passing.free.append(messages.FREE.unpack(message)[1])
        elif kind == Kind.SERVING:
            self._passing.succession.serves(fd)
        elif kind == Kind.END:
            self._passing.succession.end()
        elif kind == Kind.HOLDS:
            self._passing.hold(holds=bool(messages.OPENS.unpack(message)[1]))
            self._release_held()
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
            else:
                for request in requests:
                    self._fail(request, number or errno.EIO)
        elif kind == Kind.TAKE_BACK:
            self._frozen.take_back(messages.DATASET.unpack(message)[2])
            self._pushing.take_back(messages.DATASET.unpack(message)[2])
            self._passing.is_in_force(message)
        elif kind == Kind.OPENS:
            self._frozen.opens = bool(messages.OPENS.unpack(message)[1])
            self._passing.is_in_force(message)

    def _again(self, request: bytes) -> None:
        """Answer a request that waited, or pass it on."""
        view = memoryview(request)
        _, opcode, unique, inode, _, _, pid, *_ = wire.REQUEST.unpack_from(view)
        if opcode == Opcode.READ and len(view) >= wire.READ_BYTES:
            if not self._answer_read(view, unique, inode):
                self._pass_read(view, unique, inode, pid)
        elif (
            opcode in CLOSING  # the handle is not of the channel, or would not have waited
            or opcode not in self._frozen.handlers
            or not self._answer(view)
        ):
            self._pass_on(view)

    def _fail(self, request: bytes, number: int) -> None:
        """Have a request end that waited for a piece which there is not."""
        _, opcode, unique, *_ = wire.REQUEST.unpack_from(request)
        if opcode == Opcode.OPENDIR:
            self._pass_on(memoryview(request))  # as without a channel
        else:
            self._respond(unique, number)

    # From one daemon to the next

    def _follow(self) -> bool:
        """Have a daemon follow the last, whose process has ended; return False if none can."""
        self._pass_replies(wire.MAX_DATA_BYTES)  # all there are
        self._take_messages()
        for request in self._passing.take_unanswered():
            self._pushing.failed(request.unique)
            self._respond(request.unique, () if request.opcode in CLOSING else errno.EIO)
        for requests in self._waiting.values():
            for each in requests:
                self._pass_on(memoryview(each))
        self._waiting.clear()
        self._asked.clear()
        self._number_waiting = 0
        return self._passing.follow()

    def _begin_anew(self) -> None:
        """Forget what earlier daemons told, and give the new one what waits."""
        self._blocks.clear()
        self._frozen.clear()
        self._pushing.clear()
        self._release_held()

    def _release_held(self) -> None:
        for request in self._passing.take_held():
            self._again(request)


def _content_of(fd: int) -> bytes:
    """Return all of a file that came with a message, and close it; empty if none came."""
    if fd < 0:
        return b""
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
