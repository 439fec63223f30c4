"""A socket to which nothing is lost and nothing waits."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque


class Outbox:
    """What is sent to the other end, which may be gone: its end is seen by who reads from it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.queue: deque[bytes] = deque()
        self._is_open = True

    def send(self, message: bytes | memoryview) -> None:
        if self._is_open and not self.queue:
            with contextlib.suppress(BlockingIOError):
                self._send(message)
                return
        if self._is_open:
            self.queue.append(bytes(message))

    def offer(self, message: bytes) -> None:
        """Send a message if there is room for it."""
        if self._is_open:
            with contextlib.suppress(BlockingIOError):
                self._send(message)

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.queue:
                self._send(self.queue[0])
                self.queue.popleft()

    def stop(self) -> None:
        """Send nothing any more; what has come can still be read."""
        self._is_open = False
        self.queue.clear()

    def _send(self, message: bytes | memoryview) -> None:
        """Send; raises BlockingIOError if there is no room, or no memory, for it just now."""
        with contextlib.suppress(ConnectionError):
            try:
                self.sock.send(message)
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.ENOMEM):
                    raise BlockingIOError(error.errno, error.strerror) from error
                raise
