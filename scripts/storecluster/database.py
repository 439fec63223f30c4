"""PostgreSQL for the filers: a directory of its own, one user, one database.

    postgresql/data       made by initdb, as data.new first, so whole or not at all
    postgresql/password   of the one user

An institute has a PostgreSQL already, with a standby: then this is `CREATE USER` and
`CREATE DATABASE` there. PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

from dserverfs.base import child_processes
from dserverfs.base.durable_files import write_durably
from dserverfs.base.errors import DserverfsError, UsageError
from storecluster.parts import HOST, Part, Ports

USER = "seaweedfs"
DATABASE = "seaweedfs"
_DEBIAN = Path("/usr/lib/postgresql")  # has bin directories by version, which are not on PATH
_TIMEOUT_S = 120.0


class Database:
    """The PostgreSQL of one cluster."""

    def __init__(self, directory: Path, ports: Ports) -> None:
        self._directory = directory / "postgresql"
        self._ports = ports["postgresql"]
        self._data = self._directory / "data"

    def prepare(self) -> None:
        """Make the directory and the password unless they are there; raises UsageError."""
        if os.geteuid() == 0:
            raise UsageError("PostgreSQL refuses to run as root; scripts/cluster changes the user")
        self._directory.mkdir(mode=0o700, exist_ok=True)
        file = self._directory / "password"
        if not file.exists():
            write_durably(file, secrets.token_urlsafe(24).encode())
        if self._data.exists():
            return
        new = self._directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)  # of a first start that was killed
        _run(
            _program("initdb"),
            *("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={file}"),
            *("--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", f"--pgdata={new}"),
        )
        new.rename(self._data)

    @property
    def password(self) -> str:
        return (self._directory / "password").read_text()

    def part(self) -> Part:
        # No socket in the file system: everybody could try passwords at it as well.
        options = {"port": self._ports["port"], "listen_addresses": HOST}
        options |= {"unix_socket_directories": "", "max_connections": 100}
        settings = (f"--{name}={value}" for name, value in options.items())
        return Part("postgresql", [_program("postgres"), "-D", self._data, *settings], self._ports)

    def answers(self) -> bool:
        """Return whether it runs and takes connections."""
        command = [_program("pg_isready"), f"--host={HOST}", f"--port={self._ports['port']}"]
        done = subprocess.run([*command, "--quiet"], check=False, timeout=_TIMEOUT_S)
        return done.returncode == 0

    def create_database(self) -> None:
        """Make the database unless it is there."""
        connection = (f"--host={HOST}", f"--port={self._ports['port']}", f"--username={USER}")
        known = f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"
        psql = (_program("psql"), *connection, "--no-password", "--dbname=postgres", "-tA", "-c")
        if not _run(*psql, known, PGPASSWORD=self.password).strip():
            _run(*psql, f"CREATE DATABASE {DATABASE}", PGPASSWORD=self.password)


def _program(name: str) -> str:
    """Return the path of a program of PostgreSQL, the newest; raises UsageError without it."""
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise UsageError(f"the program {name} is not installed; run: apt-get install postgresql")
    return found


def _run(*command: str, **variables: str) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env=child_processes.environment(**variables),
    )
    if done.returncode != 0:
        said = " | ".join(done.stderr.split("\n")).strip(" |")
        raise DserverfsError(f"{command[0]} failed: {said}")
    return done.stdout
