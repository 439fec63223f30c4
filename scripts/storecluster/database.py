"""PostgreSQL for the filers and the server: a directory of its own, a user and a database each.

    postgresql/data       made by initdb, as data.new first, so whole or not at all
    postgresql/password   of the filers' user
    postgresql/dserver    of the server's

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
from storecluster.layout import HERE, Layout
from storecluster.running import Part

USER = "seaweedfs"
DATABASE = "seaweedfs"
SERVER_DATABASE = "dserver"  # and its user
_DEBIAN = Path("/usr/lib/postgresql")  # has bin directories by version, which are not on PATH
_TIMEOUT_S = 120.0


class Database:
    """The PostgreSQL of one cluster."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self._directory = directory / "postgresql"
        self._layout = layout
        self._data = self._directory / "data"

    def prepare(self) -> None:
        """Make the directory and the passwords unless they are there; raises UsageError."""
        if os.geteuid() == 0:
            raise UsageError("PostgreSQL refuses to run as root; scripts/cluster changes the user")
        self._directory.mkdir(mode=0o700, exist_ok=True)
        file = self._directory / "password"
        for each in (file, self._directory / SERVER_DATABASE):
            if not each.exists():
                write_durably(each, secrets.token_urlsafe(24).encode())
        if not self._data.exists():
            self._make(file)
        places = [f"{address}/32" for address in (HERE, *self._layout.hosts.values())]
        rules = "".join(f"host all all {place} scram-sha-256\n" for place in places)
        write_durably(self._data / "pg_hba.conf", rules.encode())

    def _make(self, password_file: Path) -> None:
        new = self._directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)  # of a first start that was killed
        _run(
            _program("initdb"),
            *("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password_file}"),
            *("--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", f"--pgdata={new}"),
        )
        new.rename(self._data)

    @property
    def password(self) -> str:
        return (self._directory / "password").read_text()

    @property
    def server_address(self) -> str:
        """Return what DSERVER_DATABASE is."""
        password = (self._directory / SERVER_DATABASE).read_text()
        place = f"{HERE}:{self._port}/{SERVER_DATABASE}"
        return f"postgresql://{SERVER_DATABASE}:{password}@{place}"

    @property
    def _port(self) -> int:
        return self._layout.ports["postgresql"]["port"]

    def part(self) -> Part:
        # No socket in the file system: everybody could try passwords at it as well.
        listening = {HERE: None, self._layout.address("postgresql"): None}
        options: dict[str, str | int] = {
            "port": self._port,
            "listen_addresses": ",".join(listening),
        }
        options |= {"unix_socket_directories": "", "max_connections": 200}
        settings = (f"--{name}={value}" for name, value in options.items())
        return Part("postgresql", [_program("postgres"), "-D", self._data, *settings])

    def answers(self) -> bool:
        """Return whether it runs and takes connections."""
        place = (f"--host={self._layout.address('postgresql')}", f"--port={self._port}")
        command = [_program("pg_isready"), *place, "--quiet"]
        return subprocess.run(command, check=False, timeout=_TIMEOUT_S).returncode == 0

    def has_database(self) -> bool:
        """Return whether the filers' database is there; asked from any host."""
        try:
            self._ask("SELECT 1", DATABASE)
        except DserverfsError:
            return False
        return True

    def create_databases(self) -> None:
        """Make both databases, and the server's user, unless they are there."""
        role = f"SELECT 1 FROM pg_roles WHERE rolname = '{SERVER_DATABASE}'"
        if not self._ask(role):
            password = (self._directory / SERVER_DATABASE).read_text()  # has no quotes
            self._ask(f"CREATE ROLE {SERVER_DATABASE} LOGIN PASSWORD '{password}'")
        for name, owner in ((DATABASE, USER), (SERVER_DATABASE, SERVER_DATABASE)):
            if not self._ask(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
                self._ask(f"CREATE DATABASE {name} OWNER {owner}")

    def _ask(self, statement: str, database: str = "postgres") -> str:
        """Return the answer; the statement is on standard input, for `ps` shows arguments."""
        place = (f"--host={self._layout.address('postgresql')}", f"--port={self._port}")
        who = (f"--username={USER}", "--no-password", f"--dbname={database}")
        options = ("--no-psqlrc", "-tAq", "--set=ON_ERROR_STOP=1")
        variables = {"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "5"}
        return _run(_program("psql"), *place, *who, *options, text=statement, **variables).strip()


def _program(name: str) -> str:
    """Return the path of a program of PostgreSQL, the newest; raises UsageError without it."""
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise UsageError(f"the program {name} is not installed; run: apt-get install postgresql")
    return found


def _run(*command: str, text: str = "", **variables: str) -> str:
    done = subprocess.run(
        command,
        input=text,
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
