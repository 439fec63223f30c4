"""The body of a store's answer, read in large pieces.

Used by the storage. The usual way (urllib3, http.client, a buffered reader, a
socket with a timeout) costs a poll, a recv and a hand-over of the interpreter's
lock for every 64-200 KiB, and a zeroed buffer: 2.4 s for 512 MiB where this
takes 0.8 s. So a plain socket is read directly, a block at a time, by recv with
MSG_WAITALL, which returns bytes without zeroing them first and is bounded as a
whole by SO_RCVTIMEO. TLS goes by way of the buffered reader, one recv at a time.

It relies on http.client.HTTPResponse having `fp` (a buffered reader of the
socket) and `length`, as it had since Python 3.0.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import struct
import time

import urllib3

from dserverfs.base.errors import Unreachable
from dserverfs.base.retry import STALL_S, Deadline

PIECE_BYTES = 256 * 1024
# Asked for at once where a socket cannot be read directly; a record of TLS has 16 KiB.
_BUFFERED_BYTES = 64 * 1024


class Body:
    """What is left of one answer's body. Blocking; for one thread."""

    def __init__(self, response: urllib3.BaseHTTPResponse, deadline: Deadline) -> None:
        """No wait is longer than the deadline's `stall_s`, the whole not much than itself."""
        source = response._fp  # type: ignore[attr-defined]
        assert isinstance(source, http.client.HTTPResponse)
        self._source = source
        self._deadline = deadline
        self._socket = _plain_socket(source)
        self._buffered = _take_buffered(source, self._socket) if self._socket else b""
        self._left = source.length or 0

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes; raises Unreachable if it ends before, TimeoutError."""
        pieces = []
        while count:
            piece = self.read_some(count)
            if not piece:
                raise Unreachable("the body ended too soon")
            count -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_some(self, count: int) -> bytes:
        """Return at most `count` bytes, none at the end of the body or where it was cut off."""
        timeout_s = self._deadline.wait_s()
        if self._socket is None:
            return self._read_buffered(min(count, _BUFFERED_BYTES), timeout_s)
        if self._buffered:
            piece, self._buffered = self._buffered[:count], self._buffered[count:]
        else:
            seconds, fraction = divmod(timeout_s, 1)
            value = struct.pack("@ll", int(seconds), int(fraction * 1e6) + 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            began_s = time.monotonic()
            try:
                piece = self._socket.recv(min(count, self._left), socket.MSG_WAITALL)
            except BlockingIOError as error:
                raise TimeoutError("nothing came within the timeout") from error
            self._deadline.waited(time.monotonic() - began_s, len(piece))
        self._left -= len(piece)
        return piece

    def _read_buffered(self, count: int, timeout_s: float) -> bytes:
        """Return what one recv brings: waiting for more, a body that trickles would never end."""
        source = self._source
        if source.isclosed():
            return b""
        # SocketIO has no other way to its socket.
        source.fp.raw._sock.settimeout(timeout_s)  # type: ignore[attr-defined]
        if source.chunked:
            return source.read1(count)
        if source.length is not None:
            count = min(count, source.length)
        piece = source.fp.read1(count)
        if source.length is not None:
            source.length -= len(piece)
        if not piece or source.length == 0:
            source.close()
        return piece

    def finish(self) -> None:
        """Tell http.client what was read, so that it gives the connection back or closes it."""
        if self._socket is None:
            return
        # Blocking with a timeout of Python's, as urllib3 left it.
        self._socket.settimeout(STALL_S)
        if self._left == 0 and not self._buffered:
            self._source.length = 0
            self._source.read()


def _plain_socket(source: http.client.HTTPResponse) -> socket.socket | None:
    """Return the socket to read from, if it has no TLS and the body has a known length."""
    if source.length is None or source.isclosed():
        return None
    raw = source.fp.raw if isinstance(source.fp, io.BufferedReader) else None
    connection = getattr(raw, "_sock", None)
    if not isinstance(connection, socket.socket) or isinstance(connection, ssl.SSLSocket):
        return None
    return connection


def _take_buffered(source: http.client.HTTPResponse, connection: socket.socket) -> bytes:
    """Return what the buffered reader holds of the body, and leave the socket blocking."""
    connection.settimeout(0)
    try:
        held = source.fp.peek()
        taken = source.fp.read(min(len(held), source.length or 0)) if held else b""
    finally:
        connection.settimeout(None)
    return bytes(taken)
