"""Where the server and its store listen, what clients reach them by, and what is refused.

A password, a token or a signed URL that crosses a network in plain http is anybody's. So
beyond loopback there is TLS here, or a proxy before that has it (an https URL says so), or the
operator takes it upon himself (`--insecure`). What clients reach the server by is told here
alone: the Host of a request is whatever its sender likes.

Looks names up, and reads nothing else.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from dserverfs.base.errors import UsageError
from dserverfs.base.loopback import is_loopback
from dserverfs.server.store.gateway import Door, TlsFiles

STORE_PORT = 8333  # beyond loopback; SeaweedFS's own default
_WILDCARDS = ("0.0.0.0", "::")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Addresses:
    """As the options of `dserverfs serve` say it; None is what was not said."""

    host: str = "127.0.0.1"
    port: int = 5000  # 0: any free one
    public_url: str | None = None
    store_host: str | None = None
    store_port: int | None = None
    store_url: str | None = None
    tls: TlsFiles | None = None
    is_insecure: bool = False

    def check(self) -> None:
        """Raise UsageError for what cannot be, or is unprotected."""
        for name, port, least in (("--port", self.port, 0), ("--store-port", self.store_port, 1)):
            if port is not None and not least <= port <= 65535:
                raise UsageError(f"{name} {port}: not between {least} and 65535")
        _checked_url("--public-url", self.public_url, may_have_path=True)
        # The path is signed: a prefix that a proxy takes away would spoil every signature.
        _checked_url("--store-url", self.store_url, may_have_path=False)
        for name, host, url_name, url in (
            ("--host", self.host, "--public-url", self.public_url),
            ("--store-host", self.store_host, "--store-url", self.store_url),
        ):
            self._check_listening(name, host, url_name, url)
            self._check_way(url_name, url)

    def _check_listening(self, name: str, host: str | None, url_name: str, url: str | None) -> None:
        """Raise UsageError for an address of ours that is open to a network and unprotected."""
        if host is None:
            return
        address = address_of(name, host)
        if address in _WILDCARDS and (url or self.public_url) is None:
            raise UsageError(
                f"{name} {host} is every address of this machine: say by which one clients reach"
                f" it, {url_name} https://NAME[:PORT]"
            )
        is_protected = self.tls is not None or (url or "").startswith("https:")
        if not is_loopback(address) and not is_protected and not self.is_insecure:
            raise UsageError(
                f"{name} {host}: passwords, tokens and data would cross the network unencrypted;"
                f" give --tls-cert and --tls-key, or {url_name} https://NAME of a proxy that has"
                " TLS, or say --insecure"
            )

    def _check_way(self, name: str, url: str | None) -> None:
        """Raise UsageError for a URL by which clients would send all of it unencrypted."""
        if url is None or self.is_insecure:
            return
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise UsageError(
                f"{name} {url}: passwords, tokens and data would cross the network unencrypted;"
                " make it https://..., or say --insecure"
            )

    def needs_proxy(self) -> bool:
        """Return whether it listens beyond loopback and only a proxy before it has TLS."""
        is_open = not is_loopback(address_of("--host", self.host))
        return is_open and self.tls is None and not self.is_insecure

    def url(self, port: int) -> str:
        """Return what clients reach the server by, which listens on that port."""
        return normal_url(self.public_url or _url(self._scheme, self.host, port))

    def door(self) -> Door | None:
        """Return where others reach the embedded store; None if it is on loopback without TLS."""
        if self.store_host is None:
            return None
        address = address_of("--store-host", self.store_host)
        if is_loopback(address) and self.tls is None:
            return None
        port = STORE_PORT if self.store_port is None else self.store_port
        return Door(address, port, self.tls)

    def store_endpoint(self) -> str:
        """Return what signed URLs name; empty for the store's own address on loopback."""
        door = self.door()
        if self.store_url is not None:
            return normal_url(self.store_url)
        if door is None or self.store_host is None:
            return ""
        host = self.store_host
        if door.address in _WILDCARDS:
            host = urlsplit(self.public_url or "").hostname or ""
        return normal_url(_url(self._scheme, host, door.port))

    @property
    def _scheme(self) -> str:
        return "http" if self.tls is None else "https"


def tls_files(certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """Return the two files; raises UsageError for one of them alone."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given, lacking = ("--tls-cert", "--tls-key")[:: 1 if key is None else -1]
        raise UsageError(f"{given} needs {lacking}")
    return TlsFiles(certificate.absolute(), key.absolute())


def address_of(name: str, host: str) -> str:
    """Return the first address of a host, as numbers; raises UsageError, which says `name`."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no host's name"
        raise UsageError(f"{name} {host}: {reason}") from error
    return str(found[0][4][0])


def is_local(url: str) -> bool:
    """Return whether only this machine can follow a URL."""
    return is_loopback(urlsplit(url).hostname or "")


def normal_url(url: str) -> str:
    """Return a URL without the port that its scheme has by itself, and without a last slash."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port if parts.port != _DEFAULT_PORTS[parts.scheme] else None
    return _url(parts.scheme, host, port) + parts.path.rstrip("/")


def _url(scheme: str, host: str, port: int | None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return f"{scheme}://{bracketed}" if port is None else f"{scheme}://{bracketed}:{port}"


def public_url(name: str, url: str) -> str:
    """Return what clients reach a server by, in its normal form; raises UsageError, with `name`."""
    _checked_url(name, url, may_have_path=True)
    return normal_url(url)


def _checked_url(name: str, url: str | None, *, may_have_path: bool) -> None:
    if url is None:
        return
    parts = _parts(url)
    if parts is None:
        raise UsageError(f"{name} {url}: must be http://NAME[:PORT] or https://NAME[:PORT]")
    if parts.path.strip("/") and not may_have_path:
        raise UsageError(f"{name} {url}: must have no path: signatures are for the store's own")
    host = (parts.hostname or "").strip("[]")
    if host in _WILDCARDS:
        raise UsageError(f"{name} {url}: {host} is every address of a machine, and no name of one")


def _parts(url: str) -> SplitResult | None:
    """Return the parts of a URL of a server; None if it is none."""
    is_text = url.isascii() and url.isprintable() and " " not in url
    try:
        parts = urlsplit(url)
        is_server = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    is_plain = not (parts.query or parts.fragment or parts.username or "@" in parts.netloc)
    return parts if is_text and is_server and is_plain else None


def network_of(name: str, text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the addresses that a text names, one or a network; raises UsageError."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(f"{name} {text}: no address or network such as 10.0.0.0/24") from error
