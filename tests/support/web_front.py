"""A web server before a dserver, over real HTTP or TLS, below a path or as an HTTP proxy."""

from __future__ import annotations

import contextlib
import http.client
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.support.authority import Authority
from tests.support.local_web import Certificates, serving

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host"})


class Front:
    """Passes on what comes below `prefix`, and counts it."""

    def __init__(self, target: str, prefix: str) -> None:
        self.target = target
        self.prefix = prefix
        self.url = ""
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Front

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.front.requests.append(self.path)
        path = self.path
        target = urllib.parse.urlsplit(self.front.target)
        if "://" in path.partition("?")[0][:8]:  # asked as a proxy
            target = urllib.parse.urlsplit(path)
            path = target.path + (f"?{target.query}" if target.query else "")
        elif path.startswith(f"{self.front.prefix}/"):
            path = path.removeprefix(self.front.prefix)
        else:
            self._answer(404, [], b"<html><head><title>No such page</title></head></html>")
            return
        connection = http.client.HTTPConnection(target.netloc, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        try:
            connection.request(self.command, path, body or None, headers)
            response = connection.getresponse()
            self._answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"server", "date"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def front(
    target: str, prefix: str = "", certificates: Certificates | None = None
) -> Iterator[Front]:
    """Run one before the server at URL `target`, with TLS if there are certificates."""
    state = Front(target, prefix)
    with serving(_Handler, certificates, front=state) as url:
        state.url = f"{url}{prefix}"
        yield state


def make_certificates(directory: Path) -> Certificates:
    """Make a private CA, and a certificate of it for this machine."""
    authority = Authority(directory)
    files = authority.certify("server", "127.0.0.1", "localhost")
    both = directory / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in files))
    return Certificates(authority.file, both)
