"""Certificates that are trusted and proxies that are used, for every connection.

Used by the connections to dservers and to stores alike, so that both are reached. Reads
the environment's proxies, as every HTTP client does, and nothing else of it. Immutable
once made; thread-safe.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import certifi
import urllib3
import urllib3.connection

from dserverfs.base.errors import UsageError
from dserverfs.base.loopback import is_loopback
from dserverfs.remote.bounded_sockets import BoundedSSLSocket, bound_all
from dserverfs.remote.queryless_log import hide_queries

logger = logging.getLogger(__name__)

# A kept connection whose other end is gone (after suspend, behind a NAT that forgot
# it) says nothing while the kernel sends again, for 15 minutes by default.
UNACKNOWLEDGED_MS = 10_000
SOCKET_OPTIONS = [
    *urllib3.connection.HTTPConnection.default_socket_options,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS),
]


@dataclass(frozen=True)
class Trust:
    """The certificate authorities that are accepted.

    `bundle` replaces the machine's certificate authorities, `ca_file` is one
    more beside them; each is a PEM file or a directory of OpenSSL's form.
    """

    bundle: Path | None = None
    ca_file: Path | None = None
    verify: bool = True

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Return the TLS context; raises UsageError if a file of it cannot be used.

        Takes 0.1 s, so that it is made only where something speaks https.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["http/1.1"])
        context.sslsocket_class = BoundedSSLSocket
        if not self.verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        if self.bundle is None:
            context.load_default_certs()
            if not context.cert_store_stats()["x509_ca"]:  # as in a bare container
                _load(context, Path(certifi.where()))
        for path in (self.bundle, self.ca_file):
            if path is not None:
                _load(context, path)
        return context


def _load(context: ssl.SSLContext, path: Path) -> None:
    try:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or "not PEM"
        raise UsageError(f"certificates in {path}: cannot be used: {reason}") from error


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for `url`, if any; never for this machine."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    address = parts.netloc.rpartition("@")[2].lower()
    if is_loopback(host) or _is_excluded(address, host, proxies.get("no", "")):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excluded(address: str, host: str, no_proxy: str) -> bool:
    """Return whether NO_PROXY has the host, a domain above it, its port, or its network."""
    if no_proxy.strip() == "*":
        return True
    entries = [each.strip().lstrip(".").lower() for each in no_proxy.split(",")]
    for entry in filter(None, entries):
        if any(f".{name}".endswith(f".{entry}") for name in (host, address)):
            return True
        with contextlib.suppress(ValueError):  # a name is in no network
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
    return False


def _options(trust: Trust, origin: str, proxy: str | None) -> dict[str, Any]:
    """Return the options for urllib3; with certificates only where they are needed."""
    options: dict[str, Any] = {"socket_options": SOCKET_OPTIONS}
    if origin.startswith("https:") or (proxy or "").startswith("https:"):
        options["ssl_context"] = trust.context
        options["cert_reqs"] = trust.context.verify_mode
    return options


def pool_manager(
    trust: Trust, origin: str, proxy: str | None, **options: Any
) -> urllib3.PoolManager:
    """Return urllib3's connections to hosts of this scheme, direct or by way of `proxy`."""
    hide_queries()
    options |= _options(trust, origin, proxy)
    if proxy is None:
        manager = urllib3.PoolManager(**options)
        bound_all(manager)
        return manager
    parts = urllib.parse.urlsplit(proxy)
    if parts.scheme not in ("http", "https"):
        raise UsageError(
            f"proxy {parts.scheme}://{parts.hostname}: only http and https proxies can be used"
        )
    credentials = None
    if parts.username is not None:
        name = urllib.parse.unquote(parts.username)
        credentials = f"{name}:{urllib.parse.unquote(parts.password or '')}"
    manager = urllib3.ProxyManager(
        proxy,
        proxy_headers=urllib3.make_headers(proxy_basic_auth=credentials),
        proxy_ssl_context=options.get("ssl_context"),
        **options,
    )
    bound_all(manager)
    return manager
