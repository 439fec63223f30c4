"""`scripts/cluster`: a SeaweedFS cluster on this machine, until SIGINT or SIGTERM.

Three masters, three volume servers with each object on two of them, two filers on
PostgreSQL with an S3 gateway each, and HAProxy before these. Everything is in DIR and
listens on 127.0.0.1. What is stored stays there for the next start. When all works, the
S3 endpoint, its credentials and the settings of `dserverfs serve` are printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.local_files import call_libc
from dserverfs.base.locks import locked_within
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.die_with_parent import PR_SET_PDEATHSIG
from dserverfs.server.store.seaweedfs import PROBE_TIMEOUT_S, find_weed
from dserverfs.server.store.signals import Signals, Stopped
from dserverfs.server.store.signing import require_bucket_name
from storecluster import parts, settings
from storecluster.database import Database
from storecluster.parts import Part, Ports
from storecluster.running import Running

START_DEADLINE_S = 180.0
# In the order in which they end, with the time that they have: a filer waits for its
# connections, and what was acknowledged is with the volume servers.
STOP = ((("haproxy", *parts.FILERS), 1.0), ((*parts.VOLUMES, *parts.MASTERS), 3.0))
STOP_DATABASE_S = 10.0
GIVE_UP = 3  # ends of one part while the others are waited for
POLL_S = 0.1
_PROBE = "dserverfs-probe"


class Cluster:
    """The cluster in one directory."""

    def __init__(self, directory: Path, restart_after_s: float) -> None:
        self._directory = directory
        self._restart_after_s = restart_after_s
        self._running: dict[str, Running] = {}

    @contextmanager
    def running(self, buckets: Sequence[str], signals: Signals) -> Iterator[Ports]:
        """Give the ports when all parts work and the buckets are there; raises DserverfsError."""
        ports = parts.load_ports(self._directory / "ports.json")
        database = Database(self._directory, ports)
        database.prepare()
        weed = find_weed()
        settings.write_all(self._directory, ports, database.password, weed)
        with ExitStack() as stack:
            stack.callback(self._stop)
            self._start(database.part())
            for part in parts.weed_parts(weed, self._directory, ports):
                if part.name == parts.FILERS[0]:  # they end without their database
                    self._wait(database.answers, "PostgreSQL", signals)
                    database.create_database()
                self._start(part)
            self._start(_haproxy(self._directory, ports))
            for bucket in buckets:
                for endpoint in (*parts.gateway_endpoints(ports), parts.s3_endpoint(ports)):
                    self._wait(_taking(self._directory, endpoint, bucket, ports), endpoint, signals)
            yield ports

    def tend(self) -> None:
        """Start again what has ended, when it is time."""
        for part in self._running.values():
            if what := part.tend():
                print(f"cluster: {what}", file=sys.stderr, flush=True)

    def _start(self, part: Part) -> None:
        running = Running(part, self._directory, self._restart_after_s)
        self._running[part.name] = running
        running.start()

    def _wait(self, is_ready: Callable[[], bool], what: str, signals: Signals) -> None:
        deadline_s = time.monotonic() + START_DEADLINE_S
        while not is_ready():
            if time.monotonic() > deadline_s:
                raise DserverfsError(
                    f"{what} does not answer after {START_DEADLINE_S:.0f} s;"
                    f" logs are {self._directory}/*/log"
                )
            signals.wait(POLL_S)
            self.tend()
            ending = [part.name for part in self._running.values() if part.ends >= GIVE_UP]
            if ending:
                raise DserverfsError(
                    f"{ending[0]} ends again and again; see {self._directory}/{ending[0]}/log"
                )

    def _stop(self) -> None:
        for names, time_s in (*STOP, (("postgresql",), STOP_DATABASE_S)):
            ending = [self._running[name] for name in names if name in self._running]
            for part in ending:
                part.begin_to_stop()
            deadline_s = time.monotonic() + time_s
            for part in ending:
                part.stop(deadline_s)


def _haproxy(directory: Path, ports: Ports) -> Part:
    path = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        raise UsageError("the program haproxy is not installed; run: apt-get install haproxy")
    config = directory / "config" / "haproxy.cfg"
    return Part("haproxy", [path, "-db", "-f", config], ports["haproxy"])


def _taking(directory: Path, endpoint: str, bucket: str, ports: Ports) -> Callable[[], bool]:
    """Return what says whether an S3 address has the bucket and takes objects."""
    storage = replace(settings.storage(directory, ports, bucket), endpoint=endpoint)
    store = ObjectStore(storage, attempts=1, timeout_s=PROBE_TIMEOUT_S)

    def takes_objects() -> bool:
        try:
            store.ensure_bucket(bucket)
            store.write(bucket, _PROBE, b"probe")
            store.delete(bucket, [_PROBE])
        except DserverfsError:
            return False
        return True

    return takes_objects


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    os.umask(0o077)
    try:
        with Signals() as signals, ExitStack() as stack:
            _end_with(arguments.parent)
            directory = _prepared(arguments.directory, stack)
            cluster = Cluster(directory, arguments.restart_after)
            ports = stack.enter_context(cluster.running(arguments.bucket, signals))
            _print(directory, ports, arguments.bucket)
            while True:
                signals.wait(POLL_S)
                cluster.tend()
    except Stopped:
        return 0
    except DserverfsError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _prepared(directory: Path, stack: ExitStack) -> Path:
    """Return the absolute path of a directory that is ours alone from now on."""
    directory = directory.absolute()
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        stack.enter_context(locked_within(directory / "lock", 0.0))
        strangers = {entry.name for entry in directory.iterdir()} - {"lock"}
    except BlockingIOError as error:
        raise UsageError(
            f"{directory} has a cluster that runs; end that scripts/cluster"
        ) from error
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from error
    if strangers and "ports.json" not in strangers:
        raise UsageError(
            f"{directory} is not empty and has no cluster ({min(strangers)} is in it);"
            " give an empty or a new directory"
        )
    return directory


def _end_with(parent: int | None) -> None:
    """Have the kernel send SIGTERM when the process that started us ends; raises Stopped."""
    if parent is None:
        return
    call_libc("prctl", PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0, path="prctl")
    if os.getppid() != parent:
        raise Stopped


def _print(directory: Path, ports: Ports, buckets: Sequence[str]) -> None:
    storage = settings.storage(directory, ports, buckets[0])
    print(f"S3 endpoint: {storage.endpoint}")
    print(f"access key: {storage.access_key}")
    print(f"secret key: {storage.secret_key}")
    for bucket in buckets:
        of_bucket = settings.storage(directory, ports, bucket)
        file = settings.write_serve_settings(directory, of_bucket)
        print(f"settings of dserverfs serve --bucket {bucket}, also in {file}:")
        print("".join(f"    {line}\n" for line in file.read_text().splitlines()), end="")
    print(f"administrator's shell: {directory}/weed-shell")
    print("ready: kill any part by the pid in its directory, and see", flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="for everything")
    parser.add_argument(
        "--bucket", action="append", metavar="NAME", help="to be made (default: datasets)"
    )
    parser.add_argument(
        "--restart-after",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="a part that ends is started again so much later (default: %(default)s)",
    )
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.bucket = arguments.bucket or ["datasets"]
    try:
        for bucket in arguments.bucket:
            require_bucket_name(bucket, is_foreign=False)
    except UsageError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
