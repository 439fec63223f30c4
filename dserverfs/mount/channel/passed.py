"""Who asked what was passed on, so that a request that only asks can end with its program."""

from __future__ import annotations

import contextlib
import signal

from dserverfs.mount.channel.wire import Opcode

# Requests that may end with EINTR while the daemon still answers them: it then keeps nothing,
# neither a handle nor a look-up, that the kernel was to have and give back.
_ONLY_ASK = frozenset(
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
MAX_NOTED = 4096  # of these
_KILLED = 1 << (signal.SIGKILL - 1)  # pending for every thread of a process that is to end


class Passed:
    """The requests that were passed on last."""

    def __init__(self) -> None:
        self._who: dict[int, int] = {}  # the thread, by the number of the request

    def note(self, opcode: int, unique: int, pid: int) -> None:
        if opcode in _ONLY_ASK:
            self._who[unique] = pid
            if len(self._who) > MAX_NOTED:
                del self._who[next(iter(self._who))]

    def may_end(self, unique: int) -> bool:
        """Return whether an interrupted request is to end, for who asked is dying; once."""
        pid = self._who.pop(unique, 0)
        return bool(pid) and _is_dying(pid)


def _is_dying(thread: int) -> bool:
    """Return whether a thread is about to end, and waits for the kernel."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{thread}/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name == "SigPnd":
                return bool(int(value, 16) & _KILLED)
    return False
