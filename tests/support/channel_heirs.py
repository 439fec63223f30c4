"""Daemons that a channel on the bench starts: each hands its descriptors to the test, and waits.

As a program: `python -m tests.support.channel_heirs HERITAGE SOCKET`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dserverfs.mount.channel.handles import Inherited
from dserverfs.mount.channel.messages import Sockets
from dserverfs.mount.channel.succession import HERITAGE, Heritage, Recipe
from tests.support.patience import LATE_S


class Heir(NamedTuple):
    """A daemon that was started, with what it has inherited."""

    pid: int
    ends: Sockets
    device: int
    journal: int
    handles: Inherited

    def die(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End its process by a signal; its ends are the test's."""
        os.kill(self.pid, number)


class Heirs:
    """Those of one bench."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(LATE_S)
        words = (sys.executable, "-m", __name__, HERITAGE, str(path))
        self.recipe = Recipe(words, dict(os.environ), str(path.with_name("log")))

    def next(self) -> Heir:
        """Return the next daemon that is started."""
        connection, _ = self._listener.accept()
        with connection:
            said, fds, _, _ = socket.recv_fds(connection, 100, len(Heritage._fields))
        self._stack.callback(_end, int(said))
        heritage = Heritage(*fds)
        libfuse, messages, forgotten, *others = heritage
        for fd in others:
            self._stack.callback(os.close, fd)
        ends = Sockets(*(socket.socket(fileno=fd) for fd in (libfuse, messages, forgotten)))
        self._stack.callback(ends.close)
        handles = Inherited.of(os.pread(heritage.handles, 1 << 20, 0))
        return Heir(int(said), ends, heritage.device, heritage.journal, handles)


def _end(pid: int) -> None:
    """End a daemon, a child of this process, of which the channel may know by now."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


@contextmanager
def heirs(directory: Path) -> Iterator[Heirs]:
    with ExitStack() as stack:
        yield Heirs(directory / "heirs", stack)


def main(heritage: str, path: str) -> None:
    fds = Heritage.of(heritage)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [str(os.getpid()).encode()], list(fds))
    for fd in fds[:3]:  # the test has them from now on
        os.close(fd)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
