"""TLS on a connection of waitress, which has none.

OpenSSL works on buffers in memory (`ssl.MemoryBIO`), so nothing here waits: what comes is
decrypted in the server's loop, what goes is encrypted by whoever writes. To waitress a byte is
sent when all of its record is, so its own count of what is owed, by which slow clients are
closed, stays right. What TLS says by itself (handshake, tickets, its goodbye) goes beside.

Lock order: waitress's `outbuf_lock`, then `_tls_lock`.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from waitress.channel import HTTPChannel

from dserverfs.server.bodies import WatchedChannel

_READ_BYTES = 64 * 1024
_RECORDS_BYTES = 64 * 1024  # encrypted at a time
_REFUSAL = json.dumps(
    {"code": 400, "status": "Bad Request", "message": "this port speaks https: ask by https://..."}
).encode()
_SPEAKS_HTTPS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_REFUSAL), _REFUSAL)
)


def tls_channel(context: Callable[[], ssl.SSLContext]) -> type[WatchedChannel]:
    """Return the class of connections with TLS; each asks for the context that counts now."""
    return type("BoundTlsChannel", (TlsChannel,), {"context": staticmethod(context)})


class TlsChannel(WatchedChannel):
    """One connection with TLS."""

    context: Callable[[], ssl.SSLContext]
    is_shaking_hands = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._tls_lock = threading.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = type(self).context().wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._encrypted = memoryview(b"")  # taken from _outgoing, and not sent yet
        self._in_flight = 0  # how many of waitress's bytes those are
        self._said_goodbye = False  # the client, as it closes
        super().__init__(*arguments, **options)

    def handle_read(self) -> None:
        """Take what has come; waitress sees it if it is a request's."""
        try:
            encrypted = self.recv(_READ_BYTES)
        except OSError:
            self.handle_close()
            return
        if not encrypted:
            self.connected = False  # as waitress's own does
            return
        try:
            with self._tls_lock:
                data = self._decrypted_locked(encrypted)
                self._send_encrypted_locked()
        except OSError as error:  # one of TLS is one
            self._refuse(error)
            return
        if data:
            self.last_activity = time.time()
            self.received(data)
        if self._said_goodbye:
            self.handle_close()

    def writable(self) -> bool:
        return bool(self._encrypted or self._outgoing.pending or super().writable())

    def handle_write(self) -> None:
        with suppress(OSError), self._tls_lock:
            self._send_encrypted_locked()
        if super().writable():
            super().handle_write()

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Return how many of the bytes are sent, the first ones; 0 if the client has to read first.

        Then it is called again with the same ones: they are encrypted once.
        """
        with self._tls_lock:
            if not self._in_flight:
                self._in_flight = self._tls.write(data[:_RECORDS_BYTES])
            self._send_encrypted_locked()
            if self._encrypted:
                return 0
            count, self._in_flight = self._in_flight, 0
            return count

    def handle_close(self) -> None:
        """Close, with TLS's goodbye if nothing is owed: without it the answer seems cut off."""
        with suppress(OSError, ValueError), self._tls_lock:
            is_owed = self.total_outbufs_len or self._encrypted
            if self.socket is not None and not self.is_shaking_hands and not is_owed:
                with suppress(ssl.SSLError):  # for the client's own, which is not waited for
                    self._tls.unwrap()
                self._send_encrypted_locked()
        super().handle_close()

    def _decrypted_locked(self, encrypted: bytes) -> bytes:
        """Return what the client said in all that has come by now; b"" in the handshake."""
        self._incoming.write(encrypted)
        pieces = []
        try:
            if self.is_shaking_hands:
                self._tls.do_handshake()
                self.is_shaking_hands = False
                self.request_s = time.monotonic()
            while piece := self._tls.read(_READ_BYTES):
                pieces.append(piece)
            self._said_goodbye = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._said_goodbye = True
        return b"".join(pieces)

    def _send_encrypted_locked(self) -> None:
        """Send what is encrypted, as far as the client takes it; raises OSError."""
        while True:
            if not self._encrypted:
                self._encrypted = memoryview(self._outgoing.read())
                if not self._encrypted:
                    return
            # Not closed by this: waitress has its own way, with its own lock.
            count = HTTPChannel.send(self, self._encrypted, do_close=False)
            if not count:
                return
            self.moved_s = time.monotonic()
            self._encrypted = self._encrypted[count:]

    def _refuse(self, error: OSError) -> None:
        with suppress(OSError):
            if getattr(error, "reason", None) == "HTTP_REQUEST":
                HTTPChannel.send(self, _SPEAKS_HTTPS, do_close=False)
            else:
                with self._tls_lock:
                    self._send_encrypted_locked()  # the alert that says why
        HTTPChannel.handle_close(self)
