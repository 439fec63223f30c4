"""Connections of urllib3 whose every wait ends with the exchange they are used for.

Used by `trust`, which makes the pools. urllib3 and http.client know limits for single waits only:
headers that trickle, answers 100 without end, trailers of chunks, a body that is sent,
a name that is looked up and a host with many addresses may take for ever. Here each
wait is cut at the deadline of `within`, which a thread sets around its exchange. What becomes
of an exchange is told to `addresses`, which says where the next one goes.
Knows neither tokens nor URLs. Thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import urllib3
import urllib3.connection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.base.retry import Deadline
from dserverfs.remote import addresses
from dserverfs.remote.addresses import Address, Peer

CONNECT_TIMEOUT_S = 10.0
# Linux sends a SYN again after 1 s: one that is lost opens no second connection.
NEXT_ADDRESS_S = 1.5
HANDSHAKE_TIMEOUT_S = 5.0  # with both attempts of a first contact as long as a connection may take
# A handshake over two oceans takes 0.5 s; one that takes longer is asked about, and goes on.
QUIET_HANDSHAKE_S = 1.0
_PLAIN_QUESTION = b"HEAD / HTTP/1.0\r\n\r\n"
# Servers with TLS say 400 to plain HTTP, or lead to https.
_PLAIN_ANSWER = re.compile(rb"HTTP/1\.[01] (?!400|3)[1-5][0-9][0-9]\b")
_PLAIN_ANSWER_BYTES = 16  # of its first line
WRONG_VERSION = "WRONG_VERSION_NUMBER: plain HTTP is spoken there"  # as OpenSSL says of an answer
_SENT_BYTES = 64 * 1024  # in one wait


class _Limit(threading.local):
    deadline: Deadline | None = None
    is_direct = False  # the connection that is being made goes by way of no proxy


_limit = _Limit()


@contextlib.contextmanager
def within(deadline: Deadline) -> Iterator[None]:
    """Have the exchange that this thread begins in the block end with `deadline`.

    Its body, too, which may be read after the block.
    """
    before, _limit.deadline = _limit.deadline, deadline
    deadline.begin()
    try:
        yield
    finally:
        _limit.deadline = before


class _Waits:
    """The waits of a plain socket and of one with TLS; `limit` is that of the exchange.

    `peer` is told when it breaks off, if its host has other addresses.
    """

    limit: Deadline | None = None
    peer: Peer | None = None

    def recv_into(self, *arguments: Any) -> int:
        began_s = self._bound()
        try:
            count: int = super().recv_into(*arguments)  # type: ignore[misc]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self._broke_off()
            raise
        self._waited(began_s, count)
        if not count:
            self._broke_off()
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all; slowly is no stall, as it would be if all had to go within one timeout."""
        view = memoryview(data).cast("B")
        try:
            while view:
                began_s = self._bound()
                count = self.send(view[:_SENT_BYTES], flags)  # type: ignore[attr-defined]
                self._waited(began_s, count)
                view = view[count:]
        except OSError as error:
            self._broke_off()
            if not isinstance(error, TimeoutError):
                raise
            # Of a plain one urllib3 says while it sends that the connection was aborted.
            raise ReadTimeoutError(None, "", str(error)) from error  # type: ignore[arg-type]

    def _bound(self) -> float:
        """Set the timeout of the next wait; return when that begins."""
        # One that does not wait is left so: what it has is taken, and no more.
        if self.limit is not None and self.gettimeout() != 0:  # type: ignore[attr-defined]
            self.settimeout(self._longest_s(self.limit))  # type: ignore[attr-defined]
        return time.monotonic()

    def _longest_s(self, limit: Deadline) -> float:
        """Return how long to wait; raises as `_wait_s`."""
        wait_s = _wait_s(limit)
        if limit.elsewhere_s is None or self.peer is None or not self.peer.has_another():
            return wait_s
        return min(wait_s, limit.elsewhere_s)

    def _waited(self, began_s: float, count: int) -> None:
        if self.limit is not None:
            self.limit.waited(time.monotonic() - began_s, count)

    def _broke_off(self) -> None:
        if self.peer is not None:
            self.peer.failed()


class BoundedSocket(_Waits, socket.socket):
    """A TCP connection."""


