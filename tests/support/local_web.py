"""Web servers of tests: each on a free port of 127.0.0.1, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.patience import LATE_S


class Certificates(NamedTuple):
    authority: Path  # PEM of the private CA
    server: Path  # PEM of certificate and key, for 127.0.0.1 and localhost

    def listening(self, listener: socket.socket) -> ssl.SSLSocket:
        """Return the socket of a server, speaking TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        # The handshake in the thread that answers, not in the one that accepts.
        return context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)


class _QuietServer(ThreadingHTTPServer):
    """Says nothing when a client hangs up, which the tests make clients do."""

    daemon_threads = True
    # With the usual 5, connections that come together are begun again after seconds.
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Let it pass."""


@contextlib.contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler],
    certificates: Certificates | None = None,
    **attributes: Any,
) -> Iterator[str]:
    """Let a handler that has these attributes answer; give the URL, with TLS if certified."""
    server = _QuietServer(("127.0.0.1", 0), type("BoundHandler", (handler,), attributes))
    scheme = "http"
    if certificates is not None:
        server.socket = certificates.listening(server.socket)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LATE_S)
