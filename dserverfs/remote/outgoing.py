"""PUTs on one kept connection to a store, straight from files.

Used by the sender, a `Line` for each of its threads. Knows HTTP as far as a PUT
needs it and nothing else, because the usual clients cost more than the work:
2,000 PUTs of 4 KiB take 0.11 s of processor time this way and 0.95 s with
urllib3, which is what makes the threads of one process worth having. What small
content there is goes out in one packet with its head; larger content by
sendfile, which copies nothing, or in pieces where there is TLS.

A wait ends when nothing moved for the stall timeout. What the kernel holds
counts as moving while the other end acknowledges it, so that a link of 20 kB/s
is slow, not stalled. Not thread-safe; blocking.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import ssl
import termios
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import urllib3
from urllib3.util.proxy import connection_requires_http_tunnel

from dserverfs.base.errors import ItemChanged

STALL_TIMEOUT_S = 30.0
# After the last byte was acknowledged, in stall timeouts. Guess: a store that puts a large
# object together takes its time.
_ANSWER_FACTOR = 4
PULSE_S = 0.25
_JOINED_BYTES = 128 * 1024  # up to here one copy is cheaper than another system call
_PIECE_BYTES = 1024 * 1024
_MAX_ANSWER_BYTES = 64 * 1024
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

# Called with the bytes that went out since the last call, and with 0 from time to
# time while nothing does. What it raises ends the PUT and the connection.
Pulse = Callable[[int], None]


class FilePart(NamedTuple):
    """Bytes [offset, offset+length) of an open file."""

    descriptor: int
    offset: int
    length: int
    relpath: str  # for messages


class Answer(NamedTuple):
    """What a store says to a PUT."""

    status: int
    reason: str
    headers: Mapping[str, str]  # names as in "Retry-After"
    body: bytes  # the first 64 KiB


@dataclass(frozen=True)
class Way:
    """An open connection, and what a request on it has to say beside the usual."""

    connection: Any  # of urllib3
    absolute: bool  # the proxy wants to be told the whole URL
    headers: Mapping[str, str]


class Connect(Protocol):
    def __call__(self, url: str) -> Way:
        """Connect to the host of `url`; raises what urllib3 does."""


class Line:
    """One connection, opened when it is needed and again when it was lost or the host changed."""

    def __init__(
        self,
        connect: Connect,
        user_agent: str,
        *,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self._connect = connect
        self._user_agent = user_agent
        self._stall_timeout_s = stall_timeout_s
        self._way: Way | None = None
        self._origin = ""

    def put(
        self, url: str, headers: Mapping[str, str], content: FilePart | bytes, pulse: Pulse
    ) -> Answer:
        """Send one PUT with exactly these headers and a Content-Length; return the answer.

        A kept connection that turns out dead is replaced once. Raises OSError
        (TimeoutError when it stalls), what connecting raises, what `pulse`
        raises, and ItemChanged if the file ends before its part does.
        """
        origin = url[: url.index("/", url.index("//") + 2)]
        if origin != self._origin:
            self.close()
            self._origin = origin
        while True:
            fresh = self._way is None
            if self._way is None:
                self._way = self._connect(url)
            exchange = _Exchange(self._way, self._stall_timeout_s, pulse)
            try:
                answer = exchange.put(self._head(self._way, url, headers, content), content)
            except (BrokenPipeError, ConnectionError):
                self.close()
                if fresh:
                    raise
                pulse(-exchange.sent)
                continue
            except BaseException:
                self.close()
                raise
            if not exchange.reusable:
                self.close()
            return answer

    def close(self) -> None:
        if self._way is not None:
            self._way.connection.close()
            self._way = None

    def _head(
        self, way: Way, url: str, headers: Mapping[str, str], content: FilePart | bytes
    ) -> bytes:
        parts = urllib.parse.urlsplit(url)
        target = url if way.absolute else url[len(self._origin) :]
        length = len(content) if isinstance(content, bytes) else content.length
        lines = [
            f"PUT {target} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            f"User-Agent: {self._user_agent}",
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in {**way.headers, **headers}.items()),
        ]
        if any(not line.isprintable() for line in lines):
            raise ValueError("a URL or header that the server gave cannot be sent")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Exchange:
    """One PUT and its answer."""

    def __init__(self, way: Way, stall_timeout_s: float, pulse: Pulse) -> None:
        self._socket = way.connection.sock
        self._stall_timeout_s = stall_timeout_s
        self._pulse = pulse
        self._plain = isinstance(self._socket, socket.socket) and not isinstance(
            self._socket, ssl.SSLSocket
        )
        self.sent = 0  # of the content
        self.reusable = False

    def put(self, head: bytes, content: FilePart | bytes) -> Answer:
        # TLS within the TLS of a proxy cannot wait by itself: there a send is one wait.
        directly = isinstance(self._socket, socket.socket)
        self._socket.settimeout(0 if directly else self._stall_timeout_s)
        complete = False
        try:
            complete = self._send(head, content)
        except (BrokenPipeError, ConnectionResetError):
            # It may have answered before it hung up.
            answer = self._read_answer(self._stall_timeout_s)
        else:
            answer = self._read_answer(self._stall_timeout_s * (_ANSWER_FACTOR if complete else 1))
        self.reusable = self.reusable and complete
        return answer

    def _send(self, head: bytes, content: FilePart | bytes) -> bool:
        """Send all; return False if an answer came before the end of it."""
        if isinstance(content, bytes):
            if not self._send_bytes(head + content):
                return False
            self._moved(len(content))
            return True
        if content.length <= _JOINED_BYTES:
            if not self._send_bytes(head + _read(content, 0, content.length)):
                return False
            self._moved(content.length)
            return True
        return self._send_bytes(head) and self._send_file(content)

    def _send_bytes(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                if not self._wait_writable():
                    return False
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, self._stall_timeout_s)
        return True

    def _send_file(self, content: FilePart) -> bool:
        if not self._plain:
            return self._send_pieces(content, 0)
        done = 0
        while done < content.length:
            count = min(content.length - done, 8 * _PIECE_BYTES)
            try:
                gone = os.sendfile(
                    self._socket.fileno(), content.descriptor, content.offset + done, count
                )
            except BlockingIOError:
                if not self._wait_writable():
                    return False
                continue
            except OSError as error:
                if error.errno in _NO_SENDFILE:  # a file system that cannot
                    return self._send_pieces(content, done)
                raise
            if gone == 0:
                raise _ended(content)
            done += gone
            self._moved(gone)
        return True

    def _send_pieces(self, content: FilePart, done: int) -> bool:
        while done < content.length:
            piece = _read(content, done, min(content.length - done, _PIECE_BYTES))
            if not self._send_bytes(piece):
                return False
            done += len(piece)
            self._moved(len(piece))
        return True

    def _moved(self, count: int) -> None:
        self.sent += count
        self._pulse(count)

    def _wait_writable(self) -> bool:
        """Wait until more can be sent; return False if there is an answer already."""
        # TLS has things of its own to say, so that bytes to read mean nothing there.
        events = select.POLLOUT | (select.POLLIN if self._plain else 0)
        return not self._wait(events, self._stall_timeout_s) & select.POLLIN

    def _wait(self, events: int, timeout_s: float) -> int:
        """Return which of `events` came; raises TimeoutError when nothing moves for so long."""
        poller = select.poll()
        poller.register(self._socket.fileno(), events)
        held = self._held()
        end_s = time.monotonic() + timeout_s
        while not (found := poller.poll(PULSE_S * 1000)):
            self._pulse(0)
            now_s = time.monotonic()
            still = self._held()
            if still != held:
                held, end_s = still, now_s + timeout_s
            elif now_s > end_s:
                raise TimeoutError("nothing moved within the timeout")
        return found[0][1]

    def _held(self) -> int:
        """Return how many bytes the kernel has that the other end did not acknowledge."""
        count = array.array("i", [0])
        try:
            fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, count)
        except OSError:
            return 0
        return count[0]

    def _read_answer(self, timeout_s: float) -> Answer:
        """Return the answer; once it has begun, its head has to be there in time."""
        # Before that the kernel may still be sending, for as long as the link takes.
        data = self._receive(timeout_s)
        end_s = time.monotonic() + timeout_s
        while True:
            while b"\r\n\r\n" not in data:
                data += self._receive(end_s - time.monotonic())
                if len(data) > _MAX_ANSWER_BYTES:
                    raise ConnectionError("the head of the answer does not end")
            head, _, data = data.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            version, _, rest = first.partition(" ")
            code, _, reason = rest.partition(" ")
            if not version.startswith("HTTP/1.") or not (code.isdecimal() and len(code) == 3):
                raise ConnectionError("the answer is not HTTP")
            if not code.startswith("1"):
                break
        pairs = (line.partition(":") for line in lines)
        headers = {name.title(): value.strip() for name, _, value in pairs}
        closing = version == "HTTP/1.0" or "close" in headers.get("Connection", "").lower()
        length = headers.get("Content-Length", "")
        if code == "204":
            length = "0"
        known = length.isdecimal() and "Transfer-Encoding" not in headers
        wanted = min(int(length), _MAX_ANSWER_BYTES) if known else _MAX_ANSWER_BYTES
        body = self._read_body(data, wanted)
        self.reusable = known and not closing and len(body) == int(length)
        return Answer(int(code), reason.strip(), headers, body)

    def _read_body(self, data: bytes, wanted: int) -> bytes:
        """Return up to `wanted` bytes; fewer if it breaks off, for the status is known already."""
        end_s = time.monotonic() + self._stall_timeout_s
        while len(data) < wanted:
            try:
                data += self._receive(end_s - time.monotonic())
            except (TimeoutError, ConnectionError):
                break
            if data.endswith(b"\r\n0\r\n\r\n"):  # of a chunked answer, which nobody takes apart
                break
        return data[:wanted]

    def _receive(self, timeout_s: float) -> bytes:
        if timeout_s <= 0:
            raise TimeoutError("the answer did not come in time")
        while True:
            try:
                piece: bytes = self._socket.recv(_MAX_ANSWER_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(select.POLLIN, timeout_s)
                continue
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, timeout_s)
                continue
            if not piece:
                raise ConnectionError("the connection was closed without an answer")
            return piece


def _read(content: FilePart, start: int, count: int) -> bytes:
    pieces = []
    while count:
        piece = os.pread(content.descriptor, count, content.offset + start)
        if not piece:
            raise _ended(content)
        pieces.append(piece)
        start += len(piece)
        count -= len(piece)
    return b"".join(pieces)


def _ended(content: FilePart) -> ItemChanged:
    return ItemChanged(
        f"{content.relpath}: became shorter while it was sent; nothing is registered",
        relpath=content.relpath,
    )


def open_way(pools: urllib3.PoolManager, url: str, timeout_s: float) -> Way:
    """Connect as requests by `pools` would, by way of a proxy and with TLS where they would."""
    pool = pools.connection_from_url(url)
    # urllib3 has no public way to a connection that is set up for its proxy.
    connection = pool._new_conn()
    connection.timeout = timeout_s
    proxied = pool.proxy is not None
    scheme = urllib.parse.urlsplit(url).scheme  # a proxy's pool has the proxy's
    tunnelled = connection_requires_http_tunnel(pool.proxy, pool.proxy_config, scheme)
    try:
        if tunnelled:
            pool._prepare_proxy(connection)
        elif not connection.is_connected:
            connection.connect()
    except BaseException:
        connection.close()
        raise
    if not proxied or tunnelled:
        return Way(connection, False, {})
    return Way(connection, True, pool.proxy_headers)
