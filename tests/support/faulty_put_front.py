"""A front before a real store that does wrong with PUTs what it is told to, over real HTTP or TLS.

Each PUT takes the next of the queued faults; without one it is passed on as it
is. A `Detour` is a client's storage whose PUTs go there, whatever their URL says.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from dserverfs.remote.connections import Connection, Connections
from dserverfs.remote.objects import Storage
from dserverfs.remote.trust import Trust
from tests.support.local_web import Certificates, serving

Fault = Callable[["Handler"], None]


class Put(NamedTuple):
    path: str
    headers: dict[str, str]
    content: bytes


class PutFront:
    """Faults to come, and what arrived."""

    def __init__(self) -> None:
        self.url = ""
        self.faults: list[Fault | None] = []
        self.puts: list[Put] = []  # those that arrived whole
        self.connections = 0
        self.lock = threading.Lock()
        self.released = threading.Event()

    def keys(self) -> list[str]:
        return [urllib.parse.urlsplit(put.path).path for put in self.puts]


class Handler(BaseHTTPRequestHandler):
    """Answers PUTs."""

    protocol_version = "HTTP/1.1"
    front: PutFront

    def setup(self) -> None:
        super().setup()
        with self.front.lock:
            self.front.connections += 1

    def do_PUT(self) -> None:
        with self.front.lock:
            fault = self.front.faults.pop(0) if self.front.faults else None
        (fault or pass_on)(self)

    def take(self) -> bytes:
        """Read the body, and note the request."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.front.lock:
            self.front.puts.append(Put(self.path, dict(self.headers.items()), content))
        return content

    def ask_store(self, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Pass the request on, with this content."""
        connection = http.client.HTTPConnection(self.headers["Host"], timeout=60)
        try:
            connection.putrequest("PUT", self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(content)
            response = connection.getresponse()
            etag = response.headers.get("ETag")
            return response.status, response.read(), {} if etag is None else {"ETag": etag}
        finally:
            connection.close()

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def pass_on(handler: Handler) -> None:
    handler.answer(*handler.ask_store(handler.take()))


def refuse(status: int, code: str, headers: dict[str, str] | None = None) -> Fault:
    """Answer with an error in S3's XML when the body has been read."""

    def fault(handler: Handler) -> None:
        handler.take()
        handler.answer(status, f"<Error><Code>{code}</Code></Error>".encode(), headers)

    return fault


def refuse_unread(status: int, code: str) -> Fault:
    """Answer with an error before the body has come, and hang up, as S3 does."""

    def fault(handler: Handler) -> None:
        handler.answer(
            status, f"<Error><Code>{code}</Code></Error>".encode(), {"Connection": "close"}
        )
        handler.close_connection = True

    return fault


def cut_after(count: int) -> Fault:
    """Reset the connection after so much of the body, and before its end."""

    def fault(handler: Handler) -> None:
        handler.rfile.read(min(count, int(handler.headers["Content-Length"]) - 1))
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.close_connection = True

    return fault


def lose_answer(handler: Handler) -> None:
    """Have it stored, and hang up without a word."""
    handler.ask_store(handler.take())
    handler.close_connection = True


def spoil(handler: Handler) -> None:
    """Have one bit changed on the way."""
    content = bytearray(handler.take())
    content[0] ^= 1
    handler.answer(*handler.ask_store(bytes(content)))


def stall(handler: Handler) -> None:
    """Take nothing and answer nothing until the test is over."""
    handler.front.released.wait(60)
    handler.close_connection = True


class _Detours(Connections):
    """Connections for PUTs that go to a front; the requests say what they would say anyway."""

    def __init__(self, front: PutFront, trust: Trust | None) -> None:
        super().__init__(trust)
        self._front = front

    def open(self, url: str, origin: str) -> Connection:
        return super().open(f"{self._front.url}/", origin)


class Detour(Storage):
    """A storage whose PUTs go to a front."""

    def __init__(
        self, front: PutFront, trust: Trust | None = None, *, stall_timeout_s: float = 30.0
    ) -> None:
        super().__init__(connections=_Detours(front, trust), stall_timeout_s=stall_timeout_s)


@contextlib.contextmanager
def put_front(certificates: Certificates | None = None) -> Iterator[PutFront]:
    """Run a front on a free port of 127.0.0.1, with TLS if there are certificates."""
    front = PutFront()
    with serving(Handler, certificates, front=front) as front.url:
        try:
            yield front
        finally:
            front.released.set()
