"""`dserverfs serve`: puts the embedded server together and runs it until told to stop.

The main thread starts the store, then only waits: for a signal, for the end of
the store, for a fault of the web server. It must not end before everything else
does, for the store dies with it.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.base import service_manager
from dserverfs.base.errors import DserverfsError, NotConnected, Unsupported, UsageError
from dserverfs.server import log_format
from dserverfs.server.addresses import Addresses, is_local, network_of
from dserverfs.server.certificates import Certificates
from dserverfs.server.database import connections
from dserverfs.server.database.connections import Address
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.proxies import ClientAddresses, ProxiesOnly
from dserverfs.server.store import signing
from dserverfs.server.store.gateway import Gateway
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.signals import Signals, Stopped

if TYPE_CHECKING:
    from dserverfs.server.web import Middleware

_LOOK_AGAIN_S = 1.0  # for a database that is away

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    data: Path
    bucket: str
    addresses: Addresses = field(default_factory=Addresses)
    trusted_proxies: Sequence[str] = ()  # addresses and networks

    def check(self, settings: ServerSettings) -> None:
        """Raise UsageError for what cannot be, or would be unprotected."""
        self.addresses.check()
        for text in self.trusted_proxies:
            network_of("--trusted-proxy", text)
        is_foreign = settings.storage(self.bucket) is not None
        signing.require_bucket_name(self.bucket, is_foreign=is_foreign)


def named_database(text: str) -> str:
    """Return the address of a database that an option names; refuse what `ps` should not show."""
    if connections.of_text(text, "--database").has_password:
        raise UsageError(
            "--database: has a password, which other users of this machine see; put the address"
            " into DSERVER_DATABASE in ~/.config/dtool/dtool.json, or the password into ~/.pgpass"
        )
    return text


def serve(options: ServeOptions, settings: ServerSettings) -> int:
    """Run the server until SIGINT or SIGTERM; return 0 then. Raises DserverfsError."""
    options.check(settings)
    log_format.configure()
    certificates = None
    if options.addresses.tls is not None:
        certificates = Certificates(options.addresses.tls)
        certificates.load()
    os.umask(0o077)
    directory = DataDirectory(options.data)
    with Signals() as signals:
        try:
            with ExitStack() as stack:
                listener = stack.enter_context(_listening(options.addresses))
                stack.enter_context(directory.locked())
                _wait_for_database(directory.address(settings), signals)
                server = _Server(options, settings, directory, signals, stack)
                server.run(listener, certificates)
        except Stopped:
            _log.info("stopped")
    return 0


class _Server:
    """The parts of one run, which end with `stack`."""

    def __init__(
        self,
        options: ServeOptions,
        settings: ServerSettings,
        directory: DataDirectory,
        signals: Signals,
        stack: ExitStack,
    ) -> None:
        self._options = options
        self._settings = settings
        self._directory = directory
        self._signals = signals
        self._stack = stack
        self._programs: list[SeaweedFS | Gateway] = []

    def run(self, listener: socket.socket, certificates: Certificates | None) -> None:
        """Answer requests until a signal, which raises Stopped, or a fault, which is raised."""
        store = self._begin_store()
        # Imported here, for it takes 0.6 s, in which the store starts.
        from dserverfs.server.store.stores import Stores
        from dserverfs.server.web import WebServer, create_app

        own = None if store is None else store.wait_ready(self._signals)
        if store is not None:
            self._open_door(store)
        stores = Stores(own, self._settings.storage)
        base_uri = f"s3://{self._options.bucket}"
        stores.ensure_bucket(base_uri)
        settings = self._settings.reached_by(self._options.addresses.url(listener.getsockname()[1]))
        web = WebServer(
            create_app(self._directory, stores, settings, base_uri),
            listener,
            self._signals,
            certificates=certificates,
            middlewares=self._middlewares(settings.public_url),
        )
        self._signals.wait(0)  # after a stop that came by now it is not announced
        with web.running():
            self._announce(settings, stores.of(base_uri).storage.signed_endpoint)
            try:
                while True:
                    self._signals.wait()
                    for program in self._programs:
                        if program.ended() is not None:
                            raise program.failure()
                    if web.fault is not None:
                        raise DserverfsError(f"the web server ended: {web.fault}") from web.fault
            finally:
                service_manager.stopping("stops the store")

    def _begin_store(self) -> SeaweedFS | None:
        """Start the embedded store, if a base URI needs it; it may not answer yet."""
        addresses = self._options.addresses
        known = self._directory.known_base_uris(self._settings)
        base_uris = [f"s3://{self._options.bucket}", *known]
        bucket = _own_bucket(base_uris, self._settings)
        if bucket is None:
            if (addresses.store_host, addresses.store_port, addresses.store_url) != (None,) * 3:
                _log.warning("--store-...: all buckets are on other S3 servers; there is no store")
            return None
        store = SeaweedFS(
            self._directory.store,
            bucket=bucket,
            public_endpoint=addresses.store_endpoint(),
            s3_port=addresses.store_port if addresses.door() is None else None,
        )
        self._stack.enter_context(store.running(self._signals))
        self._programs.append(store)
        return store

    def _open_door(self, store: SeaweedFS) -> None:
        """Let other machines reach the store, if they are to."""
        door = self._options.addresses.door()
        if door is not None:
            gateway = Gateway(self._directory.store, door)
            self._stack.enter_context(gateway.running(store, self._signals))
            self._programs.append(gateway)

    def _middlewares(self, public_url: str) -> list[Middleware]:
        """Return what knows the clients' addresses, and who is refused by them."""
        trusted = [network_of("--trusted-proxy", each) for each in self._options.trusted_proxies]
        wrapping: list[Middleware] = [lambda app: ClientAddresses(app, trusted)]
        if self._options.addresses.needs_proxy():
            if not trusted:
                _log.warning(
                    "listening on %s without TLS: only this machine is answered, until"
                    " --trusted-proxy ADDRESS names the proxy that has it",
                    self._options.addresses.host,
                )
            wrapping.append(lambda app: ProxiesOnly(app, trusted, public_url))
        return wrapping

    def _announce(self, settings: ServerSettings, store_url: str) -> None:
        """Say where the server is, and what other machines have to be told."""
        base_uri = f"dserver://{settings.server}/s3/{self._options.bucket}"
        print(f"dserver URL: {settings.public_url}")
        print(f"base URI: {base_uri}")
        print(f"token file: {self._directory.token_file}", flush=True)
        if not is_local(settings.public_url):
            print(f"signed URLs: {store_url}")
            print(f"on another machine: {mount_command(settings, base_uri)}", flush=True)
            if is_local(store_url):
                _log.warning(
                    "signed URLs name %s: other machines see the datasets and cannot read them;"
                    " give --store-host ADDRESS, or --store-url https://NAME of a proxy",
                    store_url,
                )
        service_manager.ready(f"serves {settings.public_url}")


