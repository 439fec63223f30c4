"""A PostgreSQL of a test run: made when a test first asks, and gone with the run.

Debian's `postgresql` has the programs. The server refuses root: root's tests run it as
`nobody`, below a directory of its own in the run's root. It listens at a socket there, and at
a free port of 127.0.0.1 for what only TCP can show; nothing of it is synced.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.child_processes import SETPRIV, stop
from tests.support.leftovers import ROOT_VARIABLE
from tests.support.mount_daemons import wait_for
from tests.support.patience import LATE_S

SWITCH = "DSERVERFS_TEST_DATABASE"  # =postgresql: every server of the tests has one
VERSION_SWITCH = "DSERVERFS_TEST_POSTGRESQL"  # =DIR: initdb and postgres of another version
_PROGRAMS = Path("/usr/lib/postgresql")
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "wal_level=minimal")
_SETTINGS = (*_FAST, "max_wal_senders=0", "max_connections=300", "shared_buffers=64MB")
PASSWORD = "the password of the tests"


def is_wanted() -> bool:
    """Return whether all servers of this run are to have a PostgreSQL."""
    return os.environ.get(SWITCH) == "postgresql"


def programs() -> Path | None:
    """Return the directory of the PostgreSQL that is asked for, else of this machine's newest."""
    if VERSION_SWITCH in os.environ:
        return Path(os.environ[VERSION_SWITCH])
    found = [path for path in _PROGRAMS.glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: int(path.parent.name), default=None)


class Cluster:
    """A running PostgreSQL, with databases for whoever asks."""

    def __init__(self, directory: Path, bin_directory: Path) -> None:
        self.directory = directory
        self._bin = bin_directory
        self._data = directory / "data"
        self.port = _free_port()
        self._become: tuple[str, ...] = ()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            ids = (f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
            self._become = (SETPRIV, *ids)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def create(self) -> None:
        self.directory.mkdir(mode=0o755)
        if self._become:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
        made = subprocess.run(
            [
                *self._become,
                *(str(self._bin / "initdb"), "-D", str(self._data), "-U", "dserverfs"),
                *("--encoding=UTF8", "--locale=C.UTF-8", "--auth-local=trust"),
                *("--auth-host=scram-sha-256", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert made.returncode == 0, made.stderr

    @property
    def is_made(self) -> bool:
        return self._data.exists()

    def start(self, *others: str) -> None:
        """Start the server; `others` are settings beside, or in place of, those of tests."""
        settings = [word for each in (*_SETTINGS, *others) for word in ("-c", each)]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*self._become, SETPRIV, "--pdeathsig", "KILL", "--"),
                    *(str(self._bin / "postgres"), "-D", str(self._data)),
                    *("-p", str(self.port), "-k", str(self.directory)),
                    *("-h", "127.0.0.1", *settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        wait_for(self._answers, "PostgreSQL to answer")

    def stop(self, timeout_s: float = LATE_S) -> None:
        """End the server and all its connections, as `pg_ctl stop --mode fast` does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
            stop(self._process)
            self._process = None

    def new_database(self, **options: str) -> str:
        """Make an empty database; return its address."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        words = " ".join(f"{key} {value}" for key, value in options.items())
        self.execute(f"CREATE DATABASE {name} {words}")
        return self.address_of(name)

    def address_of(self, name: str, **parameters: str) -> str:
        found = "&".join(f"{key}={value}" for key, value in parameters.items())
        socket_of = f"host={self.directory}&port={self.port}"
        return f"postgresql://dserverfs@/{name}?{socket_of}" + (f"&{found}" if found else "")

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        with psycopg.connect(self.address_of(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def end_connections(self, address: str) -> int:
        """End all connections to a database; return how many there were."""
        name = name_of(address)
        ended = self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        )
        return len(ended)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def name_of(address: str) -> str:
    match = re.search(r"/(test_\w+|postgres)(\?|$)", address)
    assert match is not None
    return match[1]


@contextlib.contextmanager
def running(root: Path) -> Iterator[Cluster]:
    """Run a PostgreSQL below a directory; skips the test if the machine has none."""
    bin_directory = programs()
    if bin_directory is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    cluster = Cluster(root / f"postgresql-{uuid.uuid4().hex[:8]}", bin_directory)
    cluster.create()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class SharedCluster:
    """The one PostgreSQL of this process of a run, started when it is first asked for."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._cluster: Cluster | None = None

    def get(self) -> Cluster:
        if self._cluster is None:
            root = Path(os.environ[ROOT_VARIABLE])
            self._cluster = self._stack.enter_context(running(root))
        return self._cluster

    def close(self) -> None:
        self._stack.close()
        self._cluster = None


shared = SharedCluster()


def address_for_new_server() -> str | None:
    """Return the address of a new database if this run is about PostgreSQL; else None."""
    return shared.get().new_database() if is_wanted() else None
