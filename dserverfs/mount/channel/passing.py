"""What is passed on to the daemon, or waits for one: the channel's connections with it.

While a daemon serves, requests go to its libfuse, reads and writes to itself. Without one they
wait here, in the order in which they came, up to MAX_HELD; `Passing.has_room` says when no more
may be taken. The next daemon's libfuse is given the kernel's first request again, and has to
answer it as the first one did.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from typing import NamedTuple

from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.handles import Handles
from dserverfs.mount.channel.messages import Kind, Shared, Sockets
from dserverfs.mount.channel.outbox import Outbox
from dserverfs.mount.channel.succession import Stage, Succession
from dserverfs.mount.channel.under_way import UNANSWERED, Request, UnderWay
from dserverfs.mount.channel.wire import Opcode

MAX_QUEUED = 1024  # messages that could not be sent; until they are fewer, no request is taken
MAX_HELD = 10_000  # a thread has one request under way, or the read-ahead for it
QUIET_MS = 20  # between looks whether the daemon has answered what it answers by itself
_OF_HANDLES = frozenset(
    {Opcode.OPEN, Opcode.CREATE, Opcode.OPENDIR, Opcode.RELEASE, Opcode.RELEASEDIR}
)
_LISTS = frozenset({Opcode.READDIR, Opcode.READDIRPLUS})


class Held(NamedTuple):
    """A request that waits for a daemon."""

    pid: int
    request: bytes


class OtherAbilities(Exception):
    """The next daemon cannot take the mount over."""


class Passing:
    """The daemon as one mount's channel sees it."""

    def __init__(self, sockets: Sockets, shared: Shared, succession: Succession) -> None:
        """`sockets` are the channel's ends."""
        self._connect(sockets)
        self.succession = succession
        self.free = deque(range(messages.SLOTS))  # for the bytes of writes
        self.device = -1
        self._shared = shared
        self._under_way = UnderWay(shared)
        self._handles = Handles()
        self.waits = False  # what is not answered by the channel
        self._held: dict[int, Held] = {}  # by the number of the request
        self._is_asked_to_hold = False
        self._first = self._first_reply = b""  # the kernel's first request
        self._first_unique = 0
        self._journal = -1
        self._poll = select.poll()
        self._wanted: dict[int, int] = {}

    def _connect(self, ends: Sockets) -> None:
        self.libfuse, self.daemon, self._in_force = map(Outbox, ends)
        # A request of the kernel's is up to 1 MiB, and so may be the answer to one for a listing.
        self._longest = messages.longest_message(ends.libfuse)

    # Descriptors

    def poll(self, *, has_room: bool) -> dict[int, int]:
        """Wait; return the descriptors that are ready, and for what.

        Of the device only its end, unless there `has_room` for more requests.
        """
        succession = self.succession
        if succession.stage is Stage.ENDING:
            self._want(succession.fileno(), select.POLLIN)
        else:
            for outbox in (self.daemon, self.libfuse):
                events = select.POLLIN | (select.POLLOUT if outbox.queue else 0)
                self._want(outbox.sock.fileno(), events)
        if self.device >= 0:
            self._want(self.device, select.POLLIN if has_room else 0)
        if self._is_asked_to_hold:
            return dict(self._poll.poll(QUIET_MS))
        wait_s = succession.wait_s()
        return dict(self._poll.poll(None if wait_s is None else wait_s * 1000))

    def _want(self, fd: int, events: int) -> None:
        if self._wanted.get(fd) != events:
            self._wanted[fd] = events
            self._poll.register(fd, events)

    def _want_no_more(self, fd: int) -> None:
        if self._wanted.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def has_room(self) -> bool:
        queued = len(self.daemon.queue) + len(self.libfuse.queue)
        has_room = bool(self.free) and queued < MAX_QUEUED and len(self._held) < MAX_HELD
        return has_room and self._under_way.has_room()

    # Requests

    def request(self, request: memoryview) -> bool:
        """Give libfuse a request, or have it wait; return False if it is too long for libfuse."""
        _, opcode, unique, inode, _, _, pid, *_ = wire.REQUEST.unpack_from(request)
        if self.waits:
            if opcode not in UNANSWERED:
                self._held[unique] = Held(pid, bytes(request))
                return True
            if self.succession.is_orphaned:
                return True  # what the kernel forgets, the next daemon knows for longer
        if opcode == Opcode.BATCH_FORGET:
            for part in wire.forgets(request, self._longest):
                self.libfuse.send(part)
            return True
        if len(request) > self._longest:
            return False
        self._under_way.passed(opcode, unique, pid, request)
        if opcode in _OF_HANDLES:
            self._handles.asked(opcode, unique, inode, request[wire.REQUEST.size :])
        elif opcode == Opcode.INIT and not self._first:  # the kernel sends no other
            self._first, self._first_unique = bytes(request), unique
        if opcode in _LISTS and len(request) >= wire.READ_BYTES:
            self.libfuse.send(wire.with_room(request, self._longest - wire.REPLY.size))
        else:
            self.libfuse.send(request)
        return True

    def read(self, request: memoryview, unique: int, pid: int) -> None:
        """Have the daemon answer a READ, or have it wait."""
        if self.waits:
            self._held[unique] = Held(pid, bytes(request))
            return
        mark = self._under_way.mark(Opcode.READ, unique, pid, request)
        self.daemon.send(messages.READ.pack(Kind.READ, mark) + request)

    def write(self, length: int, unique: int, pid: int) -> bool:
        """Have the daemon answer the WRITE in the first free slot; return False without one.

        What was open for writing is lost then.
        """
        if self.waits and self.succession.is_orphaned:
            return False
        request = self._shared.slot(self.free[0])
        mark = self._under_way.mark(Opcode.WRITE, unique, pid, request)
        self.daemon.send(messages.WRITE.pack(Kind.WRITE, mark, self.free.popleft(), length))
        return True

    def asked_by(self, unique: int) -> int:
        """Return who made a request that waits, or that only asks; 0: there is none."""
        held = self._held.get(unique)
        return self._under_way.asked_by(unique) if held is None else held.pid

    def interrupted(self, unique: int) -> None:
        """Note that the channel has answered such a request."""
        self._held.pop(unique, None)
        self._under_way.interrupted(unique)

    def take_held(self) -> list[bytes]:
        """Return what has waited, to be passed on; it waits again if it still has to."""
        held, self._held = self._held, {}
        return [each.request for each in held.values()]

    # Replies and messages

    def is_for_kernel(self, unique: int, reply: memoryview) -> bool:
        """Note a reply of libfuse; return False if the kernel has had it from an earlier daemon.

        Nothing waits any more then. Raises OtherAbilities.
        """
        self._under_way.answered(unique)
        self._handles.told(unique, reply)
        if unique != self._first_unique or (self._first_reply and not self.waits):
            return True  # of a second reply to the first request the kernel knows nothing
        if not self._first_reply:
            self._first_reply = bytes(reply)
            return True
        if self._first_reply != bytes(reply):
            self.succession.refuse("the kernel was told of other abilities than the next daemon's")
            raise OtherAbilities
        self.waits = False
        return False

    def take_device(self, device: int, journal: int) -> None:
        """Serve a device, or give the next daemon the kernel's first request."""
        if self._journal >= 0:
            os.close(self._journal)
        self._journal = journal
        if self.device < 0:
            os.set_blocking(device, False)
            self.device = device
        else:
            os.close(device)
            self.libfuse.send(self._first)

    def is_in_force(self, message: bytes) -> None:
        """Tell the daemon that what it has taken back is not answered any more."""
        self._in_force.send(message)

    def hold(self, *, holds: bool) -> None:
        """Have requests wait, or no more."""
        self._is_asked_to_hold = self.waits = holds

    def tell_quiet(self) -> None:
        """Tell the daemon when nothing is under way that could not be asked again."""
        if self._is_asked_to_hold and self._under_way.is_quiet():
            self._is_asked_to_hold = False
            self._in_force.send(messages.OPENS.pack(Kind.HOLDS, 1))

    def say_last(self, message: bytes) -> None:
        """Tell the daemon the last message; return when it has ended the connections.

        Until then libfuse must not find the end of its own. Who waits for something to be in
        force need not wait: nothing is answered any more.
        """
        if self.succession.is_orphaned:
            return
        with contextlib.suppress(OSError):
            self._in_force.sock.shutdown(socket.SHUT_RDWR)
        daemon = self.daemon.sock
        daemon.setblocking(True)
        with contextlib.suppress(ConnectionError):
            self.daemon.flush()
            daemon.send(message)
            while daemon.recv(messages.MAX_BYTES):
                pass

    def close(self) -> None:
        self.succession.close()
        for outbox in (self.daemon, self.libfuse, self._in_force):
            outbox.sock.close()

    # From one daemon to the next

    def is_followed(self) -> bool:
        """Note that the daemon is gone, and read; return False if none follows it."""
        if not self.succession.is_gone():
            return False
        self.waits, self._is_asked_to_hold = True, False
        for outbox in (self.daemon, self.libfuse, self._in_force):
            outbox.stop()
            self._want_no_more(outbox.sock.fileno())
        return True

    def has_ended(self, ready: dict[int, int]) -> bool:
        """Return whether the process has ended of a daemon that is gone."""
        succession = self.succession
        return succession.stage is Stage.ENDING and succession.fileno() in ready

    def take_unanswered(self) -> list[Request]:
        """Return what the daemon that has ended had, but for what is asked again, which waits."""
        failed = []
        for request in self._under_way.take(has_crashed=self.succession.has_crashed()):
            if request.again is not None:
                self._held[request.unique] = Held(request.pid, request.again)
            else:
                failed.append(request)
        return failed

    def follow(self) -> bool:
        """Have another daemon started; return False if there can be none."""
        self._want_no_more(self.succession.fileno())
        self._handles.restart()
        self.free = deque(range(messages.SLOTS))
        for outbox in (self.daemon, self.libfuse, self._in_force):
            outbox.sock.close()
        ends = self.succession.start(self.device, self._journal, self._handles.packed())
        if ends is None:
            return False
        self._connect(ends)
        return True