def mount_command(settings: ServerSettings, base_uri: str) -> str:
    """Return the line by which a user of another machine mounts a base URI."""
    login = shlex.quote(settings.login_address)
    if settings.public_url.startswith("http:"):
        login = f"--insecure {login}"
    mounted = shlex.quote(base_uri)
    return f"dserverfs login {login} && mkdir -p ~/datasets && dserverfs mount {mounted} ~/datasets"


def _wait_for_database(address: Address, signals: Signals) -> None:
    """Return when the database answers; raises UsageError if it refuses, Stopped when told to."""
    is_logged = False
    while True:
        try:
            connections.check(address)
            return
        except NotConnected as error:
            if not is_logged:
                _log.warning("%s; waits for it", error)
                is_logged = True
        signals.wait(_LOOK_AGAIN_S)


def _own_bucket(base_uris: Sequence[str], settings: ServerSettings) -> str | None:
    """Return the first bucket that the embedded store has; None if all are elsewhere."""
    for base_uri in base_uris:
        try:
            bucket = signing.bucket_of(base_uri)
        except Unsupported:
            continue
        if settings.storage(bucket) is None:
            return bucket
    return None


@contextmanager
def _listening(addresses: Addresses) -> Iterator[socket.socket]:
    """Give a socket that holds the address; requests are answered once the loop runs."""
    host, port = addresses.host, addresses.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror}") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host} port {port}: {error.strerror}; "
                "give another --port (0 takes any free one)"
            ) from error
        yield listener
