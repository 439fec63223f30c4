"""Signals as the main thread of `serve` waits for them: to stop, or the end of a child.

Signals arrive as bytes on a socket pair (`signal.set_wakeup_fd`), so waiting for
them, for a deadline and for other threads is one `select`, and no handler runs
anything. Main thread only, but for `wake`.
"""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_WAKE = b"\0"  # no signal has this number


class Stopped(Exception):
    """SIGINT or SIGTERM came while something else was waited for."""


class Signals:
    """`with Signals() as signals:` catches SIGINT, SIGTERM and SIGCHLD until it ends."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> Signals:
        self._before = {
            number: signal.signal(number, _note) for number in (*_STOPPING, signal.SIGCHLD)
        }
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.close()

    def close(self) -> None:
        """Close the sockets of a Signals that was never entered."""
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when a child ended, `wake` was called or the time is over; raises Stopped."""
        select.select([self._reader], [], [], timeout_s)
        try:
            arrived = self._reader.recv(4096)
        except BlockingIOError:
            return
        if any(number in arrived for number in _STOPPING):
            raise Stopped

    def wake(self) -> None:
        """End a `wait`; from any thread."""
        try:
            self._writer.send(_WAKE)
        except OSError:  # full, so it wakes anyway; or closed, so nobody waits
            pass


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: the byte on the socket says it all."""
