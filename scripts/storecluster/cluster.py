"""The parts of a cluster that run on one host, in the order in which they need each other."""

from __future__ import annotations

import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.seaweedfs import PROBE_TIMEOUT_S, find_weed
from dserverfs.server.store.signals import Signals
from storecluster import parts, settings
from storecluster.database import Database
from storecluster.layout import FILERS, HERE, MASTERS, OF_HOSTS, VOLUMES, Layout
from storecluster.running import Part, Running
from storecluster.web import ServerFiles

START_DEADLINE_S = 180.0
OTHERS_S = 30.0  # for which a server's host waits until all gateways work
# In the order in which they end, with the time that they have: a filer waits for its
# connections, and what was acknowledged is with the volume servers.
STOP = (
    (("haproxy", "haproxy1", "haproxy2", "haproxy3", *FILERS), 1.0),
    ((*VOLUMES, *MASTERS, "gunicorn"), 3.0),
    (("postgresql",), 10.0),
)
GIVE_UP = 3  # ends of one part while the others are waited for
POLL_S = 0.1
_PROBE = "dserverfs-probe"


class Cluster:
    """The cluster in one directory, or what of it is on one of several hosts."""

    def __init__(
        self, directory: Path, layout: Layout, restart_after_s: float, host: str | None = None
    ) -> None:
        self._directory = directory
        self._layout = layout
        self._restart_after_s = restart_after_s
        self._names: Collection[str] | None = None if host is None else OF_HOSTS[host]
        self._running: dict[str, Running] = {}

    def prepare(self) -> None:
        """Make all files; only while no part runs anywhere."""
        database = Database(self._directory, self._layout)
        database.prepare()
        settings.write_all(self._directory, self._layout, database.password, find_weed())

    @contextmanager
    def running(self, buckets: Sequence[str], signals: Signals) -> Iterator[None]:
        """Run the parts until the end of the block, which begins when they work.

        Raises DserverfsError.
        """
        database = Database(self._directory, self._layout)
        programs = parts.weed_parts(find_weed(), self._directory, self._layout)
        with ExitStack() as stack:
            stack.callback(self._stop)
            self._start(database.part())
            for part in programs[: -len(FILERS)]:
                self._start(part)
            if self._has("postgresql"):
                self._wait(database.answers, "PostgreSQL", signals)
                database.create_databases()
            for part in programs[-len(FILERS) :]:  # they end without their database
                if self._has(part.name):
                    self._wait(database.has_database, "PostgreSQL", signals)
                    self._start(part)
            for name in self._layout.proxies:
                self._start(_haproxy(self._directory, name))
            if self._names is None or self._has("gunicorn"):
                self._wait_for_buckets(buckets, signals)
            if self._layout.with_server and self._has("gunicorn"):
                self._start_gunicorn(buckets[0], database, signals)
                if self._names is not None:
                    self._wait_for_others(buckets, signals)
            yield

    def tend(self) -> None:
        """Start again what has ended, when it is time."""
        for part in self._running.values():
            if what := part.tend():
                print(f"cluster: {what}", flush=True)

    def _has(self, name: str) -> bool:
        return self._names is None or name in self._names

    def _start(self, part: Part) -> None:
        if not self._has(part.name):
            return
        running = Running(part, self._directory, self._restart_after_s)
        self._running[part.name] = running
        running.start()

    def _start_gunicorn(self, bucket: str, database: Database, signals: Signals) -> None:
        of_bucket = settings.of_bucket(settings.storage(self._directory, self._layout, bucket))
        of_server = {"DSERVER_DATABASE": database.server_address, **of_bucket}
        files = ServerFiles(self._directory)
        self._start(files.gunicorn(self._layout, bucket, of_server))
        port = self._layout.ports["gunicorn"]["port"]
        self._wait(lambda: _answers(f"http://{HERE}:{port}/health"), "gunicorn", signals)

    def _wait_for_buckets(self, buckets: Sequence[str], signals: Signals) -> None:
        """Return when S3 takes objects: on one machine by each of its addresses."""
        others = self._layout.gateway_endpoints if self._names is None else []
        for bucket in buckets:
            for endpoint in (*others, self._layout.s3_endpoint):
                self._wait(self._taking(endpoint, bucket), endpoint, signals)

    def _wait_for_others(self, buckets: Sequence[str], signals: Signals) -> None:
        """Wait a while until all gateways work, of which the server needs one."""
        deadline_s = time.monotonic() + OTHERS_S
        for endpoint in self._layout.gateway_endpoints:
            takes_objects = self._taking(endpoint, buckets[0])
            while time.monotonic() < deadline_s and not takes_objects():
                signals.wait(POLL_S)
                self.tend()

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

    def _taking(self, endpoint: str, bucket: str) -> Callable[[], bool]:
        """Return what says whether an S3 address has the bucket and takes objects."""
        of_bucket = settings.storage(self._directory, self._layout, bucket)
        store = ObjectStore(
            replace(of_bucket, endpoint=endpoint), attempts=1, timeout_s=PROBE_TIMEOUT_S
        )

        def takes_objects() -> bool:
            try:
                store.ensure_bucket(bucket)
                store.write(bucket, _PROBE, b"probe")
                store.delete(bucket, [_PROBE])
            except DserverfsError:
                return False
            return True

        return takes_objects

    def _stop(self) -> None:
        for names, time_s in STOP:
            ending = [self._running[name] for name in names if name in self._running]
            for part in ending:
                part.begin_to_stop()
            deadline_s = time.monotonic() + time_s
            for part in ending:
                part.stop(deadline_s)


def _haproxy(directory: Path, name: str) -> Part:
    path = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        raise UsageError("the program haproxy is not installed; run: apt-get install haproxy")
    return Part(name, [path, "-db", "-f", directory / "config" / f"{name}.cfg"])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S):
            return True
    except (OSError, urllib.error.URLError):
        return False
