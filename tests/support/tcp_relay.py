"""A TCP relay between a client and a server that can be cut, and counts connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.support.patience import LATE_S

_PIECE = 64 * 1024


class Relay:
    """Listens on a port of 127.0.0.1, a free one by default; passes everything on to `target`."""

    def __init__(self, target: tuple[str, int], port: int = 0) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut = False
        self._paused = False
        self._passing = threading.Event()
        self._passing.set()
        self.passed_bytes = 0  # in both directions
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection; refuse new ones."""
        self.go_on()
        with self._lock:
            self._cut = True
            sockets, self._sockets = self._sockets, []
        for end in [self._listener, *sockets]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def pause(self) -> None:
        """End every connection; hang up on new ones until `resume`."""
        with self._lock:
            self._paused = True
            sockets, self._sockets = self._sockets, []
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def resume(self) -> None:
        self._paused = False

    def hang(self) -> None:
        """Pass nothing on and take new connections all the same, until `go_on`."""
        self._passing.clear()

    def go_on(self) -> None:
        self._passing.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._paused:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, timeout=LATE_S)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                if self._cut:
                    near.close()
                    far.close()
                    return
                self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._passing.wait()
                sink.sendall(piece)
                self.passed_bytes += len(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(host: str, port: int) -> Iterator[Relay]:
    """Run a relay to host:port as long as the block lasts."""
    running = Relay((host, port))
    try:
        yield running
    finally:
        running.cut()
