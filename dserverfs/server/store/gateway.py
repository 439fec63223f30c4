"""The store's door to other machines: `weed s3`, a second child beside the store.

    store/gateway.log, store/gateway.sock     as those of the store itself

The store itself stays on loopback, where this server talks to it without TLS. This program
listens on one address (on 127.0.0.1 as well, which it has no switch for) and passes on to the
store: S3 with TLS if there is a certificate, whose files it reads again by itself, and gRPC,
which answers nobody without a certificate that only this store's parts have.

Tried instead: `-s3.ip.bind` of the store itself. Then this server would have to reach the store
by the certificate of another name. A proxy of our own in Python takes the processor time of
each byte twice.

Main thread only: the child dies with the thread that starts it.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.errors import Unreachable
from dserverfs.server.store.seaweedfs import (
    POLL_S,
    PROBE_TIMEOUT_S,
    START_DEADLINE_S,
    SeaweedFS,
    grpc_sockets,
    require_free,
)
from dserverfs.server.store.signals import Signals
from dserverfs.server.store.weed_process import StoreEnded, WeedProcess

# How often its certificate's files are looked at; 5 hours by default.
REFRESH_INTERVAL = "WEED_TLS_CERT_REFRESH_INTERVAL"
REFRESH_S = 2
_OPTIONS = (
    "-port.iceberg=0",
    "-port.lance=0",
    "-allowDeleteBucketNotEmpty=false",  # as the store itself has them: see seaweedfs
    "-iam=false",
    "-localSocket=../gateway.sock",
    "-config=../s3.json",
)


class TlsFiles(NamedTuple):
    """PEM files of the operator's, read again when they change."""

    certificate: Path
    key: Path


class Door(NamedTuple):
    """Where other machines reach the store."""

    address: str  # of this machine, as numbers; may be all of them
    port: int
    tls: TlsFiles | None


class Gateway:
    """`weed s3` for one store."""

    def __init__(self, directory: Path, door: Door) -> None:
        """`directory` is the store's."""
        self._directory = directory
        self._door = door
        self._process = WeedProcess(directory / "gateway.log", directory / "config")

    @contextmanager
    def running(self, store: SeaweedFS, signals: Signals) -> Iterator[None]:
        """Run it until the end of the block, before a store that is ready.

        Raises UsageError for a port that is taken, StoreEnded, Unreachable, and Stopped on a
        signal.
        """
        address, port, tls = self._door
        require_free(address, port)
        grpc_port = _free_port()
        try:
            self._process.start(
                store.weed,
                [
                    *("s3", f"-filer={store.filer()}", *_OPTIONS),
                    *(f"-ip.bind={address}", f"-port={port}", f"-port.grpc={grpc_port}"),
                    *([f"-cert.file={tls.certificate}", f"-key.file={tls.key}"] if tls else []),
                ],
                lock=store.lock,
                settings={REFRESH_INTERVAL: f"{REFRESH_S}s"},
            )
            self._wait_ready(signals)
            yield
        finally:
            self._process.stop()
            for path in grpc_sockets({"s3.port.grpc": grpc_port}):
                path.unlink(missing_ok=True)
            (self._directory / "gateway.sock").unlink(missing_ok=True)

    def ended(self) -> int | None:
        """Return the exit status of `weed`, or None while it runs."""
        return self._process.ended()

    def failure(self) -> StoreEnded:
        """Return what to raise when `weed` ended by itself."""
        return self._process.failure()

    def _wait_ready(self, signals: Signals) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            if self.ended() is not None:
                raise self.failure()
            if time.monotonic() > deadline:
                raise Unreachable(f"weed s3 does not answer after {START_DEADLINE_S:.0f} s")
            signals.wait(POLL_S)

    def _answers(self) -> bool:
        """Return whether it answers; its certificate is for another name, and not looked at."""
        address, port, tls = self._door
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        connection = http.client.HTTPConnection(host, port, PROBE_TIMEOUT_S)
        if tls is not None:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                host, port, timeout=PROBE_TIMEOUT_S, context=context
            )
        try:
            connection.request("GET", "/status")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("", 0))
        port: int = candidate.getsockname()[1]
        return port
