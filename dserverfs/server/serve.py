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

from dserverfs.base.errors import DserverfsError, Unsupported, UsageError
from dserverfs.base.printable import PrintableFormatter
from dserverfs.server.store import foreign, signing
from dserverfs.server.store.datadir import DataDirectory
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.signals import Signals, Stopped

_LOOPBACK = ("127.", "::1")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    data: Path
    host: str
    port: int  # 0: any free one
    bucket: str

    @classmethod
    def from_arguments(cls, *, data: str | None, host: str, port: int, bucket: str) -> ServeOptions:
        """Check what was given on the command line; raises UsageError."""
        if not 0 <= port <= 65535:
            raise UsageError(f"--port {port}: not between 0 and 65535")
        signing.require_bucket_name(bucket, is_foreign=foreign.find_storage(bucket) is not None)
        return cls(data_directory(data), host, port, bucket)


def data_directory(given: str | None) -> Path:
    """Return the directory of `--data`, or the default."""
    return default_data_directory() if given is None else Path(given).absolute()


def default_data_directory() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    base = Path(home) if home and os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "dserverfs" / "server"


def serve(options: ServeOptions) -> int:
    """Run the server until SIGINT or SIGTERM; return 0 then. Raises DserverfsError."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
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
                bucket = _own_bucket([f"s3://{options.bucket}", *directory.known_base_uris()])
                if bucket is not None:
                    seaweedfs = SeaweedFS(directory.store, bucket=bucket)
                    stack.enter_context(seaweedfs.running(signals))
                _run(options, directory, seaweedfs, listener, signals)
        except Stopped:
            _log.info("stopped")
    return 0


def _own_bucket(base_uris: Sequence[str]) -> str | None:
    """Return the first bucket that the embedded store has, None if all are elsewhere."""
    for base_uri in base_uris:
        try:
            bucket = signing.bucket_of(base_uri)
        except Unsupported:
            continue
        if foreign.find_storage(bucket) is None:
            return bucket
    return None


def _run(
    options: ServeOptions,
    directory: DataDirectory,
    seaweedfs: SeaweedFS | None,
    listener: socket.socket,
    signals: Signals,
) -> None:
    # Imported here, for it takes 0.6 s, in which the store starts.
    from dserverfs.server.store.stores import Stores
    from dserverfs.server.web import WebServer, create_app

    stores = Stores(
        None if seaweedfs is None else seaweedfs.wait_ready(signals), foreign.find_storage
    )
    base_uri = f"s3://{options.bucket}"
    stores.ensure_bucket(base_uri)
    web = WebServer(create_app(directory, stores, base_uri), listener, signals)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if seaweedfs is not None and not host.startswith(_LOOPBACK):
        _log.warning(
            "listening on %s, but signed URLs are for 127.0.0.1: other machines see "
            "the datasets and cannot read them",
            address,
        )
    signals.wait(0)  # whoever has said stop by now is not told that it runs
    with web.running():
        print(f"dserver URL: http://{address}")
        print(f"base URI: dserver://{address}/s3/{options.bucket}")
        print(f"token file: {directory.token_file}", flush=True)
        while True:
            signals.wait()
            if seaweedfs is not None and seaweedfs.ended() is not None:
                raise seaweedfs.failure()
            if web.fault is not None:
                raise DserverfsError(f"the web server ended: {web.fault}") from web.fault


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that holds the address, though nobody is answered before the loop runs."""
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
