"""An object store over real HTTP that does wrong what it is told to, for tests of faults.

It serves one object with ranges as S3 does, unless a fault is queued: each
request takes the next. `test_objects.py` holds it to the contract of a store.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

from tests.support.local_web import Certificates, serving

Fault = Callable[["Handler"], None]


class FaultyStore:
    """One object, the faults to come, and what was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag = '"one"'
        self.faults: list[Fault | None] = []
        self.requests: list[dict[str, str]] = []
        self.connections: list[tuple[str, int]] = []  # every one there ever was
        self.open_connections = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """Answers GETs."""

    protocol_version = "HTTP/1.1"
    store: FaultyStore

    def setup(self) -> None:
        super().setup()
        with self.store.lock:
            self.store.connections.append(self.client_address)
            self.store.open_connections += 1

    def finish(self) -> None:
        with self.store.lock:
            self.store.open_connections -= 1
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self.store.requests.append(dict(self.headers.items()))
        fault = self.store.faults.pop(0) if self.store.faults else None
        if fault is None:
            self.serve()
        else:
            fault(self)

    def serve(self) -> None:
        """Answer as S3 would."""
        if self.headers.get("If-Match", self.store.etag) != self.store.etag:
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        total = len(self.store.content)
        if match is None:
            self.answer(200, self.store.content)
            return
        first, last = int(match[1]), min(int(match[2]), total - 1)
        if first >= total:
            self.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        headers = {"Content-Range": f"bytes {first}-{last}/{total}"}
        self.answer(206, self.store.content[first : last + 1], headers)

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        promised: int | None = None,
    ) -> None:
        """Send `body`; with `promised`, say that it is so long, and hang up behind it."""
        self.send_response(status)
        self.send_header("ETag", self.store.etag)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = self.close_connection or promised is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def refuse(status: int, code: str, headers: dict[str, str] | None = None) -> Fault:
    """Answer with an error, in S3's XML."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    return lambda handler: handler.answer(status, body, headers)


def ignore_range(handler: Handler) -> None:
    """Answer 200 with everything."""
    handler.answer(200, handler.store.content)


def cut_after(count: int) -> Fault:
    """Close the connection after `count` bytes of the body."""

    def fault(handler: Handler) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"])
        assert match is not None
        first, last = int(match[1]), int(match[2])
        total = len(handler.store.content)
        body = handler.store.content[first : first + count]
        headers = {"Content-Range": f"bytes {first}-{last}/{total}"}
        handler.answer(206, body, headers, promised=last - first + 1)

    return fault


def hang_up(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def reset(handler: Handler) -> None:
    """Reset the connection, as one does that has forgotten it."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True


def trickle(pause_s: float, *, chunked: bool) -> Fault:
    """Answer a byte at a time."""

    def fault(handler: Handler) -> None:
        total = len(handler.store.content)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        first, last = (int(match[1]), int(match[2])) if match else (0, total - 1)
        handler.send_response(206 if match else 200)
        if match:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(last - first + 1))
        handler.end_headers()
        with contextlib.suppress(OSError):
            for byte in handler.store.content[first : last + 1]:
                if handler.store.released.wait(pause_s):
                    break
                handler.wfile.write(b"1\r\n%c\r\n" % byte if chunked else b"%c" % byte)
                handler.wfile.flush()
            if chunked:
                handler.wfile.write(b"0\r\n\r\n")

    return fault


def stall(handler: Handler) -> None:
    """Answer nothing until the test is over."""
    handler.store.released.wait(60)
    handler.close_connection = True


@contextlib.contextmanager
def faulty_store(content: bytes, certificates: Certificates | None = None) -> Iterator[FaultyStore]:
    """Serve `content` on a free port of 127.0.0.1, with TLS if there are certificates."""
    store = FaultyStore(content)
    with serving(Handler, certificates, store=store) as url:
        store.url = f"{url}/bucket/key?X-Amz-Signature=secret"
        try:
            yield store
        finally:
            store.released.set()
