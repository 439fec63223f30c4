"""PUTs to a store, straight from files.

Used by `objects`. Small content goes out in one packet with its head; larger content by
sendfile, which copies nothing, or in pieces where there is TLS.

A wait ends when nothing moved for the stall timeout. Bytes that the kernel holds count as
moving while the other end acknowledges them: a link of 20 kB/s is slow, not stalled.
Thread-safe; blocking.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import ssl
import termios
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from dserverfs.base.errors import ItemChanged
from dserverfs.remote.connections import Connection, Connections
from dserverfs.remote.dserver_http import USER_AGENT
from dserverfs.remote.http1 import (
    Head,
    Target,
    header_lines,
    parse_head,
    request_head,
    require_headers_of_an_object,
    target_of,
)

# After the last byte was acknowledged, in stall timeouts. Guess: a store that puts a large
# object together takes its time.
_ANSWER_FACTOR = 4
_TICK_S = 0.25
_JOINED_BYTES = 128 * 1024  # up to here one copy is cheaper than another system call
_PIECE_BYTES = 1024 * 1024
_MAX_ANSWER_BYTES = 64 * 1024
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

# Called with the number of bytes that went out since the last call, and with 0 from time to
# time while nothing does. An error that it raises ends the PUT and the connection.
OnProgress = Callable[[int], None]


class FilePart(NamedTuple):
    """Bytes [offset, offset+length) of an open file."""

    descriptor: int
    offset: int
    length: int
    relpath: str  # for messages


class Answer(NamedTuple):
    """A store's answer to a PUT."""

    head: Head
    body: bytes  # the first 64 KiB


def put(
    connections: Connections,
    url: str,
    headers: Mapping[str, str],
    content: FilePart | bytes,
    *,
    stall_timeout_s: float,
    on_progress: OnProgress,
) -> Answer:
    """Send one PUT with exactly these headers and a Content-Length; return the answer.

    A kept connection that turns out dead is replaced once. Raises OSError (TimeoutError
    when it stalls), ValueError for a URL or header that cannot be sent, ItemChanged if the
    file ends before its part does, and what connecting and `on_progress` raise.
    """
    target = target_of(url)
    require_headers_of_an_object(headers)
    connection = connections.take_idle(target.origin)
    while True:
        if connection is None:
            connection = connections.open(url, target.origin)
        exchange = _Exchange(connection, stall_timeout_s, on_progress)
        try:
            answer = exchange.put(_head(connection, url, target, headers, content), content)
        except ConnectionError:
            connection.close()
            if not connection.is_kept:
                connection.broke_off()
                raise
            connections.drop_idle(target.origin)
            connection = None
            on_progress(-exchange.sent)
            continue
        except TimeoutError:
            connection.close()
            connection.broke_off()
            raise
        except BaseException:
            connection.close()
            raise
        connection.answered(answer.head.status)
        if exchange.is_reusable:
            connections.keep(connection)
        else:
            connection.close()
        return answer


def _head(
    connection: Connection,
    url: str,
    target: Target,
    headers: Mapping[str, str],
    content: FilePart | bytes,
) -> bytes:
    length = len(content) if isinstance(content, bytes) else content.length
    all_headers = {
        "User-Agent": USER_AGENT,
        "Content-Length": str(length),
        **connection.headers,
        **headers,
    }
    path = url if connection.takes_urls else target.path
    return request_head("PUT", path, target, header_lines(all_headers))


class _Exchange:
    """One PUT and its answer."""

    def __init__(
        self, connection: Connection, stall_timeout_s: float, on_progress: OnProgress
    ) -> None:
        self._socket = connection.socket
        self._stall_timeout_s = stall_timeout_s
        self._on_progress = on_progress
        self._is_plain = connection.is_socket and not isinstance(self._socket, ssl.SSLSocket)
        if not connection.is_socket:  # it cannot be polled: there each send is one wait
            self._socket.settimeout(stall_timeout_s)
        self.sent = 0  # of the content
        self.is_reusable = False

    def put(self, head: bytes, content: FilePart | bytes) -> Answer:
        complete = False
        try:
            complete = self._send(head, content)
        except (BrokenPipeError, ConnectionResetError):
            # It may have answered before it hung up.
            answer = self._read_answer(self._stall_timeout_s)
        else:
            answer = self._read_answer(self._stall_timeout_s * (_ANSWER_FACTOR if complete else 1))
        is_whole = len(answer.body) == answer.head.length
        self.is_reusable = complete and is_whole and answer.head.keeps_connection
        return answer

    def _send(self, head: bytes, content: FilePart | bytes) -> bool:
        """Send all; return False if an answer came before the end of it."""
        if not isinstance(content, bytes):
            if content.length > _JOINED_BYTES:
                return self._send_bytes(head) and self._send_file(content)
            content = _read(content, 0, content.length)
        if not self._send_bytes(head + content):
            return False
        self._moved(len(content))
        return True

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
        if not self._is_plain:
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
        self._on_progress(count)

    def _wait_writable(self) -> bool:
        """Wait until more can be sent; return False if there is an answer already."""
        # TLS has things of its own to say, so that bytes to read mean nothing there.
        events = select.POLLOUT | (select.POLLIN if self._is_plain else 0)
        return not self._wait(events, self._stall_timeout_s) & select.POLLIN

    def _wait(self, events: int, timeout_s: float) -> int:
        """Return which of `events` came; raises TimeoutError when nothing moves for so long."""
        poller = select.poll()
        poller.register(self._socket.fileno(), events)
        held = self._held()
        end_s = time.monotonic() + timeout_s
        while not (found := poller.poll(_TICK_S * 1000)):
            self._on_progress(0)
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
        while (head := parse_head(data)) is None or head.status < 200:
            if head is None:
                data += self._receive(end_s - time.monotonic())
            else:
                data = data[head.end :]
        wanted = _MAX_ANSWER_BYTES if head.length is None else min(head.length, _MAX_ANSWER_BYTES)
        return Answer(head, self._read_body(data[head.end :], wanted))

    def _read_body(self, data: bytes, wanted: int) -> bytes:
        """Return up to `wanted` bytes; fewer if it breaks off, for the status is known already."""
        end_s = time.monotonic() + self._stall_timeout_s
        while len(data) < wanted:
            try:
                data += self._receive(end_s - time.monotonic())
            except (TimeoutError, ConnectionError):
                break
            if data.endswith(b"\r\n0\r\n\r\n"):  # the end of a chunked answer, which is not decoded
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
