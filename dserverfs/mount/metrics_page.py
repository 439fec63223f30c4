"""The page of `mount --metrics`: figures of the mount, for a Prometheus that asks.

One thread, which answers one client at a time. The page has numbers and no names, so it asks
for no token.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer
from typing import Any

from dserverfs.base import bounded_calls
from dserverfs.base.errors import UsageError

PATH = "/metrics"
_TIMEOUT_S = 5.0  # for each piece that a client sends or takes

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def serving(host: str, port: int, text: Callable[[], str]) -> Iterator[tuple[str, int]]:
    """Answer with `text` until the end of the block; give the address.

    Raises UsageError if it is taken.
    """
    try:
        server = _server(host, port, text)
    except OSError as error:
        raise UsageError(
            f"--metrics {host}:{port}: {error.strerror}; give another address"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    port = server.server_address[1]
    shown = f"[{host}]" if ":" in host else host
    logger.info("figures are at http://%s:%d%s", shown, port, PATH)
    try:
        yield host, port
    finally:
        with contextlib.suppress(bounded_calls.GivenUp):  # a client that trickles holds it up
            bounded_calls.within(_TIMEOUT_S, server.shutdown)
        server.server_close()


def _server(host: str, port: int, text: Callable[[], str]) -> _Server:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return _Server((host, port), family, text)


class _Server(HTTPServer):
    def __init__(
        self, address: tuple[str, int], family: socket.AddressFamily, text: Callable[[], str]
    ) -> None:
        self.address_family = family
        self.text = text
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, and do not ask the network for the host's name as HTTPServer does."""
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a client of the figures failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S
    server_version = "dserverfs"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in (PATH, "/"):
            self.send_error(HTTPStatus.NOT_FOUND, "Not Found", f"The figures are at {PATH}.")
            return
        content = self.server.text().encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("figures: " + format, *args)
