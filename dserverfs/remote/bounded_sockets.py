"""Connections of urllib3 whose every wait ends with the exchange they are used for.

Used by `trust`, which makes the pools. urllib3 and http.client know limits for single waits only:
headers that trickle, answers 100 without end, trailers of chunks, a body that is sent,
a name that is looked up and a host with many addresses may take for ever. Here each
wait is cut at the deadline of `within`, which a thread sets around its exchange.
Knows neither tokens nor URLs. Thread-safe.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any

import urllib3
import urllib3.connection
from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.base.retry import Deadline

CONNECT_TIMEOUT_S = 10.0
HANDSHAKE_TIMEOUT_S = 5.0  # with both attempts of a first contact as long as a connection may take
_SENT_BYTES = 64 * 1024  # in one wait

Address = tuple[int, tuple[Any, ...]]  # family, and what connect takes


class _Limit(threading.local):
    deadline: Deadline | None = None


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
    """The waits of a plain socket and of one with TLS; `limit` is that of the exchange."""

    limit: Deadline | None = None

    def recv_into(self, *arguments: Any) -> int:
        began_s = self._bound()
        count: int = super().recv_into(*arguments)  # type: ignore[misc]
        self._waited(began_s, count)
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
        except TimeoutError as error:
            # Of a plain one urllib3 says while it sends that the connection was aborted.
            raise ReadTimeoutError(None, "", str(error)) from error  # type: ignore[arg-type]

    def _bound(self) -> float:
        """Set the timeout of the next wait; return when that begins."""
        # One that does not wait is left so: what it has is taken, and no more.
        if self.limit is not None and self.gettimeout() != 0:  # type: ignore[attr-defined]
            self.settimeout(_wait_s(self.limit))  # type: ignore[attr-defined]
        return time.monotonic()

    def _waited(self, began_s: float, count: int) -> None:
        if self.limit is not None:
            self.limit.waited(time.monotonic() - began_s, count)


class BoundedSocket(_Waits, socket.socket):
    """A TCP connection."""


class BoundedSSLSocket(_Waits, ssl.SSLSocket):
    """A TLS connection, made by a context whose `sslsocket_class` it is."""


def addresses_of(host: str, port: int, timeout_s: float) -> list[Address]:
    """Return the addresses of a host; raises TimeoutError, and gaierror if it has none.

    The system's lookup cannot be interrupted: one that takes longer is left to a
    thread of its own.
    """
    host = host.strip("[]")
    found: Future[list[Address]] = Future()
    if _is_address(host):
        _look_up(host, port, found)
    else:
        thread = threading.Thread(target=_look_up, args=(host, port, found), daemon=True)
        thread.name = "name-lookup"
        thread.start()
        if not wait_for([found], timeout_s).done:
            raise TimeoutError(f"no address of {host} is found in time")
    return found.result()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _look_up(host: str, port: int, found: Future[list[Address]]) -> None:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.set_result([(family, address) for family, _, _, _, address in entries])
    except BaseException as error:  # noqa: BLE001 - top of a thread: the caller gets it
        found.set_exception(error)


class _Connection:
    """A connection of urllib3 that hands its socket the limit of each exchange."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._take_limit()

    def request(self, *arguments: Any, **options: Any) -> None:
        self._take_limit()
        super().request(*arguments, **options)  # type: ignore[misc]

    def getresponse(self) -> Any:
        self._take_limit()
        return super().getresponse()  # type: ignore[misc]

    def _take_limit(self) -> None:
        if isinstance(self.sock, _Waits):
            self.sock.limit = _limit.deadline

    def _new_conn(self) -> socket.socket:
        """Connect as urllib3 would, to one of the host's addresses, all within the limit."""
        connection: Any = self
        limit = _limit.deadline or Deadline(CONNECT_TIMEOUT_S)
        sock: BoundedSocket | None = None
        try:
            attempt = Deadline(min(CONNECT_TIMEOUT_S, _wait_s(limit)))
            sock = _connected(connection._dns_host, connection.port, attempt)
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            # For a handshake, which is one wait. A server without TLS often says nothing to one.
            sock.settimeout(min(HANDSHAKE_TIMEOUT_S, _wait_s(limit)))
            sock.limit = _limit.deadline
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


def _connected(host: str, port: int, attempt: Deadline) -> BoundedSocket:
    """Return a connection to the first address that takes one; each has its share of the time."""
    addresses = addresses_of(host, port, _wait_s(attempt))
    failure: OSError = OSError(f"{host} has no address")
    for number, (family, address) in enumerate(addresses):
        sock = BoundedSocket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(_wait_s(attempt) / (len(addresses) - number))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def _wait_s(limit: Deadline) -> float:
    """Return how long to wait; raises TimeoutError, as a socket does, when the time is over."""
    try:
        return limit.wait_s()
    except DeadlineExceeded as error:
        raise TimeoutError(str(error)) from error
