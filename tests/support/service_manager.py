"""A manager of services that listens for what services tell it, as systemd does."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from tests.support.patience import LATE_S


class Manager:
    """The socket that NOTIFY_SOCKET names."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self.name = name

    def told(self) -> dict[str, str]:
        """Return what the next message says; waits for it."""
        lines = self._listener.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def is_told_nothing(self) -> bool:
        """Return whether no message has come by now."""
        self._listener.setblocking(False)
        try:
            self._listener.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self._listener.settimeout(LATE_S)
        return False


@contextlib.contextmanager
def manager(name: str) -> Iterator[Manager]:
    """Listen at a path, or at an abstract name that begins with @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        listener.settimeout(LATE_S)
        yield Manager(listener, name)
