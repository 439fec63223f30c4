"""An HTTP server before another one that does wrong what it is told to, once or for good.

For tests of what survives a fault: each request that matches takes the next of the
queued faults; every other is passed on as it is, and so are all when there is none.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from tests.support.local_web import serving

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "date"})


class Answer(NamedTuple):
    """What the server behind says."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultFront:
    """Faults to come, and what was asked."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self.pattern = "."  # of "METHOD /path": which requests take the faults
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # those that match
        self.lock = threading.Lock()
        self.released = threading.Event()

    def arm(self, pattern: str, faults: list[Fault]) -> None:
        """Begin anew: these are the faults of the requests that match."""
        self.released.set()  # who still waits may end
        with self.lock:
            self.released = threading.Event()
            self.pattern, self.faults = pattern, faults
            self.requests.clear()

    def disarm(self) -> None:
        self.arm(".", [])


class Handler(BaseHTTPRequestHandler):
    """Passes on what it does not spoil."""

    protocol_version = "HTTP/1.1"
    front: FaultFront

    def _dispatch(self) -> None:
        self.content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        front = self.front
        fault: Fault = pass_on
        with front.lock:
            self.released = front.released
            request = f"{self.command} {self.path.partition('?')[0]}"
            if re.search(front.pattern, request):
                front.requests.append(request)
                if front.faults:
                    fault = front.faults.pop(0)
        fault(self)

    do_GET = do_POST = do_PUT = do_DELETE = _dispatch

    def ask(self) -> Answer:
        """Return what the server behind answers, with the request as it came."""
        connection = http.client.HTTPConnection(*self.front.target)
        connection.sock = _connected(self.front.target)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(self.content or None)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def head(self, answer: Answer, *more: tuple[str, str]) -> bytes:
        """Return status line and headers as they are sent, less Content-Length."""
        headers = [each for each in answer.headers if each[0].lower() not in _HOP_BY_HOP]
        lines = [f"{name}: {value}\r\n" for name, value in [*headers, *more]]
        return f"HTTP/1.1 {answer.status} Said\r\n{''.join(lines)}".encode("latin-1")

    def say(self, *pieces: bytes) -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                self.wfile.write(piece)

    def hold(self) -> None:
        """Say nothing more until the test is over."""
        self.released.wait(60)
        self.close_connection = True

    def drip(self, pieces: Iterator[bytes]) -> None:
        """Say piece after piece, slowly, until the other side hangs up."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                if self.released.wait(0.02):
                    break
                self.wfile.write(piece)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Fault = Callable[[Handler], None]


def _connected(target: tuple[str, int]) -> socket.socket:
    """Connect without looking a name up, which tests have go wrong."""
    sock = socket.socket()
    sock.settimeout(60)
    sock.connect(target)
    return sock


def pass_on(handler: Handler) -> None:
    answer = handler.ask()
    length = ("Content-Length", str(len(answer.body)))
    handler.say(handler.head(answer, length) + b"\r\n" + answer.body)


def stall(handler: Handler) -> None:
    """Answer nothing."""
    handler.hold()


def stall_in_body(handler: Handler) -> None:
    answer = handler.ask()
    length = ("Content-Length", str(len(answer.body)))
    handler.say(handler.head(answer, length) + b"\r\n", answer.body[: len(answer.body) // 2])
    handler.hold()


def reset(handler: Handler) -> None:
    """Reset the connection in place of an answer."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True


def lose_answer(handler: Handler) -> None:
    """Have it done, and reset the connection."""
    handler.ask()
    reset(handler)


def cut(handler: Handler) -> None:
    """Send half of the body."""
    answer = handler.ask()
    length = ("Content-Length", str(len(answer.body) + 1))
    handler.say(handler.head(answer, length) + b"\r\n", answer.body[: len(answer.body) // 2])
    handler.close_connection = True


def too_short(handler: Handler) -> None:
    """Send a Content-Length, and a body, that lack the last byte."""
    answer = handler.ask()
    body = answer.body[:-1]
    length = ("Content-Length", str(len(body)))
    handler.say(handler.head(answer, length) + b"\r\n" + body)
    handler.close_connection = True


def trickled_head(handler: Handler) -> None:
    handler.drip(
        b"HTTP/1.1 200 OK\r\n" if not count else b"X-%d: 1\r\n" % count for count in range(10**6)
    )


def trickled_body(handler: Handler) -> None:
    answer = handler.ask()
    length = ("Content-Length", str(len(answer.body) + 10**6))
    handler.say(handler.head(answer, length) + b"\r\n")
    handler.drip(b" " for _ in range(10**6))


def endless_continue(handler: Handler) -> None:
    handler.drip(b"HTTP/1.1 100 Continue\r\n\r\n" for _ in range(10**6))


def trickled_trailers(handler: Handler) -> None:
    answer = handler.ask()
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(answer.body), answer.body)
    handler.say(handler.head(answer, ("Transfer-Encoding", "chunked")) + b"\r\n", chunk)
    handler.drip(b"X-%d: 1\r\n" % count for count in range(10**6))


def says_encoded(handler: Handler) -> None:
    """Answer rightly but for a Content-Encoding that it does not have."""
    answer = handler.ask()
    more = ("Content-Length", str(len(answer.body))), ("Content-Encoding", "gzip")
    handler.say(handler.head(answer, *more) + b"\r\n" + answer.body)


def says(status: int, body: bytes = b"<html>not now</html>", **headers: str) -> Fault:
    """Answer that without asking the server behind."""

    def fault(handler: Handler) -> None:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        answer = Answer(status, [("Content-Type", "text/html"), *named], body)
        length = ("Content-Length", str(len(body)))
        handler.say(handler.head(answer, length) + b"\r\n" + body)

    return fault


def in_an_hour(status: int) -> Fault:
    """Answer that it is busy until a date."""
    return lambda handler: says(status, Retry_After=formatdate(4e9, usegmt=True))(handler)


@contextlib.contextmanager
def fault_front(target: tuple[str, int]) -> Iterator[FaultFront]:
    """Run one on a free port of 127.0.0.1."""
    front = FaultFront(target)
    with serving(Handler, front=front) as url:
        front.port = int(url.rpartition(":")[2])
        try:
            yield front
        finally:
            front.disarm()