class BoundedSSLSocket(_Waits, ssl.SSLSocket):
    """A TLS connection, made by a context whose `sslsocket_class` it is."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands; raises SSLError soon if the other end turns out to speak plain HTTP.

        Most servers that do say nothing to a handshake: they wait for the end of a line.
        """
        timeout_s = self.gettimeout()
        if block or not timeout_s or timeout_s <= QUIET_HANDSHAKE_S or not _limit.is_direct:
            super().do_handshake(block)
            return
        try:
            self.settimeout(QUIET_HANDSHAKE_S)
            super().do_handshake()
            return
        except TimeoutError:
            if _speaks_plain_http(self.family, self.getpeername()):
                raise ssl.SSLError(WRONG_VERSION) from None
        finally:
            self.settimeout(timeout_s)
        self.settimeout(timeout_s - QUIET_HANDSHAKE_S)
        try:
            super().do_handshake()
        finally:
            self.settimeout(timeout_s)


def _speaks_plain_http(family: int, place: Any) -> bool:
    """Return whether the server at an address answers a question without TLS; it is told nothing.

    Blocks for a second at most.
    """
    answer = b""
    end_s = time.monotonic() + QUIET_HANDSHAKE_S
    try:
        with socket.socket(family, socket.SOCK_STREAM) as asked:
            asked.settimeout(QUIET_HANDSHAKE_S)
            asked.connect(place)
            asked.sendall(_PLAIN_QUESTION)
            while len(answer) < _PLAIN_ANSWER_BYTES and (left_s := end_s - time.monotonic()) > 0:
                asked.settimeout(left_s)
                if not (piece := asked.recv(_PLAIN_ANSWER_BYTES)):
                    break
                answer += piece
    except OSError:
        pass
    return _PLAIN_ANSWER.match(answer) is not None


class _Connection:
    """A connection of urllib3 that hands its socket the limit of each exchange.

    Of a host with several addresses it knows its own, and is not used again while that is
    avoided.
    """

    sock: Any
    peer: Peer | None = None

    @property
    def is_connected(self) -> bool:
        is_open: bool = super().is_connected  # type: ignore[misc]
        return is_open and self.is_wanted()

    def is_wanted(self) -> bool:
        return self.peer is None or self.peer.is_wanted()

    def connect(self) -> None:
        connection: Any = self
        _limit.is_direct = connection.proxy is None
        try:
            super().connect()  # type: ignore[misc]
        except (OSError, HTTPError):
            self.broke_off()
            raise
        finally:
            _limit.is_direct = False
        self._take_limit()

    def request(self, *arguments: Any, **options: Any) -> None:
        self._take_limit()
        super().request(*arguments, **options)  # type: ignore[misc]

    def getresponse(self) -> Any:
        self._take_limit()
        sock = self.sock  # which goes from here if the answer is the last
        response = super().getresponse()  # type: ignore[misc]
        self.answered(response.status)
        if response.length_remaining is None and not response.chunked:
            sock.peer = None  # the end of the connection is that of the body
        return response

    def answered(self, status: int) -> None:
        """Note the status of an answer."""
        if self.peer is not None:
            self.peer.answered(status)

    def broke_off(self) -> None:
        """Note that there was no answer, or not all of one."""
        if self.peer is not None:
            self.peer.failed()

    def _take_limit(self) -> None:
        if isinstance(self.sock, _Waits):
            self.sock.limit = _limit.deadline
            self.sock.peer = self.peer

    def _new_conn(self) -> socket.socket:
        """Connect as urllib3 would, to one of the host's addresses, all within the limit."""
        connection: Any = self
        limit = _limit.deadline or Deadline(CONNECT_TIMEOUT_S)
        sock: BoundedSocket | None = None
        self.peer = None
        try:
            attempt = Deadline(min(CONNECT_TIMEOUT_S, _wait_s(limit)))
            places = addresses.to_try(connection._dns_host, connection.port, attempt.timeout_s)
            sock, address = _connected(places, attempt)
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            # For a handshake, which is one wait. A server without TLS often says nothing to one.
            sock.settimeout(min(HANDSHAKE_TIMEOUT_S, _wait_s(limit)))
            sock.limit = _limit.deadline
            self.peer = sock.peer = addresses.peer_of(address, places)
            connected, sock = sock, None
            return connected
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, f"{connection.host}: {error}") from error
        except OSError as error:
            raise NewConnectionError(connection, str(error)) from error
        finally:
            if sock is not None:
                sock.close()


