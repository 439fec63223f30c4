"""`dserverfs serve`: puts the embedded server together and runs it until told to stop.

The main thread starts the store, then only waits: for a signal, for the end of
the store, for a fault of the web server. It must not end before everything else
does, for the store dies with it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dserverfs.base import service_manager
from dserverfs.base.errors import DserverfsError, NotConnected, Unsupported, UsageError
from dserverfs.server.database import connections
from dserverfs.server.database.connections import Address
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.log_format import ServerFormatter
from dserverfs.server.store import signing
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.signals import Signals, Stopped

_LOOPBACK = ("127.", "::1")
_LOOK_AGAIN_S = 1.0  # for a database that is away

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    data: Path
    host: str
    port: int  # 0: any free one
    bucket: str

    def check(self, settings: ServerSettings) -> None:
        """Raise UsageError for a port or a bucket that cannot be."""
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port {self.port}: not between 0 and 65535")
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
    handler = logging.StreamHandler()
    handler.setFormatter(ServerFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("dservercore", "alembic"):  # they tell at INFO how they were put together
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # "depth is 1" says nothing
    os.umask(0o077)
    directory = DataDirectory(options.data)
    with Signals() as signals:
        try:
            with ExitStack() as stack:
                listener = stack.enter_context(_listening(options.host, options.port))
                stack.enter_context(directory.locked())
                seaweedfs = None
                _wait_for_database(directory.address(settings), signals)
                base_uris = [f"s3://{options.bucket}", *directory.known_base_uris(settings)]
                bucket = _own_bucket(base_uris, settings)
                if bucket is not None:
                    seaweedfs = SeaweedFS(directory.store, bucket=bucket)
                    stack.enter_context(seaweedfs.running(signals))
                _run(options, settings, directory, seaweedfs, listener, signals)
        except Stopped:
            _log.info("stopped")
    return 0


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


def _run(
    options: ServeOptions,
    settings: ServerSettings,
    directory: DataDirectory,
    seaweedfs: SeaweedFS | None,
    listener: socket.socket,
    signals: Signals,
) -> None:
    # Imported here, for it takes 0.6 s, in which the store starts.
    from dserverfs.server.store.stores import Stores
    from dserverfs.server.web import WebServer, create_app

    own = None if seaweedfs is None else seaweedfs.wait_ready(signals)
    stores = Stores(own, settings.storage)
    base_uri = f"s3://{options.bucket}"
    stores.ensure_bucket(base_uri)
    web = WebServer(create_app(directory, stores, settings, base_uri), listener, signals)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if seaweedfs is not None and not host.startswith(_LOOPBACK):
        _log.warning(
            "listening on %s, but signed URLs are for 127.0.0.1: other machines see "
            "the datasets and cannot read them",
            address,
        )
    signals.wait(0)  # after a stop that came by now it is not announced
    with web.running():
        print(f"dserver URL: http://{address}")
        print(f"base URI: dserver://{address}/s3/{options.bucket}")
        print(f"token file: {directory.token_file}", flush=True)
        service_manager.ready(f"serves http://{address}")
        try:
            while True:
                signals.wait()
                if seaweedfs is not None and seaweedfs.ended() is not None:
                    raise seaweedfs.failure()
                if web.fault is not None:
                    raise DserverfsError(f"the web server ended: {web.fault}") from web.fault
        finally:
            service_manager.stopping("stops the store")


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that holds the address; requests are answered once the loop runs."""
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
