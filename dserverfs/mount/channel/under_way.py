"""Requests that the daemon has and has not answered: what becomes of each if it dies.

One that only asks is kept, and asked again of the next daemon. One that may have changed
something fails: nobody knows whether it was done. What closes succeeds, for the dead daemon has
nothing open. Bounded: of reads and writes by their marks in the shared memory, which the daemon
takes away when it has answered; of others by what libfuse takes.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.messages import Shared
from dserverfs.mount.channel.wire import Opcode

# Requests that may end with EINTR while the daemon still answers them: it then keeps nothing,
# neither a handle nor a look-up, that the kernel was to have and give back.
ONLY_ASK = frozenset(
    {
        Opcode.GETATTR,
        Opcode.GETXATTR,
        Opcode.LISTXATTR,
        Opcode.READ,
        Opcode.READLINK,
        Opcode.STATFS,
        Opcode.STATX,
    }
)
# What else may be asked again of another daemon: it gives a handle or a look-up that it knows.
_ASKED_AGAIN = ONLY_ASK | {
    Opcode.ACCESS,
    Opcode.LOOKUP,
    Opcode.LSEEK,
    Opcode.OPENDIR,
    Opcode.READDIR,
    Opcode.READDIRPLUS,
}
UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY, Opcode.INTERRUPT})
CLOSING = frozenset({Opcode.RELEASE, Opcode.RELEASEDIR})
_CHANGES = os.O_ACCMODE | os.O_TRUNC  # flags of open(2), of which none is set in O_RDONLY
# A request of which two daemons have crashed may be the reason, and so may one that many had when
# they were killed, as who takes too much memory is. One that is killed from outside as soon as it
# serves has what was asked again, each time on an idle machine.
MAX_CRASHES = 2
MAX_KILLS = 100


class Request(NamedTuple):
    """A request that was passed on."""

    opcode: int
    unique: int
    pid: int  # who asked
    again: bytes | None  # all of it, if it may be asked again


class Deaths(NamedTuple):
    """How many daemons have ended that had a request."""

    crashes: int
    kills: int

    def one_more(self, *, has_crashed: bool) -> Deaths:
        return Deaths(self.crashes + has_crashed, self.kills + (not has_crashed))


class UnderWay:
    """Those of one channel."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._of_libfuse: dict[int, Request] = {}  # by the number of the request
        self._marked: dict[int, Request] = {}  # by mark; maybe answered meanwhile
        self._marks: dict[int, int] = {}  # by the number of the request
        self._next = 0
        self._deaths: dict[int, Deaths] = {}  # of daemons, by request that is asked again

    @property
    def number_of_libfuse(self) -> int:
        """How many libfuse has not answered."""
        return len(self._of_libfuse)

    def passed(self, opcode: int, unique: int, pid: int, request: memoryview) -> None:
        """Note a request that libfuse is given."""
        if opcode not in UNANSWERED:
            again = bytes(request) if may_be_asked_again(opcode, request) else None
            self._of_libfuse[unique] = Request(opcode, unique, pid, again)

    def answered(self, unique: int) -> None:
        """Note that libfuse has answered a request."""
        self._of_libfuse.pop(unique, None)
        if self._deaths:
            self._deaths.pop(unique, None)

    def has_room(self) -> bool:
        """Return whether one more read or write may be passed on."""
        if not self._shared.is_marked(self._next):
            return True
        for number in range(self._next + 1, self._next + messages.MARKS):
            if not self._shared.is_marked(number % messages.MARKS):
                self._next = number % messages.MARKS
                return True
        return False

    def mark(self, opcode: int, unique: int, pid: int, request: memoryview) -> int:
        """Note a read or write that the daemon answers by itself, if there is room; return its
        mark."""
        number = self._next
        self._next = (number + 1) % messages.MARKS
        before = self._marked.get(number)
        if before is not None:
            self._marks.pop(before.unique, None)
        again = bytes(request) if opcode == Opcode.READ else None
        self._marked[number] = Request(opcode, unique, pid, again)
        self._marks[unique] = number
        self._shared.mark(number)
        return number

    def asked_by(self, unique: int) -> int:
        """Return who made a request that only asks and is not answered; 0: there is none."""
        request = self._of_libfuse.get(unique)
        if request is None and (number := self._marks.get(unique)) is not None:
            request = self._marked[number] if self._shared.is_marked(number) else None
        return request.pid if request is not None and request.opcode in ONLY_ASK else 0

    def interrupted(self, unique: int) -> None:
        """Note that a request is answered, though not by the daemon."""
        self._of_libfuse.pop(unique, None)

    def is_quiet(self) -> bool:
        """Return whether all that is under way may be asked again."""
        return all(request.again is not None for request in self._all())

    def take(self, *, has_crashed: bool) -> list[Request]:
        """Return all that is not answered, and begin anew; the daemon has crashed, or was killed.

        What was asked in vain as often as it may be is not to be asked `again`.
        """
        found = []
        deaths = {}
        for request in self._all():
            before = self._deaths.get(request.unique, Deaths(0, 0))
            now = deaths[request.unique] = before.one_more(has_crashed=has_crashed)
            is_over = now.crashes >= MAX_CRASHES or now.kills >= MAX_KILLS
            found.append(request._replace(again=None) if is_over else request)
        for number in self._marked:
            self._shared.answered(number)
        self._of_libfuse, self._marked, self._marks, self._deaths = {}, {}, {}, deaths
        return found

    def _all(self) -> list[Request]:
        marked = [each for number, each in self._marked.items() if self._shared.is_marked(number)]
        return sorted([*self._of_libfuse.values(), *marked], key=lambda each: each.unique)


def may_be_asked_again(opcode: int, request: memoryview) -> bool:
    """Return whether a request changes nothing."""
    if opcode == Opcode.OPEN and len(request) >= wire.REQUEST.size + wire.OPEN.size:
        return not wire.OPEN.unpack_from(request, wire.REQUEST.size)[0] & _CHANGES
    return opcode in _ASKED_AGAIN