class _PlainConnection(_Connection, urllib3.connection.HTTPConnection):
    pass


class _SecureConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def bound_all(pools: urllib3.PoolManager) -> None:
    """Have a manager make connections of this kind."""
    pools.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}


class _Connected(NamedTuple):
    sock: BoundedSocket
    address: Address


def _connected(places: Sequence[Address], attempt: Deadline) -> _Connected:
    """Return a connection to the first address that takes one, as by RFC 8305.

    The next address is tried when one has failed, or says nothing for `NEXT_ADDRESS_S` or its
    share of the time; those before it go on.
    """
    race = _Race()
    try:
        for number, address in enumerate(places, 1):
            race.begin(address)
            share_s = attempt.left_s() / (len(places) - number + 1)
            race.wait(share_s if number == len(places) else min(share_s, NEXT_ADDRESS_S))
            if race.won is not None:
                break
        while race.won is None and race.is_on and attempt.left_s() > 0:
            race.wait(attempt.left_s())
        return race.winner()
    finally:
        race.close()


class _Race:
    """Connections that are being made to the addresses of one host."""

    def __init__(self) -> None:
        self.won: _Connected | None = None
        self._poller = select.poll()
        self._under_way: dict[int, _Connected] = {}  # by descriptor, in the order of beginning
        self._failures: dict[Address, OSError] = {}

    @property
    def is_on(self) -> bool:
        return bool(self._under_way)

    def begin(self, address: Address) -> None:
        try:
            sock = BoundedSocket(address.family, socket.SOCK_STREAM)
        except OSError as error:  # as on a machine without IPv6
            self._failures[address] = error
            return
        sock.setblocking(False)
        self._under_way[sock.fileno()] = _Connected(sock, address)
        self._poller.register(sock.fileno(), select.POLLOUT)
        try:
            sock.connect(address.place)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(sock.fileno(), error)

    def wait(self, timeout_s: float) -> None:
        """Return when one was made or has failed, and at the latest after that time."""
        if not self._under_way:
            return
        for descriptor, _ in self._poller.poll(max(0.0, timeout_s) * 1000):
            begun = self._under_way[descriptor]
            code = begun.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                self.won = begun
                return
            self._fail(descriptor, OSError(code, os.strerror(code)))

    def winner(self) -> _Connected:
        """Return what was made; raises the OSError of why nothing was.

        Addresses that failed, or were begun before and are silent, are noted.
        """
        if self.won is None:
            raise self._failure()
        begun = list(self._under_way.values())
        silent = [each.address for each in begun[: begun.index(self.won)]]
        for address in [*self._failures, *silent]:
            Peer(address).failed()
        del self._under_way[self.won.sock.fileno()]
        return self.won

    def close(self) -> None:
        """Give up what is under way."""
        for begun in self._under_way.values():
            begun.sock.close()

    def _fail(self, descriptor: int, error: OSError) -> None:
        begun = self._under_way.pop(descriptor)
        self._poller.unregister(descriptor)
        begun.sock.close()
        self._failures[begun.address] = error

    def _failure(self) -> OSError:
        late = {each.address: TimeoutError("timed out") for each in self._under_way.values()}
        failures: dict[Address, OSError] = {**self._failures, **late}
        last = list(failures.values())[-1]
        if len(failures) == 1:
            return last
        said = ", ".join(
            f"{address} {error.strerror or error}" for address, error in failures.items()
        )
        text = f"none of its addresses takes a connection: {said}"
        is_late = any(isinstance(error, TimeoutError) for error in failures.values())
        return TimeoutError(text) if is_late else OSError(last.errno, text)


def _wait_s(limit: Deadline) -> float:
    """Return how long to wait; raises TimeoutError, as a socket does, when the time is over."""
    try:
        return limit.wait_s()
    except DeadlineExceeded as error:
        raise TimeoutError(str(error)) from error
