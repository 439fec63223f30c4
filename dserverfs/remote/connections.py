"""Connections: urllib3's pools, and single connections to stores that it opened.

Used by everything that speaks with a dserver or a store. How a host is reached (proxy,
TLS, limits of each wait) is decided here and in `trust` alone. Sees no tokens.
Thread-safe; a Connection is one thread's until it is given back.
"""

from __future__ import annotations

import socket
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import urllib3
from urllib3.util.proxy import connection_requires_http_tunnel

from dserverfs.base.retry import Deadline
from dserverfs.remote.bounded_sockets import CONNECT_TIMEOUT_S, within
from dserverfs.remote.trust import Trust, pool_manager, proxy_for

MAX_IDLE = 32  # of each host; at 100 ms they bring 320 small objects a second


class Connection:
    """An open connection to the host of one origin, direct or by way of a proxy."""

    def __init__(
        self, origin: str, connection: Any, *, takes_urls: bool, headers: Mapping[str, str]
    ) -> None:
        self.origin = origin
        self.takes_urls = takes_urls  # a proxy that wants the whole URL in a request
        self.headers = headers  # for that proxy
        self.is_kept = False  # brought an answer before
        self._connection = connection
        self.socket = connection.sock
        # TLS within the TLS of a proxy is no socket and cannot be polled.
        self.is_socket = isinstance(self.socket, socket.socket)
        if self.is_socket:
            self.socket.settimeout(0)

    def is_wanted(self) -> bool:
        """Return whether a new connection would go to the same address."""
        is_so: bool = self._connection.is_wanted()
        return is_so

    def answered(self, status: int) -> None:
        """Note the status of an answer: by it other addresses of the host may be asked next."""
        self._connection.answered(status)

    def broke_off(self) -> None:
        """Note that no answer came, or not all of one."""
        self._connection.broke_off()

    def close(self) -> None:
        self._connection.close()


class Connections:
    """The connections of one client."""

    def __init__(
        self,
        trust: Trust | None = None,
        *,
        max_idle: int = MAX_IDLE,
        proxy_of: Callable[[str], str | None] = proxy_for,
    ) -> None:
        """Of each host at most `max_idle` of each of the two kinds are kept."""
        self._trust = trust or Trust()
        self._max_idle = max_idle
        self._proxy_of = proxy_of
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str | None], urllib3.PoolManager] = {}  # by scheme, proxy
        self._proxies: dict[str, str | None] = {}  # by origin
        self._idle: dict[str, list[Connection]] = {}  # by origin
        self._closed = False

    def pools(self, url: str) -> urllib3.PoolManager:
        """Return urllib3's pools by which `url` is reached."""
        parts = urllib.parse.urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            if origin not in self._proxies:
                self._proxies[origin] = self._proxy_of(origin)
            proxy = self._proxies[origin]
            pools = self._pools.get((parts.scheme, proxy))
            if pools is None:
                pools = self._pools[parts.scheme, proxy] = pool_manager(
                    self._trust, origin, proxy, num_pools=8, maxsize=self._max_idle
                )
        return pools

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        body: Any = None,
    ) -> urllib3.BaseHTTPResponse:
        """Return the answer to one request, its body unread and encoded as it comes.

        Follows no redirect. The exchange, with the reading of the body, ends with `deadline`.
        Raises what urllib3 does, OSError, and UnicodeError for some hosts.
        """
        try:
            with within(deadline):
                return self.pools(url).urlopen(
                    method,
                    url,
                    body=body,
                    headers=headers,
                    timeout=deadline.wait_s(),
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                )
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError):
            self.begin_anew(url)
            raise

    def begin_anew(self, url: str) -> None:
        """Close the kept connections of urllib3 that are not in use, after one has failed.

        urllib3 sees a kept connection that was closed before it is used, but not one
        that closes while we ask, or whose other end has forgotten it; and the
        others that are kept may be as old.
        """
        self.pools(url).clear()

    def open(self, url: str, origin: str) -> Connection:
        """Return a new connection to the host of `url`; raises what urllib3 does, UsageError."""
        pool = self.pools(url).connection_from_url(url)
        # urllib3 has no public way to a connection that is set up for its proxy.
        connection = pool._new_conn()
        connection.timeout = CONNECT_TIMEOUT_S
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
        takes_urls = pool.proxy is not None and not tunnelled
        headers = pool.proxy_headers if takes_urls else {}
        return Connection(origin, connection, takes_urls=takes_urls, headers=headers)

    def take_idle(self, origin: str) -> Connection | None:
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                connection = idle.pop() if idle else None
            if connection is None or connection.is_wanted():
                return connection
            connection.close()

    def keep(self, connection: Connection) -> None:
        """Have a connection used again whose last answer was read to its end."""
        connection.is_kept = True
        with self._lock:
            idle = self._idle.setdefault(connection.origin, [])
            if not self._closed and len(idle) < self._max_idle:
                idle.append(connection)
                return
        connection.close()

    def drop_idle(self, origin: str) -> None:
        """Close what is kept: one turned out dead, and the others may be as old."""
        with self._lock:
            idle = self._idle.pop(origin, [])
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close what is not in use; what is will not be kept."""
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, {}
            origins = [*self._idle]
        for each in pools.values():
            each.clear()
        for origin in origins:
            self.drop_idle(origin)
