"""Proxies that the operator trusts: who comes through them, and who comes past them.

WSGI middlewares; waitress's own knows one proxy and no network. Of X-Forwarded-For each
proxy's entry is at the end, behind all that a client has made up: from the end, the first
address that is no trusted proxy's is the client's. Without a trusted proxy the header counts
for nothing. Safe to share between threads.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_FORWARDED = "HTTP_X_FORWARDED_FOR"
_OF_PROXIES = (
    _FORWARDED,
    *(f"HTTP_X_FORWARDED_{name}" for name in ("HOST", "PROTO", "PORT", "BY")),
    "HTTP_FORWARDED",
)


class ProxiesOnly:
    """An app that answers nobody past the proxies: what comes so crossed a network unencrypted.

    For a server that listens beyond loopback without TLS. The machine itself is let in.
    """

    def __init__(
        self, app: Callable[..., Iterable[bytes]], trusted: Sequence[Network], public_url: str
    ) -> None:
        self._app = app
        self._trusted = trusted
        self._public_url = public_url

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        peer = _address(str(environ.get("REMOTE_ADDR", "")))
        if peer is not None and (peer.is_loopback or _is_in(peer, self._trusted)):
            return self._app(environ, start_response)
        message = (
            f"this came unencrypted from {peer}, which is no --trusted-proxy of this server:"
            f" ask by {self._public_url}"
        )
        body = json.dumps({"code": 403, "status": "Forbidden", "message": message}).encode()
        start_response(
            "403 Forbidden",
            [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
        )
        return [body]


class ClientAddresses:
    """An app whose REMOTE_ADDR is the client's."""

    def __init__(self, app: Callable[..., Iterable[bytes]], trusted: Sequence[Network]) -> None:
        self._app = app
        self._trusted = trusted

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        said = {name: str(environ.pop(name, "")) for name in _OF_PROXIES}
        environ["REMOTE_ADDR"] = client_address(
            str(environ.get("REMOTE_ADDR", "")), said[_FORWARDED], self._trusted
        )
        return self._app(environ, start_response)


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Return the client's address, by the connection's other end and X-Forwarded-For.

    An entry that is no address, as "unknown", leaves the address of the proxy that says it.
    """
    found = _address(peer)
    if found is None:
        return peer
    entries = forwarded.split(",")
    while entries and _is_in(found, trusted):
        before = _address(entries.pop())
        if before is None:
            break
        found = before
    return str(found)


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> Address | None:
    """Return an address, as proxies write it: some with a port; None if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)  # of a socket for both kinds
    return mapped or found
